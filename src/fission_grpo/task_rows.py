"""Files of tasks, one JSON object a line, read strictly: the first mistake is named by file, row and field."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from fission_grpo.json_text import NotJson, quoted, read_json

Read = TypeVar("Read")


class TaskFileError(ValueError):
    """A task file is missing or broken. The message says which file, row and field, and how to mend it."""


class RowError(Exception):
    """A mistake in one row, before file and row number are known."""

    def __init__(self, field: str, what: str):
        super().__init__(field, what)
        self.field, self.what = field, what


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
