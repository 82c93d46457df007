"""The paper's one corrective turn, in a live environment: make its calls and see whether they resolved the failure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fission_grpo.environment import Await, make_call, tool_methods
from fission_grpo.trajectory import Message, ToolCall, ToolResult


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
