"""Edge: the schemas of tools in task files, and the arguments that a policy writes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

from values import changed, dumps, in_thread, nested, refused, strange, text, value, word

from fission_grpo.core.chat import parse, render_call
from fission_grpo.core.tool_schema import check_call, check_tool_schema
from fission_grpo.core.types import ToolCall
from fission_grpo.data.convert.dialogues import RowDropped
from fission_grpo.data.convert.tools import tools_of

TYPES = ("string", "number", "integer", "boolean", "array", "object", "null", ["string", "null"])
NAMES = ("a", "b", "city", "n", "d")
FORMATS = ("date", "email", "ipv4", "ipv6", "uuid", "uri", "regex", "date-time", "nonsense")


def schema(rng: Random, depth: int = 4) -> Any:
    """A schema: mostly a valid one, which applies subschemas in every way that there is."""
    if rng.random() < 0.01:
        return rng.choice((True, False, value(rng, 2)))
    made: dict[str, Any] = {}
    for _ in range(rng.randint(1, 4)):
        key, content = rng.choice(_KEYWORDS)
        made[key] = content(rng, depth) if depth or content not in _DEEP else rng.choice(TYPES)
    return made


def _one(rng: Random, depth: int) -> Any:
    return schema(rng, depth - 1) if depth > 0 else {"type": rng.choice(TYPES)}


def _several(rng: Random, depth: int) -> list[Any]:
    if rng.random() < 0.1:  # the same one many times: 2^n ways to one place
        return [_one(rng, depth)] * rng.choice((2, 30))
    return [_one(rng, depth) for _ in range(rng.randint(1, 3))]


def _named(rng: Random, depth: int) -> dict[str, Any]:
    return {rng.choice((*NAMES, word(rng))): _one(rng, depth) for _ in range(rng.randint(1, 3))}


def _reference(rng: Random, _: int) -> Any:
    if rng.random() < 0.85:
        return f"#/$defs/{rng.choice(NAMES)}"
    place = rng.choice(
        ("#", "#/properties/a", "#a", "#b", "http://e/x", "x", "#/" + "/".join(rng.choices(NAMES, k=3)))
    )
    return rng.choice((place, place, place, strange(rng)))


def _size(rng: Random, _: int) -> Any:
    return rng.choice((0, 1, 1, 2, 3, 1000)) if rng.random() < 0.97 else rng.choice((-1, 0.5, 10**300, "3"))


def _address(rng: Random, _: int) -> Any:
    return rng.choice(("a", "b", "city", "n", "http://e/x", "#a")) if rng.random() < 0.9 else strange(rng)


def _pattern(rng: Random, _: int) -> Any:
    from patterns import pattern

    return pattern(rng)


def _number(rng: Random, _: int) -> Any:
    return rng.choice((1, 1, 3, 3, 2, 0.1, 1e-300, 10**300, 10**9, 0.01) if rng.random() < 0.95 else (0, -5, "3"))


_DEEP = (_one, _several, _named)
_KEYWORDS: tuple[tuple[str, Callable[[Random, int], Any]], ...] = (
    *((key, lambda rng, _: rng.choice(TYPES)) for key in ("type", "type", "type", "type")),
    *((key, _named) for key in ("properties", "properties", "properties", "$defs", "$defs", "definitions")),
    *((key, _named) for key in ("patternProperties", "dependentSchemas")),
    *((key, _one) for key in ("items", "items", "not", "if", "then", "else", "contains", "additionalProperties")),
    *((key, _one) for key in ("propertyNames", "unevaluatedProperties", "unevaluatedItems", "contentSchema")),
    *((key, _several) for key in ("allOf", "anyOf", "oneOf", "prefixItems")),
    *((key, _reference) for key in ("$ref", "$ref", "$ref", "$ref", "$dynamicRef")),
    *((key, _address) for key in ("$id", "$anchor", "$dynamicAnchor")),
    *((key, _number) for key in ("minimum", "maximum", "exclusiveMinimum", "multipleOf", "multipleOf")),
    *((key, _size) for key in ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxContains")),
    ("pattern", _pattern),
    ("format", lambda rng, _: rng.choice(FORMATS)),
    ("uniqueItems", lambda rng, _: True),
    ("required", lambda rng, _: [rng.choice(NAMES) for _ in range(rng.choice((1, 2)))]),
    ("dependentRequired", lambda rng, _: {"a": list(NAMES)}),
    ("enum", lambda rng, _: [value(rng, 1) for _ in range(rng.choice((1, 3, 400)))]),
    ("const", lambda rng, _: value(rng, 2)),
    ("nullable", lambda rng, _: True),
    ("default", lambda rng, _: value(rng, 1)),
    ("$schema", lambda rng, _: rng.choice(("http://json-schema.org/draft-07/schema#", "x"))),
    ("description", lambda rng, _: text(rng, 500)),
)


def arguments(rng: Random) -> dict[str, Any]:
    """Arguments as a policy might write them, some large, some deep."""
    made: dict[str, Any] = {rng.choice(NAMES): value(rng, 3) for _ in range(rng.randint(0, 4))}
    match rng.randrange(12):
        case 0:
            made["a"] = [{"n": number, "d": [number]} for number in range(6000)]
        case 1:
            made["a"] = nested(rng)
        case 2:
            made["city"] = text(rng, 100_000)
        case 3:
            made |= {f"k{number}": number for number in range(3000)}
    return made


def prepare(_: Path) -> Callable[[Random], str]:
    return attack


def attack(rng: Random) -> str:
    """One tool and several calls of it: it is refused with a ValueError, or every call is answered."""
    parameters: dict[str, Any] = {"type": "object", "properties": _named(rng, 4)}
    if rng.random() < 0.6 and isinstance(more := schema(rng), dict):
        parameters |= more
    if "$ref" in json.dumps(parameters):
        parameters["$defs"] = {name: _one(rng, 3) for name in NAMES}
    if rng.random() < 0.9:
        parameters["type"] = "object"
    tool: Any = {"name": "f", "description": "", "parameters": parameters}
    if rng.random() < 0.2:
        tool = changed(tool, rng)
    try:
        written = dumps(tool)
        if rng.random() < 0.8:
            written = re.sub(r"-?Infinity|NaN", "7", written)
        tool = json.loads(written)
    except (ValueError, RecursionError):
        return "not JSON"
    with suppress(ValueError, RowDropped):
        tools_of([tool])
    try:
        check_tool_schema(tool)
    except ValueError as error:
        return refused(error)
    try:
        calls = [ToolCall("f", json.loads(dumps(arguments(rng)))) for _ in range(3)]
    except (ValueError, RecursionError):
        return "not JSON"
    if rng.random() < 0.3:
        return in_thread(lambda: _check(tool, calls))
    return _check(tool, calls)


def _check(tool: Any, calls: list[ToolCall]) -> str:
    problems = [check_call(call, [tool]) for call in calls]
    for problem in problems:
        json.dumps(None if problem is None else problem.message)
    with suppress(ValueError, RecursionError):  # deep arguments cannot be written
        parse(render_call(calls[0]))
    return f"checked: {sum(problem is not None for problem in problems)} of 3 wrong"
