"""Files of tasks and runs: one reader of JSON lines, which gives every mistake its place, and checked writing."""

from __future__ import annotations

import json
import os
import sys
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, TypeVar

from fission_grpo.core.errors import RowError, RunDirectoryError, RunFileError, TaskFileError
from fission_grpo.core.json_io import NotJson, quoted, read_json

Parsed = TypeVar("Parsed")


def parse_json_lines(
    content: bytes, decode: Callable[[str], Any] = json.loads
) -> Iterator[tuple[int, Any | ValueError]]:
    """Yield the number (from 1) and the value of every line that is not blank.

    The value of a line that `decode` cannot read is the ValueError that says why. A byte order mark may begin a line,
    as files with one are also joined.
    """
    for number, line in enumerate(content.split(b"\n"), start=1):  # not splitlines: strings may contain U+2028
        line = line.removeprefix(BOM_UTF8)
        if not line.strip():
            continue
        try:
            yield number, decode(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            yield number, ValueError(f"not UTF-8: {error}")
        except RecursionError:
            yield number, ValueError("nested too deeply")
        except ValueError as error:
            yield number, error


def read_file(path: Path, advice: str = "restore it, or delete it") -> bytes:
    """The content of a file of a run. Raises RunFileError, also for a pipe or a device, which may have no end."""
    try:
        if path.exists() and not path.is_file():
            raise RunFileError(f"{path}: cannot be read (it is no regular file); {advice}")
        return path.read_bytes()
    except OSError as error:
        raise RunFileError(f"{path}: cannot be read ({error.strerror}); {advice}") from error


def read_task_rows(
    path: Path, what: str, read: Callable[[Mapping[str, Any], str], tuple[str, Parsed]]
) -> list[Parsed]:
    """Read a JSONL file that people write: TaskFileError names file, row (from 1), field and correction of a mistake.

    `what` is the kind of file, for messages ("step-task file"). `read` makes the unique id and the value of a row,
    given a name for it ("weather.jsonl:3"), and may raise RowError.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise TaskFileError(f"{path}: cannot be read ({error.strerror}); give the path of a {what}") from error
    values: list[Parsed] = []
    rows: dict[str, int] = {}
    for number, row in parse_json_lines(content, _strict):
        try:
            if isinstance(row, ValueError):
                raise RowError("(whole row)", f"not JSON: {row}; write one JSON object per line")
            if not isinstance(row, dict):
                raise RowError("(whole row)", "not one JSON object; write one JSON object per line, nothing after it")
            identity, value = read(row, f"{path.name}:{number}")
            if identity in rows:
                raise RowError("id", f"{quoted(identity)} is row {rows[identity]}'s already; make it unique")
        except RowError as mistake:
            raise TaskFileError(f"{path}, row {number}, field '{mistake.field}': {mistake.what}") from None
        rows[identity] = number
        values.append(value)
    return values


def _strict(text: str) -> Any:
    text = text.strip()
    value, end = read_json(text)
    if end != len(text):
        raise NotJson("not one JSON object, as more text follows it")
    return value


@dataclass(frozen=True)
class Line:
    """A JSON object of a run's file, with its place (line numbers from 1) for error messages."""

    path: Path
    number: int
    record: Mapping[str, Any]

    def wrong(self, what: str) -> RunFileError:
        """The error that `what` is wrong with this line."""
        return RunFileError(f"{self.path}, line {self.number}: {what}; correct or delete this line")

    def take(self, name: str, kind: type | tuple[type, ...], *, optional: bool = False) -> Any:
        """The value of a field; None if it is `optional` and missing or null. A bool is not an int here.

        Raises RunFileError, naming file, line and field, if the value is not of the type.
        """
        value = self.record.get(name)
        if value is None and optional:
            return None
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            wanted = " or ".join(k.__name__ for k in kinds)
            actual = "is missing" if name not in self.record else f"is {json.dumps(value)[:60]}"
            raise self.wrong(f"field '{name}' must be {wanted}, but {actual}")
        self._check_size(name, value)
        return value

    def take_all(self, name: str, kind: type | tuple[type, ...], *, gaps: bool = False) -> tuple[Any, ...]:
        """The items of a list field, each of type `kind` (or None if `gaps`). Raises RunFileError."""
        values = self.take(name, list)
        for i, value in enumerate(values):
            is_kind = isinstance(value, kind) and not isinstance(value, bool)
            if not is_kind and not (gaps and value is None):
                raise self.wrong(f"field '{name}[{i}]' has the wrong type: {json.dumps(value)[:60]}")
            self._check_size(f"{name}[{i}]", value)
        return tuple(values)

    def _check_size(self, name: str, value: Any) -> None:
        """Raise RunFileError for a number that no floating-point number can hold, and for infinity."""
        if isinstance(value, int | float) and abs(value) > sys.float_info.max:
            raise self.wrong(f"field '{name}' is too large a number: {json.dumps(value)[:20]}...")


def read_lines(path: Path, notes: list[str]) -> list[Line]:
    """Read a JSONL file that a run wrote, empty if there is none. RunFileError names the first broken line.

    Lines that a kill left half-written are left out, with a sentence added to `notes`: the last one if it has no
    newline, and one followed by the `resumed` event that the next start of the run appends.
    """
    if not path.exists():
        return []
    content = read_file(path)
    lines: list[Line] = []
    broken: tuple[int, ValueError] | None = None
    for number, record in parse_json_lines(content):
        is_object = isinstance(record, dict)
        if broken is not None:
            if not is_object or record.get("event") != "resumed":
                break
            notes.append(f"{path.parent.name}/{path.name}: line {broken[0]}, half-written before a resume, left out")
            broken = None
        if is_object:
            lines.append(Line(path, number, record))
        else:
            error = record if isinstance(record, ValueError) else ValueError(f"it is a {type(record).__name__}")
            broken = number, error
    if broken is None:
        return lines
    number, error = broken
    if number <= content.count(b"\n"):  # it is not the last line, or has its newline
        raise RunFileError(f"{path}, line {number}: not a JSON object ({error}); correct or delete this line")
    notes.append(f"{path.parent.name}/{path.name}: 1 half-written last line (line {number}) left out")
    return lines


def check_writable(folder: Path) -> None:
    """Create the folder if needed, and a temporary file in it. Raises RunDirectoryError if that is impossible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        what = f"output_dir {folder} cannot be written ({error.strerror}); correct that or give another"
        raise RunDirectoryError(what) from error


RESUME = (
    "The checkpoints saved before are whole: make room, then resume with resume_from_checkpoint=True "
    "(--resume_from_checkpoint true)"
)
AGAIN = "What was written before it is whole: make room, or give another output, and start the same command again"


@contextmanager
def writing(path: Path, *errors: type[Exception], advice: str = RESUME) -> Iterator[None]:
    """Turn an OSError, or one of `errors`, of the body that writes `path` into a RunDirectoryError with the advice."""
    try:
        yield
    except RunDirectoryError:
        raise
    except (OSError, *errors) as error:
        reason = getattr(error, "strerror", None) or (str(error) or type(error).__name__).splitlines()[0]
        raise RunDirectoryError(f"{path} could not be written ({reason}). {advice}") from error


def write_file(path: Path, content: str | bytes, advice: str = AGAIN) -> None:
    """Write a file and the folders it lies in. An existing file is replaced when all is written, or kept.

    Raises RunDirectoryError, which names the file.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    with writing(path, advice=advice):
        target = path.resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and not target.is_file():  # a device or a pipe
            target.write_bytes(data)
            return
        half = target.with_name(f".{target.name[:100]}.{os.getpid()}.half")
        try:
            half.write_bytes(data)
            half.replace(target)
        finally:
            half.unlink(missing_ok=True)


def append_line(path: Path, line: str, advice: str = AGAIN, sync: bool = False) -> None:
    """Append a line to a file, whole or not at all: a part that a full disk took is removed again.

    With `sync` the line is on the disk when this returns. Raises RunDirectoryError, which names the file.
    """
    data = memoryview(line.encode("utf-8") + b"\n")
    with writing(path, advice=advice):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab", buffering=0) as file:
            size = file.seek(0, os.SEEK_END) if file.seekable() else None
            try:
                while data:  # a full disk takes a part first, and refuses the rest with the reason
                    data = data[file.write(data) :]
                if sync:
                    os.fsync(file.fileno())
            except OSError:
                if size is not None:
                    with suppress(OSError):
                        file.truncate(size)
                raise
