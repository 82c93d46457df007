"""Errors for users. Each message names the file and field, or the option, and how to correct it."""

from __future__ import annotations

MAX_MESSAGE = 2000  # characters of a message [ours], which may quote what a file or a model says


class InputError(ValueError):
    """What a user gives is invalid. A message that is too long loses its middle: the end says how to correct it."""

    def __init__(self, message: object):
        text = str(message)
        if len(text) > MAX_MESSAGE:
            text = f"{text[: MAX_MESSAGE // 2]} ... {text[-MAX_MESSAGE // 2 :]}"
        super().__init__(text)


class UsageError(InputError):
    """A command line or configuration is invalid."""


class TaskFileError(InputError):
    """A task file is missing or invalid."""


class RunFileError(InputError):
    """A file of a run directory is missing or invalid."""


class RunDirectoryError(OSError):
    """A file of a run could not be written (no space, no permission). Files saved before are complete."""


class CheckpointError(InputError):
    """A checkpoint is missing or damaged, or does not fit the run that resumes from it."""


class RowError(Exception):
    """A mistake in one row, before its file and row number are known: the `field`, and `what` is wrong with it."""

    def __init__(self, field: str, what: str):
        super().__init__(field, what)
        self.field, self.what = field, what


class InfrastructureError(Exception):
    """The environment itself is broken (connection lost, service down); raised by a tool or by `reset`.

    The rollout gets no reward (None), is counted, and is not used for recovery: it is not the policy's failure.
    """


class CallStopped(Exception):
    """A call of others' code did not end by itself."""


class ProcessDied(CallStopped):
    """A call of others' code ended the process in which it was made."""

    def __init__(self, name: str, environment: object):
        super().__init__(f"{name} ended the process of {type(environment).__name__}")


class TimeLimitExceeded(CallStopped):
    """A call of others' code was stopped at its time limit."""

    def __init__(self, name: str, seconds: float):
        super().__init__(f"{name} was stopped after {seconds:g} s")


class ToolTimeout(BaseException):
    """Raised inside a tool at its time limit. Not an Exception, so that the tool's own handlers let it pass."""


class ExitAttempt(Exception):
    """Others' code tried to end the process, by SystemExit or anything else that is no Exception."""

    def __init__(self, name: str, error: BaseException):
        kind, message = type(error).__name__, error_message(error)
        super().__init__(f"{name} tried to end the process ({kind if message == kind else f'{kind}: {message}'})")


def original(error: Exception) -> BaseException:
    """What others' code raised, where `error` stands for it because it would end the process."""
    return error.__cause__ if isinstance(error, ExitAttempt) and error.__cause__ else error


def error_message(error: BaseException) -> str:
    """The message of an exception; its class's name if it has none, as a policy cannot learn from an empty error."""
    try:
        text = str(error)
    except (KeyboardInterrupt, ToolTimeout):
        raise
    except BaseException:  # noqa: BLE001 - the user's class
        text = ""
    return text if text.strip() else type(error).__name__


class UnsupportedVersionError(ImportError):
    """An installed package has a version that this library does not support. The message names the supported ones."""
