"""Step-task files (JSONL): one task per line, checked completely before training starts.

A row:

    {"id": "weather-1",                                                      # optional, unique
     "messages": [{"role": "user", "content": "Rain in Oslo?"}],             # the dialogue up to the turn to judge
     "tools": [{"name": "weather", "description": "...", "parameters": {"type": "object", "properties": {...}}}],
     "reference": [{"name": "weather", "arguments": {"city": "Oslo"}}]}      # the calls expected of that turn

With an empty `reference` the right turn calls nothing. Further fields are kept in `Task.columns`; of these have a
meaning:

    "environment": "my_module:MyEnv"    # or "desk", "bfcl", "agentdojo:banking": where a failed turn's calls are made
    "snapshot": {...}                   # the state of the environment at this turn, for `_restore`; without it the
                                        # calls of the dialogue are made again
    "following": [[{"name": ...}], []]  # the calls of the turns after this one; with [] the assistant ends
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fission_grpo.core.chat import dialogue_results, render
from fission_grpo.core.errors import RowError, TaskFileError
from fission_grpo.core.files import read_task_rows
from fission_grpo.core.json_io import quoted
from fission_grpo.core.serialization import STEP_KEY, call_fields, faithful_json, task_to_json
from fission_grpo.core.tool_schema import check_call, check_tool_schema
from fission_grpo.core.types import ErrorKind, Message, Task, ToolCall, ToolResult

ROLES = ("system", "user", "assistant", "tool")
FIELDS = ("id", "messages", "tools", "reference")


def load_step_tasks(path: str | Path) -> list[Task]:
    """Read a step-task file. Raises TaskFileError, naming file, row (line, from 1), field and correction.

    A row without `id` is named after its file and line ("weather.jsonl:3"). Tools may be in OpenAI's form. A reference
    that its own tool's schema rejects is an error, as it would punish the right call.
    """
    path = Path(path)
    tasks = read_task_rows(path, "step-task file", _read_task)
    if not tasks:
        raise TaskFileError(f"{path}: no tasks in it; write one JSON object per line, with {', '.join(FIELDS[1:])}")
    return tasks


def row_of_step_task(task: Task) -> str:
    """The line of a step-task file for a task. Raises ValueError for an episode, or a value that is not JSON."""
    if task.reference is None or isinstance(task.prompt, str):
        raise ValueError(f"task {task.id!r} is no step task: it needs messages as prompt and a reference")
    fields = {
        **task.columns,
        "id": task.id,
        "messages": [dict(message) for message in task.prompt],
        "tools": [dict(tool) for tool in task.tools],
        "reference": [call_fields(call) for call in task.reference],
    }
    return faithful_json(task.id, fields, allow_nan=False)


def to_rows(
    tasks: Iterable[Task], tokenizer: Any, template_options: Mapping[str, Any] | None = None
) -> list[dict[str, str]]:
    """The tasks as TRL rows: `prompt` is rendered with the task's own tools, `fission_task` is the task as JSON.

    `template_options`: further arguments of the chat template, as in TRL's `chat_template_kwargs`.
    """
    return [
        {"prompt": render(task.prompt, task.tools, tokenizer, template_options), STEP_KEY: task_to_json(task)}
        for task in tasks
    ]


def _read_task(row: Mapping[str, Any], name: str) -> tuple[str, Task]:
    """The id and the task of a row; `name` is the id if it has none."""
    for field in FIELDS[1:]:
        if field not in row:
            raise RowError(field, f"missing; a row has the fields {', '.join(FIELDS[1:])} and optionally id")
        if not isinstance(row[field], list):
            raise RowError(field, f"must be a list, got {quoted(row[field])}")
    identity = row.get("id", name)
    if not isinstance(identity, str) or not identity:
        raise RowError("id", f"must be a non-empty string, got {quoted(identity)}; or leave it out")
    tools = _read_tools(row["tools"])
    messages = _read_messages(row["messages"])
    return identity, Task(
        id=identity,
        prompt=messages,
        tools=tools,
        reference=_read_reference(row["reference"], tools),
        columns={key: value for key, value in row.items() if key not in FIELDS},
        history=_read_history(row, messages, tools),
    )


def _read_history(
    row: Mapping[str, Any], messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]
) -> tuple[ToolResult, ...]:
    """The dialogue's calls that bring the row's environment to the turn; none without one, or with a snapshot."""
    if row.get("environment") is None:
        return ()  # the columns are the user's own
    if not isinstance(row["environment"], str):
        known = "desk, bfcl, agentdojo:SUITE or my_module:MyEnv"
        raise RowError("environment", f"must be {known}, got {quoted(row['environment'])}")
    following = row.get("following")
    if following is not None:
        if not isinstance(following, list) or not all(isinstance(calls, list) for calls in following):
            raise RowError("following", f"must be a list of lists of calls, got {quoted(following)}")
        for i, calls in enumerate(following):
            _read_reference(calls, tools, f"following[{i}]")
    try:
        return () if row.get("snapshot") is not None else dialogue_results(messages)
    except ValueError as error:
        what = "in the environment every call is made again, to be compared with its result"
        raise RowError("messages", f"{error}; {what}, so correct the dialogue or remove 'environment'") from None


def _read_messages(messages: Sequence[Any]) -> tuple[Message, ...]:
    for i, message in enumerate(messages):
        at = f"messages[{i}]"
        if not isinstance(message, dict):
            raise RowError(at, f'must be an object like {{"role": "user", "content": "..."}}, got {quoted(message)}')
        role = message.get("role")
        if role not in ROLES:
            raise RowError(f"{at}.role", f"must be one of {', '.join(ROLES)}, got {quoted(role)}")
        if role == "system" and i:
            raise RowError(f"{at}.role", "a system message may only be the first; move it there or make it a user's")
        if message.get("function_call"):
            raise RowError(f"{at}.function_call", "is the old form of a call; write it into `tool_calls`")
        calls = message.get("tool_calls") or []
        if calls and (role != "assistant" or not isinstance(calls, list)):
            raise RowError(f"{at}.tool_calls", "must be a list, in assistant messages only")
        for j, call in enumerate(calls):
            _read_call(call.get("function", call) if isinstance(call, dict) else call, f"{at}.tool_calls[{j}]")
        content = message.get("content")
        if not isinstance(content, str) and not (content is None and calls):
            raise RowError(f"{at}.content", f"must be a string, got {quoted(content)}")
    if not messages or messages[-1]["role"] not in ("user", "tool"):
        raise RowError("messages", "must end with a user or tool message, for the assistant's turn to follow")
    return tuple(messages)


def _read_tools(tools: Sequence[Any]) -> tuple[Mapping[str, Any], ...]:
    indices: dict[str, int] = {}
    functions = [tool.get("function", tool) if isinstance(tool, dict) else tool for tool in tools]
    for i, tool in enumerate(functions):
        try:
            check_tool_schema(tool)
        except ValueError as error:
            raise RowError(f"tools[{i}]", f"{error}; correct the schema") from None
        name = tool["name"]
        if indices.setdefault(name, i) != i:
            raise RowError(f"tools[{i}].name", f"{quoted(name)} is the name of tools[{indices[name]}] already")
    return tuple(functions)


def _read_reference(
    calls: Sequence[Any], tools: Sequence[Mapping[str, Any]], field: str = "reference"
) -> tuple[ToolCall, ...]:
    reference = []
    for i, fields in enumerate(calls):
        at = f"{field}[{i}]"
        call = _read_call(fields, at)
        problem = check_call(call, tools)
        if problem is not None and problem.kind is ErrorKind.UNKNOWN_TOOL:
            raise RowError(f"{at}.name", f"{problem.message}; correct the name or add the tool to 'tools'")
        if problem is not None:
            fix = f"correct the value, or the schema of {quoted(call.name)}"
            raise RowError(f"{at}.arguments", f"{problem.message}; {fix}")
        reference.append(call)
    return tuple(reference)


def _read_call(fields: Any, at: str) -> ToolCall:
    if not isinstance(fields, dict) or not isinstance(fields.get("name"), str):
        raise RowError(at, f'must be {{"name": "...", "arguments": {{...}}}}, got {quoted(fields)}')
    if not isinstance(fields.get("arguments"), dict):
        hint = "; `fission-grpo tasks convert` reads JSON text" if isinstance(fields.get("arguments"), str) else ""
        raise RowError(f"{at}.arguments", f"must be an object, got {quoted(fields.get('arguments'))}{hint}")
    return ToolCall(fields["name"], fields["arguments"])
