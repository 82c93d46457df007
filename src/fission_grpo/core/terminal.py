"""Text from outside (tools, endpoints, task ids, file names) made safe to show, and printed.

Escape sequences can rename a terminal's window, clear it or hide text; direction overrides show text in another order
than it is read in; a line end in a name looks like a line of ours.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
import traceback
from functools import lru_cache
from typing import Any

from fission_grpo.core.errors import RunDirectoryError

# Control characters (C0, DEL, C1), unpaired surrogates, separators of lines and paragraphs, controls of direction,
# and invisible tags. Joiners stay: scripts and emoji need them.
_CONTROLS = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\U000e0000-\U000e007f\ud800-\udfff]"
)


def printable(text: str, keep: str = "") -> str:
    r"""The text with control characters as escapes that can be read, but for those in `keep`.

    Example: `printable("a\x1b[2Jb\n")` is the text `a\x1b[2Jb\n` without a control character in it.
    """
    return _CONTROLS.sub(lambda match: match[0] if match[0] in keep else repr(match[0])[1:-1], text)


def get_logger(name: str) -> logging.Logger:
    """The logger of a module. Its records, tracebacks included, are `printable`."""
    logger = logging.getLogger(name)
    logger.addFilter(_clean_record)
    return logger


@lru_cache(maxsize=1024)
def warn_once(logger: logging.Logger, message: str) -> None:
    """Log a warning, unless the same one was logged before."""
    logger.warning("%s", message)


def _clean_record(record: logging.LogRecord) -> bool:
    record.msg, record.args = printable(record.getMessage(), keep="\n\t"), ()
    if record.exc_info:
        record.exc_text = printable(logging.Formatter().formatException(record.exc_info), keep="\n\t")
    return True


class ArgumentParser(argparse.ArgumentParser):
    """argparse's, whose messages are `printable`: they repeat the command line."""

    def _print_message(self, message: str, file: Any = None) -> None:
        super()._print_message(printable(message, keep="\n\t"), file)


def show_traceback(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """Show an error that nobody caught; for `sys.excepthook`."""
    show("".join(traceback.format_exception(kind, error, trace)).rstrip(), error=True)


def show(text: Any = "", *, error: bool = False) -> None:
    """Print a text of one or several lines, on stderr if `error`: as `printable`, in the stream's encoding.

    Raises RunDirectoryError if standard output cannot be written. If stderr cannot, nobody can be informed.
    """
    stream = sys.stderr if error else sys.stdout
    encoding = getattr(stream, "encoding", None) or "utf-8"
    line = printable(str(text), keep="\n\t").encode(encoding, "backslashreplace").decode(encoding)
    try:
        print(line, file=stream, flush=True)
    except OSError as problem:
        if error:
            return
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - Python would try again to write the rest at its end
        raise RunDirectoryError(f"standard output could not be written ({problem.strerror})") from problem
