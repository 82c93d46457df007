"""BFCL's classes as a TRL environment, one user turn at a time.

The tools are the official functions with their official docs. An episode is one user turn: `reset` loads the scenario
and makes the calls of the earlier turns, the reward is the official check of state and responses after this turn.
"""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from fission_grpo.core.chat import read_result
from fission_grpo.core.json_io import quoted
from fission_grpo.core.types import ToolCall
from fission_grpo.envs.bfcl.functions import (
    FILES,
    class_docs,
    class_of,
    docstring,
    signature,
)
from fission_grpo.envs.bfcl.judge import judge_turn
from fission_grpo.envs.bfcl.state import World, new_world

SCENARIOS_KEPT = 512
"""Scenarios whose start and reference are remembered: the rollouts of a group share one. [ours]"""


class TaskError(ValueError):
    """A task that cannot be done in its own environment; the message names the call that fails."""


class FunctionError(ValueError):
    """What a simulator raised, in its own words."""


@dataclass(frozen=True)
class Start:
    """Where an episode begins, and where its reference leads. The worlds are never changed, only copied.

    Args:
        world: after the earlier turns' calls.
        results: of those calls.
        truth: the world after the reference's calls as well.
        truth_results: of the reference's calls.
        reference: its calls.
    """

    world: World
    results: tuple[str, ...]
    truth: World
    truth_results: tuple[str, ...]
    reference: tuple[ToolCall, ...] = ()


class BfclEnvironment:
    """What the environments of all tool sets have in common; see `bfcl_environment`."""

    _classes: tuple[str, ...] = ()

    def __init__(self):
        self._start = Start(World(), (), World(), ())
        self._world = World()
        self._results: list[str] = []

    def reset(self, **row: Any) -> None:
        """Begin the user turn of a row.

        Args:
            row: the row's columns; of these `scenario` is read, JSON text of an object with `config` (official
                initial configuration by class), `history` (calls by earlier user turn), `reference` (calls of this
                turn), and perhaps `long_context`.

        Raises:
            TaskError: the scenario cannot be read, or a call of it fails in its own environment.
        """
        scenario = row.get("scenario")
        if not isinstance(scenario, str):
            raise TaskError(f"row {row.get('id', '?')!r}: column 'scenario' must be JSON text, got {quoted(scenario)}")
        try:
            self._start = _start(self._classes, scenario)
        except TaskError as error:
            raise TaskError(f"row {row.get('id', '?')!r}: {error}") from None
        self._world, self._results = self._start.world.copy(), []

    def _reward(self) -> float:
        """1.0 if the official state and response checks accept this turn, else 0.0.

        A turn without reference calls is not checked officially until a later turn; here its end state must be
        unchanged. [ours]
        """
        start = self._start
        if not start.truth_results:
            return 1.0 if self._unchanged() else 0.0
        results = [*start.results, *self._results]
        return float(judge_turn(self._world, start.truth, results, start.truth_results, bool(self._results), 0).valid)

    def _progress(self) -> float:
        """The share of the reference's results that this turn's calls gave; without any, 1 if nothing changed."""
        wanted = Counter(self._start.truth_results)
        if not wanted:
            return 1.0 if self._unchanged() else 0.0
        return (wanted & Counter(self._results)).total() / wanted.total()

    def _reference(self) -> tuple[ToolCall, ...]:
        """The calls that do this turn, which no diagnosis may give away."""
        return self._start.reference

    def _unchanged(self) -> bool:
        from bfcl_eval.eval_checker.multi_turn_eval.multi_turn_checker import state_checker

        return bool(state_checker(self._world.instances, self._start.truth.instances)["valid"])

    def _snapshot(self) -> tuple[Start, World, tuple[str, ...]]:
        """The state, in a copy that later calls do not change."""
        return self._start, self._world.copy(), tuple(self._results)

    def _restore(self, state: tuple[Start, World, Sequence[str]]) -> None:
        """Go back to a state that `_snapshot` gave, of this or another instance; as often as wanted."""
        self._start, world, results = state
        self._world, self._results = world.copy(), list(results)

    def _call(self, name: str, arguments: Mapping[str, Any]) -> str:
        result = self._world.call(ToolCall(name, arguments))
        self._results.append(result)
        if self._world.error is not None:
            raise FunctionError(str(self._world.error)) from self._world.error
        return result


