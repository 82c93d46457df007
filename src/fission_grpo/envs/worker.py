"""Environments in processes of their own, which can be ended whatever their code does.

A time limit cannot interrupt C code, and nothing survives a crash of the interpreter. `isolated` gives environments
whose calls are made in a child process: at the limit it is killed, and the next `reset` begins with a fresh one.
"""

from __future__ import annotations

import asyncio
import ctypes
import functools
import inspect
import multiprocessing
import os
import pickle
import signal
import sys
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from fission_grpo.core.errors import (
    CallStopped,
    ExitAttempt,
    InfrastructureError,
    ProcessDied,
    TimeLimitExceeded,
    UsageError,
    error_message,
)
from fission_grpo.core.terminal import get_logger, tolerant_output
from fission_grpo.core.timing import contained
from fission_grpo.envs.restore import run_awaitable

_log = get_logger(__name__)

START_SECONDS = 120.0  # until a child has imported the environment's module and made it [ours]
END_SECONDS = 5.0  # until a killed child is gone [ours]

_OPTIONAL = ("reset", "get_reward", "_reward", "_snapshot", "_restore", "_progress", "_reference")
_KNOWN = {cls.__name__: cls for cls in (InfrastructureError, ExitAttempt, CallStopped, AttributeError, UsageError)}


