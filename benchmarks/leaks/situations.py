"""The hand-written situations (`situations.jsonl`): a request, its tools, the right call and the call made instead.

Each row says which half it belongs to. All rows were written before the guard was tuned.
"""

import json
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from fission_grpo.core.types import ToolCall

ROWS = Path(__file__).with_name("situations.jsonl")
DEVELOPMENT, HELD_OUT = "development", "held out"


@dataclass(frozen=True)
class Target:
    """One value of the reference that the failed call does not have.

    Args:
        name: its parameter.
        value: the reference's.
        given: what the failed call wrote for the parameter, None if nothing.
        other: a third value, as wrong as `given`; None if the situation has none.
        options: the parameter's enum, if it has one.
    """

    name: str
    value: Any
    given: Any
    other: Any
    options: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """What sort of value it is: "boolean", "enum", "number", "date", "time" or "text"."""
        if isinstance(self.value, bool):
            return "boolean"
        if isinstance(self.value, int | float):
            return "number"
        if self.options:
            return "enum"
        if is_date(self.value):
            return "date"
        return "time" if self.value[2:3] == ":" else "text"


@dataclass(frozen=True)
class Situation:
    """One failed turn.

    Args:
        name: unique.
        half: `DEVELOPMENT` or `HELD_OUT`.
        user: the request.
        result: what a tool answered before the failed turn, "" for nothing.
        tools: JSON schemas of the tools.
        reference: the expected call.
        failed: the call that was made.
        targets: the reference's values that the failed call does not have; of a list or object its first scalar.
    """

    name: str
    half: str
    user: str
    result: str
    tools: tuple[dict[str, Any], ...]
    reference: ToolCall
    failed: ToolCall
    targets: tuple[Target, ...]


def situations() -> list[Situation]:
    """All of them, in order."""
    return [_situation(json.loads(line)) for line in ROWS.read_text(encoding="utf-8").splitlines()]


def is_date(value: Any) -> bool:
    try:
        date.fromisoformat(value)
    except (TypeError, ValueError):
        return False
    return len(value) == 10


def _situation(row: dict[str, Any]) -> Situation:
    reference, failed = (ToolCall(*row[key]) for key in ("reference", "failed"))
    targets = []
    for name, value in reference.arguments.items():
        kind = row["tools"][reference.name][name]
        made = [_scalar(x) for x in (value, failed.arguments.get(name), row["others"].get(name))]
        if made[0] != made[1]:
            targets.append(Target(name, *made, options=tuple(kind) if isinstance(kind, list) else ()))
    tools = tuple(_tool(name, parameters) for name, parameters in row["tools"].items())
    first = (row["name"], row["half"], row["user"], row.get("result", ""))
    return Situation(*first, tools, reference, failed, tuple(targets))


def _scalar(value: Any) -> Any:
    while isinstance(value, list | dict):
        value = next(iter(value.values() if isinstance(value, dict) else value))
    return value


def _tool(name: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """A schema from parameter -> JSON type, or list of options."""
    properties = {
        key: {"type": "string", "enum": kind} if isinstance(kind, list) else {"type": kind}
        for key, kind in parameters.items()
    }
    return {"name": name, "parameters": {"type": "object", "properties": properties, "required": list(properties)}}
