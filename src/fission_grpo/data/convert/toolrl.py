"""ToolRL's data (github.com/qiancheng0/ToolRL, Apache-2.0) as step tasks.

Two layouts, one content: `rlla_sft.json` is a list of {"instruction", "input", "output"}; the RL parquet files hold
the same three texts as `prompt[0].content`, `prompt[1].content` and `reward_model.ground_truth`. The instruction lists
the tools, the input is the dialogue so far, the output holds the calls expected next.

Judgements of ours [ours], as the layout leaves them open:
- types are Python's ("List[int]", "str, optional") or JSON's; one we do not know puts no constraint on the value;
- only where a tool marks some parameters ", optional" are its unmarked ones without a default required; elsewhere
  nothing tells which are, and the reference itself often leaves some out;
- part of the data writes every value as a string ("2025.0" for a float): where the schema forbids a string, the value
  written in it is taken, and the row counted in `Converted.restored`;
- thoughts of earlier turns and the output's are left out.
"""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
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

_TOOL = re.compile(r"^\d+\. Name: (.*?)\nDescription: (.*?)\nParameters: (.*?)(?=\n\d+\. Name: |\Z)", re.M | re.S)


_TYPES = {
    "str": "string",
    "string": "string",
    "int": "integer",
    "integer": "integer",
    "float": "number",
    "number": "number",
    "bool": "boolean",
    "boolean": "boolean",
    "list": "array",
    "array": "array",
    "tuple": "array",
    "set": "array",
    "dict": "object",
    "object": "object",
    "none": "null",
    "null": "null",
}


class RowDropped(Exception):
    """A row cannot become a task; the message is the reason, without anything particular to the row."""


def read_tools(instruction: str) -> tuple[Mapping[str, Any], ...]:
    """The tools listed in a ToolRL instruction, as `{"name", "description", "parameters"}`. Raises RowDropped."""
    listed = instruction.partition("**Available Tools**")[2].partition("**Steps for Each Turn**")[0].strip()
    tools = []
    for name, description, parameters in _TOOL.findall(listed):
        try:
            tools.append({"name": name.strip(), "description": description.strip(), "parameters": _schema(parameters)})
            check_tool_schema(tools[-1])
        except ValueError as error:
            raise RowDropped("a tool's parameters cannot be read") from error
    if not tools:
        raise RowDropped("the instruction lists no tools")
    if len({tool["name"] for tool in tools}) < len(tools):
        raise RowDropped("two tools have the same name")
    return tuple(tools)


def json_schema(declared: Any) -> dict[str, Any]:
    """The JSON schema of a type as ToolRL writes it; {} for one we do not know. ", optional" allows null.

    Example:
        `json_schema("List[int]")` is `{"type": "array", "items": {"type": "integer"}}`.
    """
    if isinstance(declared, list):
        return _any_of([json_schema(option) for option in declared])
    if not isinstance(declared, str):
        return {}
    text = declared.strip()
    if text.endswith("optional"):
        return _any_of([json_schema(text.removesuffix("optional").rstrip(" ,")), {"type": "null"}])
    head, _, inner = text.partition("[")
    kind = head.strip().lower()
    parts = [part.strip() for part in _split(inner[:-1])] if inner.endswith("]") else []
    if kind == "union":
        return _any_of([json_schema(part) for part in parts])
    if kind == "optional":
        return _any_of([*map(json_schema, parts), {"type": "null"}])
    if kind not in _TYPES:
        return {}
    items = json_schema(parts[0]) if kind in ("list", "array", "set") and len(parts) == 1 else {}
    return {"type": _TYPES[kind], **({"items": items} if items else {})}


def _any_of(options: Sequence[dict[str, Any]]) -> dict[str, Any]:
    if {} in options:
        return {}
    if all(option.keys() == {"type"} and isinstance(option["type"], str) for option in options):
        types = list(dict.fromkeys(option["type"] for option in options))
        return {"type": types[0] if len(types) == 1 else types}
    return {"anyOf": list(options)}


