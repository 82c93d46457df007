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
from fission_grpo.core.types import Message, ToolCall
from fission_grpo.envs.desk.env import CONTACTS, FOLDERS, Desk, ToolError
from fission_grpo.envs.desk.tasks import make_rows, solutions_by_request, spoken_time
from fission_grpo.envs.wrapper import tool_methods

MAX_CALLS = 3  # for one request [ours]
SINGLE_SHARE = 0.25  # of demonstrations that have one request where the others have several [ours]
SORRY = "Sorry, I could not do that."


@dataclass(frozen=True)
class DemoBehavior:
    """Probabilities of what a demonstration does. [ours]

    Args:
        slip: the first call of a task has a typical mistake.
        recover: after an error, the next call is the right one.
        repeat: if it is not, it is the same call again;
        give_up: or there is no further call. Otherwise it is another wrong call.
    """

    slip: float
    recover: float
    repeat: float = 0.45
    give_up: float = 0.2


SKILLED = DemoBehavior(slip=0.3, recover=0.8)
"""First part of the training: the policy learns the tools, and to copy from messages."""
MIXED = DemoBehavior(slip=0.5, recover=0.12)
"""Last part of the training: the policy then behaves like this, with few recoveries."""
MIXED_MULTI_REQUEST = DemoBehavior(slip=0.4, recover=0.3)
"""The same for tasks with several requests. With MIXED hardly any of them would succeed."""


def demonstrations(count: int, seed: int, behavior: DemoBehavior, requests: int = 1) -> list[list[Message]]:
    """Return dialogues on tasks of the training split, from the request to the assistant's last message.

    Args:
        count: number of dialogues.
        seed: of tasks and mistakes.
        behavior: how often they go wrong.
        requests: per task; above 1, the first SINGLE_SHARE of the tasks still have one.
    """
    rows = make_rows(count, seed, "train", requests)
    if requests > 1:
        single = int(SINGLE_SHARE * count)
        rows[:single] = make_rows(single, seed, "train")
    return [demonstrate(row, random.Random(f"demo {seed} {index}"), behavior) for index, row in enumerate(rows)]


def demonstrate(row: Mapping[str, Any], rng: random.Random, behavior: DemoBehavior) -> list[Message]:
    """Return one dialogue on a task as chat messages.

    The requests are handled one after another. The last message is "Done." if no request ended with an error.
    """
    desk = Desk()
    desk.reset(**row)
    messages: list[Message] = list(row["prompt"])
    failed = False
    for first, calls in solutions_by_request(row):
        attempts = _handle_request(tool_methods(desk), first, calls, rng, behavior)
        failed = failed or attempts[-1].failed
        for attempt in attempts:
            messages.append({"role": "assistant", "content": render_call(attempt.call)})
            messages.append({"role": "tool", "name": attempt.call.name, "content": attempt.result})
    return [*messages, {"role": "assistant", "content": SORRY if failed else "Done."}]


@dataclass(frozen=True)
class _Attempt:
    """A call, the text of its result, and whether it failed."""

    call: ToolCall
    result: str
    failed: bool


def _handle_request(
    tools: Mapping[str, Any], first: ToolCall, calls: tuple[ToolCall, ...], rng: random.Random, behavior: DemoBehavior
) -> list[_Attempt]:
    """Make at most MAX_CALLS calls for one request."""
    pending = list(calls)
    call = first
    if rng.random() < (behavior.slip if call == pending[0] else behavior.slip / 2):
        call = _mistaken(call, rng)
    attempts: list[_Attempt] = []
    for _ in range(MAX_CALLS):
        attempt = _attempt(tools, call)
        attempts.append(attempt)
        if attempt.failed:
            next_call = _after_error(first, call, pending, rng, behavior)
        else:
            if call == pending[0]:
                pending.pop(0)
            next_call = pending[0] if pending and call in calls else None
        if next_call is None:
            break
        call = next_call
    return attempts


def _attempt(tools: Mapping[str, Any], call: ToolCall) -> _Attempt:
    """Make a call. Its result is written as TRL writes it."""
    try:
        return _Attempt(call, str(tools[call.name](**call.arguments)), False)
    except (ToolError, TypeError) as error:
        return _Attempt(call, str({"error": str(error)}), True)


def _after_error(
    first: ToolCall, call: ToolCall, pending: list[ToolCall], rng: random.Random, behavior: DemoBehavior
) -> ToolCall | None:
    """Choose the call after `call` failed; None to give up."""
    if rng.random() < behavior.recover:
        return pending[0]
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
