"""An evaluation on disk: `manifest.json` describes it, `cases.jsonl` grows by one line with every case that ends.

A killed evaluation continues when it is started again: finished cases are not run again, except those that are missing
(lost to the endpoint or a broken environment). A local model then writes the same replies as without the kill, up to
rounding: each turn of a case has a seed of its own.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fission_grpo.core.errors import RunFileError
from fission_grpo.core.files import append_line, read_file, write_file
from fission_grpo.core.json_io import problem_in, quoted
from fission_grpo.core.terminal import TolerantStream, show
from fission_grpo.core.timing import format_duration
from fission_grpo.evaluation.metrics import Metrics
from fission_grpo.evaluation.records import CASES, CaseRecord, read_records, to_line
from fission_grpo.evaluation.runner import StartCase, run_cases, with_seeds
from fission_grpo.inference.base import AsynchronousPolicy, Policy

MANIFEST = "manifest.json"
VERSION = 1  # of the manifest's format
SHOWN_EVERY = 10.0  # seconds between two lines of progress where stderr is not a terminal [ours]

_COMPARED = ("tasks", "prompt", "decoding")
_PARTS = (*_COMPARED, "policy", "versions")
_OLD_MODES = {"told": "feedback"}  # of runs of earlier versions
_ABSENT: Any = object()


@dataclass(frozen=True)
class Manifest:
    """What was evaluated, on which cases, and how. All values are JSON."""

    name: str  # of the evaluation in tables
    tasks: Mapping[str, Any]  # the cases: their `kind`, a `sha256` over them, their `count`
    prompt: Mapping[str, Any]  # how they are rendered for the policy
    decoding: Mapping[str, Any]  # how replies are sampled; `seed` may differ between runs that are compared
    policy: Mapping[str, Any] = field(default_factory=dict)  # what replied; meant to differ between compared runs
    versions: Mapping[str, Any] = field(default_factory=dict)  # of the packages used


def write_manifest(directory: str | Path, manifest: Manifest) -> Path:
    """Write `DIRECTORY/manifest.json` atomically; returns its path. Raises ValueError for values that are not JSON."""
    path = Path(directory) / MANIFEST
    text = json.dumps({"version": VERSION, **asdict(manifest)}, ensure_ascii=False, indent=1, allow_nan=False)
    write_file(path, text + "\n")
    return path


def read_manifest(directory: str | Path) -> Manifest:
    """Read the manifest of a run directory. RunFileError names the file, the field and the fix of a mistake."""
    path = Path(directory) / MANIFEST
    content = read_file(path, "give the output directory of a `fission-grpo eval`")
    try:
        values = json.loads(content.decode("utf-8-sig"))
        if (problem := problem_in(values)) is not None:
            raise ValueError(problem)
    except (ValueError, RecursionError) as error:
        raise RunFileError(f"{path}: not JSON ({error}); evaluate again, or restore the file") from error
    if not isinstance(values, dict):
        raise RunFileError(f"{path}: must be a JSON object, got {quoted(values)}; evaluate again, or restore the file")
    if values.get("version") != VERSION:
        actual = quoted(values["version"]) if "version" in values else "missing"
        raise RunFileError(f"{path}: field 'version' must be {VERSION}, but is {actual}; evaluate with this version")
    if not isinstance(values.get("name"), str):
        raise RunFileError(f"{path}: field 'name' must be a string, got {quoted(values.get('name'))}")
    for part in _PARTS:
        value = values.get(part, None if part in _COMPARED else {})
        if not isinstance(value, dict):
            actual = f"got {quoted(value)}" if part in values else "but is missing"
            raise RunFileError(f"{path}: field '{part}' must be an object, {actual}; restore it, or evaluate again")
    if values["prompt"].get("mode") in _OLD_MODES:
        values["prompt"]["mode"] = _OLD_MODES[values["prompt"]["mode"]]
    return Manifest(values["name"], *(values.get(part, {}) for part in _PARTS))


def differences(a: Manifest, b: Manifest) -> list[str]:
    """Every field of tasks, prompt and decoding that differs, with both values.

    The seed of decoding may differ, and the code of an environment, which may be edited without a change of meaning.

    Example: ["decoding.temperature: 0.0 in A, 1.0 in B"]
    """
    different = []
    for part in _COMPARED:
        values_a, values_b = _leaves(part, getattr(a, part)), _leaves(part, getattr(b, part))
        for name in dict.fromkeys((*values_a, *values_b)):
            if name in ("decoding.seed", "tasks.code"):
                continue
            in_a, in_b = values_a.get(name, _ABSENT), values_b.get(name, _ABSENT)
            if in_a != in_b or isinstance(in_a, bool) != isinstance(in_b, bool):
                different.append(f"{name}: {_quote(in_a, in_b)} in A, {_quote(in_b, in_a)} in B")
    return different


def _leaves(name: str, value: Any) -> dict[str, Any]:
    """Leaves by dotted path. Example: `_leaves("a", {"b": {"c": 1}})` is {"a.b.c": 1}; `_leaves("a", {})` is {}."""
    if isinstance(value, Mapping) and (value or "." not in name):
        return {path: leaf for key, inner in value.items() for path, leaf in _leaves(f"{name}.{key}", inner).items()}
    return {name: value}


def _quote(value: Any, other: Any) -> str:
    """A value, quoted; of long texts the part from where they differ."""
    if value is _ABSENT:
        return "absent"
    if not (isinstance(value, str) and isinstance(other, str)) or len(value) <= 40:
        return quoted(value)
    shorter = min(len(value), len(other))
    first = next((i for i in range(shorter) if value[i] != other[i]), shorter)
    return quoted(value[first:] if first < 20 else "..." + value[first - 10 :])


def evaluate_run(
    directory: Path,
    manifest: Manifest,
    policy: Policy | AsynchronousPolicy,
    cases: Mapping[str, StartCase],
    in_flight: int = 16,
) -> list[CaseRecord]:
    """Run the cases that `directory` does not hold yet, and return the records of all cases, in order.

    `cases` are functions that start each case, by case id; `policy` and `in_flight` are as for `run_cases`. Raises
    RunFileError if the directory holds another evaluation, or a file of it is broken.
    """
    directory = directory.absolute()  # a tool may change the working directory
    check_same_run(directory, manifest)
    write_manifest(directory, manifest)
    cut_half_line(directory / CASES)
    records = {record.id: record for record in read_records(directory / CASES) if record.id in cases}
    open_ids = [name for name in cases if name not in records or records[name].missing is not None]
    finished = len(cases) - len(open_ids)
    if records:
        show(f"{directory}: {finished} of {len(cases)} cases are there already", error=True)
    progress = Progress(len(cases), finished)
    if isinstance(seed := manifest.decoding.get("seed"), int):
        cases = {name: with_seeds(start, seed, name) for name, start in cases.items()}

    def save(record: CaseRecord) -> None:
        append_line(directory / CASES, to_line(record), sync=True)
        records[record.id] = record
        progress.show(record)

    try:
        run_cases(policy, (cases[name] for name in open_ids), in_flight, save)
    finally:
        progress.end()  # an error is printed on a line of its own
    return [records[name] for name in cases]


def check_same_run(directory: Path, manifest: Manifest) -> None:
    """Raise RunFileError if the directory holds another evaluation than the manifest's."""
    if not (directory / MANIFEST).exists():
        return
    existing = read_manifest(directory)
    different = differences(existing, manifest)
    if existing.policy != manifest.policy:
        different.append(f"policy: {existing.policy} in A, {manifest.policy} in B")
    if existing.decoding != manifest.decoding and not different:
        different.append("decoding.seed")
    if existing.tasks.get("code") != manifest.tasks.get("code"):
        different.append("the environment or a reward function was edited")
    if different:
        what = "; ".join(different).replace(" in A", " there").replace(" in B", " now")
        raise RunFileError(f"{directory} holds another evaluation ({what}); give another name or output, or delete it")


