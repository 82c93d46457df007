"""Which layouts there are, and how a file shows its own."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fission_grpo.core.errors import TaskFileError
from fission_grpo.data.convert.dialogues import (
    Dialogue,
    Read,
    assistant_calls,
    convert_rows,
    decoded,
    field,
    read_rows,
    results,
    tools_of,
)
from fission_grpo.data.convert.toolrl import Converted, RowDropped, read_toolrl


def read_apigen_mt(row: Mapping[str, Any]) -> Dialogue:
    """One row. Raises RowDropped with the reason if it cannot be read."""
    system = row.get("system")
    messages: list[dict[str, Any]] = (
        [{"role": "system", "content": system}] if isinstance(system, str) and system else []
    )
    for entry in field(row, "conversations", list):
        role, text = (entry.get("from"), entry.get("value")) if isinstance(entry, dict) else (None, None)
        if not isinstance(text, str):
            raise RowDropped("a message cannot be read")
        if role == "function_call":
            call = decoded(text, "a tool call")
            calls = call if isinstance(call, list) else [call]
            messages.append(assistant_calls(one if isinstance(one, dict) else {} for one in calls))
        elif role == "observation":
            messages += results(text, messages)
        elif role in ("human", "gpt"):
            messages.append({"role": "user" if role == "human" else "assistant", "content": text})
        else:
            raise RowDropped("a message has an unknown role")
    return Dialogue(tools_of(decoded(row.get("tools"), "the tools")), tuple(messages))


_CALL = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.S)


_RESULT = re.compile(r"<tool_response>\s*(.*?)\s*</tool_response>", re.S)


_TOOLS = re.compile(r"<tools>\s*(.*?)\s*</tools>", re.S)


def read_hermes(row: Mapping[str, Any]) -> Dialogue:
    """One row. Raises RowDropped with the reason if it cannot be read."""
    messages: list[dict[str, Any]] = []
    listed = decoded(row.get("tools"), "the tools")
    for entry in field(row, "conversations", list):
        role, text = (entry.get("from"), entry.get("value")) if isinstance(entry, dict) else (None, None)
        if not isinstance(text, str):
            raise RowDropped("a message cannot be read")
        if role == "system":
            found = _TOOLS.search(text)
            listed = listed or (_lenient(found[1]) if found else None)
            if not found:
                messages.append({"role": "system", "content": text})
        elif role in ("human", "user"):
            messages.append({"role": "user", "content": text})
        elif role in ("gpt", "assistant"):
            messages.append(_assistant(text))
        elif role == "tool":
            parts = _RESULT.findall(text) or [text]
            messages += results(parts if len(parts) > 1 else parts[0], messages)
        else:
            raise RowDropped("a message has an unknown role")
    return Dialogue(tools_of(listed), tuple(messages))


def _assistant(text: str) -> dict[str, Any]:
    bodies = _CALL.findall(text)
    if not bodies:
        if "<tool_call>" in text:
            raise RowDropped("a tool call cannot be read")
        return {"role": "assistant", "content": text}
    calls = [_lenient(body) for body in bodies]
    if not all(isinstance(call, dict) for call in calls):
        raise RowDropped("a tool call cannot be read")
    return assistant_calls(calls, _CALL.sub("", text).strip())


def _lenient(text: str) -> Any:
    """JSON, or the same as a Python literal. Raises RowDropped."""
    for reader in (json.loads, ast.literal_eval):
        try:
            return json.loads(json.dumps(reader(text), allow_nan=False))
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
    raise RowDropped("a tool call cannot be read" if "arguments" in text else "the tools cannot be read")


ROLES = {"system": "system", "developer": "system", "user": "user", "tool": "tool", "function": "tool"}


def read_openai(row: Mapping[str, Any]) -> Dialogue:
    """One row. Raises RowDropped with the reason if it cannot be read."""
    listed = decoded(row.get("tools") or row.get("functions"), "the tools")
    messages: list[dict[str, Any]] = []
    names: dict[str, str] = {}
    for message in decoded(field(row, "messages", (list, str)), "the messages"):
        if not isinstance(message, dict):
            raise RowDropped("a message cannot be read")
        role, content = message.get("role"), _text(message.get("content"))
        if role == "assistant":
            calls = message.get("tool_calls") or ([{"function": one}] if (one := message.get("function_call")) else [])
            if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
                raise RowDropped("a tool call cannot be read")
            made = assistant_calls([call.get("function") or call for call in calls], content)
            names |= {str(c.get("id")): e["function"]["name"] for c, e in zip(calls, made["tool_calls"], strict=True)}
            messages.append(made if calls else {"role": "assistant", "content": content})
        elif isinstance(role, str) and role in ROLES:
            made = {"role": ROLES[role], "content": content}
            if made["role"] == "tool":
                made["name"] = message.get("name") or names.get(str(message.get("tool_call_id")), "tool")
            messages.append(made)
        else:
            raise RowDropped("a message has an unknown role")
    return Dialogue(tools_of(listed or []), tuple(messages))


def _text(content: Any) -> str:
    """Text content; of content parts the text ones."""
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
        if len(parts) < len(content):
            raise RowDropped("a message holds more than text")
        return "\n".join(str(part) for part in parts)
    if content is None or isinstance(content, str):
        return content or ""
    raise RowDropped("a message cannot be read")


SYSTEM = "You are a helpful assistant that can call functions."


def read_toolace(row: Mapping[str, Any]) -> Dialogue:
    """One row. Raises RowDropped with the reason if it cannot be read."""
    tools = tools_of(_listed(field(row, "system", str)))
    names = sorted((str(tool["name"]) for tool in tools), key=len, reverse=True)
    messages: list[dict[str, Any]] = [{"role": "system", "content": SYSTEM}]
    for entry in field(row, "conversations", list):
        role, text = (entry.get("from"), entry.get("value")) if isinstance(entry, dict) else (None, None)
        if not isinstance(text, str):
            raise RowDropped("a message cannot be read")
        if role in ("user", "human"):
            messages.append({"role": "user", "content": text})
        elif role in ("tool", "observation"):
            messages += results(_results(text), messages)
        elif role in ("assistant", "gpt"):
            calls = read_calls(text, names)
            messages.append(assistant_calls(calls) if calls else {"role": "assistant", "content": text})
        else:
            raise RowDropped("a message has an unknown role")
    return Dialogue(tools, tuple(messages))


def read_calls(text: str, names: Sequence[str]) -> list[dict[str, Any]]:
    """The calls of "[name(x=1), other name(y='a')]"; [] for other text. Raises RowDropped for a broken list.

    Args:
        text: the assistant's.
        names: of the tools, longest first, so that a name that begins like another is taken whole.
    """
    body = text.strip()
    known = "|".join(map(re.escape, names))
    if not (body.startswith("[") and body.endswith(")]") and re.match(rf"\[\s*(?:{known or '[^(]+'})\s*\(", body)):
        return []
    # names may hold spaces and dots: stand-ins make it Python
    marked = re.sub(rf"(?<=[\[,])\s*({known})\s*\(", lambda found: f" _tool_{names.index(found[1])}(", body)
    try:
        nodes = ast.parse(marked.strip(), mode="eval").body
        calls = nodes.elts if isinstance(nodes, ast.List) else []
        return [_call(node, names) for node in calls]
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise RowDropped("a tool call cannot be read") from error


def _call(node: ast.expr, names: Sequence[str]) -> dict[str, Any]:
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.args:
        raise ValueError("no call by name")
    number = re.fullmatch(r"_tool_(\d+)", node.func.id)
    arguments = {str(keyword.arg): _literal(keyword.value) for keyword in node.keywords}
    return {"name": names[int(number[1])] if number else node.func.id, "arguments": arguments}


def _literal(node: ast.expr) -> Any:
    """A literal's value; JSON's true, false and null count as well."""
    if isinstance(node, ast.Name) and node.id in ("true", "false", "null"):
        return {"true": True, "false": False, "null": None}[node.id]
    return json.loads(json.dumps(ast.literal_eval(node), allow_nan=False))


def _listed(system: str) -> Any:
    """The list of functions in the system text: the first JSON list of objects."""
    for at in (found.start() for found in re.finditer(r"\[\s*\{", system)):
        try:
            return json.JSONDecoder().raw_decode(system[at:])[0]
        except (ValueError, RecursionError):
            continue
    raise RowDropped("the tools cannot be read")


def _results(text: str) -> Any:
    try:
        return decoded(text, "")
    except RowDropped:
        return text


def read_xlam(row: Mapping[str, Any]) -> Dialogue:
    """One row. Raises RowDropped with the reason if it cannot be read."""
    answers = decoded(field(row, "answers", (str, list)), "the answers")
    if not isinstance(answers, list) or not all(isinstance(answer, dict) for answer in answers):
        raise RowDropped("the answers cannot be read")
    question = {"role": "user", "content": field(row, "query", str)}
    answer = assistant_calls(answers) if answers else {"role": "assistant", "content": ""}
    return Dialogue(tools_of(decoded(row.get("tools"), "the tools")), (question, answer))


LAYOUTS: Mapping[str, Read] = {
    "openai": read_openai,
    "xlam": read_xlam,
    "toolace": read_toolace,
    "hermes": read_hermes,
    "apigen-mt": read_apigen_mt,
}


NAMES = ("auto", *LAYOUTS, "toolrl")


def convert_file(path: Path, layout: str, abstentions: bool = False) -> tuple[str, Converted]:
    """The step tasks of a file in one of `NAMES`, and the layout it was read in.

    Raises:
        TaskFileError: the file cannot be read, or not in this layout; or no layout fits ("auto").
    """
    layout = guess(path) if layout == "auto" else layout
    if layout == "toolrl":
        return layout, read_toolrl(path)
    return layout, convert_rows(path, LAYOUTS[layout], abstentions)


def guess(path: Path) -> str:
    """The layout, by the fields of the first row. Raises TaskFileError if none fits."""
    row = next(iter(read_rows(path)), {})
    talk = row.get("conversations")
    speakers = (
        {str(entry.get("from")) for entry in talk if isinstance(entry, dict)} if isinstance(talk, list) else set()
    )
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
    known: list[Any] = sorted(row)
    raise TaskFileError(f"{path}: its first row has the fields {known}, as no layout has; name one with --from")
