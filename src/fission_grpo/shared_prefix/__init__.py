"""Shared prefixes: the prompt of a group computed once in the update, with the values and gradients of TRL's own."""
