"""Makes the calls of step tasks in the environments that the tasks name, so that a wrong call gets its real answer."""

from __future__ import annotations

import copy
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from fission_grpo.core.errors import TaskFileError, UsageError, error_message
from fission_grpo.core.json_io import quoted
from fission_grpo.core.serialization import call_fields
from fission_grpo.core.terminal import get_logger, warn_once
from fission_grpo.core.types import FOLLOWING, Task, ToolCall, ToolResult
from fission_grpo.envs.catalog import ENVIRONMENT, environment_of_row
from fission_grpo.envs.restore import TASK_KEY, RunAsync, make_call, make_restorable, run_awaitable
from fission_grpo.envs.wrapper import bind_method, can_snapshot, tool_methods

CHECKED_TASKS = 64  # tasks of a file that are tried in their environments before training [ours]
CHECK_SECONDS = 60.0  # after which no further one is tried [ours]
SNAPSHOT = "snapshot"  # column of a step task: the state of its environment at its turn

_log = get_logger(__name__)

Guard = Callable[[Callable[[], Any]], Callable[[], Any]]  # makes a factory's environments restorable, with limits


def names_environment(task: Task) -> bool:
    """Whether the calls of a step task can be made."""
    return task.reference is not None and task.columns.get(ENVIRONMENT) is not None


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

    def _make_calls(self, task: Task, calls: Sequence[ToolCall]) -> tuple[ToolResult, ...] | None:
        try:
            environment = self.at_turn(task)
        except Exception as error:  # noqa: BLE001 - the user's code; counted, and the next source of feedback is asked
            warn_once(
                _log, f"{task.columns.get(ENVIRONMENT)} cannot be brought to a task's turn: {error_message(error)}"
            )
            return None
        monitor = environment._fission_monitor
        if monitor.infrastructure_error is not None:
            return None
        tools = tool_methods(environment)
        results = tuple(make_call(tools, call, self._run_async) for call in calls)
        return None if monitor.infrastructure_error is not None or monitor.stopped is not None else results

    def at_turn(self, task: Task) -> Any:
        """The environment of a task, brought to its turn; what its monitor says of that is for the caller to see.

        Raises UsageError if there is no such environment, and whatever its `reset` raises.
        """
        name, make = environment_of_row(task.columns)
        if name not in self._environments:
            self._environments[name] = self._guard(_with_snapshots(make))()
        environment = self._environments[name]
        environment.reset(**task.columns, **{TASK_KEY: task})
        return environment

    def pop_counts(self) -> Counter[str]:
        """Return and reset the events since the last time, as `env/<event>`; the next calls are made anew."""
        counts, self._counts = self._counts, Counter()
        self._answers.clear()
        for environment in self._environments.values():
            counts.update(environment._fission_monitor.counts)
            environment._fission_monitor.counts.clear()
        return Counter({f"env/{name}": n for name, n in counts.items()})


def _with_snapshots(make: Callable[[], Any]) -> Callable[[], Any]:
    """A factory of the same environments, whose `reset` restores the row's `snapshot` if it has one."""

    def make_one() -> Any:
        environment = make()
        reset = environment.reset

        def reset_to_snapshot(**row: Any) -> Any:
            snapshot = row.pop(SNAPSHOT, None)
            row.pop(FOLLOWING, None)
            observation = reset(**row)
            if snapshot is not None:
                if not can_snapshot(environment):
                    raise ValueError(f"the row has a snapshot, but {type(environment).__name__} no _restore")
                environment._restore(copy.deepcopy(snapshot))
            return observation

        bind_method(environment, "reset", reset_to_snapshot)
        return environment

    return make_one


@dataclass
class _Tried:
    """What came of the tasks that were tried in their environments."""

    tasks: int = 0
    notes: dict[str, list[str]] = field(default_factory=dict)  # places by what is odd there

    def note(self, what: str, place: str) -> None:
        self.notes.setdefault(what, []).append(place)

    def __str__(self) -> str:
        odd = [f"; {len(places)} {what}, the first: {places[0]}" for what, places in self.notes.items()]
        return f"{self.tasks} tasks tried in their environments{''.join(odd)}"


def try_environments(path: str, tasks: Iterable[Task]) -> str:
    """Bring the first tasks of a file to their turns and make the calls of their references; returns a summary.

    The summary counts and quotes dialogues that are answered in other words than in the file, and references that fail
    in their environment. It is empty for a file without environments.

    Raises:
        TaskFileError: naming file, task and field: an environment is unknown or cannot be brought to the turn, a call
            of the dialogue fails that worked, or the reverse, or the environment lacks a tool of the reference.
    """
    environments, tried = StepEnvironments(), _Tried()
    began = time.monotonic()
    for number, task in enumerate(tasks, 1):
        if not names_environment(task):
            continue
        if tried.tasks >= CHECKED_TASKS or time.monotonic() - began > CHECK_SECONDS:
            break
        place = f"{path}: task {number} ({quoted(task.id)})"
        tried.tasks += 1
        try:
            environment = environments.at_turn(task)
        except UsageError as error:
            raise TaskFileError(f"{place}: field 'environment': {error}") from error
        except Exception as error:  # the user's code
            problem = f"its reset raised {type(error).__name__}: {error_message(error)}"
            raise TaskFileError(f"{place}: field 'environment': {problem}; correct the row's columns") from error
        _try_task(place, task, environment, environments, tried)
    return str(tried) if tried.tasks else ""


def _try_task(place: str, task: Task, environment: Any, environments: StepEnvironments, tried: _Tried) -> None:
    monitor = environment._fission_monitor
    if monitor.infrastructure_error is not None:
        raise TaskFileError(
            f"{place}: field 'messages': the environment cannot be brought to the end of the dialogue "
            f"({monitor.infrastructure_error}); correct the dialogue or the columns for `reset`"
        )
    if monitor.counts.pop("replay_mismatches", 0):
        tried.note("dialogues are answered in other words than in the file", place)
    reference = task.reference or ()
    missing = next((i for i, call in enumerate(reference) if call.name not in tool_methods(environment)), None)
    if missing is not None:
        name, kind = quoted(reference[missing].name), type(environment).__name__
        raise TaskFileError(f"{place}: field 'reference[{missing}].name': {name} is no tool of {kind}")
    for result in environments.results(task, reference) or ():
        if result.error is not None:
            tried.note("references fail there", f"{place}: {result.call.name}: {quoted(result.error)}")
