"""Shared prefixes: the prompt of a group is computed once, with the values and gradients of TRL's own."""
