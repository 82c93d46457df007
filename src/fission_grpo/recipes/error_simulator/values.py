"""Values a policy might write by mistake: other allowed values, values of the dialogue, near misses, other formats."""

from __future__ import annotations

import datetime
import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fission_grpo.core.chat import parse
from fission_grpo.core.rewards import same_value
from fission_grpo.core.tool_schema import parameter_schema, tool_names
from fission_grpo.core.types import Task, ToolCall

_LISTED_OPTIONS = re.compile(r"\[Enum\]:\s*(\[[^\]]*\]|[^\[\]]+)")
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
_TIME = re.compile(r"([01]\d|2[0-3]):([0-5]\d)")
_NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?![\w.])")
_LONGEST_TEXT = 60  # characters of a dialogue's value that is reused [ours]
_DEFAULTS: Mapping[str, tuple[Any, ...]] = {  # used where the dialogue holds no value of the type [ours]
    "string": ("unknown", "default", "none", "test", "user", "main"),
    "integer": (0, 1, 5, 10, 100),
    "number": (0.0, 1.0, 2.5, 10.0, 100.0),
    "boolean": (True, False),
}

NamedValue = tuple[str, Any]
"""A scalar and the name of the field that held it, "" for numbers of the user's texts."""


@dataclass(frozen=True)
class CallContext:
    """What a corruption may use.

    Args:
        task: a step task.
        call: its reference call; None where no call is needed.
        values: the values of the dialogue (`dialogue_values`).
    """

    task: Task
    call: ToolCall | None
    values: Sequence[NamedValue]

    def schemas(self, tool: str) -> Mapping[str, Any]:
        """The schemas of a tool's parameters by name."""
        return self._parameters(tool).get("properties", {})

    def required(self, tool: str) -> Sequence[str]:
        """The names of a tool's required parameters."""
        return list(self._parameters(tool).get("required", ()))

    def _parameters(self, tool: str) -> Mapping[str, Any]:
        schema = dict(zip(tool_names(self.task.tools), self.task.tools, strict=True)).get(tool)
        return {} if schema is None else parameter_schema(schema)


def call_context(task: Task) -> CallContext:
    """The context of a step task. Raises ValueError if it has no reference, or one of several calls."""
    if task.reference is None or len(task.reference) > 1:
        raise ValueError(f"task {task.id!r}: corruptions need a reference of one call or none")
    return CallContext(task, task.reference[0] if task.reference else None, dialogue_values(task))


def allowed_values(schema: Mapping[str, Any]) -> list[Any]:
    """A parameter's enum, else what BFCL's descriptions list after "[Enum]:"; empty if neither is there.

    Example:
        {"type": "string", "description": "The mode. [Enum]: [\\"on\\", \\"off\\"]"} allows "on" and "off".
    """
    if isinstance(schema.get("enum"), list):
        return list(schema["enum"])
    listed = _LISTED_OPTIONS.search(str(schema.get("description", "")))
    if not listed:
        return []
    values = _read_json(listed[1])
    if not isinstance(values, list):
        values = [part.strip().strip(".'\"") for part in listed[1].strip("[] ").split(",")]
    return [value for value in values if isinstance(value, str | int | float) and value != ""]


def dialogue_values(task: Task) -> list[NamedValue]:
    """The scalars of a dialogue's calls and results, and the numbers of the user's texts; newest message first.

    Example:
        A result '{"tickets": [{"id": 7}]}' gives ("id", 7); "Close 12." gives ("", 12).
    """
    values: list[NamedValue] = []
    for message in reversed(task.prompt if not isinstance(task.prompt, str) else ()):
        content = message.get("content") or ""
        for call in message.get("tool_calls") or ():
            values += _scalars(call.get("function", call).get("arguments"))
        if message["role"] == "assistant":
            values += [pair for call in parse(content).calls for pair in _scalars(call.arguments)]
        elif message["role"] == "tool":
            values += _scalars(_read_json(content))
        elif message["role"] == "user":
            values += [("", json.loads(number)) for number in _NUMBER.findall(content) if number[0] != "0"]
    return values


def _read_json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _scalars(value: Any) -> Iterator[NamedValue]:
    """The numbers and short strings in a JSON value, with the innermost key that holds each."""
    pending = [("", value)]
    while pending:
        name, item = pending.pop()
        if isinstance(item, Mapping):
            pending += [(str(key), inner) for key, inner in item.items()]
        elif isinstance(item, list | tuple):
            pending += [(name, inner) for inner in item]
        elif isinstance(item, int | float) or (isinstance(item, str) and 0 < len(item) <= _LONGEST_TEXT):
            yield name, item


def json_type(value: Any) -> str:
    """The JSON schema type of a value. Example: True is "boolean", 1.0 is "number"."""
    types = (("boolean", bool), ("integer", int), ("number", float), ("string", str), ("object", Mapping))
    for name, kind in types:
        if isinstance(value, kind):
            return name
    return "null" if value is None else "array"


def shape_of(value: Any) -> str:
    """A string's character classes in order, or the type of another value. Ids of one kind have one shape.

    Example:
        "USR350" and "USR7" are both "A9", "tok2497" is "a9", "2024-05-01" is "9-9-9", 7 is "integer".
    """
    if not isinstance(value, str):
        return json_type(value)
    letters = re.sub(r"[^\W\d_]+", lambda run: "A" if run[0].isupper() else "a", value)
    return re.sub(r"\d+", "9", letters)


