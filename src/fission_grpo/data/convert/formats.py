"""The layouts of tool-calling data that can be converted: one reader of a row each, which may raise RowDropped."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from fission_grpo.core.errors import TaskFileError
from fission_grpo.data.convert.dialogues import (
    Converted,
    Dialogue,
    RowDropped,
    RowReader,
    assistant_message,
    convert_rows,
    decoded,
    field,
    read_literal,
    read_rows,
    tool_messages,
)
from fission_grpo.data.convert.toolrl import read_toolrl
from fission_grpo.data.convert.tools import tools_of


def read_openai(row: Mapping[str, Any]) -> Dialogue:
    """OpenAI's chat and fine-tuning format (https://platform.openai.com/docs/guides/function-calling)."""
    listed = decoded(row.get("tools") or row.get("functions"), "the tools")
    messages: list[dict[str, Any]] = []
    names: dict[str, str] = {}  # of called tools, by the id of the call
    for message in decoded(field(row, "messages", (list, str)), "the messages"):
        if not isinstance(message, dict):
            raise RowDropped("a message cannot be read")
        role, content = message.get("role"), _openai_text(message.get("content"))
        if role == "assistant":
            messages.append(_openai_assistant(message, content, names))
        elif role in ("tool", "function"):
            name = message.get("name") or names.get(str(message.get("tool_call_id")), "tool")
            messages.append({"role": "tool", "content": content, "name": name})
        elif role in ("system", "developer", "user"):
            messages.append({"role": "user" if role == "user" else "system", "content": content})
        else:
            raise RowDropped("a message has an unknown role")
    return Dialogue(tools_of(listed or []), tuple(messages))


def _openai_assistant(message: Mapping[str, Any], content: str, names: dict[str, str]) -> dict[str, Any]:
    old_call = message.get("function_call")
    calls = message.get("tool_calls") or ([{"function": old_call}] if old_call else [])
    if not calls:
        return {"role": "assistant", "content": content}
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise RowDropped("a tool call cannot be read")
    functions = [call.get("function") or call for call in calls]
    result = assistant_message(functions, content)
    names |= {str(call.get("id")): function["name"] for call, function in zip(calls, functions, strict=True)}
    return result


def _openai_text(content: Any) -> str:
    """Text content, or the text parts of a list."""
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
        if len(parts) < len(content):
            raise RowDropped("a message holds more than text")
        return "\n".join(str(part) for part in parts)
    if content is None or isinstance(content, str):
        return content or ""
    raise RowDropped("a message cannot be read")


def read_xlam(row: Mapping[str, Any]) -> Dialogue:
    """xLAM: https://huggingface.co/datasets/Salesforce/xlam-function-calling-60k."""
    answers = decoded(field(row, "answers", (str, list)), "the answers")
    if not isinstance(answers, list) or not all(isinstance(answer, dict) for answer in answers):
        raise RowDropped("the answers cannot be read")
    question = {"role": "user", "content": field(row, "query", str)}
    answer = assistant_message(answers) if answers else {"role": "assistant", "content": ""}
    return Dialogue(tools_of(decoded(row.get("tools"), "the tools")), (question, answer))


_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "observation": "tool",
    "tool": "tool",
}
_HERMES_CALL = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.S)
_HERMES_RESULT = re.compile(r"<tool_response>\s*(.*?)\s*</tool_response>", re.S)
_HERMES_TOOLS = re.compile(r"<tools>\s*(.*?)\s*</tools>", re.S)
_TOOLACE_SYSTEM = "You are a helpful assistant that can call functions."  # the original asks for its own format [ours]


def _conversation(row: Mapping[str, Any], roles: Mapping[str, str] = _ROLES) -> list[tuple[str, str]]:
    """Role and text of every entry of `conversations`, the field of ShareGPT that three layouts use."""
    entries = []
    for entry in field(row, "conversations", list):
        role, text = (entry.get("from"), entry.get("value")) if isinstance(entry, dict) else (None, None)
        if not isinstance(text, str):
            raise RowDropped("a message cannot be read")
        if not isinstance(role, str) or role not in roles:
            raise RowDropped("a message has an unknown role")
        entries.append((roles[role], text))
    return entries


def read_apigen_mt(row: Mapping[str, Any]) -> Dialogue:
    """APIGen-MT: https://huggingface.co/datasets/Salesforce/APIGen-MT-5k."""
    system = row.get("system")
    messages: list[dict[str, Any]] = []
    if isinstance(system, str) and system:
        messages.append({"role": "system", "content": system})
    for role, text in _conversation(row, {**_ROLES, "function_call": "call"}):
        if role == "call":
            call = decoded(text, "a tool call")
            messages.append(assistant_message(call if isinstance(call, list) else [call]))
        elif role == "tool":
            messages += tool_messages(text, messages)
        else:
            messages.append({"role": role, "content": text})
    return Dialogue(tools_of(decoded(row.get("tools"), "the tools")), tuple(messages))


