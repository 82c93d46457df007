"""The folder a run writes to: whether it can be written, and what is said when it suddenly cannot."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile


class RunDirectoryError(OSError):
    """Something of a run could not be written: no room, no permission. What was saved before is whole."""


def check_writable(folder: Path) -> None:
    """Make the folder if needed, and a file in it, before anything is computed.

    Raises:
        RunDirectoryError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise RunDirectoryError(
            f"output_dir {folder} cannot be written ({error.strerror}); mend that or give another"
        ) from error


@contextmanager
def writing(path: Path, *more: type[Exception]):
    """Around what writes `path`: an OSError, or one of `more`, becomes a RunDirectoryError that tells how to go on."""
    try:
        yield
    except (OSError, *more) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise RunDirectoryError(
            f"{path} could not be written ({reason}). The checkpoints saved before are whole: make room, then resume "
            "with resume_from_checkpoint=True (--resume_from_checkpoint true)"
        ) from error
