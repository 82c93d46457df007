"""Templates of user requests, one module for each BFCL environment class."""
