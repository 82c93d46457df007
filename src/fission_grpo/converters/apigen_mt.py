r"""Salesforce/APIGen-MT-5k: multi-turn dialogues with one call at a time.

    {"system": "...", "tools": "[{\"name\", \"description\", \"parameters\": {...}}]",
     "conversations": [{"from": "human", "value": "..."},
                       {"from": "function_call", "value": "{\"name\": ..., \"arguments\": {...}}"},
                       {"from": "observation", "value": "..."}, {"from": "gpt", "value": "..."}]}

Source: its dataset card (ShareGPT roles; parameters are JSON schema).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fission_grpo.converters.dialogues import Dialogue, assistant_calls, decoded, field, results, tools_of
from fission_grpo.toolrl_tools import RowDropped


def read(row: Mapping[str, Any]) -> Dialogue:
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
