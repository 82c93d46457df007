"""Environments with tools: limits on their tools, restoring them to a failed turn, and two built-in ones."""
