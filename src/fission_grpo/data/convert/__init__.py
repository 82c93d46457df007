"""Converters from other projects' tool-calling data to step tasks."""
