r"""NousResearch/hermes-function-calling-v1: dialogues in Hermes format.

    {"conversations": [{"from": "system", "value": "... <tools> [{\"type\": \"function\", ...}] </tools> ..."},
                       {"from": "human", "value": "..."},
                       {"from": "gpt", "value": "<tool_call>\n{...}\n</tool_call>"},
                       {"from": "tool", "value": "<tool_response>\n{...}\n</tool_response>"}], "tools": "[...]"}

Source: the dataset card. Calls stand as JSON, in part as Python literals. [ours]: the tools come from `tools`, else
from the system text, whose instructions on tools are then left out, since the chat template gives its own.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from typing import Any

from fission_grpo.converters.dialogues import Dialogue, assistant_calls, decoded, field, results, tools_of
from fission_grpo.toolrl_tools import RowDropped

_CALL = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.S)
_RESULT = re.compile(r"<tool_response>\s*(.*?)\s*</tool_response>", re.S)
_TOOLS = re.compile(r"<tools>\s*(.*?)\s*</tools>", re.S)


def read(row: Mapping[str, Any]) -> Dialogue:
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
