"""The desk's tasks as static step tasks: single turns with the call that works as reference.

Of every request the first turn is one task, and a later turn of its solution another. In four of the six kinds of
requests the text alone suggests a call that fails (see `tasks`), and only the desk's error says what works.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping
from typing import Any

from fission_grpo.core.chat import dialogue_results, render_call
from fission_grpo.core.serialization import call_fields
from fission_grpo.core.types import Message, Task, ToolCall
from fission_grpo.envs.desk.env import Desk
from fission_grpo.envs.desk.tasks import make_rows, solution
from fission_grpo.envs.wrapper import tool_methods


def make_steps(count: int, seed: int, split: str) -> list[Task]:
    """Return `count` step tasks: of each row of `make_rows` the first turn, then one of its later turns.

    A later turn follows calls of the solution with their results; it makes the next call, or none at the end. The
    columns are those of a step-task file with an environment (docs/tasks.md); `kind` is the request's.
    """
    from transformers.utils import get_json_schema

    tools = tuple(get_json_schema(tool)["function"] for tool in tool_methods(Desk()).values())
    rows = make_rows(-(-count // 2), seed, split)
    steps = (_step(row, made, tools) for row in rows for made in (0, _later(row)))
    return list(itertools.islice(steps, count))


def _later(row: Mapping[str, Any]) -> int:
    """How many calls were made before the later turn of a row."""
    return random.Random(f"step {row['id']}").randint(1, len(solution(row)))


def _step(row: Mapping[str, Any], made: int, tools: tuple[Mapping[str, Any], ...]) -> Task:
    calls = solution(row)
    ahead = [[call_fields(call)] for call in calls[made + 1 :]]
    columns = {"environment": "desk", "scenario": row["scenario"], "kind": row["kind"]}
    if made < len(calls):
        columns["following"] = [*ahead, []]
    prompt = (*row["prompt"], *_dialogue(row, calls[:made]))
    return Task(
        f"{row['id']}-{'later' if made else 'first'}",
        prompt,
        tools,
        calls[made : made + 1],
        columns,
        history=dialogue_results(prompt),
    )


def _dialogue(row: Mapping[str, Any], calls: tuple[ToolCall, ...]) -> Iterator[Message]:
    desk = Desk()
    desk.reset(**row)
    for call in calls:
        yield {"role": "assistant", "content": render_call(call)}
        yield {"role": "tool", "name": call.name, "content": getattr(desk, call.name)(**call.arguments)}
