"""What a run leaves on disk, read back as values.

A run directory holds `trainer_state.json` (curves), `fission.jsonl` (corrective instances) and `eval.jsonl`
(held-out evaluations). Any of them may be missing, not all. A directory of run directories ("arms") is read as
several runs. A last line cut off by a kill is left out and said so in `Run.notes`; anything else that is broken
is a `RunFileError` naming file, line and field.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fission_grpo.core.errors import RunFileError
from fission_grpo.core.files import Line, read_lines
from fission_grpo.core.types import Message

STATE, FISSION, EVAL = "trainer_state.json", "fission.jsonl", "eval.jsonl"


OTHER_EVENTS = ("failed", "tools")
"""Events of `fission.jsonl` that only `simulator.journal_failures` reads."""


NUMBER = (int, float)


@dataclass(frozen=True)
class Instance:
    """One corrective instance: a failure, the feedback it got, and what became of it.

    `reward` is the failed rollout's. `retried_at` is the step of its recover cycle (None: never retried), `age` the
    steps it waited; `rewards` and `completions` have one entry per recovery (a reward is None where it could not be
    judged). `dropped` is why it left the buffer without a retry, at step `dropped_at`; None if it did not.
    """

    id: str
    step: int
    root: str
    kind: str
    source: str
    feedback: str
    failed: str
    prompt: str | tuple[Message, ...]
    parent: str | None = None
    depth: int = 1
    leaked: bool = False
    fallback: str | None = None
    reward: float | None = None
    retried_at: int | None = None
    age: int | None = None
    rewards: tuple[float | None, ...] = ()
    completions: tuple[str, ...] = ()
    dropped: str | None = None
    dropped_at: int | None = None

    @property
    def improved(self) -> bool:
        """Whether some recovery was rewarded above the failed rollout. `reward=0.2, rewards=(0.1, 0.9)` is True."""
        return self.reward is not None and any(r is not None and r > self.reward for r in self.rewards)


@dataclass(frozen=True)
class Evaluation:
    """One held-out evaluation: rates are shares in [0, 1], intervals 95%; `errors` counts erring calls."""

    name: str
    step: int
    generated_tokens: int
    tasks: int
    success: float
    success_ci: tuple[float, float]
    error_cases: int
    recovered: int
    recovery_rate: float | None = None
    recovery_ci: tuple[float, float] | None = None
    errors: int = 0


@dataclass(frozen=True)
class Run:
    """One training run. `log_history` rows hold finite numbers only; `notes` says what was missing or left out."""

    name: str
    log_history: tuple[Mapping[str, float], ...] = ()
    instances: tuple[Instance, ...] = ()
    evaluations: tuple[Evaluation, ...] = ()
    notes: tuple[str, ...] = ()


def read_runs(path: str | Path) -> list[Run]:
    """Every run in `path`: itself if it holds a training log, else its sub-directories that are run directories.

    `path` may hold an `eval.jsonl` of its own beside its arms; it then comes first, as a run without curves.
    Raises RunFileError where there is nothing to read or something is broken.
    """
    path = Path(path)
    if not path.is_dir():
        raise RunFileError(f"{path}: no such directory; give the output_dir of a `fission-grpo train` run")
    if _state_path(path) is not None:
        return [read_run(path)]
    arms = [child for child in sorted(path.iterdir()) if child.is_dir() and _is_run(child)]
    runs = [read_run(path)] if _is_run(path) or not arms else []
    if arms and runs:
        runs = [replace(runs[0], notes=tuple(n for n in runs[0].notes if STATE not in n))]
    return runs + [read_run(arm) for arm in arms]


def read_run(path: str | Path) -> Run:
    """One run directory. Raises RunFileError (a ValueError) if it holds none of the three files or one is broken."""
    path = Path(path)
    if not _is_run(path):
        raise RunFileError(
            f"{path}: no {STATE} (nor checkpoint-*/{STATE}), {FISSION} or {EVAL} in it; give the output_dir of a "
            "`fission-grpo train` run, or a directory of such directories"
        )
    notes: list[str] = []
    state = _state_path(path)
    if state is None:
        notes.append(f"{path.name}: no {STATE} and no checkpoint yet, so there are no curves")
    return Run(
        name=path.resolve().name,
        log_history=() if state is None else read_history(state),
        instances=_read_instances(read_lines(path / FISSION, notes), notes),
        evaluations=tuple(_evaluation(line) for line in read_lines(path / EVAL, notes)),
        notes=tuple(notes),
    )


def _is_run(path: Path) -> bool:
    return _state_path(path) is not None or (path / FISSION).is_file() or (path / EVAL).is_file()


def _state_path(path: Path) -> Path | None:
    """`trainer_state.json`, else that of the checkpoint with the highest step."""
    if re.fullmatch(r"checkpoint-\d+", path.name):
        return None  # a part of a run, not a run
    if (path / STATE).is_file():
        return path / STATE
    steps = {int(p.parent.name.split("-")[1]): p for p in path.glob(f"checkpoint-*/{STATE}") if _numbered(p)}
    return steps[max(steps)] if steps else None


def _numbered(state: Path) -> bool:
    return re.fullmatch(r"checkpoint-\d+", state.parent.name) is not None


def read_history(path: Path) -> tuple[Mapping[str, float], ...]:
    """The finite numbers of every row of a trainer state's `log_history`. Raises RunFileError if it is damaged."""
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        raise RunFileError(
            f"{path}, line {line}: not valid JSON ({error}); delete it and the newest checkpoint is read"
        ) from error
    rows = state.get("log_history") if isinstance(state, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise RunFileError(f"{path}: field 'log_history' must be a list of objects; is this a Trainer's state?")
    return tuple({key: float(v) for key, v in row.items() if _is_finite(v)} for row in rows)


def _is_finite(value: Any) -> bool:
    return isinstance(value, NUMBER) and not isinstance(value, bool) and abs(value) < float("inf")


def _read_instances(lines: list[Line], notes: list[str]) -> tuple[Instance, ...]:
    """`pushed` events in file order, each merged with its `recovered` or `dropped` event.

    A `resumed` event voids what was written before it with its step or a later one. An outcome without its `pushed`
    event (a buffer carried over from another directory) is left out and noted.
    """
    instances: dict[str, Instance] = {}
    strangers = 0
    for line in lines:
        event = line.take("event", str)
        if event == "resumed":
            instances = _rewound(instances, line.take("step", int))
            continue
        if event in OTHER_EVENTS:
            continue
        id_ = line.take("id", str)
        if event == "pushed":
            instances[id_] = _pushed(line)
        elif event not in ("recovered", "dropped"):
            raise line.wrong(f"field 'event' must be pushed, recovered, dropped or resumed, but is {event!r}")
        elif id_ not in instances:
            strangers += 1
        elif event == "recovered":
            instances[id_] = _recovered(instances[id_], line)
        else:
            reason, step = line.take("reason", str), line.take("step", int)
            instances[id_] = replace(instances[id_], dropped=reason, dropped_at=step)
    if strangers:
        place = f"{lines[0].path.parent.name}/{FISSION}"
        notes.append(f"{place}: {strangers} outcomes of instances that were pushed elsewhere left out")
    return tuple(instances.values())


def _rewound(instances: dict[str, Instance], step: int) -> dict[str, Instance]:
    """The instances without what happened at `step` or later."""
    kept = {}
    for id_, item in instances.items():
        if item.retried_at is not None and item.retried_at >= step:
            item = replace(item, retried_at=None, age=None, rewards=(), completions=())
        if item.dropped_at is not None and item.dropped_at >= step:
            item = replace(item, dropped=None, dropped_at=None)
        if item.step < step:
            kept[id_] = item
    return kept


def _pushed(line: Line) -> Instance:
    prompt = line.take("prompt", (str, list))
    return Instance(
        id=line.take("id", str),
        step=line.take("step", int),
        root=line.take("root", str),
        kind=line.take("kind", str),
        source=line.take("source", str),
        feedback=line.take("feedback", str),
        failed=line.take("failed", str),
        prompt=prompt if isinstance(prompt, str) else line.take_all("prompt", dict),
        parent=line.take("parent", str, optional=True),
        depth=line.take("depth", int),
        leaked=line.take("leaked", bool),
        fallback=line.take("fallback", str, optional=True),
        reward=line.take("reward", NUMBER, optional=True),
    )


def _recovered(instance: Instance, line: Line) -> Instance:
    rewards, completions = line.take_all("rewards", NUMBER, gaps=True), line.take_all("completions", str)
    if len(rewards) != len(completions):
        raise line.wrong(f"fields 'rewards' ({len(rewards)}) and 'completions' ({len(completions)}) differ in length")
    step, age = line.take("step", int), line.take("age", int, optional=True)
    return replace(instance, retried_at=step, age=age, rewards=rewards, completions=completions)


def _evaluation(line: Line) -> Evaluation:
    return Evaluation(
        name=line.take("name", str),
        step=line.take("step", int),
        generated_tokens=line.take("generated_tokens", int),
        tasks=line.take("tasks", int),
        success=line.take("success", NUMBER),
        success_ci=_interval(line, "success_ci"),
        error_cases=line.take("error_cases", int),
        recovered=line.take("recovered", int),
        recovery_rate=line.take("recovery_rate", NUMBER, optional=True),
        recovery_ci=_interval(line, "recovery_ci") if line.record.get("recovery_ci") is not None else None,
        errors=line.take("errors", int),
    )


def _interval(line: Line, name: str) -> tuple[float, float]:
    values = line.take_all(name, NUMBER)
    if len(values) != 2:
        raise line.wrong(f"field '{name}' must be [low, high], but has {len(values)} entries")
    return values[0], values[1]
