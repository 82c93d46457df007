"""Calls to try an environment with: drawn from its tools' schemas, with words it has used itself, and hostile ones."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fission_grpo.trajectory import ToolCall

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