def _split(text: str) -> list[str]:
    """Split at the commas outside of brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter == "[") - (letter == "]")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _schema(text: str) -> dict[str, Any]:
    declared = json.loads(text)
    if not isinstance(declared, dict) or not all(isinstance(field, dict) for field in declared.values()):
        raise ValueError("parameters must be an object of objects")
    properties = {}
    for name, field in declared.items():
        properties[name] = {
            **json_schema(field.get("type")),
            **({"description": field["description"]} if field.get("description") else {}),
            **({"default": field["default"]} if field.get("default", "") != "" else {}),
        }
    optional = {name for name, field in declared.items() if str(field.get("type")).endswith("optional")}
    required = [name for name in declared if name not in optional and "default" not in properties[name]]
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    return {**schema, "required": required} if optional and required else schema


_BLOCK = re.compile(r"<(user|think|tool_call|response|obs)>(.*?)</\1>", re.S)


@dataclass(frozen=True)
class Converted:
    """The tasks of a file, and what became of the rest.

    `rows` counts what might have become a task (of a ToolRL file its rows), `dropped` what did not by reason,
    `restored` the tasks of which a string was turned into the value its schema asks for.
    """

    tasks: tuple[Task, ...]
    rows: int
    dropped: Mapping[str, int]
    restored: int

    def summary(self) -> str:
        """The report for people: one line of totals, one per reason for dropping."""
        lines = [f"{len(self.tasks)} of {self.rows} kept ({self.restored} with strings restored to their types)"]
        return "\n".join([*lines, *(f"  dropped {count:4d}: {reason}" for reason, count in self.dropped.items())])


def read_toolrl(path: str | Path) -> Converted:
    """Read a ToolRL file, `.json` or `.parquet`, into step tasks with ids like "rlla_sft:17" (rows from 1).

    Raises:
        TaskFileError: the file is missing, in neither layout, or holds no usable row.
    """
    path = Path(path)
    texts = _parquet_texts(path) if path.suffix == ".parquet" else _json_texts(path)
    tasks: list[Task] = []
    dropped: Counter[str] = Counter()
    rows = restored = 0
    for rows, (instruction, dialogue, output) in enumerate(texts, start=1):
        try:
            task, changed = toolrl_task(instruction, dialogue, output, f"{path.stem}:{rows}")
        except RowDropped as reason:
            dropped[str(reason)] += 1
            continue
        tasks.append(task)
        restored += changed
    if not tasks:
        why = "; ".join(f"{reason}: {count}" for reason, count in dropped.items()) or "it has no rows"
        raise TaskFileError(f"{path}: none of its {rows} rows can become a task ({why}); is it a ToolRL file?")
    return Converted(tuple(tasks), rows, dict(dropped.most_common()), restored)


def toolrl_task(instruction: str, dialogue: str, output: str, name: str) -> tuple[Task, bool]:
    """One row as a task, and whether strings in its reference were restored to their types.

    Raises:
        RowDropped: the row cannot be a step task; the message is the reason.
    """
    tools = read_tools(instruction)
    calls = _calls(_answer(output))
    if not calls:
        raise RowDropped("no reference call")
    reference = tuple(restored(call, tools) for call in calls)
    for call in reference:
        problem = check_call(call, tools)
        if problem is not None and problem.kind is ErrorKind.UNKNOWN_TOOL:
            raise RowDropped("the reference calls a tool that is not listed")
        if problem is not None:
            raise RowDropped("the reference violates its tool's schema")
    return Task(name, _messages(dialogue), tools, reference), list(reference) != calls


def _messages(dialogue: str) -> tuple[Message, ...]:
    """The dialogue as chat messages; consecutive blocks of the assistant's are one message."""
    text = dialogue.replace("**Dialogue Records History**", "", 1)
    if _BLOCK.sub("", text).strip():
        raise RowDropped("the dialogue cannot be read")
    messages: list[dict[str, Any]] = []
    for tag, body in _BLOCK.findall(text):
        content = body.strip()
        if tag == "user":
            messages.append({"role": "user", "content": content})
        elif tag == "obs":
            messages += _observations(content, messages)
        elif tag != "think":
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": ""})
            if tag == "response":
                messages[-1]["content"] = content
            else:
                calls = [{"name": call.name, "arguments": dict(call.arguments)} for call in _calls(content)]
                messages[-1]["tool_calls"] = [{"type": "function", "function": call} for call in calls]
    if not messages or messages[-1]["role"] == "assistant":
        raise RowDropped("the dialogue does not end before an assistant's turn")
    return tuple(messages)


