"""Demonstrations at the desk, of mixed quality on purpose.

A policy trained on perfect demonstrations leaves reinforcement learning little to find: its entropy is low and it
meets errors it was never shown. These demonstrations slip often and recover seldom. Tool results are real: every
call is made on a Desk.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fission_grpo.core.chat import render_call
from fission_grpo.core.types import Message, ToolCall
from fission_grpo.envs.desk.env import (
    CONTACTS,
    FOLDERS,
    Desk,
    ToolError,
)
from fission_grpo.envs.desk.tasks import make_rows, solutions_by_request, spoken_time
from fission_grpo.envs.wrapper import tool_methods

MAX_CALLS = 3
"""Made for one request."""


SINGLE_SHARE = 0.25
"""So many demonstrations have one request where the others have several. [ours]"""


@dataclass(frozen=True)
class DemoQuality:
    """How good demonstrations are. Every number is a probability. [ours]

    Args:
        slip: the first call of a task that needs no error message has a typical mistake.
        recover: after an error, the next call is the right one.
        repeat: if it is not, it is the same call again,
        give_up: or there is no further call; else another wrong one.
    """

    slip: float
    recover: float
    repeat: float = 0.45
    give_up: float = 0.2


SKILLED = DemoQuality(slip=0.3, recover=0.8)
"""What the first part of the training shows, from which the policy learns the tools and to copy from messages."""


MIXED = DemoQuality(slip=0.5, recover=0.12)
"""What the last part shows, and what the shipped policy behaves like: few good recoveries."""


MIXED_CHAINS = DemoQuality(slip=0.4, recover=0.3)
"""The same for tasks of several requests, all of which must come out right: with MIXED hardly one episode does."""


def demonstrations(count: int, seed: int, quality: DemoQuality, requests: int = 1) -> list[list[Message]]:
    """`count` dialogues on tasks of the training split, each from the request to the assistant's last word.

    With `requests` > 1 the tasks of the first SINGLE_SHARE of them still have one request each.
    """
    rows = make_rows(count, seed, "train", requests)
    if requests > 1:
        single = int(SINGLE_SHARE * count)
        rows[:single] = make_rows(single, seed, "train")
    return [demonstrate(row, random.Random(f"demo {seed} {index}"), quality) for index, row in enumerate(rows)]


def demonstrate(row: Mapping[str, Any], rng: random.Random, quality: DemoQuality) -> list[Message]:
    """One dialogue on a row's task: user, assistant, tool, assistant, ... as chat messages.

    Requests are seen to one after the other, each as if it were alone; the last word is "Done." if none was left
    with an error.
    """
    desk = Desk()
    desk.reset(**row)
    messages: list[Message] = list(row["prompt"])
    failed = False
    for first, calls in solutions_by_request(row):
        done = _attempt(tool_methods(desk), first, calls, rng, quality)
        failed = failed or done[-1].failed
        for each in done:
            messages.append({"role": "assistant", "content": render_call(each.call)})
            messages.append({"role": "tool", "name": each.call.name, "content": each.result})
    messages.append({"role": "assistant", "content": "Sorry, I could not do that." if failed else "Done."})
    return messages


@dataclass(frozen=True)
class _Made:
    """A call that was made: what the policy reads after it, and whether it erred."""

    call: ToolCall
    result: str
    failed: bool


def _attempt(
    tools: Mapping[str, Any], first: ToolCall, calls: tuple[ToolCall, ...], rng: random.Random, quality: DemoQuality
) -> list[_Made]:
    """At most MAX_CALLS calls made for one request."""
    pending = list(calls)
    call = first
    if rng.random() < (quality.slip if call == pending[0] else quality.slip / 2):
        call = _mistaken(call, rng)
    done: list[_Made] = []
    for _ in range(MAX_CALLS):
        result, failed = _result(tools, call)
        done.append(_Made(call, result, failed))
        if call == pending[0] and not failed:
            pending.pop(0)
        if not failed and not (pending and call in calls):
            break
        next_call = pending[0] if not failed else _after_error(first, call, pending, rng, quality)
        if next_call is None:
            break
        call = next_call
    return done


def _after_error(
    first: ToolCall, call: ToolCall, pending: list[ToolCall], rng: random.Random, quality: DemoQuality
) -> ToolCall | None:
    """The call made after `call` failed, None to give up."""
    if rng.random() < quality.recover:
        return pending[0]
    draw = rng.random()
    if draw < quality.repeat:
        return call
    if draw < quality.repeat + quality.give_up:
        return None
    return _mistaken(first, rng)


def _mistaken(call: ToolCall, rng: random.Random) -> ToolCall:
    """A call with one typical mistake in one argument, or with its last argument dropped."""
    arguments = dict(call.arguments)
    key = rng.choice([key for key in arguments if key != "title"])
    if rng.random() < 0.1:
        key = list(arguments)[-1]
        del arguments[key]
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


def _result(tools: Mapping[str, Any], call: ToolCall) -> tuple[str, bool]:
    """What the policy reads after a call, as TRL writes it, and whether the call erred."""
    try:
        return str(tools[call.name](**call.arguments)), False
    except (ToolError, TypeError) as error:
        return str({"error": str(error)}), True
