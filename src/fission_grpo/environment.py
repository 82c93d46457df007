"""Environments in TRL's convention (public methods are the tools, `reset(**row)`), brought back to a failed turn.

An environment that knows nothing of us is restored by resetting it with the failed rollout's data set row and
replaying the calls that led to the failure.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fission_grpo.trajectory import ToolCall

TASK_KEY = "_fission_recovery"
"""Column of a recover cycle's rows that holds the recovery Task; taken out before anyone else sees the row."""

Await = Callable[[Any], Any]
"""Runs a coroutine to its result."""


def tool_methods(environment: Any) -> dict[str, Callable[..., Any]]:
    """The environment's tools by name: public methods of its class, without `reset` and `get_reward` (as in TRL)."""
    return {
        name: getattr(environment, name)
        for name, _ in inspect.getmembers(type(environment), predicate=inspect.isfunction)
        if name not in ("reset", "get_reward") and not name.startswith("_")
    }


def replay(environment: Any, history: Iterable[ToolCall], run_async: Await) -> None:
    """Make the calls of `history` again, in order. Calls that failed before fail again, and that is right.

    Calls to tools the environment does not have (unknown names, standalone tools) are left out.
    """
    tools = tool_methods(environment)
    for call in history:
        tool = tools.get(call.name)
        if tool is None:
            continue
        try:
            result = tool(**copy.deepcopy(dict(call.arguments)))
            if inspect.isawaitable(result):
                run_async(result)
        except Exception:  # noqa: BLE001 - the tool's own error, which the first rollout met as well
            continue


def restorable(factory: Callable[[], Any], run_async: Await) -> Callable[[], Any]:
    """An environment factory whose instances also take rows of recovery tasks.

    Given such a row, `reset` resets with the root task's own row, replays the task's history, and adds no
    observation (the recovery prompt holds it already). The class stays the user's own.
    """

    def make() -> Any:
        environment = factory()
        original = environment.reset

        @functools.wraps(original)
        def reset(**row: Any) -> Any:
            task = row.pop(TASK_KEY, None)
            if task is None:
                return original(**row)
            original(**{key: value for key, value in task.columns.items() if key in row})
            replay(environment, task.history, run_async)
            return None

        try:
            environment.reset = reset
        except AttributeError as error:
            raise TypeError(
                f"{type(environment).__name__} does not let `reset` be replaced on an instance ({error}). Remove its "
                "__slots__, or make it a plain class, so that fission can bring it back to the failed turn."
            ) from error
        return environment

    return make


def without_task(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row as the user's reward functions know it."""
    return {key: value for key, value in row.items() if key != TASK_KEY}
