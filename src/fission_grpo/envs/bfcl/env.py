"""BFCL's classes as TRL environments, whose tools are the official functions with their official docs.

An episode is one user turn: `reset` loads the scenario and makes the calls of the earlier turns; the reward is the
official check of state and responses after this turn.
"""

from __future__ import annotations

import copyreg
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from fission_grpo.core.json_io import quoted
from fission_grpo.core.types import ToolCall
from fission_grpo.envs.bfcl.functions import FILES, class_docs, docstring, signature
from fission_grpo.envs.bfcl.judge import judge_turn
from fission_grpo.envs.bfcl.state import BfclState, new_state

CACHED_SCENARIOS = 512  # [ours] scenarios whose states are cached: the rollouts of a group share one


class TaskError(ValueError):
    """A task that cannot be done in its own environment; the message names the call that fails."""


class FunctionError(ValueError):
    """The message of an exception in a simulator."""


@dataclass(frozen=True)
class TurnScenario:
    """The start of an episode and its expected end. The states are never changed, only copied."""

    state: BfclState  # after the calls of the earlier turns
    results: tuple[str, ...]  # of those calls
    expected_state: BfclState  # after the reference's calls as well
    expected_results: tuple[str, ...]  # of the reference's calls
    reference: tuple[ToolCall, ...] = ()  # the calls expected in this turn


class _NamedType(type):
    """The type of classes that are made by `environment_of`, which pickles find by their name."""


class BfclEnvironment(metaclass=_NamedType):
    """The base class of all sets of tools; see `environment_of`."""

    _classes: tuple[str, ...] = ()

    def __init__(self):
        self._scenario = TurnScenario(BfclState(), (), BfclState(), ())
        self._state = BfclState()
        self._results: list[str] = []

    def reset(self, **row: Any) -> None:
        """Start the user turn of a row, of whose columns only `scenario` is read. Raises TaskError.

        It is JSON text with `config` (official initial configuration by class), `history` (calls by earlier user
        turn), `reference` (calls of this turn), and optionally `long_context`.
        """
        scenario = row.get("scenario")
        try:
            if not isinstance(scenario, str):
                raise TaskError(f"column 'scenario' must be JSON text, got {quoted(scenario)}")
            self._scenario = _load_scenario(self._classes, scenario)
        except TaskError as error:
            raise TaskError(f"row {row['id']!r}: {error}" if "id" in row else str(error)) from None
        self._state, self._results = self._scenario.state.copy(), []

    def _reward(self) -> float:
        """1.0 if the official state and response checks accept this turn, else 0.0.

        Officially, a turn without reference calls is checked with a later turn; here it must keep the state. [ours]
        """
        scenario = self._scenario
        if not scenario.expected_results:
            return float(self._is_expected_state())
        results, expected = [*scenario.results, *self._results], scenario.expected_results
        error = judge_turn(self._state, scenario.expected_state, results, expected, called=bool(self._results))
        return float(error is None)

    def _progress(self) -> float:
        """The share of the reference's results that this turn's calls gave; see `_reward` if there are none."""
        expected = Counter(self._scenario.expected_results)
        if not expected:
            return float(self._is_expected_state())
        return (expected & Counter(self._results)).total() / expected.total()

    def _reference(self) -> tuple[ToolCall, ...]:
        """The calls expected in this turn. Feedback must not reveal them."""
        return self._scenario.reference

    def _is_expected_state(self) -> bool:
        from bfcl_eval.eval_checker.multi_turn_eval.multi_turn_checker import state_checker

        return bool(state_checker(self._state.instances, self._scenario.expected_state.instances)["valid"])

    def _snapshot(self) -> tuple[TurnScenario, BfclState, tuple[str, ...]]:
        """A copy of the state."""
        return self._scenario, self._state.copy(), tuple(self._results)

    def _restore(self, state: tuple[TurnScenario, BfclState, Sequence[str]]) -> None:
        """Return to a state from `_snapshot` of this or another instance."""
        self._scenario, bfcl_state, results = state
        self._state, self._results = bfcl_state.copy(), list(results)

    def _call(self, name: str, arguments: Mapping[str, Any]) -> str:
        result = self._state.call(ToolCall(name, arguments))
        self._results.append(result)
        if self._state.error is not None:
            raise FunctionError(str(self._state.error)) from self._state.error
        return result


def environment_name(classes: Sequence[str], without: Sequence[str] = ()) -> str:
    """The name of a set of tools, for the column `environment`, such as "TicketAPI+MessageAPI-logout"."""
    return "+".join(classes) + "".join(f"-{name}" for name in sorted(without))


@cache
def environment_of(name: str) -> type[BfclEnvironment]:
    """The environment class of an `environment_name`. Raises ValueError for an unknown class or function."""
    names, *without = name.split("-")
    classes = tuple(names.split("+"))
    if not set(classes) <= set(FILES):
        raise ValueError(f"environment {name!r}: write class names joined by '+', of {', '.join(FILES)}")
    functions = [function for class_name in classes for function in class_docs(class_name)]
    if missing := [function for function in without if function not in functions]:
        raise ValueError(f"environment {name!r}: no functions {missing}; leave out functions of its classes only")
    members: dict[str, Any] = {"_classes": classes, "__doc__": f"BFCL's {', '.join(classes)}."}
    members |= {function: _make_tool(function) for function in functions if function not in without}
    return type(name, (BfclEnvironment,), members)


copyreg.pickle(_NamedType, lambda cls: (environment_of, (cls.__name__,)))  # pyright: ignore[reportArgumentType]


def _make_tool(name: str) -> Callable[..., str]:
    parameters = signature(name)

    def tool(self: BfclEnvironment, *args: Any, **arguments: Any) -> str:
        positional = dict(zip(list(parameters.parameters)[1:], args, strict=False))
        return self._call(name, positional | arguments)

    tool.__name__ = tool.__qualname__ = name
    tool.__doc__ = docstring(name)
    tool.__annotations__ = {p.name: p.annotation for p in parameters.parameters.values() if p.name != "self"}
    tool.__signature__ = parameters  # pyright: ignore[reportFunctionMemberAccess]
    return tool


@lru_cache(maxsize=CACHED_SCENARIOS)
def _load_scenario(classes: tuple[str, ...], scenario: str) -> TurnScenario:
    try:
        fields = json.loads(scenario)
        state = new_state(classes, fields["config"], bool(fields.get("long_context", False)))
        history = [ToolCall(call["name"], call["arguments"]) for turn in fields["history"] for call in turn]
        reference = [ToolCall(call["name"], call["arguments"]) for call in fields["reference"]]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise TaskError(
            f"column 'scenario' is no scenario ({error!r}). It must be the JSON text of an object with 'config', "
            "'history' and 'reference', as fission_grpo.envs.bfcl.tasks writes it."
        ) from error
    results = _make_calls(state, history, "history")
    expected_state = state.copy()
    expected_results = _make_calls(expected_state, reference, "reference")
    return TurnScenario(state, results, expected_state, expected_results, tuple(reference))


def _make_calls(state: BfclState, calls: Sequence[ToolCall], where: str) -> tuple[str, ...]:
    results = [state.answer(call) for call in calls]
    for result in results:
        if result.error is not None:
            call = f"{result.call.name}({json.dumps(dict(result.call.arguments))})"
            raise TaskError(f"the {where} call {call} fails: {result.error}")
    return tuple(result.content for result in results)