def change_value(value: Any, schema: Mapping[str, Any], values: Sequence[NamedValue], rng: random.Random) -> Any:
    """Another value of the same type: an allowed one, one of the dialogue with the same shape, or a near miss.

    Example:
        "on" of a parameter that allows "on" and "off" becomes "off", 40 may become 400.
    """
    allowed = [other for other in allowed_values(schema) if not same_value(other, value)]
    if allowed and isinstance(value, str):
        return rng.choice(allowed)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        near = [other for _, other in values if json_type(other) == json_type(value) and not same_value(other, value)]
        return rng.choice([*near[:4], value * 10, value + 2, value // 2 if isinstance(value, int) else value / 2])
    if isinstance(value, str):
        near = [other for _, other in values if isinstance(other, str) and shape_of(other) == shape_of(value)]
        return rng.choice([*[other for other in near if other != value][:4], *_misspellings(value)])
    if isinstance(value, Mapping):
        changed = dict(value)
        if changed:
            key = rng.choice(sorted(changed))
            changed[key] = change_value(changed[key], schema.get("properties", {}).get(key, {}), values, rng)
        return changed
    if isinstance(value, list | tuple) and value:
        at = rng.randrange(len(value))
        changed_item = change_value(value[at], schema.get("items", {}), values, rng)
        before, after = value[:at], value[at + 1 :]
        return rng.choice([[*before, *after], [*before, changed_item, *after]])
    return value


def _misspellings(text: str) -> list[str]:
    """Texts without the first or last word, with two letters exchanged, or without the last letter."""
    words = text.split()
    texts = [" ".join(words[:-1]), " ".join(words[1:])] if len(words) > 1 else []
    if len(text) > 3:
        middle = len(text) // 2
        texts += [text[: middle - 1] + text[middle] + text[middle - 1] + text[middle + 1 :], text[:-1]]
    return [other for other in texts if other and other != text] or [text + "1"]


def invent_value(name: str, schema: Mapping[str, Any], values: Sequence[NamedValue], rng: random.Random) -> Any:
    """A value for a parameter that has none: from the dialogue under its name, allowed, of its type, or a default."""
    kind = schema.get("type", "string")
    if kind == "array":
        return [invent_value(name, schema.get("items", {}), values, rng)]
    if kind == "object":
        return {}
    types = (kind, "integer") if kind == "number" else (kind,)
    fitting = [(field, value) for field, value in values if json_type(value) in types]
    words = name.split("_")
    same_name = [value for field, value in fitting if field and (field in words or name.endswith(field))]
    allowed = [value for value in allowed_values(schema) if json_type(value) == kind]
    pool = same_name[:3] or allowed or [value for _, value in fitting[:6]]
    return rng.choice(pool or list(_DEFAULTS.get(str(kind), ("unknown",))))


def reformat(value: Any) -> list[Any]:
    """The same value in formats that a tool should reject: other date and time formats, units, case, joined lists.

    Example:
        "2024-05-01" gives "05/01/2024", "May 1, 2024" and "2024/5/1"; 250 gives "250 units", "$250" and "about 250".
    """
    if isinstance(value, bool) or value is None:
        return []
    if isinstance(value, int | float):
        return [f"{value:,}" if abs(value) >= 1000 else f"{value} units", f"${value}", f"about {value}"]
    if isinstance(value, str):
        return [text for text in _reformat_text(value) if text != value]
    if isinstance(value, list | tuple) and value:
        return [", ".join(map(str, value))]
    return []


def _reformat_text(text: str) -> list[str]:
    if _DATE.fullmatch(text):
        day = _read_date(text)
        if day is None:
            return [text.replace("-", "/")]
        month = day.strftime("%B")
        return [day.strftime("%m/%d/%Y"), f"{month} {day.day}, {day.year}", f"{day.year}/{day.month}/{day.day}"]
    if time := _TIME.fullmatch(text):
        hour = int(time[1])
        return [f"{hour % 12 or 12}:{time[2]} {'PM' if hour >= 12 else 'AM'}", f"{hour}h{time[2]}"]
    if re.fullmatch(r"\d{2}/\d{4}", text):
        return [f"{text[3:]}-{text[:2]}", text[:3] + text[-2:], text.replace("/", "-")]
    if re.fullmatch(r"[A-Za-z]*\d+", text):
        return [f"#{text}", text.swapcase() if not text.isdigit() else f"{text[:2]}-{text[2:]}", f"id {text}"]
    if " " not in text:
        return [text.upper() if not text.isupper() else text.lower(), f"'{text}'", f"{text} "]
    return [text.replace(" ", "_"), text.upper(), f'"{text}"']


def _read_date(text: str) -> datetime.date | None:
    try:
        return datetime.date.fromisoformat(text)
    except ValueError:
        return None


def neighbours(value: Any) -> list[Any]:
    """The values that are off by one: of a number, of the number at the end of an id, or of a date's day.

    Example:
        7 gives 6 and 8, "USR350" gives "USR349" and "USR351", "2024-03-01" gives "2024-02-29" and "2024-03-02".
    """
    if isinstance(value, bool):
        return []
    if isinstance(value, int | float):
        return [value - 1, value + 1]
    if not isinstance(value, str):
        return []
    if _DATE.fullmatch(value):
        day = _read_date(value)
        return [] if day is None else [(day + datetime.timedelta(days=step)).isoformat() for step in (-1, 1)]
    if numbered := re.fullmatch(r"(.*?)(\d{1,15})", value, re.DOTALL):
        number, width = int(numbered[2]), len(numbered[2])
        return [numbered[1] + str(near).zfill(width) for near in (number - 1, number + 1) if near >= 0]
    return []
