"""Tasks as JSON, and step-task files: one task per line, every mistake named by file, row and field.

A row of a step-task file (JSONL):

    {"id": "weather-1",                                                      # optional, unique
     "messages": [{"role": "user", "content": "Rain in Oslo?"}],             # the dialogue up to the turn to judge
     "tools": [{"name": "weather", "description": "...", "parameters": {"type": "object", "properties": {...}}}],
     "reference": [{"name": "weather", "arguments": {"city": "Oslo"}}]}      # the calls expected of that turn

An empty `reference` means that the right turn calls nothing. Further fields are kept in `Task.columns`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fission_grpo.core.chat import render
from fission_grpo.core.errors import RowError, TaskFileError
from fission_grpo.core.files import read_task_rows
from fission_grpo.core.json_io import quoted
from fission_grpo.core.serialization import (
    call_fields,
    faithful,
    task_to_json,
    unfaithful,
)
from fission_grpo.core.tool_schema import check_call, check_tool_schema
from fission_grpo.core.types import (
    ErrorKind,
    Message,
    Task,
    ToolCall,
)

ROLES = ("system", "user", "assistant", "tool")


FIELDS = ("id", "messages", "tools", "reference")


def load_tasks(path: str | Path) -> list[Task]:
    """Read a step-task file (the format is at the top of this module), checking everything before training starts.

    A row without `id` is called after its file and line: "weather.jsonl:3". Tools may come in OpenAI's wrapper,
    `{"type": "function", "function": {...}}`, and are unwrapped. Arguments in the reference that its own schema
    rejects are errors too: such a row would punish the right call.

    Raises:
        TaskFileError: the first mistake, with file, row (line, from 1), field and how to mend it.
    """
    path = Path(path)
    tasks = read_task_rows(path, "step-task file", _named_task)
    if not tasks:
        raise TaskFileError(f"{path}: no tasks in it; write one JSON object per line, with {', '.join(FIELDS[1:])}")
    return tasks


def row_of_step_task(task: Task) -> str:
    """The line of a step-task file that `load_tasks` reads back as `task`.

    Raises:
        ValueError: the task is no step task (no reference, or a plain-string prompt), or holds what JSON cannot.
    """
    if task.reference is None or isinstance(task.prompt, str):
        raise ValueError(f"task {task.id!r} is no step task: it needs messages as prompt and a reference")
    fields = {
        **task.columns,
        "id": task.id,
        "messages": [dict(message) for message in task.prompt],
        "tools": [dict(tool) for tool in task.tools],
        "reference": [call_fields(call) for call in task.reference],
    }
    text = faithful(fields, allow_nan=False)
    if text is None:
        raise ValueError(unfaithful(task.id, fields, allow_nan=False))
    return text


def to_rows(tasks: Iterable[Task], tokenizer: Any) -> list[dict[str, str]]:
    """The tasks as TRL rows: `prompt` rendered with the task's own tools, `fission_task` the task as JSON.

    Args:
        tokenizer: a Hugging Face tokenizer with a chat template; without one TRL could not sample either.
    """
    return [
        {"prompt": render(task.prompt, task.tools, tokenizer), "fission_task": task_to_json(task)} for task in tasks
    ]


def _named_task(row: Mapping[str, Any], name: str) -> tuple[str, Task]:
    task = _task(row, name)
    return task.id, task


def _task(row: Mapping[str, Any], name: str) -> Task:
    known = f"a row has the fields {', '.join(FIELDS[1:])} and optionally id"
    for field in FIELDS[1:]:
        if field not in row:
            raise RowError(field, f"missing; {known}")
        if not isinstance(row[field], list):
            raise RowError(field, f"must be a list, got {quoted(row[field])}")
    identity = row.get("id", name)
    if not isinstance(identity, str) or not identity:
        raise RowError("id", f"must be a non-empty string, got {quoted(identity)}; or leave it out")
    tools = _tools(row["tools"])
    return Task(
        id=identity,
        prompt=_messages(row["messages"]),
        tools=tools,
        reference=_reference(row["reference"], tools),
        columns={key: value for key, value in row.items() if key not in FIELDS},
    )


def _messages(messages: Sequence[Any]) -> tuple[Message, ...]:
    for i, message in enumerate(messages):
        at = f"messages[{i}]"
        if not isinstance(message, dict):
            raise RowError(at, f'must be an object like {{"role": "user", "content": "..."}}, got {quoted(message)}')
        role = message.get("role")
        if role not in ROLES:
            raise RowError(f"{at}.role", f"must be one of {', '.join(ROLES)}, got {quoted(role)}")
        if role == "system" and i:
            raise RowError(f"{at}.role", "a system message may only be the first; move it there or make it a user's")
        calls = message.get("tool_calls") or []
        _message_calls(calls, f"{at}.tool_calls", role)
        content = message.get("content")
        if not isinstance(content, str) and not (content is None and calls):
            raise RowError(f"{at}.content", f"must be a string, got {quoted(content)}")
    if not messages or messages[-1]["role"] not in ("user", "tool"):
        raise RowError("messages", "must end with a user or tool message, for the assistant's turn to follow")
    return tuple(messages)


def _message_calls(calls: Any, at: str, role: str) -> None:
    if calls and (role != "assistant" or not isinstance(calls, list)):
        raise RowError(at, "must be a list, in assistant messages only")
    for j, call in enumerate(calls):
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise RowError(f"{at}[{j}]", f'must be {{"name": "...", "arguments": {{...}}}}, got {quoted(call)}')
        if not isinstance(function.get("arguments"), dict):
            raise RowError(f"{at}[{j}].arguments", f"must be an object, got {quoted(function.get('arguments'))}")


def _tools(tools: Sequence[Any]) -> tuple[Mapping[str, Any], ...]:
    seen: dict[str, int] = {}
    functions = [tool.get("function", tool) if isinstance(tool, dict) else tool for tool in tools]
    for i, tool in enumerate(functions):
        try:
            check_tool_schema(tool)
        except ValueError as error:
            raise RowError(f"tools[{i}]", f"{error}; mend the schema") from None
        if tool["name"] in seen:
            raise RowError(
                f"tools[{i}].name", f"{quoted(tool['name'])} is the name of tools[{seen[tool['name']]}] already"
            )
        seen[tool["name"]] = i
    return tuple(functions)


def _reference(calls: Sequence[Any], tools: Sequence[Mapping[str, Any]]) -> tuple[ToolCall, ...]:
    reference = []
    for i, fields in enumerate(calls):
        at = f"reference[{i}]"
        if not isinstance(fields, dict) or not isinstance(fields.get("name"), str):
            raise RowError(at, f'must be {{"name": "...", "arguments": {{...}}}}, got {quoted(fields)}')
        if not isinstance(fields.get("arguments"), dict):
            raise RowError(f"{at}.arguments", f"must be an object, got {quoted(fields.get('arguments'))}")
        call = ToolCall(fields["name"], fields["arguments"])
        problem = check_call(call, tools)
        if problem is not None and problem.kind is ErrorKind.UNKNOWN_TOOL:
            raise RowError(f"{at}.name", f"{problem.message}; correct the name or add the tool to 'tools'")
        if problem is not None:
            raise RowError(
                f"{at}.arguments", f"{problem.message}; correct the value, or the schema of {quoted(call.name)}"
            )
        reference.append(call)
    return tuple(reference)
