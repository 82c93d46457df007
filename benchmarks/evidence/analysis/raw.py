"""The raw results of a suite as values, checked: what is broken is a RunFileError that names file, line and field."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2]))

from old_names import new_names
from packed import unpacked

from fission_grpo.core.errors import RunFileError
from fission_grpo.core.files import Line, read_lines

SETS, EVALUATIONS, RUNS = "sets.json", "evaluations.jsonl", "runs.jsonl"
NUMBER = (int, float)
LETTERS = "srxf-"
"""Outcomes of a task: success without an own error, success after one, failure after one, failure without, missing."""


@dataclass(frozen=True)
class TaskSet:
    """Ids and categories of a set's tasks, in the order of `Evaluation.outcomes`."""

    ids: tuple[str, ...]
    categories: tuple[str, ...]


@dataclass(frozen=True)
class Evaluation:
    """One policy on one set of tasks.

    Args:
        arm, seed: of the training.
        config: digest of all that decides the arm's results but the seed.
        point: nominal tokens; 0 before training.
        tokens: sampled by the policy in training so far.
        extra_tokens: of others (simulator, offline data) in training so far.
        updates: optimizer steps so far.
        seconds: of training so far, wall-clock, evaluations left out.
        set: name of the set of tasks.
        outcomes: a letter of LETTERS per task.
        error_kinds: the policy's erring calls by kind.
        calls: attempts.
        loops: retry loops, and the errors that could have begun one.
    """

    arm: str
    seed: int
    config: str
    point: int
    tokens: int
    extra_tokens: Mapping[str, int]
    updates: int
    seconds: float
    set: str
    outcomes: str
    error_kinds: Mapping[str, int]
    calls: int
    loops: tuple[int, int]

    @property
    def all_tokens(self) -> int:
        """The policy's and the extra ones: what the arm is charged."""
        return self.tokens + sum(self.extra_tokens.values())


@dataclass(frozen=True)
class TrainingRun:
    """A finished (arm, seed): resolved options, cost, and the numbers logged in each cycle, in order, by new name."""

    arm: str
    seed: int
    config: str
    options: Mapping[str, Any]
    seconds: float
    extra_tokens: Mapping[str, int]
    cycles: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Suite:
    """All raw results of a suite; `notes` say what was left out when reading or does not look right."""

    name: str
    sets: Mapping[str, TaskSet]
    evaluations: tuple[Evaluation, ...]
    runs: tuple[TrainingRun, ...]
    notes: tuple[str, ...]


def read_suite(folder: Path) -> Suite:
    """Read and check `sets.json`, `evaluations.jsonl` and `runs.jsonl` (which may be missing) of a folder.

    A line cut off by a kill is left out; of several lines on the same (arm, seed, point, set) the last counts; of an
    arm of which seeds were run with different settings, only those with the settings of its last line are kept, as
    when an arm was changed and is being run again. All is told in `notes`.

    Raises:
        RunFileError: naming the file, its line and the field that is missing or wrong.
    """
    if not folder.is_dir():
        raise RunFileError(
            f"{folder}: no such folder; give the results of a suite, as benchmarks/evidence/run.py writes"
        )
    notes: list[str] = []
    sets = _read_sets(folder / SETS)
    evaluations = _of_one_config(_read_evaluations(folder / EVALUATIONS, sets, notes), notes)
    runs: dict[tuple[str, int], TrainingRun] = {}
    configs = {one.arm: one.config for one in evaluations}
    for line in _lines(folder / RUNS, notes):
        run = _run(line)
        if run.config != configs.get(run.arm, run.config):
            notes.append(f"{RUNS}, line {line.number}: {run.arm}, seed {run.seed} has other settings; left out")
            continue
        if (run.arm, run.seed) in runs:
            notes.append(f"{RUNS}, line {line.number}: {run.arm}, seed {run.seed} once more; the later line counts")
        runs[run.arm, run.seed] = run
    return Suite(folder.resolve().name, sets, tuple(evaluations), tuple(runs.values()), tuple(notes))


def _lines(path: Path, notes: list[str]) -> list[Line]:
    with unpacked(path) as file:
        return [replace(line, path=path) for line in read_lines(file, notes)]


def _read_evaluations(path: Path, sets: Mapping[str, TaskSet], notes: list[str]) -> list[Evaluation]:
    found: dict[tuple[str, int, int, str], Evaluation] = {}
    for line in _lines(path, notes):
        one = _evaluation(line, sets)
        key = one.arm, one.seed, one.point, one.set
        if key in found:
            notes.append(f"{EVALUATIONS}, line {line.number}: {_said(key)} once more; the later line counts")
            del found[key]
        found[key] = one
    if not found:
        raise RunFileError(f"{path}: no evaluations in it; run the suite first")
    return list(found.values())


