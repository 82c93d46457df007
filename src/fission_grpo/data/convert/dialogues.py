"""From any layout's dialogue to step tasks: every assistant turn with calls becomes one, with its history."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fission_grpo.core.errors import TaskFileError
from fission_grpo.core.tool_schema import check_call, check_tool_schema
from fission_grpo.core.types import (
    ErrorKind,
    Message,
    Task,
    ToolCall,
)
from fission_grpo.data.convert.toolrl import Converted, RowDropped, json_schema, restored

_COMBINED = ("anyOf", "oneOf", "allOf", "$ref")


@dataclass(frozen=True)
class Dialogue:
    """A row as chat messages with structured `tool_calls`, whatever its layout was."""

    tools: tuple[Mapping[str, Any], ...]
    messages: tuple[Message, ...]


Read = Callable[[Mapping[str, Any]], Dialogue]
"""Reads one row. Raises RowDropped with the reason why it cannot."""


def convert_rows(path: Path, read: Read, abstentions: bool) -> Converted:
    """All rows of a file as step tasks, ids like "FILE:ROW#TURN" (rows and turns from 1).

    Args:
        path: .json (a list), .jsonl or .parquet.
        read: the layout.
        abstentions: make tasks of assistant turns without calls as well, with an empty reference.

    Returns:
        Converted: `rows` counts assistant turns that might be tasks and rows that could not be read, so that
            kept and dropped add up to it.

    Raises:
        TaskFileError: the file cannot be read, or nothing in it can become a task.
    """
    tasks: list[Task] = []
    dropped: Counter[str] = Counter()
    total = changed = 0
    for number, row in enumerate(read_rows(path), start=1):
        try:
            dialogue = read(row)
        except RowDropped as reason:
            dropped[str(reason)] += 1
            total += 1
            continue
        for turn, task in enumerate(_candidates(dialogue, f"{path.stem}:{number}", abstentions), start=1):
            total += 1
            try:
                made, was_restored = task(turn)
            except RowDropped as reason:
                dropped[str(reason)] += 1
                continue
            tasks.append(made)
            changed += was_restored
    if not tasks:
        why = "; ".join(f"{reason}: {count}" for reason, count in dropped.items()) or "no assistant turn calls a tool"
        raise TaskFileError(f"{path}: nothing in it can become a task ({why}); is it in the layout you named?")
    return Converted(tuple(tasks), total, dict(dropped.most_common()), changed)


def _candidates(dialogue: Dialogue, name: str, abstentions: bool) -> Iterator[Callable[[int], tuple[Task, bool]]]:
    for at, message in enumerate(dialogue.messages):
        if message["role"] == "assistant" and (message.get("tool_calls") or abstentions):
            yield lambda turn, at=at: _task(dialogue, at, f"{name}#{turn}")


def _task(dialogue: Dialogue, at: int, name: str) -> tuple[Task, bool]:
    history = dialogue.messages[:at]
    if not history or history[-1]["role"] not in ("user", "tool"):
        raise RowDropped("the turn follows no user message or tool result")
    if any(message["role"] == "system" for message in history[1:]):
        raise RowDropped("a system message stands in the middle")
    asked = [entry["function"] for entry in dialogue.messages[at].get("tool_calls") or ()]
    calls = [ToolCall(call["name"], call["arguments"]) for call in asked]
    reference = tuple(restored(call, dialogue.tools) for call in calls)
    for call in reference:
        problem = check_call(call, dialogue.tools)
        if problem is not None and problem.kind is ErrorKind.UNKNOWN_TOOL:
            raise RowDropped("the reference calls a tool that is not listed")
        if problem is not None:
            raise RowDropped("the reference violates its tool's schema")
    return Task(name, history, dialogue.tools, reference), list(reference) != calls


def read_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    """The rows of a .json (a list, or one object a line), .jsonl or .parquet file.

    Raises:
        TaskFileError: naming file and row.
    """
    if path.suffix == ".parquet":
        yield from _parquet(path)
        return
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise TaskFileError(f"{path}: cannot be read ({error.strerror}); give the path of a data file") from error
    except UnicodeDecodeError as error:
        raise TaskFileError(f"{path}: not UTF-8 ({error}); save it as UTF-8") from error
    if path.suffix == ".json" and text.lstrip().startswith("["):
        rows = enumerate(_json(path, text, "the file"), start=1)
    else:
        lines = enumerate(text.split("\n"), start=1)
        rows = ((number, _json(path, line, f"row {number}")) for number, line in lines if line.strip())
    for number, row in rows:
        if not isinstance(row, dict):
            raise TaskFileError(f"{path}, row {number}: must be an object, got a {type(row).__name__}")
        yield row


def _json(path: Path, text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TaskFileError(f"{path}, {where}: not JSON ({error}); a .jsonl has one object a line") from error


def _parquet(path: Path) -> list[Mapping[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise TaskFileError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from error


def field(row: Mapping[str, Any], name: str, kind: type | tuple[type, ...]) -> Any:
    """A field of a row. Raises RowDropped if it is missing or of another kind."""
    value = row.get(name)
    if not isinstance(value, kind):
        raise RowDropped(f"field '{name}' is missing or of the wrong type")
    return value


def decoded(value: Any, what: str) -> Any:
    """A value that may stand as JSON text. Raises RowDropped if that cannot be read."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise RowDropped(f"{what} cannot be read") from error


