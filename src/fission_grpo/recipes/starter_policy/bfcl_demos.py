"""Demonstrations on generated BFCL cases, with mistakes on purpose (see `desk_demos` for the reason)."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fission_grpo.core.types import Message, ToolCall
from fission_grpo.envs.bfcl.env import environment_of
from fission_grpo.envs.bfcl.tasks import DONE, NEED_MORE, NO_TOOL, GeneratedCase, all_rows
from fission_grpo.envs.wrapper import tool_methods
from fission_grpo.recipes.starter_policy.desk_demos import SORRY, DemoBehavior, Demonstration, demonstrate_call

MAX_ERRORS = 3  # in one demonstration, which then gives up [ours]


def case_demonstrations(cases: Sequence[GeneratedCase]) -> Callable[[int, int, DemoBehavior], list[Demonstration]]:
    """Return a function (count, seed, behavior) that samples dialogues on the cases' user turns, with their tools."""
    rows = all_rows(cases)
    names = {row["environment"] for row in rows}
    tools = {name: list(tool_methods(environment_of(name)()).values()) for name in names}

    def sample(count: int, seed: int, behavior: DemoBehavior) -> list[Demonstration]:
        sampled = []
        for index in range(count):
            rng = random.Random(f"case demo {seed} {index}")
            row = rng.choice(rows)
            sampled.append((_demonstrate(row, rng, behavior), tools[row["environment"]]))
        return sampled

    return sample


def _demonstrate(row: Mapping[str, Any], rng: random.Random, behavior: DemoBehavior) -> list[Message]:
    """Return the dialogue up to a row's user turn, continued by a demonstration. All tool results are real."""
    environment = environment_of(row["environment"])()
    environment.reset(**row)
    tools = tool_methods(environment)
    messages: list[Message] = list(row["prompt"])
    reference = [ToolCall(**call) for call in json.loads(row["scenario"])["reference"]]
    errors = 0
    for right in reference:
        call = _mistaken(right, rng) if rng.random() < behavior.slip else right
        result = demonstrate_call(messages, tools, call)
        while result.error is not None:
            errors += 1
            draw = rng.random()
            if errors == MAX_ERRORS or (draw > behavior.recover and rng.random() < behavior.give_up):
                return [*messages, {"role": "assistant", "content": SORRY}]
            if draw <= behavior.recover:
                call = right
            elif rng.random() >= behavior.repeat:
                call = _mistaken(right, rng)
            result = demonstrate_call(messages, tools, call)
    last = DONE if reference else NO_TOOL if "-" in row["environment"] else NEED_MORE
    return [*messages, {"role": "assistant", "content": last}]


def _mistaken(call: ToolCall, rng: random.Random) -> ToolCall:
    """Return the call with one argument missing or wrong; if it has none, with a superfluous one."""
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
