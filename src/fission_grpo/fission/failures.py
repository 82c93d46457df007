"""From a failed rollout to the turn and the call where it went wrong."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fission_grpo.core.tool_schema import check_call
from fission_grpo.core.types import (
    ErrorKind,
    Failure,
    Rollout,
    Trajectory,
    Turn,
    Verdict,
)
from fission_grpo.envs.restore import snapshot_after
from fission_grpo.envs.wrapper import tool_methods

FAILURE_TURNS = ("first", "last", "every")


def find_failure(trajectory: Trajectory, verdict: Verdict, tools: Sequence[Mapping[str, Any]] = ()) -> Failure | None:
    """Find what first went wrong in a rollout that was judged a failure.

    The first turn with an invalid form or a failing call wins, and in it the first failing call; then a truncated
    turn; then, with a reference, `no_call` or `wrong_call`, and without one, `out_of_turns` if the last turn's calls
    were never made; `low_reward` if nothing finer is known. A call with a result is judged by the result alone (an
    environment that accepted it did accept it); the schema then only says which kind of error it was. A call that was
    never executed is judged by the schema. `detail` never derives from the reference.

    Args:
        trajectory: the rollout.
        verdict: its verdict.
        tools: the schemas of the tools it had; by default the task's. With none at all, calls are not checked.

    Returns:
        Failure: cut after the turn to recover from; None if the rollout did not fail, could not be judged
        (infrastructure: reward None or NaN), or has no turns.

    Example:
        Of two calls, the second answered "{'error': 'no such file'}": kind `raised`, call_index 1, detail "no such
        file".
    """
    found = find_failures(trajectory, verdict, tools)
    return found[0] if found else None


def find_failures(
    trajectory: Trajectory, verdict: Verdict, tools: Sequence[Mapping[str, Any]] = (), failure_turn: str = "first"
) -> list[Failure]:
    """The turns to recover from in a failed rollout: the first failing turn, the last, or every one.

    Args:
        trajectory, verdict, tools: as for `find_failure`.
        failure_turn: "first", "last" or "every". Where no turn fails by itself there is one failure in any case.

    Returns:
        list: of failures in the order of their turns; empty where `find_failure` gives None.

    Raises:
        ValueError: no such option.
    """
    if failure_turn not in FAILURE_TURNS:
        raise ValueError(f"failure_turn must be one of {', '.join(FAILURE_TURNS)}, got {failure_turn!r}")
    if not verdict.failed or verdict.reward is None or math.isnan(verdict.reward) or not trajectory.turns:
        return []
    task, turns = trajectory.task, trajectory.turns
    tools = tools or task.tools

    def failure(end: int, kind: ErrorKind, detail: str = "", call_index: int | None = None) -> Failure:
        return Failure(task, turns[: end + 1], kind, detail, call_index, verdict.reward, tools=tuple(tools))

    failing = [failure(end, *what) for end, turn in enumerate(turns) if (what := _failing(turn, tools))]
    if failing:
        return {"first": failing[:1], "last": failing[-1:], "every": failing}[failure_turn]
    return [failure(*_silent(trajectory))]


def _silent(trajectory: Trajectory) -> tuple[int, ErrorKind, str]:
    """Turn, kind and detail of a failure that no single turn shows."""
    task, turns = trajectory.task, trajectory.turns
    for index, turn in enumerate(turns):
        if turn.truncated:
            return index, ErrorKind.TRUNCATED, "the answer was cut off at its length limit"
    last = len(turns) - 1
    if task.reference is None:
        unmade = turns[last].calls and not turns[last].results
        return last, ErrorKind.OUT_OF_TURNS if unmade else ErrorKind.LOW_REWARD, ""
    called = any(turn.calls for turn in turns)
    return last, ErrorKind.WRONG_CALL if called or not task.reference else ErrorKind.NO_CALL, ""


def _failing(turn: Turn, tools: Sequence[Mapping[str, Any]]) -> tuple[ErrorKind, str, int | None] | None:
    """Kind, detail and call index of what fails in a turn by itself."""
    if turn.error is not None:
        return ErrorKind.UNPARSED, turn.error, None
    for index, call in enumerate(turn.calls):
        result = turn.results[index] if index < len(turn.results) else None
        if result is not None and result.error is None:
            continue
        problem = check_call(call, tools) if tools else None
        if result is not None and result.error is not None:
            return problem.kind if problem else ErrorKind.RAISED, result.error, index
        if problem:
            return problem.kind, problem.message, index
    return None


class LocalEnvironments:
    """What the trainer asks of the environments when it looks at a cycle's rollouts.

    Args:
        environments: TRL's, one per local rollout; None without any.
        tools: functions that are tools beside the environments'.
        watched: whether they are wrapped by `environment.restorable`.
        schemas: remembers the tools' JSON schemas by class, from one cycle to the next.
    """

    def __init__(
        self,
        environments: Sequence[Any] | None,
        tools: Sequence[Callable[..., Any]] | None,
        watched: bool,
        schemas: dict[type, tuple[Any, ...]],
    ):
        self.environments, self.tools, self.watched = environments or (), tools or (), watched
        self._schemas = schemas

    def failures(self, i: int, rollout: Rollout, failure_turn: str) -> list[Failure]:
        """The turns of local rollout `i` to recover from, with what its environment knows to be right (`_reference`).

        Args:
            branch: see `failure.find_failures`.
        """
        trajectory = rollout.trajectory
        found = find_failures(
            trajectory, rollout.verdict, trajectory.task.tools or self._tool_schemas(i), failure_turn
        )
        known = getattr(self.environments[i], "_reference", None) if self.environments else None
        return [replace(failure, expected=tuple(known())) for failure in found] if known and found else found

    def state_at(self, i: int) -> Callable[[Failure], Any]:
        """From a failure of local rollout `i` to the snapshot of its environment there, None without one."""

        def state(failure: Failure) -> Any:
            if not self.environments or not self.watched:
                return None
            return snapshot_after(self.environments[i], [r for turn in failure.turns for r in turn.results])

        return state

    def take_counts(self) -> Counter[str]:
        """What the environments' watches have counted since they were last asked."""
        counts: Counter[str] = Counter()
        for world in self.environments if self.watched else ():
            counts.update({f"env/{name}": n for name, n in world._fission_monitor.counts.items()})
            world._fission_monitor.counts.clear()
        return counts

    def _tool_schemas(self, i: int) -> tuple[Any, ...]:
        """The tools of local rollout `i` as JSON schemas."""
        from transformers.utils import get_json_schema

        world = self.environments[i] if self.environments else None
        if type(world) not in self._schemas:
            methods = tool_methods(world).values() if world is not None else ()
            self._schemas[type(world)] = tuple(get_json_schema(tool) for tool in (*self.tools, *methods))
        return self._schemas[type(world)]
