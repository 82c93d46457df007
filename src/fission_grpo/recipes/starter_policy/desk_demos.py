"""Demonstrations in the Desk environment, with mistakes on purpose.

A policy trained on perfect demonstrations has low entropy and has never seen an error, which leaves little for
reinforcement learning. These demonstrations make many mistakes and recover from few. All tool results are real.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fission_grpo.core.chat import render_call
from fission_grpo.core.types import Message, ToolCall, ToolResult
from fission_grpo.envs.desk.env import CONTACTS, FOLDERS, Desk
from fission_grpo.envs.desk.tasks import make_rows, solutions_by_request, spoken_time
from fission_grpo.envs.restore import make_call
from fission_grpo.envs.wrapper import tool_methods

MAX_CALLS = 3  # for one request [ours]
SINGLE_SHARE = 0.25  # of demonstrations that have one request where the others have several [ours]
SORRY = "Sorry, I could not do that."
Demonstration = tuple[list[Message], list[Any]]  # a dialogue and its tools


@dataclass(frozen=True)
class DemoBehavior:
    """Probabilities of what a demonstration does. [ours]"""

    slip: float  # the first call of a task has a typical mistake
    recover: float  # after an error, the next call is the right one
    repeat: float = 0.45  # if it is not, it is the same call again,
    give_up: float = 0.2  # or there is no further call. Otherwise it is another wrong call


SKILLED = DemoBehavior(slip=0.3, recover=0.8)
"""First part of the training: the policy learns the tools, and to copy from messages."""
MIXED = DemoBehavior(slip=0.5, recover=0.12)
"""Last part of the training: the policy then behaves like this, with few recoveries."""
MIXED_MULTI_REQUEST = DemoBehavior(slip=0.4, recover=0.3)
"""The same for tasks with several requests. With MIXED hardly any of them would succeed."""


def demonstrations(count: int, seed: int, behavior: DemoBehavior, requests: int = 1) -> list[list[Message]]:
    """Return dialogues on tasks of the training split, from the request to the assistant's last message.

    With several `requests` per task, the first SINGLE_SHARE of the tasks still have one.
    """
    rows = make_rows(count, seed, "train", requests)
    if requests > 1:
        single = int(SINGLE_SHARE * count)
        rows[:single] = make_rows(single, seed, "train")
    return [_demonstrate(row, random.Random(f"demo {seed} {index}"), behavior) for index, row in enumerate(rows)]


def _demonstrate(row: Mapping[str, Any], rng: random.Random, behavior: DemoBehavior) -> list[Message]:
    """Handle the requests of a task one after another. The last message is "Done." if none ended with an error."""
    desk = Desk()
    desk.reset(**row)
    messages: list[Message] = list(row["prompt"])
    failed = False
    for first, calls in solutions_by_request(row):
        failed |= _handle_request(messages, tool_methods(desk), first, calls, rng, behavior)
    return [*messages, {"role": "assistant", "content": SORRY if failed else "Done."}]


def demonstrate_call(messages: list[Message], tools: Mapping[str, Any], call: ToolCall) -> ToolResult:
    """Make a call, and append the call and its result to the messages."""
    result = make_call(tools, call)
    messages.append({"role": "assistant", "content": render_call(call)})
    messages.append({"role": "tool", "name": call.name, "content": result.content})
    return result


def _handle_request(
    messages: list[Message],
    tools: Mapping[str, Any],
    first: ToolCall,
    calls: tuple[ToolCall, ...],
    rng: random.Random,
    behavior: DemoBehavior,
) -> bool:
    """Make at most MAX_CALLS calls for one request. Returns whether the last one failed."""
    pending = list(calls)
    next_call: ToolCall | None = first
    if rng.random() < (behavior.slip if first == pending[0] else behavior.slip / 2):
        next_call = _mistaken(first, rng)
    failed = False
    for _ in range(MAX_CALLS):
        call = next_call
        if call is None:
            break
        failed = demonstrate_call(messages, tools, call).error is not None
        if failed:
            next_call = _after_error(first, call, pending[0], rng, behavior)
        else:
            if call == pending[0]:
                pending.pop(0)
            next_call = pending[0] if pending and call in calls else None
    return failed


def _after_error(
    first: ToolCall, call: ToolCall, right: ToolCall, rng: random.Random, behavior: DemoBehavior
) -> ToolCall | None:
    """Choose the call after `call` failed; None to give up."""
    if rng.random() < behavior.recover:
        return right
    draw = rng.random()
    if draw < behavior.repeat:
        return call
    if draw < behavior.repeat + behavior.give_up:
        return None
    return _mistaken(first, rng)


def _mistaken(call: ToolCall, rng: random.Random) -> ToolCall:
    """Return the call with a typical mistake in one argument, or without its last argument."""
    arguments = dict(call.arguments)
    key = rng.choice([key for key in arguments if key != "title"])
    if rng.random() < 0.1:
        del arguments[list(arguments)[-1]]
    else:
        arguments[key] = _mistaken_value(key, arguments[key], rng)
    return ToolCall(call.name, arguments)


def _mistaken_value(key: str, value: str, rng: random.Random) -> Any:
    if key == "time":
        return rng.choice((spoken_time(value), int(value[:2] + value[3:]), spoken_time(value).split()[0]))
    if key == "date":
        year, month, day = value.split("-")
        return rng.choice((f"{day}-{month}-{year}", f"{year}/{month}/{day}", f"{month}-{day}"))
    if key in ("name", "new_name"):
        word = value.split("_")[0].split(".")[0]
        return rng.choice((word, f"{word}.txt", value.split(".")[0], f"{word}_{rng.randint(1, 40)}.txt"))
    if key == "event_id":
        return rng.choice((f"E{rng.randint(10, 99)}", value.capitalize(), f"the {value}"))
    if key == "folder":
        return rng.choice((f"{value} folder", value.capitalize(), rng.choice(FOLDERS)))
    return rng.choice((value.lower(), rng.choice(CONTACTS), f"{value}@mail"))
