"""Calls of others' code, which may hang or try to end the process, and durations as text."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable
from functools import cache
from typing import Any, TypeVar

from fission_grpo.core.errors import ExitAttempt, TimeLimitExceeded, ToolTimeout
from fission_grpo.core.terminal import get_logger, warn_once

T = TypeVar("T")
_log = get_logger(__name__)

REPEAT_SECONDS = 1.0  # between two attempts to stop code that catches or ignores the first one [ours]
CANCEL_ATTEMPTS = 3  # cancellations of an async call, after which it is left behind [ours]
WARN_SECONDS = 5.0  # beyond its limit, after which a call that cannot be stopped is logged [ours]

_ends: list[float] = []  # of the limits of the calls under way in the main thread, the innermost last


def contained(call: Callable[[], T], name: str, seconds: float = 0.0, advice: str = "") -> T:
    """The result of `call()`, which is others' code: it neither hangs, nor ends the process, nor goes on in a fork.

    Raises TimeLimitExceeded after `seconds` (0: no limit), and ExitAttempt in place of SystemExit and whatever else is
    no Exception, but for KeyboardInterrupt. The limit is raised in the call, again every second until the call ends;
    if it does not, a warning with `advice` is logged. Limits may be nested, and each holds from its own start. There
    is none outside the main thread and on platforms without SIGALRM; a warning is logged once.
    """
    process, end, key = os.getpid(), time.monotonic() + seconds, object()
    _report_late(key, name, seconds, advice)
    try:
        return _limited(call, end) if seconds > 0 and _can_interrupt() else call()
    except (Exception, KeyboardInterrupt):
        raise
    except ToolTimeout:
        if time.monotonic() < end:  # of a call around this one
            raise
        raise TimeLimitExceeded(name, seconds) from None
    except BaseException as error:
        raise ExitAttempt(name, error) from error
    finally:
        _started.pop(key, None)
        _end_fork(process)


def _limited(call: Callable[[], T], end: float) -> T:
    """`call()`, in which ToolTimeout is raised at `end`. Whenever that happens, nothing is left behind."""
    depth = len(_ends)
    others: Any = None  # handler and timer, before the outermost limit
    try:
        try:
            if not depth:
                others = signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)
                signal.signal(signal.SIGALRM, _raise_timeout)
            _ends.append(end)
            _set_alarm()
            return call()
        finally:
            del _ends[depth:]  # from here on nothing is raised for this limit
    finally:
        del _ends[depth:]  # if it was raised just before
        if depth:
            _set_alarm()
        elif others is not None:
            signal.setitimer(signal.ITIMER_REAL, *others[1])
            signal.signal(signal.SIGALRM, others[0] or signal.SIG_DFL)


def _raise_timeout(*_: Any) -> None:
    if _ends and min(_ends) <= time.monotonic():
        raise ToolTimeout


def _set_alarm() -> None:
    """Set the timer to the first end; where that has passed it rings at once, and then every second."""
    signal.setitimer(signal.ITIMER_REAL, max(min(_ends) - time.monotonic(), 1e-3), REPEAT_SECONDS)


async def contained_async(call: Awaitable[Any], name: str, seconds: float = 0.0, advice: str = "") -> Any:
    """The result of a call of others' async code, kept from harm as by `contained`.

    At the limit it is cancelled, again every second, and left behind if it still goes on after `CANCEL_ATTEMPTS`.
    """
    task = asyncio.ensure_future(_outcome(call))
    _report_late(task, name, seconds, advice)
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
        _started.pop(task, None)
    if not in_time:
        if not task.done():
            _log.warning("%s was cancelled %d times and goes on; it is left behind", name, CANCEL_ATTEMPTS)
        raise TimeLimitExceeded(name, seconds)
    value, error = (None, asyncio.CancelledError()) if task.cancelled() else task.result()
    if error is None:
        return value
    raise error if isinstance(error, Exception) else ExitAttempt(name, error)


async def _outcome(call: Awaitable[Any]) -> tuple[Any, BaseException | None]:
    """The call's result and what it raised: what is no Exception would end the event loop."""
    process = os.getpid()
    try:
        return await call, None
    except asyncio.CancelledError:
        raise
    except BaseException as error:  # noqa: BLE001 - raised by the caller
        if isinstance(error, KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)  # in the main thread, as Ctrl-C does
        return None, error
    finally:
        _end_fork(process)


def _end_fork(process: int) -> None:
    """End a process that a call of others' code forked from this one, and that would go on in its caller."""
    if os.getpid() != process:
        os._exit(0)


_started: dict[object, tuple[float, str, float, str]] = {}  # calls under way: when to report them, and what


def _report_late(key: object, name: str, seconds: float, advice: str) -> None:
    """Have a call reported once it runs `WARN_SECONDS` beyond its limit, unless its key is removed before."""
    if seconds > 0:
        _started[key] = time.monotonic() + seconds + WARN_SECONDS, name, seconds, advice
        _start_reporter()


@cache
def _start_reporter() -> None:
    def report() -> None:
        while True:
            time.sleep(REPEAT_SECONDS)
            for key, (when, name, seconds, advice) in list(_started.items()):
                if when <= time.monotonic() and _started.pop(key, None):
                    late = f"{name} still runs {WARN_SECONDS:g} s after its limit of {seconds:g} s"
                    _log.warning("%s, and cannot be stopped. %s", late, advice)

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
