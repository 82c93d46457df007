"""Faults injected into any environment, seeded, with the ground truth recorded. [ours]

    make = inject_faults(Desk, [Fault("timeout", rate=0.1), Fault("permission", rate=0.02, tools=("delete_file",))])

Which call meets which fault depends on the seed, the row's `id` and the call's place in the episode, nothing else: a
world brought back to a failed turn by replay meets the same faults again, and snapshots carry them along.
"""

from __future__ import annotations

import copy
import functools
import inspect
import itertools
import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fission_grpo.core.types import ToolResult
from fission_grpo.envs.wrapper import (
    can_snapshot,
    put,
    put_method,
    tool_methods,
)

TRANSIENT = {
    "timeout": "the request timed out",
    "rate_limit": "429: too many requests, try again later",
    "server_error": "503: service unavailable",
}
"""The call fails and changes nothing; the tool's next call does not meet the same fault again."""


PERMANENT = {"tool_gone": "404: {tool} is no longer available", "permission": "403: no permission to use {tool}"}
"""The call fails, and so does every later call of that tool."""


IMPLICIT = ("empty", "stale", "partial", "not_done")
"""The call seems to succeed: its result is left out, an earlier one is given without doing anything, the second half
is cut off, or everything is undone afterwards."""


KINDS = (*TRANSIENT, *PERMANENT, *IMPLICIT, "latency")


ANSWERS_ITSELF = frozenset({*TRANSIENT, *PERMANENT, "stale"})
"""Kinds whose call is not made at all: what is answered then, an error too, is the fault's."""


class FaultError(Exception):
    """What a tool raises in a transient or permanent fault."""


@dataclass(frozen=True)
class Fault:
    """How often something goes wrong.

    Args:
        kind: one of `KINDS`.
        rate: chance that a call meets it, 0 to 1.
        tools: which tools can meet it; empty: all.
        seconds: how long "latency" waits before the call.

    Raises:
        ValueError: naming what is out of range.
    """

    kind: str
    rate: float
    tools: tuple[str, ...] = ()
    seconds: float = 0.05

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"Fault.kind is {self.kind!r}; it must be one of {', '.join(KINDS)}")
        if not 0 <= self.rate <= 1:
            raise ValueError(f"Fault.rate is {self.rate!r}; it must lie between 0 and 1")
        if not 0 <= self.seconds < 60:
            raise ValueError(f"Fault.seconds is {self.seconds!r}; it must lie between 0 and 60")


@dataclass(frozen=True)
class Injected:
    """Ground truth: the episode's `index`-th call (from 0, of any tool) met a fault."""

    index: int
    tool: str
    kind: str


@dataclass
class _State:
    """Where an episode is: the row's name, the number of calls, and what has gone wrong so far."""

    row: str = ""
    calls: int = 0
    gone: dict[str, str] = field(default_factory=dict)
    spared: dict[str, str] = field(default_factory=dict)  # tool: the transient fault its next call does not meet
    last: dict[str, Any] = field(default_factory=dict)
    injected: list[Injected] = field(default_factory=list)


def inject_faults(make: Callable[[], Any], faults: Sequence[Fault], seed: int = 0) -> Callable[[], Any]:
    """A factory of environments whose tools meet faults. What was injected is in `environment.injected`.

    Tools keep names, signatures and docstrings; the class stays the user's own. At most one fault meets a call, the
    first of `faults` that is drawn.

    Args:
        make: makes the environment.
        faults: what may go wrong.
        seed: of the drawing.

    Raises:
        ValueError: a fault is about a tool that the environment does not have (when an instance is made).
    """

    def faulty() -> Any:
        environment = make()
        tools = tool_methods(environment)
        for fault in faults:
            if unknown := set(fault.tools) - set(tools):
                raise ValueError(f"Fault({fault.kind!r}): no tool {sorted(unknown)}; there are {', '.join(tools)}")
        injector = _Injector(environment, tuple(faults), seed)
        for name, tool in tools.items():
            put_method(environment, name, injector.wrap(name, tool))
        return environment

    faulty.__name__ = f"{getattr(make, '__name__', 'environment')}_with_faults"
    return faulty


def injected_errors(results: Sequence[ToolResult], environment: Any, tools: Collection[str]) -> int:
    """How many of an episode's failed calls failed because of an injected fault; the others are the policy's own.

    Args:
        results: of all its calls, in order.
        environment: where they were made; without `injected` the answer is 0.
        tools: names of its tools: calls of others never reached it.
    """
    return sum(injected_calls(results, environment, tools))


