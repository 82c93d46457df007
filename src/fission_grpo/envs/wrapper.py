"""A watch over one environment's tools: limits on every call, a state after every call, and counts of what went wrong.

The tools stay the user's own methods. What the watch adds: arguments are copied, so that a tool cannot change what the
policy wrote; a call that runs out of time, or raises InfrastructureError, marks the episode as broken (no reward, not
the policy's fault); a result that is too long is cut; a call the parser could not read is answered with why.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
import json
import logging
import types
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from fission_grpo.core.errors import InfrastructureError
from fission_grpo.core.timing import ToolTimeout, time_limit
from fission_grpo.core.types import PARSE_ERROR, ToolCallParseError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ToolLimits:
    """Limits of one tool call. [ours]

    Args:
        seconds: time it may take; 0: no limit. Needs a platform with SIGALRM and the main thread (where TRL calls
            tools), or an async tool; elsewhere there is no limit, and a warning says so once.
        characters: length of a result shown to the policy; what is longer is cut and says so; 0: no limit.
    """

    seconds: float = 60.0
    characters: int = 20_000


@dataclass
class EpisodeMonitor:
    """What happened in an environment since its last reset.

    Args:
        states: a snapshot from the beginning and after every call, empty if the environment gives none.
        broken: why this episode cannot be judged, None if it can.
        counts: of events: timeouts, broken, truncated_results, not_json, snapshot_failed, and how worlds were brought
            back: restored, restore_failed, replayed, replay_mismatches (calls that now answered otherwise). Whoever
            reads them clears them.
        snapshots: whether the environment's `_snapshot` has worked so far.
    """

    states: list[Any] = field(default_factory=list)
    broken: str | None = None
    counts: Counter[str] = field(default_factory=Counter)
    snapshots: bool = True

    def forget(self) -> None:
        """A new episode is about to begin."""
        self.states, self.broken = [], None

    def breaks(self, error: Exception, otherwise: str) -> None:
        """The world turned out to be out of order."""
        self.broken = str(error) or otherwise
        self.counts["broken"] += 1

    def begin(self, environment: Any) -> None:
        """The world is where the episode begins."""
        self.states = []
        self.record_snapshot(environment)

    def record_snapshot(self, environment: Any) -> None:
        """Take a snapshot, if the environment gives any. After one that fails there are no more."""
        if not self.snapshots or self.broken is not None or not can_snapshot(environment):
            return
        try:
            self.states.append(environment._snapshot())
        except Exception:  # noqa: BLE001 - the user's code; counted, and replay does instead
            self.snapshots, self.states = False, []
            self.counts["snapshot_failed"] += 1
            name = type(environment).__name__
            _log.warning("%s._snapshot failed; its episodes are restored by replay", name, exc_info=True)


def can_snapshot(environment: Any) -> bool:
    """Whether the environment has `_snapshot` and `_restore`."""
    return callable(getattr(environment, "_snapshot", None)) and callable(getattr(environment, "_restore", None))


def monitor_tools(environment: Any, limits: ToolLimits) -> EpisodeMonitor:
    """Watch an environment's tools from now on; the watch is also kept as `environment._fission_monitor`.

    Raises:
        TypeError: the environment does not let attributes be set (`__slots__`).
    """
    seen = EpisodeMonitor()
    set_attribute(environment, "_fission_monitor", seen)
    for name, tool in tool_methods(environment).items():
        wrap = _guarded_async if inspect.iscoroutinefunction(tool) else _guarded
        bind_method(environment, name, wrap(environment, seen, tool, limits))
    return seen


def tool_methods(environment: Any) -> dict[str, Callable[..., Any]]:
    """The environment's tools by name: public methods of its class, without `reset` and `get_reward` (as in TRL)."""
    return {
        name: getattr(environment, name)
        for name, _ in inspect.getmembers(type(environment), predicate=inspect.isfunction)
        if name not in ("reset", "get_reward") and not name.startswith("_")
    }


def set_attribute(environment: Any, name: str, value: Any) -> None:
    """Set an attribute of an environment. Raises TypeError, saying what to do, if it does not take any."""
    try:
        setattr(environment, name, value)
    except AttributeError as error:
        raise TypeError(
            f"{type(environment).__name__} does not let `{name}` be replaced on an instance ({error}). Remove its "
            "__slots__, or make it a plain class, so that fission can bring it back to the failed turn."
        ) from error


