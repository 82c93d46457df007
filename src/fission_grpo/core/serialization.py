"""A Task as one line of JSON and back, exactly: in step-task rows, buffer checkpoints and files."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from fission_grpo.core.json_io import quoted
from fission_grpo.core.types import (
    Task,
    ToolCall,
    ToolResult,
)

_TASK_FIELDS = ("id", "prompt", "tools", "reference", "columns", "history", "root", "parent", "depth")


def task_to_json(task: Task) -> str:
    """The task as one line of JSON; `task_from_json` gives an equal task back.

    Raises:
        ValueError: a column, message or argument does not survive JSON (a date, a tuple, a non-string key); it is
            named. NaN and infinities do survive, in Python's notation.
    """
    fields: dict[str, Any] = {
        "id": task.id,
        "prompt": task.prompt if isinstance(task.prompt, str) else [dict(message) for message in task.prompt],
        "tools": [dict(tool) for tool in task.tools],
        "reference": None if task.reference is None else [call_fields(call) for call in task.reference],
        "columns": dict(task.columns),
        "history": [{**call_fields(past.call), "content": past.content, "error": past.error} for past in task.history],
        "root": task.root,
        "parent": task.parent,
        "depth": task.depth,
    }
    text = faithful(fields)
    if text is None:
        raise ValueError(unfaithful(task.id, fields))
    return text


def task_from_json(text: str) -> Task:
    """The task that `task_to_json` wrote. Raises ValueError, naming the field, for any other text."""
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not a task: {error}; it must be what task_to_json wrote") from error
    missing = [name for name in _TASK_FIELDS if name not in fields] if isinstance(fields, dict) else ["all fields"]
    if missing or len(fields) != len(_TASK_FIELDS):
        raise ValueError(
            f"not a task: fields missing: {missing}, unknown: {sorted(set(fields) - set(_TASK_FIELDS))}; "
            "it must be what this version's task_to_json wrote"
        )
    prompt, reference = fields["prompt"], fields["reference"]
    return Task(
        **{
            **fields,
            "prompt": prompt if isinstance(prompt, str) else tuple(prompt),
            "tools": tuple(fields["tools"]),
            "reference": None if reference is None else tuple(ToolCall(**call) for call in reference),
            "history": tuple(_result(past) for past in fields["history"]),
        }
    )


def _result(fields: Mapping[str, Any]) -> ToolResult:
    return ToolResult(ToolCall(fields["name"], fields["arguments"]), fields["content"], fields["error"])


def call_fields(call: ToolCall) -> dict[str, Any]:
    """The call as JSON object."""
    return {"name": call.name, "arguments": dict(call.arguments)}


def faithful(value: Any, allow_nan: bool = True) -> str | None:
    """`value` as JSON, None unless reading it gives an equal value back. NaN equals itself here."""
    try:
        text = json.dumps(value, allow_nan=allow_nan)
        return text if _same(json.loads(text), value) else None
    except (TypeError, ValueError, RecursionError):
        return None


def _same(read: Any, value: Any) -> bool:
    if isinstance(read, dict) and isinstance(value, dict):
        return read.keys() == value.keys() and all(_same(read[key], value[key]) for key in read)
    if isinstance(read, list) and isinstance(value, list):
        return all(map(_same, read, value))
    return bool(read == value) or (read != read and value != value)


def unfaithful(name: str, fields: Mapping[str, Any], allow_nan: bool = True) -> str:
    """The error message that names the innermost column or field JSON cannot hold."""
    bad = next(key for key, value in fields.items() if faithful(value, allow_nan) is None)
    value, path = fields[bad], [str(bad)]
    while isinstance(value, dict) and all(isinstance(key, str) for key in value):
        key = next(key for key, item in value.items() if faithful(item, allow_nan) is None)
        value, path = value[key], [*path, key]
    where = f"column {'.'.join(path[1:])!r}" if bad == "columns" and path[1:] else f"field {'.'.join(path)!r}"
    return (
        f"task {name!r}: {where} holds a {type(value).__name__} that JSON cannot give back: {quoted(value)}. "
        "Use strings, finite numbers, booleans, null, lists, and objects with string keys, or remove it"
    )


STEP_KEY = "fission_task"
"""Column that holds a step task as JSON (see `tasks.to_rows`)."""


step_task = lru_cache(maxsize=4096)(task_from_json)
"""`task_from_json`, remembering: all rollouts of a group come with the same text."""


def generator_state(generator: random.Random) -> list[Any]:
    """A random generator's state as JSON takes it."""
    version, internal, gauss = generator.getstate()
    return [version, list(internal), gauss]


def set_generator(generator: random.Random, state: Sequence[Any]) -> None:
    """Put a generator where `generator_state` was taken."""
    version, internal, gauss = state
    generator.setstate((version, tuple(internal), gauss))
