"""Makes the calls of step tasks in the environments that the tasks name, so that a wrong call gets its real answer."""

from __future__ import annotations

import copy
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from fission_grpo.core.errors import RowError, TaskFileError, UsageError, error_message
from fission_grpo.core.json_io import quoted
from fission_grpo.core.result_errors import is_like_an_error
from fission_grpo.core.serialization import call_fields
from fission_grpo.core.terminal import get_logger
from fission_grpo.core.tool_schema import tool_names
from fission_grpo.core.types import FOLLOWING, Task, ToolCall, ToolResult, Turn
from fission_grpo.envs.catalog import CLASSES, ENVIRONMENT, environment_of_row
from fission_grpo.envs.restore import RunAsync, make_call, make_restorable, replayed, run_awaitable
from fission_grpo.envs.worker import isolated
from fission_grpo.envs.wrapper import ToolLimits, cut_text, tool_methods

CHECKED_TASKS = 64  # tasks of a file that are tried in their environments before training [ours]
CHECK_SECONDS = 60.0  # after which no further one is tried [ours]
SNAPSHOT = "snapshot"  # column of a step task: the state of its environment at its turn
RECOVERY = "recovery"  # column of a step task: its turn recovers from a failed call of the dialogue
NOT_FOR_RESET = (ENVIRONMENT, SNAPSHOT, FOLLOWING, RECOVERY)  # columns of a step task that `reset` does not get

_log = get_logger(__name__)

Guard = Callable[[Callable[[], Any]], Callable[[], Any]]  # makes a factory's environments restorable, with limits
Answers = list[tuple[ToolResult, ToolResult]]  # calls with their results in the dialogue, and now


def names_environment(task: Task) -> bool:
    """Whether the calls of a step task can be made."""
    return task.reference is not None and task.columns.get(ENVIRONMENT) is not None


def guard_with(limits: ToolLimits, isolate: bool = False) -> Guard:
    """A guard of environments with these limits; with `isolate` each is in a process of its own (see `worker`)."""

    def guard(make: Callable[[], Any]) -> Callable[[], Any]:
        return make_restorable(isolated(make, limits.timeout) if isolate else make, run_awaitable, limits=limits)

    return guard


