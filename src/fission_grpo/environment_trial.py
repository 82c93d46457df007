"""An environment on trial: instances, calls that may do anything, and answers that can be compared."""

from __future__ import annotations

import asyncio
import copy
import inspect
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fission_grpo.chat import read_result
from fission_grpo.check_calls import draw_call, words_of
from fission_grpo.trajectory import ToolCall
from fission_grpo.watch import TimeUp, time_limit, tool_methods

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
