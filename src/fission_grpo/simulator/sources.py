"""What `fission-grpo simulator data` is given, read: situations to fail in, and failures that others left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from fission_grpo.bfcl import INSTALL
from fission_grpo.json_text import NotJson, read_json
from fission_grpo.simulator.collect import Found, Situation
from fission_grpo.simulator.run_failures import Asked, journal_failures, record_failures, transcript_failures
from fission_grpo.task_rows import TaskFileError
from fission_grpo.tasks import load_tasks


@dataclass
class Material:
    """What was read.

    Args:
        situations: step tasks in which policies fail.
        found: failures as they are.
        kinds: what each file was taken for.
        unused: what could not be used, counted by reason.
        notes: remarks of the readers (half-written lines).
    """

    situations: list[Situation] = field(default_factory=list)
    found: list[Found] = field(default_factory=list)
    kinds: dict[str, str] = field(default_factory=dict)
    unused: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)


KINDS = {"cases": "case file", "tasks": "step-task file", "journal": "fission.jsonl of a run"}
KINDS |= {"records": "cases.jsonl of an evaluation", "transcripts": "transcripts"}


def read_sources(paths: Sequence[Path], skip: int = 0, most: int = 0) -> Material:
    """Read files of any kind, told apart by their first row. Task files are read first: records need them.

    Args:
        paths: of files; a folder stands for its `fission.jsonl` or `cases.jsonl`.
        skip: cases or tasks left out at the beginning of every task file.
        most: cases or tasks taken of each then; 0: all.

    Raises:
        TaskFileError, RunFileError: the first mistake, with file, row and how to mend it.
    """
    material = Material()
    files = [(path, _kind(path)) for path in map(_file, paths)]
    asked: dict[str, list[Asked]] = {}
    for path, kind in sorted(files, key=lambda one: one[1] not in ("cases", "tasks")):
        material.kinds[str(path)] = KINDS[kind]
        if kind == "cases":
            _read_cases(path, skip, most, material, asked)
        elif kind == "tasks":
            tasks = load_tasks(path)[skip:][: most or None]
            material.situations += [Situation(task) for task in tasks]
            asked |= {task.id: [Asked(_messages(task), task.tools, task.reference or ())] for task in tasks}
        elif kind == "journal":
            material.found += journal_failures(path, material.unused, material.notes)
        elif kind == "records":
            material.found += record_failures(path, _Official(asked), material.unused)
        else:
            material.found += transcript_failures(path, material.unused, material.notes)
    return material


def case_situations(cases: Sequence[Any], unused: Counter[str]) -> list[Situation]:
    """The situations of cases (`bfcl.tasks.Case`). A case whose own reference fails is left out and counted."""
    from fission_grpo.bfcl.environment import TaskError
    from fission_grpo.bfcl.steps import steps_of_case

    situations: list[Situation] = []
    for case in cases:
        try:
            situations += [Situation(step.task, step.answers, step.ahead) for step in steps_of_case(case)]
        except TaskError:
            unused["case: its reference fails in its own environment"] += 1
    return situations


def generated(cases: int, seed: int, unused: Counter[str]) -> tuple[list[Situation], tuple[str, ...]]:
    """Situations of so many new cases, half of the training classes and half of the held-out ones; also these."""
    from fission_grpo.bfcl.generate import SPLITS, Mix, generate

    made = [case for split in ("train", "heldout") for case in generate(split, max(1, cases // 2), seed, Mix())]
    return case_situations(made, unused), SPLITS["heldout"]


def _read_cases(path: Path, skip: int, most: int, material: Material, asked: dict[str, list[Asked]]) -> None:
    from fission_grpo.bfcl.tasks import load_cases

    try:
        cases = load_cases(path)[skip:][: most or None]
        situations = case_situations(cases, material.unused)
    except ModuleNotFoundError as error:
        raise TaskFileError(f"{path}: its environments need {error.name}; {INSTALL}") from error
    material.situations += situations
    for situation in situations:
        turn, _, call = situation.task.id.rpartition(".")
        if call == "0":
            wanted = (*(situation.task.reference or ()), *situation.ahead)
            asked[turn] = [Asked(_messages(situation.task), situation.task.tools, wanted)]


class _Official(Mapping[str, Sequence[Asked]]):
    """The turns of given cases, and of BFCL's own, which are looked up when a record of theirs comes."""

    def __init__(self, given: Mapping[str, Sequence[Asked]]):
        self._given = given

    def __getitem__(self, name: str) -> Sequence[Asked]:
        return self._given[name] if name in self._given else _official(name.rsplit("_", 1)[0])[name]

    def __contains__(self, name: object) -> bool:
        return name in self._given or name in _official(str(name).rsplit("_", 1)[0])

    def __iter__(self) -> Iterator[str]:
        return iter(self._given)

    def __len__(self) -> int:
        return len(self._given)


@cache
def _official(category: str) -> Mapping[str, Sequence[Asked]]:
    """The user turns of BFCL's own multi-turn cases of a category; empty for anything else."""
    from fission_grpo.bfcl.cases import MULTI_TURN, multi_turn_cases
    from fission_grpo.bfcl.steps import case_tools, official_case
    from fission_grpo.bfcl.tasks import SYSTEM

    if category not in MULTI_TURN:
        return {}
    found: dict[str, list[Asked]] = {}
    for case in map(official_case, multi_turn_cases(category)):
        turns = []
        for number, turn in enumerate(case.turns):
            said = [{"role": "system", "content": SYSTEM}] if number == 0 else []
            messages = (*said, {"role": "user", "content": turn.request})
            turns.append(Asked(messages, case_tools(case.classes, turn.without), turn.reference))
        found[case.id] = turns
    return found


def _messages(task: Any) -> tuple[Any, ...]:
    return () if isinstance(task.prompt, str) else tuple(task.prompt)


def _file(path: Path) -> Path:
    if path.is_dir():
        for name in ("fission.jsonl", "cases.jsonl"):
            if (path / name).is_file():
                return path / name
        raise TaskFileError(f"{path}: a folder without fission.jsonl or cases.jsonl; give a file, or a run's folder")
    return path


def _kind(path: Path) -> str:
    """What a file holds, by the fields of its first row."""
    try:
        with path.open("rb") as file:
            first = next((line for line in file if line.strip()), b"")
    except OSError as error:
        raise TaskFileError(f"{path}: cannot be read ({error.strerror}); give a path of a file") from error
    try:
        row, _ = read_json(first.decode("utf-8", "replace").strip())
    except NotJson as error:
        raise TaskFileError(f"{path}, row 1: not JSON: {error}; write one JSON object per line") from None
    fields = set(row) if isinstance(row, dict) else set()
    tests: list[tuple[str, Callable[[set[str]], bool]]] = [
        ("journal", lambda has: "event" in has),
        ("cases", lambda has: {"turns", "classes"} <= has),
        ("records", lambda has: {"turns", "category"} <= has),
        ("tasks", lambda has: {"messages", "reference"} <= has),
        ("transcripts", lambda has: "messages" in has),
    ]
    for kind, fits in tests:
        if fits(fields):
            return kind
    raise TaskFileError(
        f"{path}, row 1: fields {', '.join(sorted(fields)) or '(none)'} are of no file known here; give one of: "
        + ", ".join(KINDS.values())
    )
