"""Environments in TRL's convention (public methods are the tools, `reset(**row)`), brought back to a failed turn.

What an environment may offer beside: `_snapshot() -> state` and `_restore(state)` (else its calls are replayed),
`_progress() -> float` in [0, 1] (how much of the task is done; judges single corrective turns), and `_reward()`, which
is `get_reward()` under a name that TRL does not turn into a reward function of its own.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fission_grpo.core.chat import read_result
from fission_grpo.core.errors import InfrastructureError
from fission_grpo.core.types import UNREADABLE, Message, ToolCall, ToolResult
from fission_grpo.envs.wrapper import (
    Limits,
    Watch,
    can_snapshot,
    put_method,
    tool_methods,
    watch,
)

Await = Callable[[Any], Any]
"""Runs a coroutine to its result."""


TASK_KEY = "_fission_recovery"
"""Column of a recover cycle's rows that holds the recovery Task; taken out before anyone else sees the row."""


def make_call(tools: Mapping[str, Callable[..., Any]], call: ToolCall, run_async: Await | None = None) -> ToolResult:
    """Make one call and read what it answers, as TRL does: what a tool raises becomes `str({"error": message})`.

    Args:
        tools: by name, see `tool_methods`. An unknown name is answered with an error.
        call: its arguments are handed over as they are; watched tools copy them.
        run_async: for tools that are coroutines; without it they are run to their end with `asyncio.run`.
    """
    try:
        if call.name not in tools:
            raise ValueError(f"Tool {call.name} not found.")
        answer = tools[call.name](**call.arguments)
        if inspect.isawaitable(answer):
            answer = (run_async or _run)(answer)
        return read_result(call, str(answer))
    except Exception as error:  # noqa: BLE001 - the tool's own error, which is its answer
        return ToolResult(call, str({"error": str(error)}), str(error) or type(error).__name__)


def replay(environment: Any, history: Iterable[ToolResult], run_async: Await | None = None) -> int:
    """Make the calls of `history` again, in order; returns how many answered otherwise than they did then.

    Calls that failed before fail again, and that is right. Calls to tools the environment does not have (unknown
    names, standalone tools) are left out.
    """
    tools = tool_methods(environment)
    again = [(past, make_call(tools, past.call, run_async)) for past in history if past.call.name in tools]
    return sum(now.content != past.content for past, now in again)


def restorable(
    factory: Callable[[], Any],
    run_async: Await,
    state_of: Callable[[str], Any] = lambda task_id: None,
    limits: Limits | None = None,
    told: Callable[[str], str] = str,
) -> Callable[[], Any]:
    """An environment factory whose instances are watched (see `watch`) and also take rows of recovery tasks.

    Given such a row, `reset` resets with the root task's own row, brings the world to where the task begins, and adds
    no observation (the recovery prompt holds it already). The class stays the user's own.

    Args:
        factory: makes the user's environment.
        run_async: runs a coroutine to its result.
        state_of: the snapshot for a recovery task's id, or None. Without one, or if restoring fails, the task's
            history is replayed.
        limits: of every tool call.
        told: makes text of the world harmless (`ControlTokens.told`); applied to what `reset` returns.
    """

    def make() -> Any:
        environment = factory()
        seen = watch(environment, limits or Limits())
        original = environment.reset

        @functools.wraps(original)
        def reset(**row: Any) -> Any:
            seen.forget()
            task = row.pop(TASK_KEY, None)
            columns = row if task is None else {key: value for key, value in task.columns.items() if key in row}
            try:
                observation = original(**columns)
                if task is not None:
                    _bring(environment, seen, task, state_of, lambda: original(**columns), run_async)
            except InfrastructureError as error:
                observation = seen.breaks(error, "reset failed")
            seen.begin(environment)
            if task is not None:
                return None
            return told(observation) if isinstance(observation, str) else observation

        put_method(environment, "reset", reset)
        for name in ("get_reward", "_reward"):
            if callable(judge := getattr(environment, name, None)):
                put_method(environment, name, _unless_broken(judge, seen))
        return environment

    return make


def _unless_broken(judge: Callable[[], Any], seen: Watch) -> Callable[[], Any]:
    """The environment's reward, or None (as TRL wants it: no reward) in an episode that cannot be judged."""
    if inspect.iscoroutinefunction(judge):

        @functools.wraps(judge)
        async def judge_async() -> Any:
            try:
                return None if seen.broken is not None else await judge()
            except InfrastructureError as error:
                return seen.breaks(error, "get_reward failed")

        return judge_async

    @functools.wraps(judge)
    def judged() -> Any:
        try:
            return None if seen.broken is not None else judge()
        except InfrastructureError as error:
            return seen.breaks(error, "get_reward failed")

    return judged


def _bring(
    environment: Any,
    seen: Watch,
    task: Any,
    state_of: Callable[[str], Any],
    reset: Callable[[], Any],
    run_async: Await,
) -> None:
    """Bring an environment that was just reset to where a recovery task begins; says in `seen.counts` how."""
    state = state_of(task.id)
    if state is not None and can_snapshot(environment):
        try:
            environment._restore(state)
            seen.counts["restored"] += 1
            return
        except InfrastructureError:
            raise
        except Exception:  # noqa: BLE001 - the user's code; counted, and replay does instead
            seen.counts["restore_failed"] += 1
            reset()
    seen.counts["replay_mismatches"] += replay(environment, task.history, run_async)
    seen.counts["replayed"] += 1


def state_after(environment: Any, results: Iterable[ToolResult]) -> Any:
    """The snapshot of a watched environment after these calls of its episode; None if it gives no snapshots."""
    tools = tool_methods(environment)
    made = sum(result.call.name in tools and UNREADABLE not in result.call.arguments for result in results)
    taken = environment._fission_watch.states
    return taken[made] if made < len(taken) else None


def without_task(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row as the user's reward functions know it."""
    return {key: value for key, value in row.items() if key != TASK_KEY}


def _run(coroutine: Any) -> Any:
    import asyncio

    async def to_the_end() -> Any:
        return await coroutine

    return asyncio.run(to_the_end())


@dataclass(frozen=True)
class TurnVerdict:
    """What the calls of a corrective turn answered, and whether they resolved the failure."""

    results: tuple[ToolResult, ...]
    resolved: bool


def take_turn(environment: Any, completion: Sequence[Message], run_async: Await | None = None) -> TurnVerdict:
    """Make the calls of an assistant turn and judge it.

    It resolves the failure if it calls at least one tool, no call fails, and the environment is nearer to the end of
    the task than before, in its own `_progress()`. Without `_progress` the calls only have to work, which a policy can
    earn with any harmless call: such an environment should have one. [ours]

    Args:
        environment: where the failed turn left it.
        completion: the turn as TRL parsed it: one assistant message, perhaps with `tool_calls`.
        run_async: runs a coroutine to its result, for async tools.
    """
    functions = [call["function"] for message in completion for call in message.get("tool_calls") or ()]
    calls = [ToolCall(function["name"], function["arguments"]) for function in functions]
    tools = tool_methods(environment)
    before = progress(environment)
    results = tuple(make_call(tools, call, run_async) for call in calls)
    worked = bool(results) and all(result.error is None for result in results)
    after = progress(environment) if worked else before
    nearer = before is None or after is None or after > before
    return TurnVerdict(results, worked and nearer)


def progress(environment: Any) -> float | None:
    """The environment's own measure of how much of the task is done, in [0, 1]; None if it has none."""
    measure: Any = getattr(environment, "_progress", None)
    return None if measure is None else float(measure())
