r"""Team-ACE/ToolACE: dialogues whose calls are written as Python calls in a list.

    {"system": "... Here is a list of functions in JSON format that you can invoke:\n[{\"name\": ...}] ...",
     "conversations": [{"from": "user", "value": "..."},
                       {"from": "assistant", "value": "[Get Weather(city=\"Oslo\")]"},
                       {"from": "tool", "value": "[{\"name\": ..., \"results\": {...}}]"}, ...]}

Source: the dataset. Function names may hold spaces. [ours]: an assistant's text that is no such list is taken as
words, and the system text is kept without the list of functions, since the tools are told by the chat template.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fission_grpo.converters.dialogues import Dialogue, assistant_calls, decoded, field, results, tools_of
from fission_grpo.toolrl_tools import RowDropped

SYSTEM = "You are a helpful assistant that can call functions."


def read(row: Mapping[str, Any]) -> Dialogue:
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