def bind_method(environment: Any, name: str, call: Callable[..., Any]) -> None:
    """Replace a method by `call`, which takes no `self`. It stays a bound method: TRL before 1.15 takes no others."""
    original = inspect.getattr_static(type(environment), name, None)
    if not inspect.isfunction(original):  # a static method, or an attribute of the instance
        set_attribute(environment, name, call)
        return

    @functools.wraps(original)
    def method(_: Any, *args: Any, **kwargs: Any) -> Any:
        return call(*args, **kwargs)

    @functools.wraps(original)
    async def method_async(_: Any, *args: Any, **kwargs: Any) -> Any:
        return await call(*args, **kwargs)

    bound = method_async if inspect.iscoroutinefunction(call) else method
    set_attribute(environment, name, types.MethodType(bound, environment))


def _guarded(
    environment: Any, seen: EpisodeMonitor, tool: Callable[..., Any], limits: ToolLimits
) -> Callable[..., Any]:
    @functools.wraps(tool)
    def call(*args: Any, **kwargs: Any) -> Any:
        _check(seen, kwargs)
        args, kwargs = copy.deepcopy((args, kwargs))
        try:
            with _mark_broken_on_error(seen, tool, limits), time_limit(limits.seconds):
                return _shown(tool(*args, **kwargs), seen, limits)
        finally:
            seen.record_snapshot(environment)

    return call


def _guarded_async(
    environment: Any, seen: EpisodeMonitor, tool: Callable[..., Any], limits: ToolLimits
) -> Callable[..., Any]:
    @functools.wraps(tool)
    async def call(*args: Any, **kwargs: Any) -> Any:
        _check(seen, kwargs)
        args, kwargs = copy.deepcopy((args, kwargs))
        try:
            with _mark_broken_on_error(seen, tool, limits):
                try:
                    answer = await asyncio.wait_for(_outcome(tool, args, kwargs), limits.seconds or None)
                except TimeoutError:
                    raise ToolTimeout from None
                return _shown(answer(), seen, limits)
        finally:
            seen.record_snapshot(environment)

    return call


async def _outcome(tool: Callable[..., Any], args: Any, kwargs: Any) -> Callable[[], Any]:
    """The result or the error of a coroutine as a function, so that its own TimeoutError is not taken for ours."""
    try:
        result = await tool(*args, **kwargs)
    except Exception as error:  # noqa: BLE001 - raised again by the caller
        failure = error

        def fail() -> Any:
            raise failure

        return fail
    return lambda: result


def _check(seen: EpisodeMonitor, kwargs: dict[str, Any]) -> None:
    if PARSE_ERROR in kwargs:
        raise ToolCallParseError(str(kwargs[PARSE_ERROR]))
    if seen.broken is not None:
        raise InfrastructureError(seen.broken)


@contextmanager
def _mark_broken_on_error(seen: EpisodeMonitor, tool: Callable[..., Any], limits: ToolLimits) -> Iterator[None]:
    """Mark the episode as broken if the call runs out of time or says that the world is."""
    name = getattr(tool, "__name__", "a tool")
    try:
        yield
    except ToolTimeout:
        seen.broken = f"{name} was stopped after {limits.seconds:g} s"
        seen.counts["timeouts"] += 1
        raise InfrastructureError(seen.broken) from None
    except InfrastructureError as error:
        seen.breaks(error, f"{name} is out of order")
        raise
    except Exception as error:
        if not 0 < limits.characters < len(told := str(error)):
            raise
        raise ValueError(_cut(told, seen, limits)) from error


def _shown(result: Any, seen: EpisodeMonitor, limits: ToolLimits) -> Any:
    """The result as TRL takes it: text, or a list of content blocks (images and the like)."""
    if isinstance(result, list) and result and all(isinstance(block, dict) and "type" in block for block in result):
        return result
    if not isinstance(result, str):
        try:
            json.dumps(result)
        except (TypeError, ValueError, RecursionError):
            seen.counts["not_json"] += 1
        result = str(result)
    if 0 < limits.characters < len(result):
        result = _cut(result, seen, limits)
    return result


def _cut(text: str, seen: EpisodeMonitor, limits: ToolLimits) -> str:
    seen.counts["truncated_results"] += 1
    return f"{text[: limits.characters]}... [cut: {len(text)} characters]"
