"""One HTML page about a training or evaluation run."""
