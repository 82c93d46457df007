"""Tasks as JSON and back, exactly, and the ids that tasks and failures keep across runs."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from fission_grpo.core.json_io import quoted
from fission_grpo.core.types import Failure, Task, ToolCall, ToolResult

STEP_KEY = "fission_task"  # column of a TRL row that holds its step task as JSON (`data.step_tasks.to_rows`)
_TASK_FIELDS = ("id", "prompt", "tools", "reference", "columns", "history", "root", "parent", "depth")


def recovery_id(failure: Failure) -> str:
    """Id of the recovery task for a failure: a hash of the task's id and the generated texts, equal for duplicates."""
    digest = hashlib.sha1(failure.task.id.encode("utf-8", "surrogatepass"))
    for turn in failure.turns:
        digest.update(b"\0" + turn.text.encode("utf-8", "surrogatepass"))
    return "x" + digest.hexdigest()[:15]


def task_to_json(task: Task) -> str:
    """The task as one line of JSON; `task_from_json` returns an equal task. NaN and infinities are preserved.

    Raises:
        ValueError: naming a column, message or argument that JSON does not preserve (a date, a tuple, ...).
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
    if task.failed:
        fields["failed"] = [[call_fields(call) for call in calls] for calls in task.failed]
    return faithful_json(task.id, fields)


def task_from_json(text: str) -> Task:
    """The task that `task_to_json` wrote. Raises ValueError, naming the fields, for any other text."""
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not a task: {error}; it must be what task_to_json wrote") from error
    names = set(fields) if isinstance(fields, dict) else set()
    if names - {"failed"} != set(_TASK_FIELDS):
        missing = [name for name in _TASK_FIELDS if name not in names]
        raise ValueError(
            f"not a task: fields missing: {missing}, unknown: {sorted(names - {*_TASK_FIELDS, 'failed'})}; "
            "it must be what this version's task_to_json wrote"
        )
    prompt, reference = fields["prompt"], fields["reference"]
    fields["prompt"] = prompt if isinstance(prompt, str) else tuple(prompt)
    fields["tools"] = tuple(fields["tools"])
    fields["reference"] = None if reference is None else tuple(ToolCall(**call) for call in reference)
    fields["history"] = tuple(
        ToolResult(ToolCall(past["name"], past["arguments"]), past["content"], past["error"])
        for past in fields["history"]
    )
    fields["failed"] = tuple(tuple(ToolCall(**call) for call in calls) for calls in fields.get("failed", ()))
    return Task(**fields)


step_task = lru_cache(maxsize=4096)(task_from_json)
"""`task_from_json` with a cache, for column `STEP_KEY`: all rollouts of a group bring the same text."""


def call_fields(call: ToolCall) -> dict[str, Any]:
    """The call as a JSON object."""
    return {"name": call.name, "arguments": dict(call.arguments)}


def faithful(value: Any, allow_nan: bool = True) -> str | None:
    """`value` as JSON text, None unless decoding it gives an equal value. NaN counts as equal to NaN."""
    try:
        text = json.dumps(value, allow_nan=allow_nan)
        return text if _is_same(json.loads(text), value) else None
    except (TypeError, ValueError, RecursionError):
        return None


def _is_same(decoded: Any, value: Any) -> bool:
    if isinstance(decoded, dict) and isinstance(value, dict):
        return decoded.keys() == value.keys() and all(_is_same(decoded[key], value[key]) for key in decoded)
    if isinstance(decoded, list) and isinstance(value, list):
        return all(map(_is_same, decoded, value))
    return bool(decoded == value) or (decoded != decoded and value != value)


def faithful_json(name: str, fields: Mapping[str, Any], allow_nan: bool = True) -> str:
    """The fields of a task as `faithful` gives them. Raises ValueError, naming the innermost field it refuses."""
    text = faithful(fields, allow_nan)
    if text is not None:
        return text
    top = next(key for key, value in fields.items() if faithful(value, allow_nan) is None)
    value, path = fields[top], [str(top)]
    while isinstance(value, dict) and all(isinstance(key, str) for key in value):
        key = next(key for key, item in value.items() if faithful(item, allow_nan) is None)
        value, path = value[key], [*path, key]
    where = f"column {'.'.join(path[1:])!r}" if top == "columns" and path[1:] else f"field {'.'.join(path)!r}"
    raise ValueError(
        f"task {name!r}: {where} holds a {type(value).__name__} that JSON cannot give back: {quoted(value)}. "
        "Use strings, finite numbers, booleans, null, lists, and objects with string keys, or remove it"
    )


def generator_state(generator: random.Random) -> list[Any]:
    """The state of a random generator as a JSON value."""
    version, internal, gauss = generator.getstate()
    return [version, list(internal), gauss]


def set_generator(generator: random.Random, state: Sequence[Any]) -> None:
    """Set a random generator to a state from `generator_state`."""
    version, internal, gauss = state
    generator.setstate((version, tuple(internal), gauss))
