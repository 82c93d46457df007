"""Runs an environment under test: starts episodes, draws calls, and makes them, whatever they do."""

from __future__ import annotations

import copy
import inspect
import json
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fission_grpo.core.chat import read_result, read_structure
from fission_grpo.core.errors import ExitAttempt, TimeLimitExceeded, error_message
from fission_grpo.core.result_errors import is_like_an_error
from fission_grpo.core.timing import contained
from fission_grpo.core.types import ToolCall
from fission_grpo.envs.episode_reward import EpisodeReward
from fission_grpo.envs.restore import run_awaitable
from fission_grpo.envs.wrapper import tool_methods

HOSTILE: tuple[Any, ...] = (
    *(None, True, -1, 10**30, float("nan")),
    *("", "x" * 5_000, "\u202e\x00\ud7ff", "__import__('os').getcwd()"),
    *([], [[[[[[[[[]]]]]]]]], {"a": {"b": [None]}}),
)
"""Values that a model may write in place of a valid argument."""

ROWS = 3  # [ours] largest number of rows to check with
ANSWERED_CALLS, REFUSED_CALLS = 16, 8  # [ours] calls to find per row
DRAWS, DRAW_SECONDS = 2_000, 4.0  # [ours] limits of the search for them

_WORD = re.compile(r"[\w.@#/-]{2,40}")


@dataclass(frozen=True)
class ProbeOutcome:
    """The outcome of a call."""

    call: ToolCall
    kind: str  # "result", "error", "hang", "exit", or "mutated" (a result, but the arguments were changed)
    text: str = ""  # the answer as the policy sees it
    value: Any = None  # what the tool returned or raised
    error: str | None = None  # that the answer reports
    is_like_an_error: bool = False  # the answer reports one in words, and no rule of the user's says that it is none

    @property
    def is_answered(self) -> bool:
        """Whether the call has a result that is not an error, also not one in words."""
        return self.kind == "result" and self.error is None and not self.is_like_an_error


class EnvironmentProbe:
    """An environment under test, with the rows (at least one) and calls to test it with; see `check_environment`."""

    def __init__(
        self,
        make: Callable[[], Any],
        rows: list[dict[str, Any]],
        calls: list[ToolCall],
        reward: EpisodeReward,
        seed: int,
        timeout: float,
        error_if: Callable[[str], bool] | None = None,
    ):
        self.make, self.rows, self.calls, self.reward, self.timeout = make, rows, calls, reward, timeout
        self.error_if = error_if
        self.results: list[tuple[str, str | None]] = []  # texts of results seen so far, and the errors they report
        self.environment = getattr(make, "__name__", type(make).__name__)
        self.rng = random.Random(seed)
        self.schemas: list[Mapping[str, Any]] = []
        self.row_numbers = range(min(len(self.rows), ROWS))
        self.in_rows = f" in each of {len(self.row_numbers)} rows" if len(self.row_numbers) > 1 else ""
        self.tool_names: list[str] = []
        self.answered: Counter[str] = Counter()  # calls with a result that is no error, by tool
        self._expected: dict[int, list[str]] = {}

    def start(self, row: int = 0) -> Any:
        """A new instance, reset with a row."""
        environment = self.limited(self.make)
        self.reset(environment, row)
        return environment

    def reset(self, environment: Any, row: int = 0) -> None:
        """Reset an instance with a row, without the column that selects the environment."""
        columns = copy.deepcopy(self.rows[row % len(self.rows)])
        columns.pop("environment", None)
        self.limited(environment.reset, **columns)

    def limited(self, method: Callable[..., Any], *arguments: Any, **columns: Any) -> Any:
        """The result of a method, sync or async, within the time limit."""

        def call() -> Any:
            result = method(*arguments, **columns)
            return run_awaitable(result) if inspect.isawaitable(result) else result

        return contained(call, getattr(method, "__name__", "it"), self.timeout)

    def call(self, environment: Any, call: ToolCall) -> ProbeOutcome:
        """Make one call; never raises for what the tool does."""
        arguments = copy.deepcopy(dict(call.arguments))
        before = repr(arguments)
        try:
            value = self.limited(tool_methods(environment)[call.name], **arguments)
            text = self.limited(str, value)
        except TimeLimitExceeded:
            return ProbeOutcome(call, "hang")
        except ExitAttempt as error:
            return ProbeOutcome(call, "exit", str(error), error.__cause__)
        except Exception as error:  # noqa: BLE001 - the user's code
            return ProbeOutcome(call, "error", f"{type(error).__name__}: {error_message(error)}", error)
        error = read_result(call, text, self.error_if).error
        kind = "mutated" if repr(arguments) != before else "result"
        outcome = ProbeOutcome(call, kind, text, value, error, self.error_if is None and is_like_an_error(text))
        self.answered[call.name] += outcome.is_answered
        return outcome

    @property
    def completion(self) -> list[dict[str, Any]]:
        """The calls as messages, for reward functions that read a completion."""
        entries = ({"name": call.name, "arguments": dict(call.arguments)} for call in self.calls)
        calls = [{"type": "function", "function": entry} for entry in entries]
        return [{"role": "assistant", "content": "", "tool_calls": calls}, {"role": "assistant", "content": "Done."}]

    def answers(self, environment: Any, calls: Sequence[ToolCall]) -> list[str]:
        """Make calls one after another; kinds and texts of their outcomes, which can be compared."""
        outcomes = (self.call(environment, call) for call in calls)
        return [f"{outcome.kind} {outcome.text}" for outcome in outcomes]

    @property
    def halves(self) -> tuple[list[ToolCall], list[ToolCall]]:
        """The first and the second half of the calls."""
        half = len(self.calls) // 2
        return self.calls[:half], self.calls[half:]

    def expected_answers(self, row: int) -> list[str]:
        """The answers of a fresh instance to all calls."""
        if row not in self._expected:
            self._expected[row] = self.answers(self.start(row), self.calls)
        return self._expected[row]

    def find_references(self) -> None:
        """Add the calls that do the tasks of the rows, where the environment knows them."""
        for row in self.row_numbers:
            reference = getattr(self.start(row), "_reference", None)
            if reference is not None:
                self.calls += [call for call in self.limited(reference) or () if call not in self.calls]

    def find_calls(self) -> None:
        """Draw calls from the schemas and keep some that are answered and some that are refused, for every row.

        Tools of which no call was answered are tried on, also on fresh instances.
        """
        known = len(self.calls)
        for row in self.row_numbers if self.schemas else ():
            environment = self.start(row)
            words = list(dict.fromkeys([*_texts_of(self.rows[row]), *_words_of(self.rows[row])]))
            deadline = time.monotonic() + DRAW_SECONDS
            missing = {True: ANSWERED_CALLS, False: REFUSED_CALLS}
            for number in range(DRAWS):
                silent = [schema for schema in self.schemas if not self.answered[schema["name"]]]
                tools = self.schemas if max(missing.values()) > 0 else silent
                if time.monotonic() > deadline or not tools:
                    break
                call = _draw_call(tools, words, self.rng)
                is_fresh = number % 2 and not self.answered[call.name]
                outcome = self.call(self.start(row) if is_fresh else environment, call)
                is_first = outcome.is_answered and self.answered[call.name] == 1
                if (missing[outcome.is_answered] > 0 or is_first) and call not in self.calls:
                    missing[outcome.is_answered] -= 1
                    self.calls.append(call)
                found = _words_of(outcome.text)[:40]
                if outcome.is_answered:
                    found += _texts_of(read_structure(outcome.text) or outcome.text)[:40]
                words += [word for word in dict.fromkeys(found) if word not in words]
        drawn = self.calls[known:]
        self.rng.shuffle(drawn)
        self.calls[known:] = drawn