class WorkerEnvironment:
    """An environment of which this process holds the methods and a child process the state; see `isolated`."""

    _make: Callable[[], Any]
    _timeout: float

    def __init__(self) -> None:
        self._row: dict[str, Any] | None = None  # of the last reset
        self._executor: ThreadPoolExecutor | None = None
        self._begin()

    def _begin(self) -> None:
        """Begin to start a child."""
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process: Any = context.Process(target=_serve, args=(theirs, os.getpid(), self._make), daemon=True)
        try:
            self._process.start()
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            what = f"{type(self).__name__} cannot be sent to a process of its own ({error})"
            raise ValueError(f"{what}. Define it at the top of a module, or leave out isolate_environments") from error
        theirs.close()
        self._is_ready = False
        self._kill = weakref.finalize(self, _end, self._process, self._connection)

    def _fission_start(self) -> None:
        """Wait for a child, a fresh one if there is none. Called before an episode, outside of its time limits."""
        if not self._kill.alive:
            self._begin()
        if not self._is_ready:
            self._exchange("the start of its process", START_SECONDS)
            self._is_ready = True

    def _request(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Make a call in the child. Raises what it raises, TimeLimitExceeded, or ProcessDied."""
        if method == "reset":
            self._row = kwargs
        elif not self._kill.alive:
            raise InfrastructureError(f"the process of {type(self).__name__} has ended; reset begins a new one")
        self._fission_start()
        return self._exchange(method, self._timeout, (method, args, kwargs))

    def _exchange(self, name: str, seconds: float, message: Any = None) -> Any:
        process, connection, kill = self._process, self._connection, self._kill
        try:
            if message is not None:
                connection.send(message)
            if not connection.poll(seconds or None):
                raise TimeLimitExceeded(name, seconds)
            error, value = connection.recv()
        except (EOFError, OSError):
            process.join(END_SECONDS)
            _log.warning("the process of %s ended in %s with status %s", type(self).__name__, name, process.exitcode)
            kill()
            raise ProcessDied(name, self) from None
        except BaseException:  # a limit, or Ctrl-C: the answer would be taken for that of the next call
            kill()
            raise
        if error is None:
            return value
        kind = _KNOWN.get(error) or type(error, (Exception,), {"__module__": __name__})
        raise kind.__new__(kind, value)

    async def _request_async(self, method: str, *args: Any, **kwargs: Any) -> Any:
        if self._executor is None:  # one thread, so that calls of one environment do not meet in its child
            self._executor = ThreadPoolExecutor(1, f"{type(self).__name__} calls")
        call, kill = partial(self._request, method, *args, **kwargs), self._kill
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, call)
        except asyncio.CancelledError:  # at its limit
            kill()
            raise

    def __getattr__(self, name: str) -> Any:
        """A public attribute of the environment, for reward functions. After a crash, as `reset` leaves it."""
        if name.startswith("_") or name in _OPTIONAL:
            raise AttributeError(name)
        if not self._kill.alive and self._row is not None:
            self._request("reset", **self._row)
        return self._request("__getattr__", name)


def isolated(make: Callable[[], Any], timeout: float) -> Callable[[], Any]:
    """A factory of the same environments in processes of their own.

    Methods have the same names, signatures and docstrings, and attributes can be read. Arguments, results and
    snapshots cross as pickles; `make` must be picklable, such as a class at the top of a module. Calls of one
    environment are made one after another.

    Args:
        timeout: seconds of one call, after which the process is killed; 0 for no limit.
    """
    kind: Any = make if isinstance(make, type) else type(make())
    members: dict[str, Any] = {
        name: _forwarding(name, method)
        for name, method in inspect.getmembers(kind, predicate=inspect.isfunction)
        if name in _OPTIONAL or not name.startswith("_")
    }
    members |= {"_make": staticmethod(make), "_timeout": timeout}
    return type(
        kind.__name__, (WorkerEnvironment,), members | {"__doc__": kind.__doc__, "__module__": kind.__module__}
    )


def _forwarding(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(self: WorkerEnvironment, *args: Any, **kwargs: Any) -> Any:
        return self._request(name, *args, **kwargs)

    @functools.wraps(method)
    async def call_async(self: WorkerEnvironment, *args: Any, **kwargs: Any) -> Any:
        return await self._request_async(name, *args, **kwargs)

    return call_async if inspect.iscoroutinefunction(method) else call


def _end(process: Any, connection: Connection) -> None:
    with suppress(OSError, AttributeError):  # no such group yet, or a platform without groups
        os.killpg(process.pid, signal.SIGKILL)  # also what its tools have started
    process.kill()
    process.join(END_SECONDS)
    connection.close()


def _serve(connection: Connection, parent: int, make: Callable[[], Any]) -> None:
    """Make the calls that arrive, in the child, until the parent ends."""
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C is for the parent, which may go on to save
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: with the parent, also in the middle of a call
        if os.getppid() != parent:
            return
    environment: Any = None

    def begin() -> None:
        nonlocal environment
        environment = make()

    def call(method: str, args: Any, kwargs: Any) -> Any:
        value = (
            getattr(environment, *args) if method == "__getattr__" else getattr(environment, method)(*args, **kwargs)
        )
        return run_awaitable(value) if inspect.isawaitable(value) else value

    with tolerant_output(), suppress(EOFError, OSError):
        _answer(connection, "__init__", begin)
        while True:
            request = connection.recv()
            name = request[1][0] if request[0] == "__getattr__" else request[0]
            _answer(connection, name, partial(call, *request), request[0] in ("__getattr__", "_snapshot"))


def _answer(connection: Connection, name: str, call: Callable[[], Any], is_exact: bool = False) -> None:
    """Send the name of the class of what a call raised, None for nothing, with its message or the result.

    A result that cannot be pickled is sent as its text, which is what a policy sees, or refused if `is_exact`.
    """

    def sendable() -> bytes:
        value = call()
        try:
            return pickle.dumps((None, value))
        except (pickle.PicklingError, AttributeError, TypeError, RecursionError) as error:
            if is_exact:
                what = f"{name} cannot be read from another process: {error}"
                raise UsageError(
                    f"{what}; offer what is needed as plain values, or leave out isolate_environments"
                ) from error
            return pickle.dumps((None, str(value)))

    try:
        answer = contained(sendable, name)
    except Exception as error:  # noqa: BLE001 - it is raised in the parent
        kind = next((name for name, cls in _KNOWN.items() if isinstance(error, cls)), type(error).__name__)
        answer = pickle.dumps((kind, error_message(error)))
    connection.send_bytes(answer)
