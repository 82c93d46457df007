"""Restores environments in TRL's convention to a failed turn, so that a policy can recover from it.

An environment may also have `_snapshot() -> state` and `_restore(state)` (else its calls are replayed), `_progress()`,
the completed share of the task in [0, 1] (judges single corrective turns), and `_reward()`: `get_reward()` under a
name that TRL does not turn into a reward function.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from fission_grpo.core.chat import read_result
from fission_grpo.core.errors import InfrastructureError, ProcessDied, TimeLimitExceeded, error_message
from fission_grpo.core.terminal import get_logger, warn_once
from fission_grpo.core.timing import contained
from fission_grpo.core.types import PARSE_ERROR, Message, Task, ToolCall, ToolResult, Turn
from fission_grpo.envs.faults import FAULTS_KEY
from fission_grpo.envs.wrapper import (
    ADVICE,
    ENDED,
    EpisodeMonitor,
    ToolLimits,
    bind_method,
    can_snapshot,
    guard_tools,
    tool_methods,
)

_log = get_logger(__name__)

RunAsync = Callable[[Any], Any]  # runs an awaitable to its result
TASK_KEY = "_fission_recovery"  # column of a recovery cycle's rows that holds the recovery Task; hidden from users


def make_restorable(
    make: Callable[[], Any],
    run_async: RunAsync,
    get_snapshot: Callable[[str], Any] = lambda task_id: None,
    limits: ToolLimits | None = None,
    sanitize: Callable[[str], str] = str,
    replays: bool = True,
) -> Callable[[], Any]:
    """A factory of the same environments with guarded tools, whose `reset` also takes rows of recovery tasks.

    For such a row, `reset` returns no observation: the recovery prompt contains it already. In an episode with an
    infrastructure error the reward is None; one is that in a replay the observation differs, or whether a call fails,
    so that `reset` began another task. The class stays the user's own.

    Args:
        run_async: runs a coroutine to its result.
        get_snapshot: from a recovery task's id to the snapshot to restore; None to replay the task's history.
        sanitize: applied to the text that `reset` returns.
        replays: whether `reset` gives the same task for the same row, so that calls can be repeated after it.
    """

    def make_one() -> Any:
        environment = contained(make, f"making {getattr(make, '__name__', 'the environment')}")
        if not replays and not can_snapshot(environment):
            raise ValueError(
                f"{type(environment).__name__} draws its own tasks, as there is no train_dataset. To recover from one "
                "it needs _snapshot and _restore: add them, give a train_dataset, or set fission=False."
            )
        monitor = guard_tools(environment, limits or ToolLimits())
        original = environment.reset

        @functools.wraps(original)
        def reset(**row: Any) -> Any:
            task = row.pop(TASK_KEY, None)
            columns = row if task is None else {key: value for key, value in task.columns.items() if key in row}

            def begin() -> Any:
                observation = original(**copy.deepcopy(columns))  # it may change them; rewards read them, too
                return sanitize(observation) if isinstance(observation, str) else observation

            monitor.begin_episode()
            observation = None
            if monitor.infrastructure_error is None:
                observation = monitor.run(begin, "reset")
            if task is not None:
                _restore_to(task, environment, get_snapshot(task.id), begin, observation, run_async, replays)
                observation = None
            monitor.snapshots = []  # without those of replayed calls
            monitor.record_snapshot()
            return observation

        bind_method(environment, "reset", reset)
        for name in ("get_reward", "_reward"):
            if callable(judge := getattr(environment, name, None)):
                bind_method(environment, name, _guard_reward(judge, monitor))
        return environment

    return make_one


def _restore_to(
    task: Task,
    environment: Any,
    snapshot: Any,
    reset: Callable[[], Any],
    observation: Any,
    run_async: RunAsync,
    replays: bool,
) -> None:
    """Bring an environment, which was reset, to where a recovery task begins, and count how in its monitor."""
    monitor: EpisodeMonitor = environment._fission_monitor
    name = type(environment).__name__
    if snapshot is not None and can_snapshot(environment) and monitor.infrastructure_error is None:
        try:
            state = copy.deepcopy(snapshot)  # several rollouts begin with it
            contained(lambda: environment._restore(state), monitor.name_of("_restore"), monitor.limits.timeout, ADVICE)
            monitor.counts["restored"] += 1
            return
        except InfrastructureError as error:
            monitor.record_infrastructure_error(error, "_restore failed")
        except Exception as error:  # noqa: BLE001 - the user's code; counted, and replay is the fallback
            monitor.counts["restore_failed"] += 1
            warn_once(_log, f"{name}._restore failed ({error_message(error)}); such episodes are restored by replay")
            observation = monitor.run(reset, "reset")
    if monitor.infrastructure_error is not None:
        return
    can_replay = replays and begins_with(task, observation)
    answers = list(replayed(environment, task.history, run_async)) if can_replay else None
    if monitor.stopped is not None:  # not by the policy that goes on from here
        monitor.record_infrastructure_error(InfrastructureError(f"a repeated call: {monitor.stopped}"), "")
    elif monitor.infrastructure_error is not None:  # of a repeated call
        return
    elif answers is None or any((now.error is None) != (past.error is None) for past, now in answers):
        monitor.counts["other_tasks"] += 1
        problem = (
            f"{name}.reset began another task than that of the failed episode; give it _snapshot and _restore (JSON "
            "values), or rows that determine its task"
        )
        warn_once(_log, f"{problem}. Such recoveries get no reward, and are counted as env/other_tasks")
        monitor.record_infrastructure_error(InfrastructureError(problem), "")
    else:
        monitor.counts["replay_mismatches"] += sum(now.content != past.content for past, now in answers)
        monitor.counts["replayed"] += 1


def begins_with(task: Task, observation: Any) -> bool:
    """Whether a recovery task's prompt begins as TRL makes it of the row's prompt and this observation of `reset`."""
    first = task.columns.get("prompt") or [{"role": "user", "content": ""}]
    if isinstance(task.prompt, str) or isinstance(first, str) or len(task.prompt) < len(first):
        return True  # nothing is added to a prompt that is text
    content, sampled = first[-1]["content"], task.prompt[len(first) - 1]["content"]
    if not (isinstance(content, str) and isinstance(sampled, str) and isinstance(observation, str | None)):
        return True  # with images, which are not compared
    return sampled == content + (observation or "")


def replay(environment: Any, history: Iterable[ToolResult], run_async: RunAsync | None = None) -> int:
    """Make the calls of `history` again, in order; returns how many are now answered differently.

    Calls that failed are made as well, since they may have changed the state. Left out are calls that were stopped,
    those after them, and calls of tools that the environment does not have (unknown names, standalone tools).
    """
    return sum(now.content != past.content for past, now in replayed(environment, history, run_async))


def replayed(
    environment: Any, history: Iterable[ToolResult], run_async: RunAsync | None
) -> Iterator[tuple[ToolResult, ToolResult]]:
    """The calls of `replay`, each made when it is asked for: its result in the history, and the one now."""
    tools = tool_methods(environment)
    monitor: EpisodeMonitor | None = getattr(environment, "_fission_monitor", None)
    for past in history:
        if past.call.name in tools and not (monitor is not None and _was_stopped(past, monitor)):
            yield past, make_call(tools, past.call, run_async, error_rule_of(environment))


def _was_stopped(past: ToolResult, monitor: EpisodeMonitor) -> bool:
    """Whether a call did not end by itself, or came after one that did not, by the error that the monitor gave it."""
    name, error = past.call.name, past.error or ""
    stopped = TimeLimitExceeded(name, monitor.limits.timeout), ProcessDied(name, monitor.environment)
    return error in map(str, stopped) or error.startswith(ENDED)


def error_rule_of(environment: Any) -> Callable[[str], bool] | None:
    """Which results of a guarded environment are errors, see `ToolLimits`; None for one that is not guarded."""
    monitor: EpisodeMonitor | None = getattr(environment, "_fission_monitor", None)
    return None if monitor is None else monitor.limits.error_if


def make_call(
    tools: Mapping[str, Callable[..., Any]],
    call: ToolCall,
    run_async: RunAsync | None = None,
    error_if: Callable[[str], bool] | None = None,
) -> ToolResult:
    """Make one call of a tool by name and read its result, as TRL does: errors become `str({"error": message})`."""
    try:
        if call.name not in tools:
            raise ValueError(f"Tool {call.name} not found.")
        answer = tools[call.name](**call.arguments)
        if inspect.isawaitable(answer):
            answer = (run_async or run_awaitable)(answer)
        text = str(answer)
    except Exception as error:  # noqa: BLE001 - the tool's own error, which is its answer
        message = error_message(error)
        return ToolResult(call, str({"error": message}), message)
    return read_result(call, text, error_if)


def answer_turn(
    turn: Turn,
    tools: Mapping[str, Callable[..., Any]],
    run_async: RunAsync | None = None,
    error_if: Callable[[str], bool] | None = None,
) -> tuple[ToolResult, ...]:
    """Make the calls of a turn, see `make_call`. A turn that cannot be read is answered by the first tool with why."""
    if turn.error is not None:
        call = ToolCall(next(iter(tools), "error"), {PARSE_ERROR: turn.error})
        return (ToolResult(call, str({"error": turn.error}), turn.error),)
    return tuple(make_call(tools, call, run_async, error_if) for call in turn.calls)


def run_awaitable(awaitable: Any) -> Any:
    """Run any awaitable to its result, in this thread; in another one where a loop runs here, as in a notebook.

    The loop stays open: a call that never ends cannot hold up its closing.
    """

    async def run() -> Any:
        return await awaitable

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return _loop_of(threading.get_ident()).run_until_complete(run())
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, run()).result()


@functools.cache
def _loop_of(thread: int) -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


def snapshot_after(environment: Any, results: Iterable[ToolResult]) -> Any:
    """The snapshot of a guarded environment after these calls of its episode; None if there is none."""
    tools = tool_methods(environment)
    calls = sum(result.call.name in tools and PARSE_ERROR not in result.call.arguments for result in results)
    snapshots = environment._fission_monitor.snapshots
    return snapshots[calls] if calls < len(snapshots) else None


def without_task(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row without the recovery task and what else is hidden, as the user's reward functions know it."""
    return {key: value for key, value in row.items() if key not in (TASK_KEY, FAULTS_KEY)}