def injected_calls(results: Sequence[ToolResult], environment: Any, tools: Collection[str]) -> tuple[bool, ...]:
    """For every call of an episode whether it failed because of an injected fault; arguments as `injected_errors`.

    Where a fault lets the call be made (slow, its result lost or undone), an error of that call is the policy's own.
    """
    places = {one.index for one in getattr(environment, "injected", ()) if one.kind in ANSWERS_ITSELF}
    number = itertools.count()
    reached = [next(number) if result.call.name in tools else None for result in results]
    return tuple(result.error is not None and at in places for result, at in zip(results, reached, strict=True))


class _Injector:
    """The faults of one environment."""

    def __init__(self, environment: Any, faults: tuple[Fault, ...], seed: int):
        self.environment, self.faults, self.seed = environment, faults, seed
        self.reset = environment.reset
        self.snapshots = can_snapshot(environment)
        put(environment, "reset", self._reset)
        if self.snapshots:
            self.snapshot, self.restore = environment._snapshot, environment._restore
            put(environment, "_snapshot", lambda: (self.snapshot(), copy.deepcopy(self.state)))
            put(environment, "_restore", self._restore)
        self._use(_State())

    def _use(self, state: _State) -> None:
        self.state = state
        put(self.environment, "injected", state.injected)

    def _reset(self, **row: Any) -> Any:
        self._use(_State(str(row.get("id", ""))))
        return self.reset(**row)

    def _restore(self, state: tuple[Any, _State]) -> None:
        self.restore(state[0])
        self._use(copy.deepcopy(state[1]))

    def wrap(self, name: str, tool: Callable[..., Any]) -> Callable[..., Any]:
        """The tool, which now may fail."""
        if inspect.iscoroutinefunction(tool):

            @functools.wraps(tool)
            async def call_async(*args: Any, **kwargs: Any) -> Any:
                kind, undo = self._before(name)
                if kind == "stale":
                    return self.state.last[name]
                return self._after(name, kind, undo, await tool(*args, **kwargs))

            return call_async

        @functools.wraps(tool)
        def call(*args: Any, **kwargs: Any) -> Any:
            kind, undo = self._before(name)
            if kind == "stale":
                return self.state.last[name]
            return self._after(name, kind, undo, tool(*args, **kwargs))

        return call

    def _before(self, name: str) -> tuple[str | None, Any]:
        """Draw the fault of this call, if any; raises FaultError for those that fail at once."""
        state, index = self.state, self.state.calls
        state.calls += 1
        if name in state.gone:
            state.injected.append(Injected(index, name, state.gone[name]))
            raise FaultError(PERMANENT[state.gone[name]].format(tool=name))
        fault = self._draw(name, index)
        spared = state.spared.pop(name, None)
        if fault is None or fault.kind == spared or (fault.kind == "stale" and name not in state.last):
            return None, None
        if fault.kind == "not_done" and not self.snapshots:
            return None, None  # it could not be undone
        state.injected.append(Injected(index, name, fault.kind))
        if fault.kind == "latency":
            time.sleep(fault.seconds)
        if fault.kind in TRANSIENT:
            state.spared[name] = fault.kind
            raise FaultError(TRANSIENT[fault.kind])
        if fault.kind in PERMANENT:
            state.gone[name] = fault.kind
            raise FaultError(PERMANENT[fault.kind].format(tool=name))
        return fault.kind, self.snapshot() if fault.kind == "not_done" else None

    def _draw(self, name: str, index: int) -> Fault | None:
        rng = random.Random(f"{self.seed} {self.state.row} {index} {name}")
        drawn = [
            fault for fault in self.faults if rng.random() < fault.rate and (not fault.tools or name in fault.tools)
        ]
        return drawn[0] if drawn else None

    def _after(self, name: str, kind: str | None, undo: Any, result: Any) -> Any:
        self.state.last[name] = result
        if kind == "not_done":
            self.restore(undo)
        if kind == "empty":
            return ""
        if kind == "partial":
            text = result if isinstance(result, str) else str(result)
            return text[: len(text) // 2]
        return result


def by_kind(injected: Sequence[Injected]) -> Mapping[str, int]:
    """How many faults of each kind.

    Example:
        `by_kind([Injected(0, "move", "timeout")])` is `{"timeout": 1}`
    """
    counts: dict[str, int] = {}
    for one in injected:
        counts[one.kind] = counts.get(one.kind, 0) + 1
    return counts
