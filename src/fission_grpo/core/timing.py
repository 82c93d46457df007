"""Time limits on function calls, and durations as text."""

from __future__ import annotations

import functools
import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_log = logging.getLogger(__name__)


def clock(seconds: float) -> str:
    """Minutes and seconds, with hours where there are any. Example: `clock(3725)` is "1:02:05"."""
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class TimeUp(BaseException):
    """Raised by the timer inside a tool; no Exception, so that the tool's own handlers let it pass."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeUp in the body after so many seconds, and again every second until it lets go."""
    if seconds <= 0 or not _can_interrupt():
        yield
        return

    def stop(*_: Any) -> None:
        raise TimeUp

    before = signal.signal(signal.SIGALRM, stop)
    delay, interval = signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, delay, interval)
        signal.signal(signal.SIGALRM, before)


@functools.cache
def _warn_once(what: str) -> None:
    _log.warning("tool calls have no time limit: %s", what)


def _can_interrupt() -> bool:
    if not hasattr(signal, "SIGALRM"):
        _warn_once("this platform has no SIGALRM")
    elif threading.current_thread() is not threading.main_thread():
        _warn_once("tools are called outside the main thread")
    else:
        return True
    return False
