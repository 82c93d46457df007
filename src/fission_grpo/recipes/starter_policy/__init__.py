"""Training of the shipped starter policy."""
