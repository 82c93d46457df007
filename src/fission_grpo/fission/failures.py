"""From a failed rollout to the turn and the call where it went wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fission_grpo.core.tool_schema import classify_call
from fission_grpo.core.types import ErrorKind, Failure, Trajectory, Turn, Verdict

FAILURE_TURNS = ("first", "last", "every")


def find_failure(trajectory: Trajectory, verdict: Verdict, tools: Sequence[Mapping[str, Any]] = ()) -> Failure | None:
    """Find what first went wrong in a rollout that was judged a failure.

    The first turn with an invalid form or a failing call wins, and in it the first failing call; then a truncated
    turn; then, with a reference, `no_call` or `wrong_call`, and without one, `out_of_turns` if the last turn's calls
    were never made; `low_reward` if nothing finer is known. A call with a result is judged by the result alone (an
    environment that accepted it did accept it); the schema then only says which kind of error it was. A call that was
    never executed is judged by the schema. `detail` never derives from the reference.

    Args:
        trajectory, verdict: the rollout and its verdict.
        tools: the schemas of the tools it had; by default the task's. With none at all, calls are not checked.

    Returns:
        The failure, cut after the turn to recover from; None if the rollout did not fail, could not be judged
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
    """Find the turns to recover from in a failed rollout, as `find_failure` does, in their order.

    `failure_turn` is "first" for the first failing turn, "last", or "every", else ValueError is raised. Where no turn
    fails by itself there is one failure in any case. The list is empty where `find_failure` gives None.
    """
    if failure_turn not in FAILURE_TURNS:
        raise ValueError(f"failure_turn must be one of {', '.join(FAILURE_TURNS)}, got {failure_turn!r}")
    if not verdict.failed or verdict.reward is None or math.isnan(verdict.reward) or not trajectory.turns:
        return []
    task, turns = trajectory.task, trajectory.turns
    tools = tools or task.tools

    def failure(end: int, kind: ErrorKind, detail: str = "", call_index: int | None = None) -> Failure:
        return Failure(task, turns[: end + 1], kind, detail, call_index, verdict.reward, tools=tuple(tools))

    failing = [failure(end, *what) for end, turn in enumerate(turns) if (what := _turn_failure(turn, tools))]
    if failing:
        return {"first": failing[:1], "last": failing[-1:], "every": failing}[failure_turn]
    return [failure(*_episode_failure(trajectory))]


def _episode_failure(trajectory: Trajectory) -> tuple[int, ErrorKind, str]:
    """Return turn, kind and detail of a failure that no single turn shows."""
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


def _turn_failure(turn: Turn, tools: Sequence[Mapping[str, Any]]) -> tuple[ErrorKind, str, int | None] | None:
    """Return kind, detail and call index of what fails in a turn by itself."""
    if turn.error is not None:
        return ErrorKind.UNPARSED, turn.error, None
    for index, call in enumerate(turn.calls):
        result = turn.results[index] if index < len(turn.results) else None
        if problem := classify_call(call, result, tools or None):
            return problem.kind, problem.message, index
    return None
