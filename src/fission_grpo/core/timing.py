"""Limits on code of others, which may hang or try to end the process, and durations as text."""

from __future__ import annotations

import asyncio
import dis
import math
import signal
import threading
import time
from collections.abc import Awaitable
from functools import cache
from types import FrameType
from typing import Any, ClassVar

from fission_grpo.core.errors import ExitAttempt, TimeLimitExceeded
from fission_grpo.core.terminal import get_logger, warn_once

_log = get_logger(__name__)

REPEAT_SECONDS = 1.0  # between two attempts to stop code that catches or ignores the first one [ours]
CANCEL_ATTEMPTS = 3  # cancellations of an async call, after which it is left behind [ours]
WARN_SECONDS = 5.0  # beyond its limit, after which a call that cannot be stopped is logged [ours]


class ToolTimeout(BaseException):
    """Raised inside a tool at its time limit. Not an Exception, so that the tool's own handlers let it pass."""


class time_limit:
    """Raise `ToolTimeout` in the body after `seconds`, and again every second until the body ends; 0: no limit.

    Limits may be nested, and each holds from its own start. There is no limit outside the main thread and on platforms
    without SIGALRM; a warning is logged once.
    """

    _open: ClassVar[list[time_limit]] = []  # those whose body runs, the innermost last
    _others: ClassVar[Any] = None  # handler and timer before the outermost limit

    def __init__(self, seconds: float):
        self._seconds, self._end = seconds, math.inf

    def __enter__(self) -> time_limit:
        if self._seconds > 0 and _can_interrupt():
            if not self._open:
                time_limit._others = signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)
                signal.signal(signal.SIGALRM, _raise_timeout)
            self._end = time.monotonic() + self._seconds
            self._open.append(self)
            _set_alarm()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if self not in self._open:
            return
        self._open.remove(self)
        if self._open:
            _set_alarm()
            return
        handler, timer = self._others
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, handler or signal.SIG_DFL)


class contained(time_limit):
    """Keep a call of others' code, which is the body, from hanging and from ending the process.

    Raises TimeLimitExceeded after `seconds` (see `time_limit`), and ExitAttempt in place of SystemExit and whatever
    else is no Exception, but for Ctrl-C. If the body cannot be stopped, a warning with `advice` is logged.
    """

    def __init__(self, name: str, seconds: float, advice: str = ""):
        super().__init__(seconds)
        self._name, self._advice = name, advice

    def __enter__(self) -> contained:
        _report_late(id(self), self._name, self._seconds, self._advice)
        super().__enter__()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        super().__exit__(kind, error, trace)
        _started.pop(id(self), None)
        if isinstance(error, ToolTimeout) and time.monotonic() >= self._end:
            raise TimeLimitExceeded(self._name, self._seconds) from None
        if not isinstance(error, Exception | ToolTimeout | None) and not is_interrupt(error):
            raise ExitAttempt(self._name, error) from error


_BETWEEN_BODIES = {f.__code__ for cls in (time_limit, contained) for f in (cls.__enter__, cls.__exit__)}


def _raise_timeout(number: int, frame: FrameType | None) -> None:
    """The handler of SIGALRM. Where a limit begins or ends, it raises nothing: `_set_alarm` follows there."""
    now = time.monotonic()
    for _ in range(4):  # the methods of a limit call nothing deeper
        if frame is not None and frame.f_code in _BETWEEN_BODIES:
            return
        frame = frame.f_back if frame is not None else None
    if any(limit._end <= now for limit in time_limit._open):
        raise ToolTimeout


def _set_alarm() -> None:
    """Set the timer to the next end of a limit; where one has passed it rings at once, and then every second."""
    first = min(limit._end for limit in time_limit._open)
    signal.setitimer(signal.ITIMER_REAL, max(first - time.monotonic(), 1e-3), REPEAT_SECONDS)


async def contained_async(call: Awaitable[Any], name: str, seconds: float, advice: str = "") -> Any:
    """The result of a call of others' async code, kept from harm as by `contained`.

    At the limit it is cancelled, again every second, and left behind if it still goes on after `CANCEL_ATTEMPTS`.
    """
    task = asyncio.ensure_future(_outcome(call))
    _report_late(id(task), name, seconds, advice)
    try:
        in_time, _ = await asyncio.wait([task], timeout=seconds or None)
        for _ in range(CANCEL_ATTEMPTS):
            if not task.done():
                task.cancel()
                await asyncio.wait([task], timeout=REPEAT_SECONDS)
    except asyncio.CancelledError:  # of the caller
        task.cancel()
        raise
    finally:
        _started.pop(id(task), None)
    if not in_time:
        if not task.done():
            _log.warning("%s was cancelled %d times and goes on; it is left behind", name, CANCEL_ATTEMPTS)
        raise TimeLimitExceeded(name, seconds)
    value, error = (None, asyncio.CancelledError()) if task.cancelled() else task.result()
    if error is None:
        return value
    raise error if isinstance(error, Exception) else ExitAttempt(name, error)


async def _outcome(call: Awaitable[Any]) -> tuple[Any, BaseException | None]:
    """The call's result and what it raised: SystemExit in a task would end the event loop."""
    try:
        return await call, None
    except asyncio.CancelledError:
        raise
    except BaseException as error:  # noqa: BLE001 - raised by the caller
        return None, error


def is_interrupt(error: BaseException) -> bool:
    """Whether an exception is a KeyboardInterrupt from Ctrl-C, and not from a `raise` in others' code."""
    if not isinstance(error, KeyboardInterrupt) or threading.current_thread() is not threading.main_thread():
        return False
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return True
    handler: Any = signal.getsignal(signal.SIGINT)  # one in Python raises where Ctrl-C meets the program
    code = trace.tb_frame.f_code
    is_raised = dis.opname[code.co_code[trace.tb_lasti]] == "RAISE_VARARGS"
    return not is_raised or code is getattr(getattr(handler, "__func__", handler), "__code__", None)


_started: dict[int, tuple[float, str]] = {}  # calls under way: when to report them, and how


def _report_late(key: int, name: str, seconds: float, advice: str) -> None:
    """Have a call reported once it runs `WARN_SECONDS` beyond its limit; 0: never. Ended by removing its key."""
    if seconds > 0:
        text = (
            f"{name} still runs {WARN_SECONDS:g} s after its limit of {seconds:g} s, and cannot be stopped. {advice}"
        )
        _started[key] = time.monotonic() + seconds + WARN_SECONDS, text
        _start_reporter()


@cache
def _start_reporter() -> None:
    def report() -> None:
        while True:
            time.sleep(REPEAT_SECONDS)
            for key, (when, text) in list(_started.items()):
                if when <= time.monotonic() and _started.pop(key, None):
                    _log.warning("%s", text)

    threading.Thread(target=report, name="late calls", daemon=True).start()


def format_duration(seconds: float) -> str:
    """A duration as minutes and seconds, with hours if there are any. Example: 3725 is "1:02:05"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _can_interrupt() -> bool:
    if not hasattr(signal, "SIGALRM"):
        reason = "on this platform, which lacks SIGALRM"
    elif threading.current_thread() is not threading.main_thread():
        reason = "outside the main thread"
    else:
        return True
    warn_once(_log, f"sync code of tools and environments has no time limit {reason}")
    return False