@cache
def bfcl_environment(classes: tuple[str, ...], without: tuple[str, ...] = ()) -> type[BfclEnvironment]:
    """An environment class whose tools are the official functions of `classes`, except those in `without`.

    The same arguments give the same class. `environment_of` takes the name instead.

    Raises:
        ValueError: no such class or function.
        ModuleNotFoundError: bfcl-eval is not installed.
    """
    missing = [name for name in without if class_of(name) not in classes]
    if missing or not classes:
        raise ValueError(f"{missing or 'no classes'}: give at least one class, and leave out functions of these only")
    functions = [name for class_name in classes for name in class_docs(class_name) if name not in without]
    members = {name: _tool(name) for name in functions}
    doc = f"BFCL's {', '.join(classes)}."
    return type(
        environment_name(classes, without), (BfclEnvironment,), {**members, "_classes": classes, "__doc__": doc}
    )


def environment_name(classes: Sequence[str], without: Sequence[str] = ()) -> str:
    """The name of a tool set, for the column `environment`.

    Example:
        `environment_name(("TicketAPI", "MessageAPI"), ("logout",))` is "TicketAPI+MessageAPI-logout"
    """
    return "+".join(classes) + "".join(f"-{name}" for name in sorted(without))


def environment_of(name: str) -> type[BfclEnvironment]:
    """The class of a tool set given by name. Raises ValueError for a name that is none."""
    classes, *without = name.split("-")
    known = [part for part in classes.split("+") if part in FILES]
    if known != classes.split("+"):
        raise ValueError(f"environment {name!r}: write class names joined by '+', of {', '.join(FILES)}")
    return bfcl_environment(tuple(known), tuple(without))


def _tool(name: str) -> Callable[..., str]:
    parameters = signature(name)

    def tool(self: BfclEnvironment, *args: Any, **arguments: Any) -> str:
        given = dict(zip(list(parameters.parameters)[1:], args, strict=False)) | arguments
        return self._call(name, given)

    tool.__name__ = tool.__qualname__ = name
    tool.__doc__ = docstring(name)
    hints = {p.name: p.annotation for p in parameters.parameters.values() if p.name != "self"}
    tool.__annotations__ = hints
    tool.__signature__ = parameters  # pyright: ignore[reportFunctionMemberAccess]
    return tool


@lru_cache(maxsize=SCENARIOS_KEPT)
def _start(classes: tuple[str, ...], scenario: str) -> Start:
    try:
        fields = json.loads(scenario)
        config, history, reference = fields["config"], fields["history"], fields["reference"]
        world = new_world(classes, config, bool(fields.get("long_context", False)))
        earlier = [ToolCall(call["name"], call["arguments"]) for turn in history for call in turn]
        calls = [ToolCall(call["name"], call["arguments"]) for call in reference]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise TaskError(
            f"column 'scenario' is no scenario ({error!r}). It must be the JSON text of an object with 'config', "
            "'history' and 'reference', as fission_grpo.bfcl.tasks writes it."
        ) from error
    results = [_make(world, call, "history") for call in earlier]
    truth = World(copy.deepcopy(world.instances))
    truth_results = tuple(_make(truth, call, "reference") for call in calls)
    return Start(world, tuple(results), truth, truth_results, tuple(calls))


def _make(world: World, call: ToolCall, where: str) -> str:
    result = world.call(call)
    error = world.error or read_result(call, result).error
    if error is not None:
        raise TaskError(f"the {where} call {call.name}({json.dumps(dict(call.arguments))}) fails: {error}")
    return result
