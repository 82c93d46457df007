"""From a failed rollout to the turn and the call where it went wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fission_grpo.core.errors import error_message
from fission_grpo.core.terminal import get_logger, warn_once
from fission_grpo.core.timing import contained
from fission_grpo.core.tool_schema import classify_call
from fission_grpo.core.types import ErrorKind, Failure, Rollout, ToolCall, Trajectory, Turn, Verdict
from fission_grpo.envs.restore import snapshot_after
from fission_grpo.envs.wrapper import ADVICE

_log = get_logger(__name__)

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


@dataclass(frozen=True)
class FailedRollout:
    """One failed rollout of this rank."""

    failures: Sequence[Failure]  # its failing turns to recover from, see `failures.find_failures`
    zero_std: bool  # whether all rewards of its group are equal
    get_snapshot: Callable[[Failure], Any] = lambda _: None  # of its environment at a failure, None without one


def failed_rollout(
    rollout: Rollout,
    environment: Any = None,
    tools: Sequence[Mapping[str, Any]] = (),
    failure_turn: str = "first",
    zero_std: bool = False,
) -> FailedRollout:
    """The failures of a rollout, with what its environment knows about them.

    Args:
        rollout: one that may have failed.
        environment: of the rollout, as it is at its end; None without one. Only one that is wrapped by
            `envs.restore.make_restorable` has snapshots.
        tools, failure_turn: see `find_failures`.
        zero_std: see `FailedRollout`.
    """
    failures = find_failures(rollout.trajectory, rollout.verdict, tools, failure_turn)
    if failures and (expected := expected_calls(environment)) is not None:
        failures = [replace(failure, expected=expected) for failure in failures]

    def get_snapshot(failure: Failure) -> Any:
        if getattr(environment, "_fission_monitor", None) is None:
            return None
        return snapshot_after(environment, [result for turn in failure.turns for result in turn.results])

    return FailedRollout(failures, zero_std, get_snapshot)


def expected_calls(environment: Any) -> tuple[ToolCall, ...] | None:
    """The calls of the environment's `_reference`, None if it knows none."""
    reference = getattr(environment, "_reference", None)
    monitor = getattr(environment, "_fission_monitor", None)
    limit = 0 if monitor is None else monitor.limits.timeout
    try:
        calls = None if reference is None else contained(reference, "_reference", limit, ADVICE)
        if calls is None or all(isinstance(call, ToolCall) for call in calls):
            return None if calls is None else tuple(calls)
        problem = "gave what is no ToolCall"
    except Exception as error:  # noqa: BLE001 - the user's code; feedback then goes without it
        problem = f"failed: {error_message(error)}"
    warn_once(_log, f"{type(environment).__name__}._reference {problem}; feedback goes without it")
    return None