def tools_of(listed: Any) -> tuple[Mapping[str, Any], ...]:
    """Tools as `{"name", "description", "parameters"}`, from OpenAI's form or a bare list of parameters.

    Types are JSON's or Python's ("str, optional", "List[int]"); one we do not know puts no constraint. [ours]

    Raises:
        RowDropped: they cannot be read, or two have the same name.
    """
    if not isinstance(listed, list) or not all(isinstance(tool, dict) for tool in listed):
        raise RowDropped("the tools cannot be read")
    tools = []
    for entry in listed:
        tool = entry.get("function", entry) if isinstance(entry.get("function", entry), dict) else entry
        made = {"name": tool.get("name"), "description": str(tool.get("description") or "")}
        made["parameters"] = _parameters(tool.get("parameters"))
        try:
            check_tool_schema(made)
        except ValueError as error:
            raise RowDropped("a tool's parameters cannot be read") from error
        tools.append(made)
    if len({tool["name"] for tool in tools}) < len(tools):
        raise RowDropped("two tools have the same name")
    return tuple(tools)


def assistant_calls(calls: Iterable[Mapping[str, Any]], content: str = "") -> dict[str, Any]:
    """An assistant message with calls, each `{"name", "arguments"}`; arguments may stand as JSON text.

    Raises:
        RowDropped: a call cannot be read.
    """
    entries = []
    for call in calls:
        arguments = decoded(call.get("arguments") or {}, "a tool call") if isinstance(call, Mapping) else None
        if not isinstance(arguments, dict) or not isinstance(call.get("name"), str):
            raise RowDropped("a tool call cannot be read")
        entries.append({"type": "function", "function": {"name": call["name"], "arguments": arguments}})
    return {"role": "assistant", "content": content, "tool_calls": entries}


def results(content: Any, messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Tool messages for the calls before: one each if `content` is a list of as many entries, else one for all."""
    names = [call["function"]["name"] for call in messages[-1].get("tool_calls", ())] if messages else []
    if not names:
        raise RowDropped("a tool result follows no call")
    parts = content if isinstance(content, list) and len(content) == len(names) else [content]
    return [
        {
            "role": "tool",
            "name": name,
            "content": part if isinstance(part, str) else json.dumps(part, ensure_ascii=False),
        }
        for name, part in zip(names, parts, strict=False)
    ]


def _parameters(given: Any) -> dict[str, Any]:
    given = decoded(given, "a tool's parameters") or {"type": "object", "properties": {}}
    if not isinstance(given, dict):
        raise RowDropped("a tool's parameters cannot be read")
    if isinstance(given.get("properties"), dict) or given.get("type") in ("object", "dict"):
        return _schema(given)
    required = [name for name, one in given.items() if isinstance(one, dict) and _is_required(one)]
    return {"type": "object", "properties": {name: _schema(one) for name, one in given.items()}, "required": required}


def _is_required(one: Mapping[str, Any]) -> bool:
    return "default" not in one and not str(one.get("type", "")).replace(" ", "").endswith(",optional")


def _schema(one: Any) -> dict[str, Any]:
    """A schema whose types are JSON's, at every level."""
    if not isinstance(one, dict):
        return {}
    made = {
        key: value for key, value in one.items() if key in ("description", "enum", "default") and value is not None
    }
    if not isinstance(made.get("enum", []), list) or not made.get("enum", [1]):
        del made["enum"]
    if isinstance(one.get("properties"), dict) or one.get("type") in ("object", "dict"):
        inner = one.get("properties") if isinstance(one.get("properties"), dict) else {}
        made |= {"type": "object"}
        if inner:
            made["properties"] = {str(name): _schema(value) for name, value in inner.items()}
        if isinstance(one.get("required"), list):
            made["required"] = [str(name) for name in one["required"] if name in inner]
        return made if inner or "type" in made else {"type": "object", "properties": {}}
    if any(key in one for key in _COMBINED):
        return made
    made |= json_schema(one.get("type"))
    if isinstance(one.get("items"), dict) and made.get("type") == "array":
        made["items"] = _schema(one["items"])
    return made
