"""Demonstrations on generated cases, of mixed quality on purpose (see `environments.desk_demos` for why)."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fission_grpo.core.chat import render_call
from fission_grpo.core.types import Message, ToolCall, ToolResult
from fission_grpo.envs.bfcl.env import environment_of
from fission_grpo.envs.bfcl.tasks import (
    DONE,
    NEED_MORE,
    NO_TOOL,
    Case,
    all_rows,
)
from fission_grpo.envs.restore import make_call
from fission_grpo.envs.wrapper import tool_methods
from fission_grpo.recipes.starter_policy.desk_demos import Quality

SORRY = "Sorry, I could not do that."


MOST_ERRORS = 3
"""Errors in one demonstration after which it gives up."""


def case_lessons(cases: Sequence[Case]) -> Callable[[int, int, Quality], list[tuple[list[Message], list[Any]]]]:
    """Draws dialogues on the cases' user turns, each with its tools: `lessons(count, seed, quality)`."""
    rows = all_rows(cases)
    tools = {
        name: list(tool_methods(environment_of(name)()).values()) for name in {row["environment"] for row in rows}
    }

    def lessons(count: int, seed: int, quality: Quality) -> list[tuple[list[Message], list[Any]]]:
        drawn = []
        for index in range(count):
            rng = random.Random(f"case demo {seed} {index}")
            row = rng.choice(rows)
            drawn.append((demonstrate(row, rng, quality), tools[row["environment"]]))
        return drawn

    return lessons


def demonstrate(row: Mapping[str, Any], rng: random.Random, quality: Quality) -> list[Message]:
    """One dialogue on a row's user turn, after the dialogue so far. Every result is real."""
    world = environment_of(row["environment"])()
    world.reset(**row)
    tools = tool_methods(world)
    messages: list[Message] = list(row["prompt"])
    reference = [ToolCall(call["name"], call["arguments"]) for call in json.loads(row["scenario"])["reference"]]
    errors = 0
    for right in reference:
        call = _mistaken(right, rng) if rng.random() < quality.slip else right
        result = _say(messages, tools, call)
        while result.error is not None:
            errors += 1
            draw = rng.random()
            if errors == MOST_ERRORS or (draw > quality.recover and rng.random() < quality.give_up):
                return [*messages, {"role": "assistant", "content": SORRY}]
            if draw <= quality.recover:
                call = right
            elif rng.random() >= quality.repeat:
                call = _mistaken(right, rng)
            result = _say(messages, tools, call)
    last = DONE if reference else NO_TOOL if "-" in row["environment"] else NEED_MORE
    return [*messages, {"role": "assistant", "content": last}]


def _say(messages: list[Message], tools: Mapping[str, Any], call: ToolCall) -> ToolResult:
    result = make_call(tools, call)
    messages.append({"role": "assistant", "content": render_call(call)})
    messages.append({"role": "tool", "name": call.name, "content": result.content})
    return result


def _mistaken(call: ToolCall, rng: random.Random) -> ToolCall:
    """The call with one argument dropped or wrong; without arguments, one too many."""
    if not call.arguments:
        return ToolCall(call.name, {"id": rng.randint(1, 99)})
    arguments = dict(call.arguments)
    key = rng.choice(list(arguments))
    if rng.random() < 0.25:
        del arguments[key]
    else:
        arguments[key] = _mistaken_value(arguments[key], rng)
    return ToolCall(call.name, arguments)


def _mistaken_value(value: Any, rng: random.Random) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return rng.choice((str(value), value + 1, -value))
    if isinstance(value, str):
        return rng.choice((value[:-1] or "x", value.split()[0] + "s", value.swapcase()))
    return str(value)
