r"""Salesforce's xlam-function-calling-60k: single turns.

    {"id": 0, "query": "...",
     "tools": "[{\"name\", \"description\", \"parameters\": {\"x\": {\"type\": \"str\", ...}}}]",
     "answers": "[{\"name\": ..., \"arguments\": {...}}]"}

Source: its dataset card (the fields are JSON text; types are Python's; parameters stand without "properties"). [ours]:
a parameter with a default or ", optional" in its type is not required.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fission_grpo.converters.dialogues import Dialogue, assistant_calls, decoded, field, tools_of
from fission_grpo.toolrl_tools import RowDropped


def read(row: Mapping[str, Any]) -> Dialogue:
    """One row. Raises RowDropped with the reason if it cannot be read."""
    answers = decoded(field(row, "answers", (str, list)), "the answers")
    if not isinstance(answers, list) or not all(isinstance(answer, dict) for answer in answers):
        raise RowDropped("the answers cannot be read")
    question = {"role": "user", "content": field(row, "query", str)}
    answer = assistant_calls(answers) if answers else {"role": "assistant", "content": ""}
    return Dialogue(tools_of(decoded(row.get("tools"), "the tools")), (question, answer))