def read_hermes(row: Mapping[str, Any]) -> Dialogue:
    """Hermes: https://huggingface.co/datasets/NousResearch/hermes-function-calling-v1. Calls may be in Python."""
    messages: list[dict[str, Any]] = []
    listed = decoded(row.get("tools"), "the tools")
    for role, text in _conversation(row):
        tools = _HERMES_TOOLS.search(text) if role == "system" else None
        bodies = _HERMES_CALL.findall(text) if role == "assistant" else []
        if tools:  # the message is only the instructions for calling tools
            listed = listed or decoded(tools[1], "the tools", read_literal)
        elif role == "tool":
            parts = _HERMES_RESULT.findall(text) or [text]
            messages += tool_messages(parts if len(parts) > 1 else parts[0], messages)
        elif bodies:
            calls = [decoded(body, "a tool call", read_literal) for body in bodies]
            messages.append(assistant_message(calls, _HERMES_CALL.sub("", text).strip()))
        elif role == "assistant" and "<tool_call>" in text:
            raise RowDropped("a tool call cannot be read")
        else:
            messages.append({"role": role, "content": text})
    return Dialogue(tools_of(listed), tuple(messages))


def read_toolace(row: Mapping[str, Any]) -> Dialogue:
    """ToolACE: https://huggingface.co/datasets/Team-ACE/ToolACE. Calls are written as Python, results as JSON."""
    tools = tools_of(_first_json_list(field(row, "system", str)))
    names = sorted((str(tool["name"]) for tool in tools), key=len, reverse=True)
    messages: list[dict[str, Any]] = [{"role": "system", "content": _TOOLACE_SYSTEM}]
    for role, text in _conversation(row):
        calls = read_toolace_calls(text, names) if role == "assistant" else []
        if calls:
            messages.append(assistant_message(calls))
        elif role == "tool":
            with suppress(ValueError, RecursionError):
                text = json.loads(text)
            messages += tool_messages(text, messages)
        else:
            messages.append({"role": role, "content": text})
    return Dialogue(tools, tuple(messages))


def _first_json_list(text: str) -> Any:
    """The first JSON list of objects in a text."""
    for start in re.finditer(r"\[\s*\{", text):
        with suppress(ValueError, RecursionError):
            return json.JSONDecoder().raw_decode(text[start.start() :])[0]
    raise RowDropped("the tools cannot be read")


def read_toolace_calls(text: str, names: Sequence[str]) -> list[dict[str, Any]]:
    """The calls of "[name(x=1), other name(y='a')]"; [] for other text. Raises RowDropped for a broken list.

    `names` are those of the tools, longest first, so that a name that starts with another is matched completely.
    """
    body = text.strip()
    known = "|".join(map(re.escape, names))
    if not (body.startswith("[") and body.endswith(")]") and re.match(rf"\[\s*(?:{known or '[^(]+'})\s*\(", body)):
        return []
    # names may contain spaces and dots: placeholders make the list valid Python
    marked = re.sub(rf"(?<=[\[,])\s*({known})\s*\(", lambda match: f" _tool_{names.index(match[1])}(", body)
    try:
        nodes = ast.parse(marked.strip(), mode="eval").body
        return [_toolace_call(node, names) for node in nodes.elts] if isinstance(nodes, ast.List) else []
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise RowDropped("a tool call cannot be read") from error


def _toolace_call(node: ast.expr, names: Sequence[str]) -> dict[str, Any]:
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.args:
        raise ValueError("not a call with named arguments")
    number = re.fullmatch(r"_tool_(\d+)", node.func.id)
    arguments = {str(keyword.arg): _toolace_value(keyword.value) for keyword in node.keywords}
    return {"name": names[int(number[1])] if number else node.func.id, "arguments": arguments}


def _toolace_value(node: ast.expr) -> Any:
    """The value of a Python literal, or of JSON's true, false or null."""
    if isinstance(node, ast.Name) and node.id in ("true", "false", "null"):
        return json.loads(node.id)
    return json.loads(json.dumps(ast.literal_eval(node), allow_nan=False))


LAYOUTS: Mapping[str, RowReader] = {
    "openai": read_openai,
    "xlam": read_xlam,
    "toolace": read_toolace,
    "hermes": read_hermes,
    "apigen-mt": read_apigen_mt,
}


def convert_file(path: Path, layout: str, abstentions: bool = False) -> tuple[str, Converted]:
    """The layout of a file and its step tasks. Raises TaskFileError.

    `layout` is a key of `LAYOUTS`, "toolrl", or "auto"; `abstentions` also makes tasks of turns without calls.
    """
    layout = guess_layout(path) if layout == "auto" else layout
    if layout == "toolrl":
        return layout, read_toolrl(path)
    return layout, convert_rows(path, LAYOUTS[layout], abstentions)


def guess_layout(path: Path) -> str:
    """The layout by the fields of the first row. Raises TaskFileError if there is none."""
    row = next(iter(read_rows(path)), {})
    entries = row.get("conversations")
    entries = entries if isinstance(entries, list) else []
    speakers = {str(entry.get("from")) for entry in entries if isinstance(entry, dict)}
    if "reward_model" in row or {"instruction", "input", "output"} <= row.keys():
        return "toolrl"
    if "messages" in row:
        return "openai"
    if {"query", "answers"} <= row.keys():
        return "xlam"
    if speakers & {"function_call", "observation"}:
        return "apigen-mt"
    if speakers & {"gpt", "human", "system"}:
        return "hermes"
    if speakers and "system" in row:
        return "toolace"
    fields = sorted(map(str, row))
    raise TaskFileError(f"{path}: its first row has the fields {fields}, as no layout has; name one with --from")
