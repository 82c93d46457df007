"""What untrained policies made of diagnoses, as a JSONL file that grows by a line with every attempt.

Three kinds of rows: {"event": "settings", ...} first; {"event": "feedback", "failure", "source", "text", "by", "vain"}
for what was told of a failure; {"event": "attempt", "failure", "source", "attempt", "success"} for each try, with
"text", the reply, of the first try. Tables are computed from these rows alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fission_grpo.evaluation.run import cut_half_line
from fission_grpo.feedback import Feedback
from fission_grpo.json_lines import Line, RunFileError, read_lines

Key = tuple[str, str]
"""Name of the source, id of the failure."""


@dataclass
class Attempts:
    """Everything a file holds. `outcomes` has a verdict per number of the attempt, `replies` the first one's text."""

    settings: dict[str, Any] = field(default_factory=dict)
    feedback: dict[Key, Feedback] = field(default_factory=dict)
    outcomes: dict[Key, dict[int, bool]] = field(default_factory=dict)
    replies: dict[Key, str] = field(default_factory=dict)


class AttemptsFile:
    """Appends rows, each safe from a kill of the process once its method returns, and keeps what the file holds.

    Args:
        path: made if need be. A half-written last line is taken off.
        settings: of this measurement, JSON values. A file of other settings is refused.

    Raises:
        RunFileError: the file is broken, or of other settings; the message says which.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]):
        self.held = Attempts()
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            cut_half_line(path)
            self.held = read_attempts(path)
        there, wanted = self.held.settings, json.loads(json.dumps(dict(settings)))
        self._file = path.open("a", encoding="utf-8")
        if not there:
            self._write({"event": "settings", "settings": wanted})
            self.held.settings = wanted
        elif there != wanted:
            self.close()
            other = [name for name in {**there, **wanted} if there.get(name) != wanted.get(name)]
            what = "; ".join(f"{name} was {there.get(name)!r}, now {wanted.get(name)!r}" for name in other)
            raise RunFileError(
                f"{path} holds attempts of other settings ({what}); give another --output, or delete it"
            )

    def __enter__(self) -> AttemptsFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def told(self, key: Key, feedback: Feedback) -> None:
        """Note what a source's chain said of a failure."""
        row = {"text": feedback.text, "by": feedback.source, "vain": [list(one) for one in feedback.vain]}
        self._write({"event": "feedback", "failure": key[1], "source": key[0], **row})
        self.held.feedback[key] = feedback

    def tried(self, key: Key, attempt: int, success: bool, reply: str) -> None:
        """Note an attempt. The reply is kept of the first one only."""
        row = {"event": "attempt", "failure": key[1], "source": key[0], "attempt": attempt, "success": success}
        self._write(row | ({"text": reply} if attempt == 0 else {}))
        self.held.outcomes.setdefault(key, {})[attempt] = success
        if attempt == 0:
            self.held.replies[key] = reply

    def _write(self, row: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()


def read_attempts(path: Path) -> Attempts:
    """Read a file of attempts.

    Raises:
        RunFileError: there is none, or it is broken; names file, line and field.
    """
    if not path.is_file():
        raise RunFileError(f"{path}: no such file; make it with `fission-grpo simulator check --usefulness`")
    held = Attempts()
    for line in read_lines(path, []):
        event = line.take("event", str)
        if event == "settings":
            held.settings = dict(line.take("settings", dict))
            continue
        key = line.take("source", str), line.take("failure", str)
        if event == "feedback":
            held.feedback[key] = Feedback(line.take("text", str), line.take("by", str), _vain(line))
        elif event == "attempt":
            number = line.take("attempt", int)
            held.outcomes.setdefault(key, {})[number] = line.take("success", bool)
            if (text := line.take("text", str, optional=True)) is not None:
                held.replies[key] = text
        else:
            raise line.wrong(f"field 'event' must be settings, feedback or attempt, but is {event!r}")
    return held


def _vain(line: Line) -> tuple[tuple[str, str], ...]:
    pairs = line.take_all("vain", list)
    if not all(len(pair) == 2 and all(isinstance(part, str) for part in pair) for pair in pairs):
        raise line.wrong("field 'vain' must be a list of [source, reason]")
    return tuple((str(source), str(reason)) for source, reason in pairs)