class StepEnvironments:
    """One environment for each name in step tasks, brought to a task's turn before calls are made.

    The environment is reset with the task's columns and brought to the turn by its `snapshot`, else by the calls of
    the dialogue; for a recovery the failed turns' calls follow. Limits, guards and counts are those of episodes.

    Args:
        guard: as for episodes, see `restore.make_restorable`.
        run_async: runs a coroutine to its result.
    """

    def __init__(self, guard: Guard | None = None, run_async: RunAsync = run_awaitable):
        self._guard = guard or partial(make_restorable, run_async=run_async)
        self._run_async = run_async
        self._environments: dict[str, Any] = {}
        self._answers: dict[str, tuple[ToolResult, ...] | None] = {}
        self._counts: Counter[str] = Counter()
        self._warned: set[tuple[Any, str]] = set()

    def results(self, task: Task, calls: Sequence[ToolCall]) -> tuple[ToolResult, ...] | None:
        """Make the calls of one turn, in order; None if they cannot be made, which is logged and counted.

        Equal calls at the same turn are made once until `pop_counts`. A call that exceeds its time limit, or an
        environment that breaks, gives no results, as nobody knows what it would have said.
        """
        key = json.dumps([task.id, [call_fields(call) for call in calls]], sort_keys=True, default=str)
        if key not in self._answers:
            self._answers[key] = self._make_calls(task, calls)
            self._counts["step_calls" if self._answers[key] is not None else "no_step_calls"] += 1
        return self._answers[key]

    def answered(self, task: Task, turn: Turn) -> Turn:
        """The turn with what its environment answers to its calls; as it is, where they cannot be made."""
        has_calls = turn.calls and not turn.truncated and names_environment(task)
        results = self.results(task, turn.calls) if has_calls else None
        return turn if results is None else replace(turn, results=results)

    def _make_calls(self, task: Task, calls: Sequence[ToolCall]) -> tuple[ToolResult, ...] | None:
        try:
            environment, changed = self.at_turn(task)
            self._counts["replay_mismatches"] += len(changed)
            return self.answers(environment, task, calls)
        except RowError as problem:  # counted by the caller, and the next source of feedback is asked
            name = task.columns.get(ENVIRONMENT)
            if (name, problem.field) not in self._warned:
                self._warned.add((name, problem.field))
                what = f"the calls of task {task.id!r} cannot be made: field '{problem.field}': {problem.what}"
                _log.warning("%s: %s. Such turns are counted as env/no_step_calls", name, what)
            return None

    def answers(self, environment: Any, task: Task, calls: Sequence[ToolCall]) -> tuple[ToolResult, ...]:
        """Make calls in an environment that is at the task's turn. The tools are those that the task lists.

        Raises RowError for a listed tool that the environment lacks, and for a call that does not end by itself.
        """
        monitor, tools = environment._fission_monitor, tool_methods(environment)
        listed = tool_names(task.tools)
        if lacking := [call.name for call in calls if call.name in listed and call.name not in tools]:
            raise RowError("tools", f"{quoted(lacking[0])} is no tool of {type(environment).__name__}")
        known = {name: tool for name, tool in tools.items() if name in listed}
        results = tuple(make_call(known, call, self._run_async, monitor.limits.error_if) for call in calls)
        if problem := monitor.infrastructure_error or monitor.stopped:
            raise RowError(ENVIRONMENT, problem)
        return results

    def at_turn(self, task: Task) -> tuple[Any, Answers]:
        """The environment of a task, brought to its turn, with the calls that are answered in other words now.

        Raises RowError, naming the column and the fix, if the environment cannot be brought there.
        """
        environment = self._environment(task)
        self._reset(environment, task)
        return environment, self._repeat_dialogue(environment, task)

    def _environment(self, task: Task) -> Any:
        key = str([task.columns.get(name) for name in (ENVIRONMENT, CLASSES)])
        if key not in self._environments:  # a tool may have changed the folder since the name was looked up
            try:
                name, make = environment_of_row(task.columns)
            except UsageError as error:
                raise RowError(ENVIRONMENT, str(error)) from error
            try:
                self._environments[key] = self._guard(make)()
            except Exception as error:  # the user's code
                what = f"{name} cannot be used: {type(error).__name__}: {error_message(error)}"
                fix = "the class must be made without arguments"
                raise RowError(ENVIRONMENT, f"{what}; {fix}") from error
        return self._environments[key]

    def _reset(self, environment: Any, task: Task) -> None:
        """Reset an environment with the task's columns, and restore its `snapshot` if it has one."""
        kind, monitor = type(environment).__name__, environment._fission_monitor
        columns = {name: value for name, value in task.columns.items() if name not in NOT_FOR_RESET}
        snapshot = task.columns.get(SNAPSHOT)
        if snapshot is not None and not callable(getattr(environment, "_restore", None)):
            raise RowError(SNAPSHOT, f"{kind} has no _restore; add it, or leave out the snapshot")
        try:
            environment.reset(**columns)
        except Exception as error:  # the user's code
            what = f"{kind}.reset raised {type(error).__name__}: {error_message(error)}"
            given = f"it gets {', '.join(columns) or 'no columns'}"
            raise RowError(ENVIRONMENT, f"{what}; {given}: correct the row, or have it take `**_`") from error
        if monitor.infrastructure_error is None and snapshot is not None:
            try:
                monitor.run(lambda: environment._restore(copy.deepcopy(snapshot)), "_restore")
            except Exception as error:  # the user's code
                what = f"{kind}._restore raised {type(error).__name__}: {error_message(error)}"
                raise RowError(SNAPSHOT, f"{what}; give a value that _snapshot has returned") from error
        if monitor.infrastructure_error is not None:
            raise RowError(ENVIRONMENT, f"{kind} cannot be reset ({monitor.infrastructure_error}); correct it")

    def _repeat_dialogue(self, environment: Any, task: Task) -> Answers:
        """Make the calls before the turn; returns those that are answered in other words now."""
        kind, monitor, tools = type(environment).__name__, environment._fission_monitor, tool_methods(environment)
        changed: Answers = []
        for past in task.history:
            if past.call.name not in tools and past.error is None:
                fix = "correct the name, or remove 'environment'"
                raise RowError("messages", f"a call of {quoted(past.call.name)}, which is no tool of {kind}; {fix}")
        for past, now in replayed(environment, task.history, self._run_async):
            if problem := monitor.infrastructure_error or monitor.stopped:
                raise RowError("messages", f"the dialogue's calls cannot be made again: {problem}")
            if now.content in (past.content, cut_text(past.content, monitor.limits.max_result_chars)):
                continue
            if _has_failed(now, monitor.limits.error_if) != _has_failed(past, monitor.limits.error_if):
                self._counts["other_tasks"] += 1
                what = (
                    f"{past.call.name} is answered {quoted(now.content)} now, {quoted(past.content)} in the dialogue"
                )
                raise RowError("messages", f"{what}; correct the dialogue, or the columns that `reset` gets")
            changed.append((past, now))
        self._counts["replayed"] += bool(task.history)
        return changed

    def pop_counts(self) -> Counter[str]:
        """Return and reset the events since the last time, as `env/<event>`; the next calls are made anew."""
        counts, self._counts = self._counts, Counter()
        self._answers.clear()
        for environment in self._environments.values():
            counts.update(environment._fission_monitor.counts)
            environment._fission_monitor.counts.clear()
        return Counter({f"env/{name}": n for name, n in counts.items()})


