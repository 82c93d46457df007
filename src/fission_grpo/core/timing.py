"""Time limits on function calls, and durations as text."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fission_grpo.core.terminal import get_logger, warn_once

_log = get_logger(__name__)


class ToolTimeout(BaseException):
    """Raised inside a tool at its time limit. Not an Exception, so that the tool's own handlers let it pass."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `ToolTimeout` in the body after `seconds`, and again every second until the body ends; 0: no limit.

    There is no limit outside the main thread and on platforms without SIGALRM; a warning is logged once.
    """
    if seconds <= 0 or not _can_interrupt():
        yield
        return

    def stop(*_: Any) -> None:
        raise ToolTimeout

    previous = signal.signal(signal.SIGALRM, stop)
    delay, interval = signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, delay, interval)
        signal.signal(signal.SIGALRM, previous)


def format_duration(seconds: float) -> str:
    """A duration as minutes and seconds, with hours if there are any. Example: 3725 is "1:02:05"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _can_interrupt() -> bool:
    if not hasattr(signal, "SIGALRM"):
        reason = "this platform has no SIGALRM"
    elif threading.current_thread() is not threading.main_thread():
        reason = "tools are called outside the main thread"
    else:
        return True
    warn_once(_log, f"tool calls have no time limit: {reason}")
    return False