def cut_half_line(path: Path) -> None:
    """Remove a last line that was cut off by a kill, so that the next record starts on a new line."""
    if not path.exists() or not (text := read_file(path)) or text.endswith(b"\n"):
        return
    with path.open("r+b") as file:
        file.truncate(text.rfind(b"\n") + 1)
    show(f"{path}: a half-written last line was removed; its case is run again", error=True)


class Progress:
    """One line on stderr: cases done, success so far, time left. Rewritten on a terminal, else every few seconds."""

    def __init__(self, total: int, done: int, clock_: Callable[[], float] = time.monotonic):
        self.total, self.before, self.done, self.clock = total, done, done, clock_
        self.judged = self.succeeded = self.missing = 0
        self.started = self.shown = clock_()

    def show(self, record: CaseRecord) -> None:
        """Count a case that has ended."""
        self.done += 1
        self.judged += record.success is not None
        self.succeeded += bool(record.success)
        self.missing += record.missing is not None
        is_terminal, now = TolerantStream(sys.stderr).isatty(), self.clock()
        if is_terminal or now - self.shown >= SHOWN_EVERY:
            self.shown = now
            line = f"\r{self.line(now)}\x1b[K" if is_terminal else f"{self.line(now)}\n"
            stream = TolerantStream(sys.stderr)
            stream.write(line)  # numbers and controls of ours only
            stream.flush()

    def line(self, now: float) -> str:
        """Example: "12/200 cases · success 0.58 · 1 missing · 1:30 left" """
        left = (now - self.started) / (self.done - self.before) * (self.total - self.done)
        parts = [f"{self.done}/{self.total} cases"]
        if self.judged:
            parts.append(f"success {self.succeeded / self.judged:.2f}")
        if self.missing:
            parts.append(f"{self.missing} missing")
        return " · ".join([*parts, f"{format_duration(left)} left"])

    def end(self) -> None:
        """Finish the line on a terminal."""
        if TolerantStream(sys.stderr).isatty() and self.done > self.before:
            show(error=True)


def eval_line(
    metrics: Metrics, name: str, step: int, trained_on_tokens: int = 0, tasks: Mapping[str, Any] | None = None
) -> str:
    """A line of `eval.jsonl`, which reports read. Rates over nothing are null.

    `step` and `trained_on_tokens`: training steps before the evaluation, and tokens sampled in them; `tasks`: the
    manifest's. Raises ValueError if no case could be judged.
    """
    if not metrics.judged:
        reasons = "; ".join(f"{reason} ({count})" for reason, count in metrics.missing_reasons.items())
        raise ValueError(f"none of {metrics.cases} cases could be judged: {reasons or 'nothing judges them'}")
    values = {
        "name": name,
        "of": (tasks or {}).get("environment") or (tasks or {}).get("kind"),
        "step": step,
        "generated_tokens": trained_on_tokens,
        "tasks": metrics.judged,
        "samples": metrics.passes[-1].k if metrics.passes else 1,
        "success": metrics.success.rate,
        "success_ci": metrics.success.interval,
        "error_cases": metrics.recovery.of,
        "recovered": metrics.recovery.hits,
        "recovery_rate": metrics.recovery.rate,
        "recovery_ci": metrics.recovery.interval,
        "errors": metrics.own_errors,
        "retry_loop_rate": metrics.retry_loops.rate,
        "broken": metrics.missing,
    }
    return json.dumps(values)
