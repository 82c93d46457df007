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
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

# Control characters (C0, DEL, C1), unpaired surrogates, separators of lines and paragraphs, controls of direction,
# and invisible tags. Joiners stay: scripts and emoji need them.
_CONTROLS = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\U000e0000-\U000e007f\ud800-\udfff]"
)

# Messages of libraries on what neither a user nor we can change: where from, and how they begin.
LIBRARY_WARNINGS = {
    r"transformers\.": "`(is_)?gradient_checkpointing` is deprecated",  # TRL sets the one and reads the other
}
LIBRARY_RECORDS = {
    # tied to the embeddings, so that no checkpoint has it: transformers saves it once
    "transformers.trainer": r"There were missing keys in the checkpoint model loaded: \['lm_head\.weight'\]",
    # of the model's own generation_config.json, which greedy decoding does not use
    "transformers.generation.configuration_utils": "The following generation flags are not valid",
}


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


class TolerantStream:
    """A text stream on which a write that fails is dropped, and the first reason kept as `problem`.

    A log on a full disk or a pipe that nobody reads any more must not end a run, whoever writes to it.
    """

    def __init__(self, stream: Any):
        self._stream = stream  # None where the process has none
        self.problem: str | None = None if stream is not None else "there is none"

    def write(self, text: str) -> int:
        self._attempt(lambda: self._stream.write(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        self.write("".join(lines))

    def flush(self) -> None:
        self._attempt(lambda: self._stream.flush())

    def isatty(self) -> bool:
        return bool(self._attempt(lambda: self._stream.isatty()))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _attempt(self, action: Callable[[], Any]) -> Any:
        try:
            return None if self._stream is None else action()
        except (OSError, ValueError, RuntimeError) as problem:  # closed; written by a signal handler within a write
            self.problem = self.problem or getattr(problem, "strerror", None) or str(problem)
            return None


@contextmanager
def tolerant_output() -> Iterator[TolerantStream]:
    """Make standard output and stderr tolerant in the body; gives the former, to ask for its `problem`."""
    originals: Any = {"stdout": sys.stdout, "stderr": sys.stderr}
    streams = {name: TolerantStream(original) for name, original in originals.items()}
    for name, stream in streams.items():
        setattr(sys, name, stream)
    try:
        yield streams["stdout"]
    finally:
        for name, stream in streams.items():
            stream.flush()  # Python does so at its end, and exits with status 120 if it cannot
            setattr(sys, name, originals[name] if stream.problem is None else open(os.devnull, "w"))  # noqa: SIM115


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Leave out the messages above in the body, and progress bars where nobody watches them.

    With Python's -W or PYTHONWARNINGS everything is shown.
    """
    if sys.warnoptions:
        yield
        return
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers heeds it, too
    for name in LIBRARY_RECORDS:
        logging.getLogger(name).addFilter(_is_for_users)  # once, however often
    with warnings.catch_warnings():
        for module, message in LIBRARY_WARNINGS.items():
            warnings.filterwarnings("ignore", message, FutureWarning, module)
        yield


def _is_for_users(record: logging.LogRecord) -> bool:
    return not re.match(LIBRARY_RECORDS[record.name], record.getMessage())


class ArgumentParser(argparse.ArgumentParser):
    """argparse's, whose messages are `printable`: they repeat the command line."""

    def _print_message(self, message: str, file: Any = None) -> None:
        super()._print_message(printable(message, keep="\n\t"), file)


def show_traceback(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """Show an error that nobody caught; for `sys.excepthook`."""
    show("".join(traceback.format_exception(kind, error, trace)).rstrip(), error=True)


def show(text: Any = "", *, error: bool = False) -> None:
    """Print a text of one or several lines, on stderr if `error`: as `printable`, in the stream's encoding.

    A stream that cannot be written is no error here; `tolerant_output` says so at the end.
    """
    stream = TolerantStream(sys.stderr if error else sys.stdout)
    encoding = getattr(stream, "encoding", None) or "utf-8"
    line = printable(str(text), keep="\n\t").encode(encoding, "backslashreplace").decode(encoding)
    stream.write(f"{line}\n")
    stream.flush()
