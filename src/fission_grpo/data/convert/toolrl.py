"""ToolRL's data (https://github.com/qiancheng0/ToolRL, Apache-2.0) as step tasks.

There are two layouts with the same content. `rlla_sft.json` is a list of {"instruction", "input", "output"}; the RL
parquet files hold these texts as `prompt[0].content`, `prompt[1].content` and `reward_model.ground_truth`. The
instruction lists the tools, the input is the dialogue so far, the output holds the calls expected next.

Thoughts are left out. A parameter without default is required only in a tool that marks others as ", optional", as
elsewhere nothing says which are, and the reference itself often leaves some out. [ours]
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fission_grpo.core.chat import tagged_blocks, text_between
from fission_grpo.core.errors import RowError
from fission_grpo.core.types import Message
from fission_grpo.data.convert.dialogues import (
    Converted,
    ConvertOptions,
    Dialogue,
    RowDropped,
    assistant_message,
    convert_rows,
    decoded,
    tool_messages,
)
from fission_grpo.data.convert.tools import checked_tools, is_schema, json_schema, parameters_of

_TOOL_START = re.compile(r"^\d{1,9}\. Name: ", re.M)
_TAGS = ("user", "think", "tool_call", "response", "obs")


def read_toolrl(path: str | Path) -> Converted:
    """Convert a ToolRL file, .json or .parquet; ids are like "rlla_sft:17" (rows from 1). Raises TaskFileError."""
    return convert_rows(Path(path), _read_row, ConvertOptions(last_only=True))


def _read_row(row: Mapping[str, Any]) -> Dialogue:
    """The dialogue of a row; its last message holds the expected calls."""
    instruction, dialogue, output = _texts(row)
    tools = _tools(instruction)
    blocks = tagged_blocks(output, *_TAGS)  # not a search for the tag, as thoughts may mention it
    calls = _calls(next((block.body for block in blocks if block.tag == "tool_call"), ""))
    if not calls:
        raise RowDropped("no reference call")
    return Dialogue(tools, (*_messages(dialogue), assistant_message(calls)))


def _texts(row: Mapping[str, Any]) -> tuple[str, str, str]:
    """Instruction, dialogue and output of a row in either layout."""
    if "reward_model" in row:
        try:
            return row["prompt"][0]["content"], row["prompt"][1]["content"], row["reward_model"]["ground_truth"]
        except (KeyError, IndexError, TypeError) as error:
            raise RowError("prompt", "needs two messages, and reward_model.ground_truth beside it") from error
    for field in ("instruction", "input", "output"):
        if not isinstance(row.get(field), str):
            raise RowError(field, "must be a string, as in ToolRL's layout")
    return row["instruction"], row["input"], row["output"]


def _tools(instruction: str) -> tuple[Mapping[str, Any], ...]:
    listed = instruction.partition("**Available Tools**")[2].partition("**Steps for Each Turn**")[0].strip()
    tools = [
        {"name": name.strip(), "description": description.strip(), "parameters": _schema(parameters)}
        for name, description, parameters in _listed_tools(listed)
    ]
    if not tools:
        raise RowDropped("the instruction lists no tools")
    return checked_tools(tools)


def _listed_tools(text: str) -> Iterator[tuple[str, str, str]]:
    """Yield name, description and parameters of each tool in a list, whose entries have these lines in this order."""
    start = _TOOL_START.search(text)
    while start:
        described = text.find("\nDescription: ", start.end())
        declared = text.find("\nParameters: ", described + 1) if described >= 0 else -1
        if declared < 0:
            return
        begin = declared + len("\nParameters: ")
        following = _TOOL_START.search(text, begin)
        end = following.start() - 1 if following else len(text)
        yield text[start.end() : described], text[described + len("\nDescription: ") : declared], text[begin:end]
        start = following


def _schema(text: str) -> dict[str, Any]:
    """The schema of parameters given as JSON text: names to {"type", "description", "default"}."""
    declared = decoded(text, "a tool's parameters")
    if isinstance(declared, dict) and is_schema(declared):
        return parameters_of(declared)
    if not isinstance(declared, dict) or not all(isinstance(field, dict) for field in declared.values()):
        raise RowDropped("a tool's parameters cannot be read")
    properties = {}
    for name, field in declared.items():
        properties[name] = json_schema(field.get("type"))
        if field.get("description"):
            properties[name]["description"] = field["description"]
        if field.get("default", "") != "":
            properties[name]["default"] = field["default"]
    optional = {name for name, field in declared.items() if str(field.get("type")).endswith("optional")}
    required = [name for name in declared if name not in optional and "default" not in properties[name]]
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    return {**schema, "required": required} if optional and required else schema


def _messages(dialogue: str) -> list[Message]:
    """The dialogue as chat messages. Consecutive blocks of the assistant are one message."""
    text = dialogue.replace("**Dialogue Records History**", "", 1)
    blocks = list(tagged_blocks(text, *_TAGS))
    if any(part.strip() for part in text_between(text, blocks)):
        raise RowDropped("the dialogue cannot be read")
    messages: list[dict[str, Any]] = []
    for block in blocks:
        tag, content = block.tag, block.body.strip()
        if tag == "user":
            messages.append({"role": "user", "content": content})
        elif tag == "obs":
            messages += tool_messages(_results(content, messages), messages)
        elif tag != "think":
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": ""})
            if tag == "response":
                messages[-1]["content"] = content
            else:
                messages[-1]["tool_calls"] = assistant_message(_calls(content))["tool_calls"]
    if not messages or messages[-1]["role"] == "assistant":
        raise RowDropped("the dialogue does not end before an assistant's turn")
    return list(messages)


def _results(content: str, messages: Sequence[Message]) -> str | list[str]:
    """An observation as one JSON text per call of the last message, if it is a list of that length, else unchanged."""
    try:
        results = json.loads(content)
    except (ValueError, RecursionError):
        return content
    if not messages or not isinstance(results, list) or len(results) != len(messages[-1].get("tool_calls", ())):
        return content
    values = [value["results"] if isinstance(value, dict) and "results" in value else value for value in results]
    return [json.dumps(value, ensure_ascii=False) for value in values]


def _calls(body: str) -> list[dict[str, Any]]:
    """The calls of a block, which has one JSON object a line, with `name` and `parameters`."""
    calls = []
    for line in filter(None, map(str.strip, body.split("\n"))):
        try:
            fields = json.loads(line)
            calls.append({"name": fields["name"].strip(), "arguments": {**fields["parameters"]}})
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise RowDropped("a tool call cannot be read") from error
    return calls
