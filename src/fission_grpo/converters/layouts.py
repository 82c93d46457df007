"""Which layouts there are, and how a file shows its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fission_grpo.converters import apigen_mt, hermes, openai_chat, toolace, xlam
from fission_grpo.converters.dialogues import Read, convert_rows, read_rows
from fission_grpo.task_rows import TaskFileError
from fission_grpo.toolrl import Converted, read_toolrl

LAYOUTS: Mapping[str, Read] = {
    "openai": openai_chat.read,
    "xlam": xlam.read,
    "toolace": toolace.read,
    "hermes": hermes.read,
    "apigen-mt": apigen_mt.read,
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