def hostile_calls(schemas: Sequence[Mapping[str, Any]]) -> list[ToolCall]:
    """For every tool: no arguments, an unknown argument, and each hostile value for all parameters."""
    calls = []
    for schema in schemas:
        names = list(schema["parameters"].get("properties", {}))
        calls += [ToolCall(schema["name"]), ToolCall(schema["name"], {"no_such_argument": 1})]
        calls += [ToolCall(schema["name"], dict.fromkeys(names, value)) for value in HOSTILE if names]
    return calls


def _words_of(value: Any) -> list[str]:
    """The words in a row or a result: candidates for the text arguments of later calls."""
    text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    return list(dict.fromkeys(_WORD.findall(text[:20_000])))


def _texts_of(value: Any) -> list[str]:
    """The short texts in a row or a result, whole, such as the title of a book: candidates as well."""
    texts, parts = [], [value]
    for part in parts:  # which grows
        if isinstance(part, dict | list):
            parts += part.values() if isinstance(part, dict) else part
        elif isinstance(part, str):
            texts += [line.strip() for line in part[:20_000].splitlines() if len(line.strip()) <= 80]
    return list(dict.fromkeys(filter(None, texts)))


def _draw_call(schemas: Sequence[Mapping[str, Any]], words: Sequence[str], rng: random.Random) -> ToolCall:
    """A call that fits a tool's schema, with every optional argument half of the time."""
    schema = rng.choice(schemas)
    required = schema["parameters"].get("required", ())
    fields = schema["parameters"].get("properties", {})
    names = [name for name in fields if name in required or rng.random() < 0.5]
    return ToolCall(schema["name"], {name: _draw_value(fields[name], words, rng) for name in names})


def _draw_value(field: Mapping[str, Any], words: Sequence[str], rng: random.Random) -> Any:
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
        return [_draw_value(field.get("items", {}), words, rng) for _ in range(rng.randint(0, 2))]
    if kind == "object":
        return {name: _draw_value(inner, words, rng) for name, inner in field.get("properties", {}).items()}
    return rng.choice([*words, "a", "b"]) if words else rng.choice("ab")
