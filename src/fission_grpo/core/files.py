"""JSON lines as a run writes them, read back with the place of every mistake."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, TypeVar

from fission_grpo.core.errors import RowError, RunFileError, TaskFileError
from fission_grpo.core.json_io import NotJson, quoted, read_json


class RunDirectoryError(OSError):
    """Something of a run could not be written: no room, no permission. What was saved before is whole."""


def check_writable(folder: Path) -> None:
    """Make the folder if needed, and a file in it, before anything is computed.

    Raises:
        RunDirectoryError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise RunDirectoryError(
            f"output_dir {folder} cannot be written ({error.strerror}); mend that or give another"
        ) from error


@contextmanager
def writing(path: Path, *more: type[Exception]):
    """Around what writes `path`: an OSError, or one of `more`, becomes a RunDirectoryError that tells how to go on."""
    try:
        yield
    except (OSError, *more) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise RunDirectoryError(
            f"{path} could not be written ({reason}). The checkpoints saved before are whole: make room, then resume "
            "with resume_from_checkpoint=True (--resume_from_checkpoint true)"
        ) from error


Read = TypeVar("Read")


def read_task_rows(path: Path, what: str, read: Callable[[Mapping[str, Any], str], tuple[str, Read]]) -> list[Read]:
    """Every row of a file, read.

    Args:
        path: the file.
        what: it should be, for messages ("step-task file").
        read: from a row, and a name made of file and line ("weather.jsonl:3"), to its unique id and its value; raises
            RowError.

    Raises:
        TaskFileError: the first mistake, with file, row (line, from 1), field and how to mend it.
    """
    try:
        lines = path.read_bytes().split(b"\n")  # not splitlines: U+2028 may stand inside a string
    except OSError as error:
        raise TaskFileError(f"{path}: cannot be read ({error.strerror}); give the path of a {what}") from error
    values: list[Read] = []
    rows: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            identity, value = read(_object(line), f"{path.name}:{number}")
            if identity in rows:
                raise RowError("id", f"{quoted(identity)} is row {rows[identity]}'s already; make it unique")
        except RowError as wrong:
            raise TaskFileError(f"{path}, row {number}, field '{wrong.field}': {wrong.what}") from None
        rows[identity] = number
        values.append(value)
    return values


def _object(line: bytes) -> Mapping[str, Any]:
    try:
        text = line.decode("utf-8").strip()
        row, end = read_json(text)
    except (UnicodeDecodeError, NotJson) as error:
        raise RowError("(whole row)", f"not JSON: {error}; write one JSON object per line") from None
    if not isinstance(row, dict) or end != len(text):
        raise RowError("(whole row)", "not one JSON object; write one JSON object per line, nothing after it")
    return row


@dataclass(frozen=True)
class Line:
    """A parsed JSON line that knows where it stands, so that a missing field can be named."""

    path: Path
    number: int
    record: Mapping[str, Any]

    def wrong(self, what: str) -> RunFileError:
        return RunFileError(f"{self.path}, line {self.number}: {what}; mend or delete this line")

    def take(self, name: str, kind: type | tuple[type, ...], *, optional: bool = False) -> Any:
        """The field's value; None where `optional` and missing or null. Raises RunFileError naming the field."""
        value = self.record.get(name)
        if value is None and optional:
            return None
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            wanted = " or ".join(k.__name__ for k in kinds)
            found = "is missing" if name not in self.record else f"is {json.dumps(value)[:60]}"
            raise self.wrong(f"field '{name}' must be {wanted}, but {found}")
        return value

    def take_all(self, name: str, kind: type | tuple[type, ...], *, gaps: bool = False) -> tuple[Any, ...]:
        """A list field as a tuple of `kind` (and None where `gaps`)."""
        values = self.take(name, list)
        for i, value in enumerate(values):
            if not (isinstance(value, kind) and not isinstance(value, bool)) and not (gaps and value is None):
                raise self.wrong(f"field '{name}[{i}]' has the wrong type: {json.dumps(value)[:60]}")
        return tuple(values)


def read_lines(path: Path, notes: list[str]) -> list[Line]:
    """The objects of a JSONL file, empty if there is none; RunFileError names the first broken line.

    A line cut off by a kill (the last one, without a newline, or one just before a `resumed` event) is left out, and
    a sentence about it added to `notes`.
    """
    if not path.is_file():
        return []
    raws = path.read_bytes().split(b"\n")  # not splitlines: U+2028 may stand inside a string
    lines: list[Line] = []
    half: tuple[int, ValueError] | None = None
    for number, raw in enumerate(raws, start=1):
        if not raw.strip():
            continue
        record, error = _parsed(raw)
        if half is not None and (record is None or record.get("event") != "resumed"):
            break
        if half is not None:
            notes.append(f"{path.parent.name}/{path.name}: line {half[0]}, half-written before a resume, left out")
            half = None
        if error is not None:
            half = number, error
        elif record is not None:
            lines.append(Line(path, number, record))
    if half is not None and half[0] < len(raws):
        raise RunFileError(f"{path}, line {half[0]}: not a JSON object ({half[1]}); mend or delete this line")
    if half is not None:
        notes.append(f"{path.parent.name}/{path.name}: 1 half-written last line (line {half[0]}) left out")
    return lines


def _parsed(raw: bytes) -> tuple[Mapping[str, Any] | None, ValueError | None]:
    try:
        record = json.loads(raw.decode("utf-8"))
    except ValueError as error:  # broken, not UTF-8, or a number of more digits than Python reads
        return None, error
    except RecursionError:
        return None, ValueError("nested too deeply")
    if not isinstance(record, dict):
        return None, ValueError(f"it is a {type(record).__name__}")
    return record, None
