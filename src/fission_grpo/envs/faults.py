"""Seeded fault injection into any environment, with the ground truth recorded. [ours]

Which call has which fault depends only on the seed, the row's `id` and the call's index in the episode. A replay
therefore meets the same faults again, and snapshots include their state.

The four cells, explicit or implicit, transient or permanent, are named as in ToolMaze (arXiv 2606.05806); the kinds of
fault in them are ours.
"""

from __future__ import annotations

import copy
import functools
import inspect
import json
import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fission_grpo.core.types import ToolResult
from fission_grpo.envs.wrapper import bind_method, can_snapshot, set_attribute, tool_methods

TRANSIENT = {
    "timeout": "the request timed out",
    "rate_limit": "429: too many requests, try again later",
    "server_error": "503: service unavailable",
}
"""The call fails and changes nothing; the tool's next call does not meet the same fault again."""

PERMANENT = {"tool_gone": "404: {tool} is no longer available", "permission": "403: no permission to use {tool}"}
"""The call fails, and so does every later call of that tool."""

IMPLICIT = ("empty", "stale", "partial", "not_done")
"""The call seems to succeed, but its result is empty, is that of an earlier call (this one is not made), lacks its
second half, or the call is undone afterwards."""

CELLS: Mapping[str, tuple[str, ...]] = {
    "explicit-transient": tuple(TRANSIENT),
    "explicit-permanent": tuple(PERMANENT),
    "implicit-transient": IMPLICIT,
    "implicit-permanent": IMPLICIT,
}
"""The kinds of fault in each cell. Explicit: the result is an error. Permanent: so are those of all later calls of the
tool, or seem to succeed in the same way."""

ERRORS = TRANSIENT | PERMANENT
KINDS = (*ERRORS, *IMPLICIT, "latency")
NAMES = (*CELLS, *KINDS)  # what `Fault.kind` may be
SPARES_NEXT = {*TRANSIENT, "explicit-transient", "implicit-transient"}  # the tool's next call does not meet them again
SKIPS_CALL = {*ERRORS, "stale"}  # the call is not made: its result or error is the fault's
FAULTS_KEY = "_fission_faults"  # column that says whether the row's episode meets faults; hidden from users


class FaultError(Exception):
    """Raised by a tool in a transient or permanent fault."""


@dataclass(frozen=True)
class Fault:
    """A kind of fault and how often it occurs."""

    kind: str  # one of `NAMES`; of a cell any kind, drawn for each fault
    rate: float  # probability that a call meets it, 0 to 1
    tools: tuple[str, ...] = ()  # names of the tools that can meet it; empty for all
    seconds: float = 0.05  # how long "latency" waits before the call

    def __post_init__(self):
        if self.kind not in NAMES:
            raise ValueError(f"Fault.kind is {self.kind!r}; it must be one of {', '.join(NAMES)}")
        if not 0 <= self.rate <= 1:
            raise ValueError(f"Fault.rate is {self.rate!r}; it must lie between 0 and 1")
        if not 0 <= self.seconds < 60:
            raise ValueError(f"Fault.seconds is {self.seconds!r}; it must lie between 0 and 60")

    @property
    def cell(self) -> str:
        """Its cell; that of an implicit kind by itself is transient, and "latency" has none."""
        return next((cell for cell, kinds in CELLS.items() if self.kind in (cell, *kinds)), "")


@dataclass(frozen=True)
class InjectedFault:
    """Ground truth: the episode's `index`-th call (from 0, over all tools) met a fault."""

    index: int
    tool: str
    kind: str  # one of `KINDS`
    cell: str = field(default="", compare=False)  # one of `CELLS`; "" for "latency"
    seconds: float = field(default=0.0, compare=False)  # how long "latency" waits


def inject_faults(make: Callable[[], Any], faults: Sequence[Fault], seed: int = 0) -> Callable[[], Any]:
    """A factory of environments whose tools meet faults, which are recorded in `environment.injected`.

    Tools keep names, signatures and docstrings; the class stays the user's own. A call meets at most one fault, the
    first of `faults` that is drawn. Making an instance raises ValueError if a fault names a tool it does not have.

    Example:
        `inject_faults(Desk, [Fault("timeout", rate=0.1), Fault("permission", rate=0.02, tools=("delete_file",))])`
    """

    def make_faulty() -> Any:
        environment = make()
        tools = tool_methods(environment)
        for fault in faults:
            if unknown := set(fault.tools) - set(tools):
                raise ValueError(f"Fault({fault.kind!r}): no tool {sorted(unknown)}; there are {', '.join(tools)}")
        injector = _Injector(environment, tuple(faults), seed)
        for name, tool in tools.items():
            bind_method(environment, name, injector.wrap(name, tool))
        return environment

    make_faulty.__name__ = f"{getattr(make, '__name__', 'environment')}_with_faults"
    make_faulty.injects_faults = True  # pyright: ignore[reportFunctionMemberAccess]
    return make_faulty


def faults_of_calls(
    results: Sequence[ToolResult], environment: Any, tools: Collection[str]
) -> tuple[InjectedFault | None, ...]:
    """For every call of an episode, the fault that was injected into it, if any.

    `tools` names the environment's tools: calls of other names did not reach it.
    """
    by_index = {fault.index: fault for fault in vars(environment).get("injected", ())}
    faults = []
    index = 0
    for result in results:
        reached = result.call.name in tools
        faults.append(by_index.get(index) if reached else None)
        index += reached
    return tuple(faults)


