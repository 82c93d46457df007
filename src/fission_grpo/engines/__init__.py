"""Fission in training loops other than TRL's synchronous trainer."""