def _of_one_config(evaluations: Sequence[Evaluation], notes: list[str]) -> list[Evaluation]:
    """The evaluations that have the config of their arm's last one; notes tell the seeds left out."""
    last = {one.arm: one.config for one in evaluations}
    left_out = {(one.arm, one.seed) for one in evaluations if one.config != last[one.arm]}
    for arm in sorted({arm for arm, _ in left_out}):
        seeds = ", ".join(str(seed) for name, seed in sorted(left_out) if name == arm)
        notes.append(f"{arm}: evaluations of seeds {seeds} with other settings than the last ones are left out")
    return [one for one in evaluations if one.config == last[one.arm]]


def _said(key: tuple[str, int, int, str]) -> str:
    arm, seed, point, name = key
    return f"{arm}, seed {seed}, point {point:,}, set {name}"


def _read_sets(path: Path) -> dict[str, TaskSet]:
    mend = "the runner writes it; run the suite again or restore it from git"
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunFileError(f"{path}: no such file; {mend}") from None
    except ValueError as error:
        raise RunFileError(f"{path}: not JSON ({error}); {mend}") from error
    if not isinstance(held, dict):
        raise RunFileError(f"{path}: must be an object of sets; {mend}")
    sets = {}
    for name, one in held.items():
        ids, categories = (one.get(key) if isinstance(one, dict) else None for key in ("ids", "categories"))
        if not (isinstance(ids, list) and isinstance(categories, list) and len(ids) == len(categories) > 0):
            raise RunFileError(f"{path}: set '{name}' must have 'ids' and as many 'categories', at least one; {mend}")
        sets[name] = TaskSet(tuple(map(str, ids)), tuple(map(str, categories)))
    return sets


def _evaluation(line: Line, sets: Mapping[str, TaskSet]) -> Evaluation:
    name, outcomes = line.take("set", str), line.take("outcomes", str)
    if name not in sets:
        raise line.wrong(f"field 'set' is '{name}', but {SETS} knows only {', '.join(sets)}")
    if len(outcomes) != len(sets[name].ids):
        raise line.wrong(f"field 'outcomes' has {len(outcomes)} letters, but set '{name}' {len(sets[name].ids)} tasks")
    if strange := set(outcomes) - set(LETTERS):
        raise line.wrong(f"field 'outcomes' has the letter '{min(strange)}'; known are {' '.join(LETTERS)}")
    loops = line.take_all("loops", int)
    if len(loops) != 2 or not 0 <= loops[0] <= loops[1]:
        raise line.wrong(f"field 'loops' must be [hits, of] with 0 <= hits <= of, but is {list(loops)}")
    return Evaluation(
        arm=line.take("arm", str),
        seed=line.take("seed", int),
        config=line.take("config", str),
        point=_count(line, "point"),
        tokens=_count(line, "tokens"),
        extra_tokens=_counts(line, "extra_tokens"),
        updates=_count(line, "updates"),
        seconds=float(line.take("seconds", NUMBER)),
        set=name,
        outcomes=outcomes,
        error_kinds=_counts(line, "error_kinds"),
        calls=_count(line, "calls"),
        loops=(loops[0], loops[1]),
    )


def _run(line: Line) -> TrainingRun:
    cycles = line.take_all("cycles", dict)
    for i, cycle in enumerate(cycles):
        for name in ("phase", "tokens"):
            if not isinstance(cycle.get(name), NUMBER):
                raise line.wrong(f"field 'cycles[{i}].{name}' must be a number, but is {cycle.get(name)!r}")
    return TrainingRun(
        arm=line.take("arm", str),
        seed=line.take("seed", int),
        config=line.take("config", str),
        options=new_names(line.take("options", dict)),
        seconds=float(line.take("seconds", NUMBER)),
        extra_tokens=_counts(line, "extra_tokens"),
        cycles=tuple(map(new_names, cycles)),
    )


def _count(line: Line, name: str) -> int:
    value = line.take(name, NUMBER)
    if value < 0 or value != int(value):
        raise line.wrong(f"field '{name}' must be a whole number of at least 0, but is {value}")
    return int(value)


def _counts(line: Line, name: str) -> dict[str, int]:
    values = line.take(name, dict)
    for key, value in values.items():
        if isinstance(value, bool) or not isinstance(value, NUMBER) or value < 0 or value != int(value):
            raise line.wrong(f"field '{name}.{key}' must be a whole number of at least 0, but is {value!r}")
    return {key: int(value) for key, value in values.items()}


def arms_of(evaluations: Sequence[Evaluation]) -> list[str]:
    """The arms in the order of their first evaluations."""
    return list(dict.fromkeys(one.arm for one in evaluations))