def _guard_reward(judge: Callable[[], Any], monitor: EpisodeMonitor) -> Callable[[], Any]:
    """The environment's reward; 0 if a call was stopped, None (TRL's value for none) if it cannot be judged."""

    @functools.wraps(judge)
    def get_reward(*output: str) -> Any:
        if monitor.infrastructure_error is not None or monitor.stopped is not None:
            return None if monitor.infrastructure_error is not None else 0.0
        return monitor.run(partial(judge, *output), judge.__name__)

    @functools.wraps(judge)
    async def get_reward_async() -> Any:
        if monitor.infrastructure_error is not None or monitor.stopped is not None:
            return None if monitor.infrastructure_error is not None else 0.0
        return await monitor.run_async(judge(), judge.__name__)

    return get_reward_async if inspect.iscoroutinefunction(judge) else get_reward


@dataclass(frozen=True)
class TurnVerdict:
    """The results of a corrective turn's calls, and whether the turn resolved the failure."""

    results: tuple[ToolResult, ...]
    resolved: bool


def judge_corrective_turn(
    environment: Any, completion: Sequence[Message], run_async: RunAsync | None = None
) -> TurnVerdict:
    """Make the calls of an assistant turn and judge it.

    The turn resolves the failure if it makes at least one call, no call fails, and the environment's `_progress()`
    increases. Without `_progress` the calls only have to succeed, which any harmless call does, so environments should
    define it. [ours]

    `completion` is the turn as TRL parsed it: one assistant message, perhaps with `tool_calls`.
    """
    functions = [call["function"] for message in completion for call in message.get("tool_calls") or ()]
    calls = [ToolCall(function["name"], function["arguments"]) for function in functions]
    before = _progress_of(environment)
    tools, error_if = tool_methods(environment), error_rule_of(environment)
    results = tuple(make_call(tools, call, run_async, error_if) for call in calls)
    if not results or any(result.error is not None for result in results):
        return TurnVerdict(results, resolved=False)
    after = _progress_of(environment)
    return TurnVerdict(results, resolved=before is None or after is None or after > before)


def _progress_of(environment: Any) -> float | None:
    """The environment's progress; None, which breaks a guarded environment's episode, if that is no number."""
    monitor: EpisodeMonitor | None = getattr(environment, "_fission_monitor", None)
    try:
        measure = partial(get_progress, environment)
        progress = measure() if monitor is None else monitor.run(measure, "_progress")
        if progress is not None and not math.isfinite(progress):
            raise ValueError(str(progress))
        return progress
    except (TypeError, ValueError, ArithmeticError) as error:
        if monitor is None:
            raise
        monitor.record_infrastructure_error(ValueError(f"_progress gives no number ({error})"), "")
        return None


def get_progress(environment: Any) -> float | None:
    """The environment's own measure of how much of the task is done, in [0, 1]; None if it has none."""
    measure: Any = getattr(environment, "_progress", None)
    return None if measure is None else float(measure())
