"""An environment on trial: instances, calls that may do anything, and answers that can be compared."""

from __future__ import annotations

import asyncio
import copy
import inspect
import json
import random
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fission_grpo.core.chat import read_result
from fission_grpo.core.timing import TimeUp, time_limit
from fission_grpo.core.types import ToolCall
from fission_grpo.envs.wrapper import tool_methods

HOSTILE: tuple[Any, ...] = (
    None,
    True,
    -1,
    10**30,
    float("nan"),
    "",
    "x" * 5_000,
    "\u202e\x00\ud7ff",
    "__import__('os').getcwd()",
    [],
    [[[[[[[[[]]]]]]]]],
    {"a": {"b": [None]}},
)
"""Values a model may write where something else is wanted."""


_WORD = re.compile(r"[\w.@#/-]{2,40}")


def words_of(value: Any) -> list[str]:
    """The words in a row or a result, as texts a later call may be about."""
    text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    return list(dict.fromkeys(_WORD.findall(text[:20_000])))


def draw_call(schemas: Sequence[Mapping[str, Any]], words: Sequence[str], rng: random.Random) -> ToolCall:
    """A call that fits a tool's schema."""
    schema = rng.choice(list(schemas))
    parameters = schema["parameters"]
    required = set(parameters.get("required", ()))
    chosen = [
        (name, field)
        for name, field in parameters.get("properties", {}).items()
        if name in required or rng.random() < 0.5
    ]
    return ToolCall(schema["name"], {name: _value(field, words, rng) for name, field in chosen})


def hostile_calls(schemas: Sequence[Mapping[str, Any]]) -> list[ToolCall]:
    """For every tool: nothing at all, an argument too many, and each hostile value for each parameter."""
    calls = []
    for schema in schemas:
        names = list(schema["parameters"].get("properties", {}))
        calls += [ToolCall(schema["name"]), ToolCall(schema["name"], {"no_such_argument": 1})]
        calls += [ToolCall(schema["name"], dict.fromkeys(names, value)) for value in HOSTILE if names]
    return calls


def _value(field: Mapping[str, Any], words: Sequence[str], rng: random.Random) -> Any:
    if field.get("enum"):
        return rng.choice(list(field["enum"]))
    kind = field.get("type", "string")
    kind = rng.choice(kind) if isinstance(kind, list) else kind
    if kind == "integer":
        numbers = [int(word) for word in words if word.isdigit() and len(word) < 10]
        return rng.choice([*numbers, 0, 1, 2, rng.randint(3, 50)])
    if kind == "number":
        return round(rng.uniform(0, 100), 2)
    if kind == "boolean":
        return rng.random() < 0.5
    if kind == "array":
        return [_value(field.get("items", {}), words, rng) for _ in range(rng.randint(0, 2))]
    if kind == "object":
        inner = field.get("properties", {})
        return {name: _value(inner[name], words, rng) for name in inner}
    return rng.choice([*words, "a", "b"]) if words else rng.choice("ab")


WORKING, FAILING = 16, 8
"""Calls found for every row: so many that are answered, and so many that are refused. [ours]"""


ROWS = 3
"""Most rows that are tried. [ours]"""


DRAWS, DRAW_SECONDS = 2_000, 4.0
"""Most calls drawn to find them, and longest time spent on it. [ours]"""


@dataclass(frozen=True)
class Outcome:
    """What a call came to: `kind` is "result", "error", "hang", "exit" or "mutated"; `text` as the policy sees it."""

    kind: str
    text: str
    value: Any = None


class Trial:
    """What the checks share: how to begin an episode and make a call."""

    def __init__(self, make: Any, rows: list[dict[str, Any]], calls: list[ToolCall], seed: int, seconds: float):
        self.make, self.rows, self.calls, self.seconds = make, rows, calls, seconds
        self.rng = random.Random(seed)
        self.schemas: list[Mapping[str, Any]] = []
        self.broken = ""
        self.tried = range(min(len(rows), ROWS))
        self.in_rows = f" in each of {len(self.tried)} rows" if len(self.tried) > 1 else ""

    def begin(self, row: int = 0) -> Any:
        """A new instance, reset with a row."""
        with time_limit(self.seconds):
            environment = self.make()
        self.reset(environment, row)
        return environment

    def reset(self, environment: Any, row: int = 0) -> None:
        columns = copy.deepcopy(self.rows[row % len(self.rows)])
        columns.pop("environment", None)
        with time_limit(self.seconds):
            environment.reset(**columns)

    def call(self, environment: Any, call: ToolCall) -> Outcome:
        """Make one call, come what may."""
        given = copy.deepcopy(dict(call.arguments))
        before = repr(given)
        try:
            with time_limit(self.seconds):
                value = tool_methods(environment)[call.name](**given)
                value = asyncio.run(finish(value)) if inspect.isawaitable(value) else value
            text = value if isinstance(value, str) else str(value)
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except TimeUp:
            return Outcome("hang", "")
        except SystemExit:
            return Outcome("exit", "")
        except BaseException as error:  # noqa: BLE001 - any error is an answer here
            return Outcome("error", f"{type(error).__name__}: {error}", error)
        return Outcome("mutated" if repr(given) != before else "result", text, value)

    def play(self, environment: Any, calls: Sequence[ToolCall]) -> list[str]:
        return [f"{one.kind} {one.text}" for one in (self.call(environment, call) for call in calls)]

    def scout(self) -> None:
        """Find calls to try it with, of which some work: their words come from the row and from earlier answers."""
        for row in self.tried:
            self._scout(row)
        self.rng.shuffle(self.calls)

    def _scout(self, row: int) -> None:
        environment = self.begin(row)
        words, ended = words_of(self.rows[row]), time.monotonic() + DRAW_SECONDS
        room = {True: WORKING, False: FAILING}
        for _ in range(DRAWS):
            if time.monotonic() > ended or not any(room.values()):
                return
            call = draw_call(self.schemas, words, self.rng)
            outcome = self.call(environment, call)
            works = outcome.kind == "result" and read_result(call, outcome.text).error is None
            if room[works] and call not in self.calls:
                room[works] -= 1
                self.calls.append(call)
            words += [word for word in words_of(outcome.text)[:40] if word not in words]


async def finish(value: Any) -> Any:
    """Any awaitable as a coroutine, for `asyncio.run`."""
    return await value
