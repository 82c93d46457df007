"""Errors that users meet: each message names the file, the field and the fix."""

from __future__ import annotations


class RunFileError(ValueError):
    """A file of a run directory is missing or broken; the message says which, where, and how to mend it."""


class TaskFileError(ValueError):
    """A task file is missing or broken. The message says which file, row and field, and how to mend it."""


class RowError(Exception):
    """A mistake in one row, before file and row number are known."""

    def __init__(self, field: str, what: str):
        super().__init__(field, what)
        self.field, self.what = field, what


class InfrastructureError(Exception):
    """Raised by a tool or by `reset` when the world itself is broken (connection lost, service down).

    It is not the policy's failure: the rollout gets no reward (None), is counted, and is never fissioned.
    """


class UsageError(ValueError):
    """The command or its configuration is wrong; the message says what to mend."""


class UnsupportedVersionError(ImportError):
    """An installed package has a version that this library does not support. The message names the supported ones."""
