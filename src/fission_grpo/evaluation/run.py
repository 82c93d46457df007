"""An evaluation on disk: `manifest.json` says what, `cases.jsonl` grows by a line with every case that ends.

An evaluation that was killed goes on where it was: cases that are there are not played again, except those that were
missing (lost to the endpoint or a broken environment).
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fission_grpo.core.errors import RunFileError
from fission_grpo.core.json_io import quoted
from fission_grpo.core.timing import clock
from fission_grpo.evaluation.records import (
    CASES,
    CaseRecord,
    read_records,
    to_line,
)
from fission_grpo.evaluation.runner import Play, play_all
from fission_grpo.inference.base import AsynchronousPolicy, Policy

MANIFEST = "manifest.json"


VERSION = 1
"""Of the file's layout."""


_PARTS = ("tasks", "prompt", "decoding", "policy", "versions")


_ABSENT: Any = object()


@dataclass(frozen=True)
class Manifest:
    """What was evaluated, on what, and how. All values are JSON.

    Args:
        name: what tables call it.
        tasks: the cases: their `kind`, a `sha256` over them, their `count`.
        prompt: how they were put to the policy.
        decoding: how replies were sampled; a `seed` in it may differ between runs that are compared.
        policy: who played; the one thing that is meant to differ.
        versions: of what played a part.
    """

    name: str
    tasks: Mapping[str, Any]
    prompt: Mapping[str, Any]
    decoding: Mapping[str, Any]
    policy: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, Any] = field(default_factory=dict)


