"""How a trained simulator is asked, kept with its weights, so that training and use agree."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from fission_grpo.json_text import NotJson, quoted, read_json
from fission_grpo.simulator.prompt import CHARACTERS, SHORT_SYSTEM, SYSTEM, simulator_messages
from fission_grpo.trajectory import ErrorKind, Failure, Message

SETTINGS = "simulator.json"

SYSTEMS = {"full": SYSTEM, "short": SHORT_SYSTEM}

LEFT_TO_RULES = frozenset({ErrorKind.UNPARSED, ErrorKind.TRUNCATED, ErrorKind.OUT_OF_TURNS})
"""Kinds that no model is asked about: what is wrong is known in full. [paper] format errors get a deterministic
message; that these are the kinds is [inferred]."""


@dataclass(frozen=True)
class PromptSettings:
    """What `simulator_messages` is given beside the failure."""

    system: str = SYSTEM
    characters: int = CHARACTERS
    brief: bool = False

    def messages(self, failure: Failure) -> list[Message]:
        """The dialogue to which the simulator's reply is the diagnosis."""
        return simulator_messages(failure, self.characters, self.system, brief=self.brief)


def write_settings(folder: Path, settings: PromptSettings) -> None:
    """Save into a model's folder as `simulator.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SETTINGS).write_text(json.dumps(asdict(settings), indent=1) + "\n", encoding="utf-8")


def read_settings(folder: Path) -> PromptSettings:
    """Those of a model's folder; the defaults where it has no `simulator.json` (any other model, or a hub id).

    Raises:
        ValueError: the file is broken; the message names it and the field.
    """
    path = folder / SETTINGS
    if not path.is_file():
        return PromptSettings()
    try:
        row, _ = read_json(path.read_text(encoding="utf-8"))
    except (NotJson, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not JSON ({error}); restore it, or delete it to use the defaults") from error
    kinds = {"system": str, "characters": int, "brief": bool}
    if not isinstance(row, dict) or row.keys() != kinds.keys():
        raise ValueError(f"{path}: must be an object with {', '.join(kinds)}; restore it, or delete it")
    for name, kind in kinds.items():
        if type(row[name]) is not kind:
            raise ValueError(f"{path}: field '{name}' must be {kind.__name__}, got {quoted(row[name])}")
    return PromptSettings(**row)
