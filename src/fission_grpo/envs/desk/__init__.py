"""Desk: a small office of files and a calendar, with generated tasks."""