def _has_failed(result: ToolResult, error_if: Callable[[str], bool] | None) -> bool:
    """Whether a result is an error, also one in words: dialogues of other programs mark errors in their own ways."""
    is_error = result.error is not None or is_like_an_error(result.content)
    return is_error or (error_if is not None and error_if(result.content))


@dataclass
class _Tried:
    """What is odd about the tasks that were tried in their environments."""

    tasks: int = 0
    notes: dict[str, list[tuple[int, str]]] = field(default_factory=dict)  # number and detail, by what is odd

    def note(self, what: str, number: int, detail: str) -> None:
        self.notes.setdefault(what, []).append((number, detail))


def try_environments(
    place: Callable[[int], str],
    tasks: Iterable[Task],
    guard: Guard | None = None,
    most: int = CHECKED_TASKS,
    seconds: float = CHECK_SECONDS,
) -> str:
    """Bring tasks of a file to their turns and make the calls of their references; returns a summary.

    The summary counts and quotes dialogues that are answered in other words than in the file, references that fail in
    their environment, and tools that it lacks. It is empty for a file without environments.

    Args:
        place: the place of a task in messages ("FILE, row 3"), from its index.
        tasks: of the file.
        guard: limits of the environments.
        most: number of tasks to try; 0 for all.
        seconds: after which no further one is tried; 0 for no limit.

    Raises:
        TaskFileError: naming file, row and field: an environment is unknown or cannot be brought to the turn, a call
            of the dialogue fails that worked, or the reverse, or the environment lacks a tool of the reference.
    """
    environments, tried = StepEnvironments(guard), _Tried()
    began = time.monotonic()
    for number, task in enumerate(tasks):
        if not names_environment(task):
            continue
        if (most and tried.tasks >= most) or (seconds and time.monotonic() - began > seconds):
            break
        tried.tasks += 1
        try:
            _try_task(number, task, environments, tried)
        except RowError as problem:
            raise TaskFileError(f"{place(number)}, field '{problem.field}': {problem.what}") from problem
    notes = [
        f"; {what}: {len(each)}, the first: {place(each[0][0])}: {each[0][1]}" for what, each in tried.notes.items()
    ]
    return f"{tried.tasks} tasks tried in their environments{''.join(notes)}" if tried.tasks else ""


def _try_task(number: int, task: Task, environments: StepEnvironments, tried: _Tried) -> None:
    environment, changed = environments.at_turn(task)
    for past, now in changed[:1]:
        detail = f"{past.call.name}: {quoted(now.content)}, in the file {quoted(past.content)}"
        tried.note("dialogues answered in other words than in the file", number, detail)
    kind, tools, reference = type(environment).__name__, tool_methods(environment), task.reference or ()
    for index, call in enumerate(reference):
        if call.name not in tools:
            fix = "correct it, or remove 'environment'"
            raise RowError(f"reference[{index}].name", f"{quoted(call.name)} is no tool of {kind}; {fix}")
    if lacking := [name for name in tool_names(task.tools) if name not in tools]:
        tried.note("tasks that list tools which their environment lacks", number, f"{', '.join(lacking)}, of {kind}")
    try:
        results = environments.answers(environment, task, reference)
    except RowError as problem:
        raise RowError(
            "reference", f"its calls cannot be made: {problem.what}; correct them, or the columns"
        ) from None
    for result in results:
        if result.error is not None:
            tried.note("references that fail there", number, f"{result.call.name}: {quoted(result.error)}")
