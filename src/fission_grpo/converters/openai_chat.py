r"""OpenAI's chat and fine-tuning layout.

    {"messages": [{"role": "user", "content": "..."},
                  {"role": "assistant", "tool_calls": [{"id": "c1", "type": "function",
                   "function": {"name": "f", "arguments": "{\"x\": 1}"}}]},
                  {"role": "tool", "tool_call_id": "c1", "content": "..."}],
     "tools": [{"type": "function", "function": {"name": "f", "description": "...", "parameters": {...}}}]}

Source: OpenAI's fine-tuning guide. The older `functions`, `function_call` and role "function" are read as well; role
"developer" is read as system.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fission_grpo.converters.dialogues import Dialogue, assistant_calls, decoded, field, tools_of
from fission_grpo.toolrl_tools import RowDropped

ROLES = {"system": "system", "developer": "system", "user": "user", "tool": "tool", "function": "tool"}


def read(row: Mapping[str, Any]) -> Dialogue:
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