def write_manifest(directory: str | Path, manifest: Manifest) -> Path:
    """Write `DIRECTORY/manifest.json` in one go and return its path. Raises ValueError for what is not JSON."""
    path = Path(directory) / MANIFEST
    text = json.dumps({"version": VERSION, **asdict(manifest)}, ensure_ascii=False, indent=1, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_suffix(".json.half")  # a kill between the two lines leaves the old file, never half a new one
    half.write_text(text + "\n", encoding="utf-8")
    half.replace(path)
    return path


def read_manifest(directory: str | Path) -> Manifest:
    """The manifest of a run directory. `policy` and `versions` may be missing.

    Raises:
        RunFileError: naming the file, the field and how to mend it.
    """
    path = Path(directory) / MANIFEST
    try:
        values = json.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise RunFileError(
            f"{path}: cannot be read ({error.strerror}); give the output directory of a `fission-grpo eval`"
        ) from error
    except (ValueError, RecursionError) as error:
        raise RunFileError(f"{path}: not JSON ({error}); evaluate again, or restore the file") from error
    if not isinstance(values, dict):
        raise RunFileError(f"{path}: must be a JSON object, got {quoted(values)}; evaluate again, or restore the file")
    if values.get("version") != VERSION:
        found = quoted(values["version"]) if "version" in values else "missing"
        raise RunFileError(f"{path}: field 'version' must be {VERSION}, but is {found}; evaluate with this version")
    if not isinstance(values.get("name"), str):
        raise RunFileError(f"{path}: field 'name' must be a string, got {quoted(values.get('name'))}")
    for part in _PARTS:
        value = values.get(part, {} if part in ("policy", "versions") else None)
        if not isinstance(value, dict):
            found = f"got {quoted(value)}" if part in values else "but is missing"
            raise RunFileError(f"{path}: field '{part}' must be an object, {found}; restore it, or evaluate again")
    return Manifest(values["name"], *(values.get(part, {}) for part in _PARTS))


def differences(a: Manifest, b: Manifest) -> list[str]:
    """Every field of tasks, prompt and decoding that differs, with both values; the seed of decoding may.

    Example:
        ["decoding.temperature: 0.0 in A, 1.0 in B"]
    """
    found = []
    for part in ("tasks", "prompt", "decoding"):
        ours, theirs = _flat(part, getattr(a, part)), _flat(part, getattr(b, part))
        for name in dict.fromkeys((*ours, *theirs)):
            if name == "decoding.seed":
                continue
            one, other = ours.get(name, _ABSENT), theirs.get(name, _ABSENT)
            if one != other or isinstance(one, bool) != isinstance(other, bool):
                found.append(f"{name}: {_shown(one, other)} in A, {_shown(other, one)} in B")
    return found


def _flat(name: str, value: Any) -> dict[str, Any]:
    """Leaves by dotted path. Example: `_flat("a", {"b": {"c": 1}})` is {"a.b.c": 1}; `_flat("a", {})` is {}."""
    if isinstance(value, Mapping) and (value or "." not in name):
        return {path: leaf for key, inner in value.items() for path, leaf in _flat(f"{name}.{key}", inner).items()}
    return {name: value}


def _shown(value: Any, other: Any) -> str:
    """A value, quoted; of long texts the part from where they differ."""
    if value is _ABSENT:
        return "absent"
    if not (isinstance(value, str) and isinstance(other, str)) or len(value) <= 40:
        return quoted(value)
    at = next((i for i, (x, y) in enumerate(zip(value, other, strict=False)) if x != y), min(len(value), len(other)))
    return quoted(value[at:] if at < 20 else "..." + value[at - 10 :])


SHOWN_EVERY = 10.0
"""Seconds between two lines of progress where stderr is no terminal. [ours]"""


Plays = Mapping[str, Callable[[], Play]]
"""How to begin every case, by its id, in order."""


def evaluate_run(
    directory: Path,
    manifest: Manifest,
    policy: Policy | AsynchronousPolicy,
    plays: Plays,
    in_flight: int = 16,
) -> list[CaseRecord]:
    """Play the cases that `directory` does not hold yet, and return the records of all, in order.

    Args:
        directory: made if need be.
        manifest: what this evaluation is.
        policy: plays.
        plays: the cases.
        in_flight: cases side by side.

    Raises:
        RunFileError: the directory holds another evaluation, or a file of it is broken.
    """
    done = open_run(directory, manifest, plays)
    open_ids = [name for name in plays if name not in done or done[name].missing is not None]
    if done:
        print(f"{directory}: {len(plays) - len(open_ids)} of {len(plays)} cases are there already", file=sys.stderr)
    progress = Progress(len(plays), len(plays) - len(open_ids))
    with (directory / CASES).open("a", encoding="utf-8") as file:

        def note(record: CaseRecord) -> None:
            file.write(to_line(record) + "\n")
            file.flush()
            os.fsync(file.fileno())
            done[record.id] = record
            progress.show(record)

        play_all(policy, (plays[name] for name in open_ids), in_flight, note)
    progress.end()
    return [done[name] for name in plays]


def open_run(directory: Path, manifest: Manifest, plays: Plays) -> dict[str, CaseRecord]:
    """Begin or resume the evaluation in a directory; returns the records it holds, by id.

    Raises:
        RunFileError: the directory holds another evaluation, or a file of it is broken.
    """
    if (directory / MANIFEST).is_file():
        there = read_manifest(directory)
        other = differences(there, manifest)
        other += [] if there.policy == manifest.policy else [f"policy: {there.policy} in A, {manifest.policy} in B"]
        other += [] if there.decoding == manifest.decoding or other else ["decoding.seed"]
        if other:
            what = "; ".join(other).replace(" in A", " there").replace(" in B", " now")
            raise RunFileError(f"{directory} holds another evaluation ({what}); give another --output, or delete it")
    write_manifest(directory, manifest)
    cut_half_line(directory / CASES)
    return {record.id: record for record in read_records(directory / CASES) if record.id in plays}


def cut_half_line(path: Path) -> None:
    """Take off a last line that was cut by a kill, so that the next record begins on a line of its own."""
    if not path.is_file() or not (text := path.read_bytes()) or text.endswith(b"\n"):
        return
    with path.open("r+b") as file:
        file.truncate(text.rfind(b"\n") + 1)
    print(f"{path}: a half-written last line taken off; its case is played again", file=sys.stderr)


class Progress:
    """One line on stderr: cases done, success so far, time left. Rewritten on a terminal, else every few seconds."""

    def __init__(self, total: int, done: int, clock_: Callable[[], float] = time.monotonic):
        self.total, self.before, self.done, self.clock = total, done, done, clock_
        self.judged = self.succeeded = self.missing = 0
        self.began = self.shown = clock_()

    def show(self, record: CaseRecord) -> None:
        """A case has ended."""
        self.done += 1
        self.judged += record.success is not None
        self.succeeded += bool(record.success)
        self.missing += record.missing is not None
        live, now = sys.stderr.isatty(), self.clock()
        if live or now - self.shown >= SHOWN_EVERY:
            self.shown = now
            print(
                "\r" + self.line(now) + "\x1b[K" if live else self.line(now), end="" if live else "\n", file=sys.stderr
            )
            sys.stderr.flush()

    def line(self, now: float) -> str:
        """Example: "12/200 cases · success 0.58 · 1 missing · 1:30 left" """
        left = (now - self.began) / (self.done - self.before) * (self.total - self.done)
        parts = [f"{self.done}/{self.total} cases"]
        parts += [f"success {self.succeeded / self.judged:.2f}"] if self.judged else []
        parts += [f"{self.missing} missing"] if self.missing else []
        return " · ".join([*parts, f"{clock(left)} left"])

    def end(self) -> None:
        """All cases have ended."""
        if sys.stderr.isatty() and self.done > self.before:
            print(file=sys.stderr)