def _observations(content: str, messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Tool messages: one per call if the results are a list with one entry each, otherwise one for all."""
    names = [call["function"]["name"] for call in messages[-1].get("tool_calls", ())] if messages else []
    if not names:
        raise RowDropped("the dialogue cannot be read")
    try:
        results = json.loads(content)
    except (ValueError, RecursionError):
        results = None
    if not isinstance(results, list) or len(results) != len(names):
        return [{"role": "tool", "name": names[0], "content": content}]
    return [
        {"role": "tool", "name": name, "content": json.dumps(_inner(result), ensure_ascii=False)}
        for name, result in zip(names, results, strict=True)
    ]


def _inner(result: Any) -> Any:
    return result["results"] if isinstance(result, dict) and "results" in result else result


def _answer(output: str) -> str:
    """The text of the output's `<tool_call>` block, "" if there is none; thoughts may mention the tag."""
    return next((body for tag, body in _BLOCK.findall(output) if tag == "tool_call"), "")


def _calls(body: str) -> list[ToolCall]:
    """ToolRL's calls: one JSON object a line, with `name` and `parameters`."""
    calls = []
    for line in filter(None, map(str.strip, body.split("\n"))):
        try:
            fields = json.loads(line)
            name, arguments = fields["name"], fields["parameters"]
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise RowDropped("a tool call cannot be read") from error
        if not isinstance(name, str) or not isinstance(arguments, dict):
            raise RowDropped("a tool call cannot be read")
        calls.append(ToolCall(name.strip(), arguments))
    return calls


def restored(call: ToolCall, tools: Sequence[Mapping[str, Any]]) -> ToolCall:
    """The call with strings replaced by the values written in them, where the schema forbids the string."""
    schema = next((tool["parameters"] for tool in tools if tool["name"] == call.name), {})
    single = {"name": call.name, "parameters": {"type": "object", "properties": schema.get("properties", {})}}
    arguments = dict(call.arguments)
    for name, value in call.arguments.items():
        if isinstance(value, str) and check_call(ToolCall(call.name, {name: value}), [single]) is not None:
            meant = _written(value)
            if check_call(ToolCall(call.name, {name: meant}), [single]) is None:
                arguments[name] = meant
    return ToolCall(call.name, arguments)


def _written(text: str) -> Any:
    """The JSON value or Python literal written in `text`, else the text."""
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(text)
            return json.loads(json.dumps(value, allow_nan=False))
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
    return text


def _json_texts(path: Path) -> Iterable[tuple[str, str, str]]:
    fields = ("instruction", "input", "output")
    try:
        rows = json.loads(path.read_bytes())
    except OSError as error:
        raise TaskFileError(f"{path}: cannot be read ({error.strerror}); give the path of a ToolRL file") from error
    except (ValueError, RecursionError) as error:
        raise TaskFileError(f"{path}: not JSON ({error}); ToolRL's layout is one list of objects") from error
    if not isinstance(rows, list):
        raise TaskFileError(f"{path}: must be a list of objects with {', '.join(fields)}")
    for number, row in enumerate(rows, start=1):
        for field in fields:
            if not isinstance(row, dict) or not isinstance(row.get(field), str):
                raise TaskFileError(f"{path}, row {number}, field '{field}': must be a string, as in ToolRL's layout")
        yield row["instruction"], row["input"], row["output"]


def _parquet_texts(path: Path) -> Iterable[tuple[str, str, str]]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path, columns=["prompt", "reward_model"]).to_pylist()
    except (OSError, KeyError, pyarrow.ArrowException) as error:
        what = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        raise TaskFileError(f"{path}: cannot be read ({what}); it needs the columns prompt, reward_model") from error
    for number, row in enumerate(rows, start=1):
        try:
            yield row["prompt"][0]["content"], row["prompt"][1]["content"], row["reward_model"]["ground_truth"]
        except (KeyError, IndexError, TypeError) as error:
            raise TaskFileError(
                f"{path}, row {number}: needs prompt[0].content, prompt[1].content and reward_model.ground_truth"
            ) from error
