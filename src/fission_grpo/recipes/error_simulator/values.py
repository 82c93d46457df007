"""Values a policy might write by mistake: options, values seen in the dialogue, neighbours, other spellings."""

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

_OPTIONS = re.compile(r"\[Enum\]:\s*(\[[^\]]*\]|[^\[\]]+)")


_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")


_TIME = re.compile(r"([01]\d|2[0-3]):([0-5]\d)")


_NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?![\w.])")


_MADE_UP: Mapping[str, tuple[Any, ...]] = {
    "string": ("unknown", "default", "none", "test", "user", "main"),
    "integer": (0, 1, 5, 10, 100),
    "number": (0.0, 1.0, 2.5, 10.0, 100.0),
    "boolean": (True, False),
}
"""What stands in where nothing of a type was seen. [ours]"""


def options(schema: Mapping[str, Any]) -> list[Any]:
    """The values a parameter may have: its enum, else what BFCL's descriptions list after "[Enum]:"; else none.

    Example:
        {"type": "string", "description": "The mode. [Enum]: [\\"on\\", \\"off\\"]"} has "on" and "off".
    """
    if isinstance(schema.get("enum"), list):
        return list(schema["enum"])
    found = _OPTIONS.search(str(schema.get("description", "")))
    if not found:
        return []
    try:
        listed = json.loads(found[1])
    except ValueError:
        listed = [part.strip().strip(".'\"") for part in found[1].strip("[] ").split(",")]
    return [value for value in listed if isinstance(value, str | int | float) and value != ""]


def seen_values(task: Task) -> list[tuple[str, Any]]:
    """(name, value) of every scalar in a dialogue's calls and results, and numbers of the user's texts; newest first.

    Example:
        A result '{"tickets": [{"id": 7}]}' gives ("id", 7); "Close 12." gives ("", 12).
    """
    found: list[tuple[str, Any]] = []
    for message in reversed(task.prompt if not isinstance(task.prompt, str) else ()):
        content = message.get("content") or ""
        for call in message.get("tool_calls") or ():
            found += _leaves("", call.get("function", call).get("arguments"))
        if message["role"] == "assistant":
            found += [pair for call in parse(content).calls for pair in _leaves("", call.arguments)]
        elif message["role"] == "tool":
            found += _leaves("", _read(content))
        elif message["role"] == "user":
            found += [("", json.loads(number)) for number in _NUMBER.findall(content) if number[0] != "0"]
    return found


def _read(content: str) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return None


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    waiting = [(name, value)]
    while waiting:
        at, item = waiting.pop()
        if isinstance(item, Mapping):
            waiting += [(str(key), inner) for key, inner in item.items()]
        elif isinstance(item, list | tuple):
            waiting += [(at, inner) for inner in item]
        elif isinstance(item, int | float) or (isinstance(item, str) and 0 < len(item) <= 60):
            yield at, item


def shape(value: Any) -> str:
    """What values of one sort have in common: type, and for strings the classes of characters in order.

    Example:
        "USR350" and "USR7" are both "A9", "tok2497" is "a9", "2024-05-01" is "9-9-9", 7 is "integer".
    """
    if isinstance(value, str):
        text = re.sub(r"[^\W\d_]+", lambda m: "A" if m[0].isupper() else "a", value)
        return re.sub(r"\d+", "9", text)
    return kind_of(value)


def kind_of(value: Any) -> str:
    """The JSON schema type of a value. Example: True is "boolean", 1.0 is "number"."""
    for kind, types in (("boolean", bool), ("integer", int), ("number", float), ("string", str), ("object", Mapping)):
        if isinstance(value, types):
            return kind
    return "null" if value is None else "array"