def injected_calls(results: Sequence[ToolResult], environment: Any, tools: Collection[str]) -> tuple[bool, ...]:
    """For every call of an episode, whether it failed because of an injected fault.

    Where a fault lets the call be made (slow, its result lost or undone), an error of the call is the policy's own.
    """
    faults = faults_of_calls(results, environment, tools)
    return tuple(made_fail(fault, result) for fault, result in zip(faults, results, strict=True))


def made_fail(fault: InjectedFault | None, result: ToolResult) -> bool:
    """Whether a call's error is the fault's, see `injected_calls`."""
    return fault is not None and fault.kind in SKIPS_CALL and result.error is not None


@dataclass
class _FaultState:
    """The state of the faults in an episode."""

    row: str = ""  # the row's id
    enabled: bool = True  # whether calls meet faults
    calls: int = 0  # so far
    gone: dict[str, InjectedFault] = field(default_factory=dict)  # tool: its permanent fault
    spared: dict[str, str] = field(default_factory=dict)  # tool: the kind of `Fault` its next call does not meet
    last: dict[str, Any] = field(default_factory=dict)  # tool: its last result
    injected: list[InjectedFault] = field(default_factory=list)


class _Injector:
    """The faults of one environment."""

    def __init__(self, environment: Any, faults: tuple[Fault, ...], seed: int):
        self.environment, self.faults, self.seed = environment, faults, seed
        self.reset = environment.reset
        self.can_undo = can_snapshot(environment)
        set_attribute(environment, "reset", self._reset)
        if self.can_undo:
            self.snapshot, self.restore = environment._snapshot, environment._restore
            set_attribute(environment, "_snapshot", lambda: (self.snapshot(), copy.deepcopy(self.state)))
            set_attribute(environment, "_restore", self._restore)
        self._set_state(_FaultState())

    def _set_state(self, state: _FaultState) -> None:
        self.state = state
        self.environment.injected = state.injected

    def _reset(self, **row: Any) -> Any:
        enabled = row.pop(FAULTS_KEY, True)
        name = str(row["id"]) if "id" in row else json.dumps(row, sort_keys=True, default=str)
        self._set_state(_FaultState(name, enabled))
        return self.reset(**row)

    def _restore(self, state: tuple[Any, _FaultState]) -> None:
        self.restore(state[0])
        self._set_state(copy.deepcopy(state[1]))

    def wrap(self, name: str, tool: Callable[..., Any]) -> Callable[..., Any]:
        """The tool with faults."""

        @functools.wraps(tool)
        def call(*args: Any, **kwargs: Any) -> Any:
            kind, undo = self._before_call(name)
            result = self.state.last[name] if kind == "stale" else tool(*args, **kwargs)
            return self._after_call(name, kind, undo, result)

        @functools.wraps(tool)
        async def call_async(*args: Any, **kwargs: Any) -> Any:
            kind, undo = self._before_call(name)
            result = self.state.last[name] if kind == "stale" else await tool(*args, **kwargs)
            return self._after_call(name, kind, undo, result)

        return call_async if inspect.iscoroutinefunction(tool) else call

    def _before_call(self, name: str) -> tuple[str | None, Any]:
        """The kind of this call's fault and, for "not_done", the snapshot to undo it. Raises FaultError."""
        state, index = self.state, self.state.calls
        state.calls += 1
        if not state.enabled:
            return None, None
        gone = state.gone.get(name)
        fault = self._draw(name, index) if gone is None else replace(gone, index=index)
        if fault is None:
            return None, None
        state.injected.append(fault)
        if fault.cell.endswith("permanent"):
            state.gone[name] = fault
        if fault.kind in ERRORS:
            raise FaultError(ERRORS[fault.kind].format(tool=name))
        if fault.kind == "latency":
            time.sleep(fault.seconds)
        return fault.kind, self.snapshot() if fault.kind == "not_done" else None

    def _draw(self, name: str, index: int) -> InjectedFault | None:
        rng = random.Random(f"{self.seed} {self.state.row} {index} {name}")
        drawn = [fault for fault in self.faults if rng.random() < fault.rate]
        fault = next((fault for fault in drawn if not fault.tools or name in fault.tools), None)
        spared = self.state.spared.pop(name, None)
        if fault is None or fault.kind == spared:
            return None
        is_impossible = {"stale": name not in self.state.last, "not_done": not self.can_undo}
        kinds = [kind for kind in CELLS.get(fault.kind, (fault.kind,)) if not is_impossible.get(kind)]
        if not kinds:
            return None
        if fault.kind in SPARES_NEXT:
            self.state.spared[name] = fault.kind
        return InjectedFault(index, name, rng.choice(kinds), fault.cell, fault.seconds)

    def _after_call(self, name: str, kind: str | None, undo: Any, result: Any) -> Any:
        self.state.last[name] = result
        if kind == "not_done":
            self.restore(undo)
        if kind == "empty":
            return ""
        if kind == "partial":
            text = str(result)
            return text[: len(text) // 2]
        return result