def other_value(value: Any, schema: Mapping[str, Any], seen: Sequence[tuple[str, Any]], rng: random.Random) -> Any:
    """Another value of the same type: an option, one seen of the same shape, a neighbour or a variation.

    Example:
        "on" of a parameter with the options "on" and "off" becomes "off", 40 may become 400.
    """
    listed = [one for one in options(schema) if not same_value(one, value)]
    if listed and isinstance(value, str):
        return rng.choice(listed)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        near = [one for _, one in seen if kind_of(one) == kind_of(value) and not same_value(one, value)]
        return rng.choice([*near[:4], value * 10, value + 2, value // 2 if isinstance(value, int) else value / 2])
    if isinstance(value, str):
        near = [one for _, one in seen if isinstance(one, str) and shape(one) == shape(value) and one != value]
        return rng.choice([*near[:4], *variations(value)])
    if isinstance(value, Mapping):
        changed = dict(value)
        if changed:
            key = rng.choice(sorted(changed))
            changed[key] = other_value(changed[key], schema.get("properties", {}).get(key, {}), seen, rng)
        return changed
    if isinstance(value, list | tuple) and value:
        at = rng.randrange(len(value))
        less = [*value[:at], *value[at + 1 :]]
        inner = other_value(value[at], schema.get("items", {}), seen, rng)
        return rng.choice([less, [*value[:at], inner, *value[at + 1 :]]])
    return value


def variations(text: str) -> list[str]:
    """Texts like another: a word fewer, two letters changed about, the last letter missing."""
    words = text.split()
    found = [" ".join(words[:-1]), " ".join(words[1:])] if len(words) > 1 else []
    if len(text) > 3:
        middle = len(text) // 2
        found += [text[: middle - 1] + text[middle] + text[middle - 1] + text[middle + 1 :], text[:-1]]
    return [one for one in found if one and one != text] or [text + "1"]


def invented(name: str, schema: Mapping[str, Any], seen: Sequence[tuple[str, Any]], rng: random.Random) -> Any:
    """A value for a parameter that has none yet: seen under its name, an option, seen of its type, or made up."""
    kind = schema.get("type", "string")
    if kind == "array":
        return [invented(name, schema.get("items", {}), seen, rng)]
    if kind == "object":
        return {}
    fitting = [
        (at, one) for at, one in seen if kind_of(one) == kind or (kind == "number" and kind_of(one) == "integer")
    ]
    named = [one for at, one in fitting if at and (at == name or at in name.split("_") or name.endswith(at))]
    listed = [one for one in options(schema) if kind_of(one) == kind]
    pool = named[:3] or listed or [one for _, one in fitting[:6]] or list(_MADE_UP.get(str(kind), ("unknown",)))
    return rng.choice(pool)


def other_formats(value: Any) -> list[Any]:
    """The same value as it should not be written: dates in words, 12-hour times, units, case, marks, joined lists.

    Example:
        "2024-05-01" gives "05/01/2024", "May 1, 2024" and "2024/5/1"; 250 gives "250.00 units" and such.
    """
    if isinstance(value, bool) or value is None:
        return []
    if isinstance(value, int | float):
        return [f"{value:,}" if abs(value) >= 1000 else f"{value} units", f"${value}", f"about {value}"]
    if isinstance(value, str):
        return [one for one in _other_spellings(value) if one != value]
    if isinstance(value, list | tuple) and value:
        return [", ".join(map(str, value))]
    return []


def _other_spellings(text: str) -> list[str]:
    if _DATE.fullmatch(text):
        try:
            day = datetime.date.fromisoformat(text)
        except ValueError:
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


def neighbours(value: Any) -> list[Any]:
    """Values one off: a number, the number at the end of an id, or the day of a date.

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
        try:
            day = datetime.date.fromisoformat(value)
        except ValueError:
            return []
        return [(day + datetime.timedelta(days=step)).isoformat() for step in (-1, 1)]
    if found := re.fullmatch(r"(.*?)(\d{1,15})", value, re.DOTALL):
        number, width = int(found[2]), len(found[2])
        return [found[1] + str(one).zfill(width) for one in (number - 1, number + 1) if one >= 0]
    return []


@dataclass(frozen=True)
class Ground:
    """What a corruption works on.

    Args:
        task: a step task.
        call: its reference call; None where no call is needed.
        seen: values of the dialogue (`plausible.seen_values`).
    """

    task: Task
    call: ToolCall | None
    seen: Sequence[tuple[str, Any]]

    def schemas(self, name: str) -> Mapping[str, Any]:
        """The schemas of a tool's parameters by name."""
        found = dict(zip(tool_names(self.task.tools), self.task.tools, strict=True)).get(name)
        return {} if found is None else parameter_schema(found).get("properties", {})

    def required(self, name: str) -> Sequence[str]:
        """The parameters a tool needs."""
        found = dict(zip(tool_names(self.task.tools), self.task.tools, strict=True)).get(name)
        return [] if found is None else list(parameter_schema(found).get("required", ()))


def ground_of(task: Task) -> Ground:
    """The ground of a step task. Raises ValueError if it has no reference, or one of several calls."""
    if task.reference is None or len(task.reference) > 1:
        raise ValueError(f"task {task.id!r}: corruptions need a reference of one call or none")
    return Ground(task, task.reference[0] if task.reference else None, seen_values(task))
