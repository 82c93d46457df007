"""Read what runs write to their folders: the training log, corrective instances, evaluations and their cases.

A run folder holds `trainer_state.json`, `fission.jsonl`, `eval.jsonl` or `eval-NAME` folders; at least one of them. A
folder of run folders is read as several runs.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fission_grpo.core.errors import RunFileError
from fission_grpo.core.files import Line, read_file, read_lines
from fission_grpo.core.terminal import printable
from fission_grpo.core.types import Message
from fission_grpo.evaluation.compare import EvaluationRun
from fission_grpo.evaluation.metrics import compute_metrics
from fission_grpo.evaluation.records import CASES, read_records
from fission_grpo.evaluation.run import MANIFEST, read_manifest
from fission_grpo.fission.event_log import read_events
from fission_grpo.fission.health import CYCLE_ROWS

STATE, FISSION, EVAL = "trainer_state.json", "fission.jsonl", "eval.jsonl"
DESCRIPTION = "fission_run.json"  # of the run: command, model, settings
CHECKPOINT = re.compile(r"checkpoint-(\d+)")
EARLIER = re.compile(r"_earlier-\d+")  # what a run that began in a used folder has moved there
NUMBER = (int, float)


@dataclass(frozen=True)
class RecoveryRecord:
    """A corrective instance and its outcome.

    `step` and `retried_at` are the optimizer steps of the failure and of its recovery cycle, `reward` is that of the
    failed rollout. `rewards` and `completions` have one entry per recovery rollout; the reward of one that could not
    be judged is None. `fallback` says which sources of feedback were rejected, `dropped` why the instance left the
    buffer unused.
    """

    id: str
    step: int
    root: str
    kind: str
    source: str
    feedback: str
    failed: str
    prompt: str | tuple[Message, ...]
    depth: int = 1
    leaked: bool = False
    fallback: str | None = None
    reward: float | None = None
    retried_at: int | None = None
    rewards: tuple[float | None, ...] = ()
    completions: tuple[str, ...] = ()
    dropped: str | None = None
    is_strict: bool = False  # recoveries are right (1) or wrong (0), whatever the failed rollout earned

    @property
    def baseline(self) -> float | None:
        """The reward that a recovery has to exceed to be better: the failed rollout's, or that of a wrong recovery."""
        return 0.0 if self.is_strict else self.reward

    @property
    def improved(self) -> bool:
        """Whether at least one recovery is better than the failed rollout."""
        least = self.baseline
        return least is not None and any(reward is not None and reward > least for reward in self.rewards)


@dataclass(frozen=True)
class Evaluation:
    """A line of `eval.jsonl`: rates are in [0, 1], intervals are 95%, `errors` counts tool calls with an error.

    `step` and `generated_tokens` are of the training before it. `cases` holds manifest and records of its `eval-NAME`
    folder, if that is there and has the same numbers.
    """

    name: str
    step: int
    generated_tokens: int
    tasks: int
    success: float | None  # None where nothing judges the cases
    success_ci: tuple[float, float] | None
    error_cases: int
    recovered: int
    recovery_rate: float | None = None
    recovery_ci: tuple[float, float] | None = None
    errors: int = 0
    samples: int = 1  # most of a task; with several, `tasks` counts samples
    cases: EvaluationRun | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Run:
    """A run folder. `log_history` has finite numbers only; `notes` are sentences about what is missing.

    `cycles` are the rows for `fission.health.check_health`: one per cycle, or those of the log in earlier releases.

    `description` is what a training run writes about itself at its start; empty for runs of earlier releases.
    """

    name: str
    log_history: tuple[Mapping[str, float], ...] = ()
    cycles: tuple[Mapping[str, float], ...] = ()
    instances: tuple[RecoveryRecord, ...] = ()
    evaluations: tuple[Evaluation, ...] = ()
    notes: tuple[str, ...] = ()
    description: Mapping[str, Any] = field(default_factory=dict)


def read_runs(path: str | Path, by_policy: bool = False) -> list[Run]:
    """Read the run in a folder, or the runs in its subfolders. The folder of one evaluation is a run, too.

    A folder of runs may have evaluations of its own. It is then the first run, without curves. Runs are named as their
    folders, or `by_policy` as their evaluations where these say it, so that tables and legends agree.

    Raises:
        RunFileError: there is no run, or a file is damaged; names file, line and field.
    """
    path = Path(path)
    if not path.is_dir():
        raise RunFileError(f"{path}: no such directory; give the output_dir of a `fission-grpo train` or `eval`")
    if _state_path(path) is not None or _is_evaluation(path):
        return _named_alike([read_run(path)]) if by_policy else [read_run(path)]
    folders = [folder for folder in sorted(path.iterdir()) if folder.is_dir() and not _is_evaluation(folder)]
    runs = [read_run(folder) for folder in folders if not EARLIER.fullmatch(folder.name) and _is_run(folder)]
    runs = _named_alike(runs) if by_policy else runs
    return runs if runs and not _is_run(path) else [read_run(path), *runs]


def _named_alike(runs: Sequence[Run]) -> list[Run]:
    """The runs, each with the name of the only evaluation of its policy, where no other run has one of that name."""
    names = [{one.name for one in run.evaluations if one.step or one.generated_tokens} for run in runs]
    taken = Counter(name for own in names for name in own)
    alike = [
        own.pop() if len(own) == 1 and taken[min(own)] == 1 else run.name for run, own in zip(runs, names, strict=True)
    ]
    return [replace(run, name=name) for run, name in zip(runs, alike, strict=True)]


def read_run(path: str | Path) -> Run:
    """Read one run folder. Raises RunFileError if it holds no file of a run, or one is damaged."""
    path = Path(path)
    if not _is_run(path):
        raise RunFileError(
            f"{path}: no {STATE} (nor checkpoint-*/{STATE}), {FISSION}, {EVAL} or eval-NAME/{MANIFEST} in it; give "
            "the output_dir of a `fission-grpo train` or `eval`, or a directory of such directories"
        )
    notes: list[str] = []
    state = _state_path(path)
    if state is None and ((path / FISSION).exists() or (path / DESCRIPTION).exists()):
        notes.append(f"{path.name}: no {STATE} and no checkpoint yet, so there are no curves")
    description = _read_object(path / DESCRIPTION) if (path / DESCRIPTION).exists() else {}
    instances = _read_instances(read_events(path / FISSION, notes), notes)
    if _has_strict_recoveries(description):
        instances = tuple(replace(instance, is_strict=True) for instance in instances)
    evaluations = _read_evaluations(path, notes)
    log_history, cycles = ((), ()) if state is None else read_history(state)
    return Run(
        name=evaluations[0].name if _is_evaluation(path) and evaluations else printable(path.resolve().name),
        log_history=log_history,
        cycles=cycles,
        instances=instances,
        evaluations=evaluations,
        notes=tuple(notes),
        description=description,
    )


def _has_strict_recoveries(description: Mapping[str, Any]) -> bool:
    settings = description.get("settings")
    if not isinstance(settings, Mapping):
        return False
    return settings.get("recovery_reward") == "strict" or settings.get("recovery_scope") == "turn"


def _is_run(path: Path) -> bool:
    return (
        _state_path(path) is not None
        or any((path / name).exists() for name in (FISSION, EVAL, DESCRIPTION))
        or bool(_evaluation_folders(path))
    )


def _is_evaluation(path: Path) -> bool:
    return (path / MANIFEST).exists() and (path / CASES).exists()


def _evaluation_folders(path: Path) -> list[Path]:
    return [path] if _is_evaluation(path) else sorted(filter(_is_evaluation, path.glob("eval-*")))


def _state_path(path: Path) -> Path | None:
    """Find the run's trainer state, or that of its newest checkpoint. A checkpoint itself is not a run."""
    if CHECKPOINT.fullmatch(path.name):
        return None
    if (path / STATE).exists():
        return path / STATE
    states = path.glob(f"checkpoint-*/{STATE}")
    by_step = {int(match[1]): state for state in states if (match := CHECKPOINT.fullmatch(state.parent.name))}
    return by_step[max(by_step)] if by_step else None


def read_history(path: Path) -> tuple[tuple[Mapping[str, float], ...], tuple[Mapping[str, float], ...]]:
    """Read a trainer state: the finite numbers of its `log_history`, and all numbers of its rows per cycle.

    Without rows per cycle the latter are those of the log. Raises RunFileError if the file is damaged.
    """
    state = _read_object(path, "delete it and the newest checkpoint is read")
    rows: Any = state.get("log_history")
    cycles: Any = state
    for name in ("stateful_callbacks", CYCLE_ROWS, "attributes", "cycles"):
        cycles = cycles.get(name) if isinstance(cycles, dict) else None
    for name, value in (("log_history", rows), (CYCLE_ROWS, cycles or [])):
        if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
            raise RunFileError(f"{path}: field '{name}' must be a list of objects; is this a Trainer's state?")
    log, cycles = _numbers(rows), _numbers(cycles or rows)
    return tuple({key: value for key, value in row.items() if math.isfinite(value)} for row in log), tuple(cycles)


def _numbers(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """The numbers in each row, NaN where one is beyond a float."""
    largest = sys.float_info.max
    return [
        {
            key: float(value) if abs(value) <= largest else math.nan
            for key, value in row.items()
            if type(value) in NUMBER
        }
        for row in rows
    ]


def _read_object(path: Path, advice: str = "restore or delete it") -> dict[str, Any]:
    content = read_file(path)
    try:
        value = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        raise RunFileError(f"{path}, line {line}: not valid JSON ({error}); {advice}") from error
    if not isinstance(value, dict):
        raise RunFileError(f"{path}: must be a JSON object; {advice}")
    return value


def _read_instances(events: Sequence[Line], notes: list[str]) -> tuple[RecoveryRecord, ...]:
    """Join each `pushed` event with its `recovered` or `dropped` event.

    An outcome without a `pushed` event (the buffer was filled by a run in another folder) is left out and noted.
    """
    instances: dict[str, RecoveryRecord] = {}
    unknown = 0
    for line in events:
        event = line.record["event"]
        if event == "pushed":
            instance = _pushed(line)
        elif event not in ("recovered", "dropped"):
            continue
        elif line.take("id", str) not in instances:
            unknown += 1
            continue
        elif event == "recovered":
            instance = _recovered(instances[line.record["id"]], line)
        else:
            instance = replace(instances[line.record["id"]], dropped=line.take("reason", str))
        instances[instance.id] = instance
    if unknown:
        place = f"{events[0].path.parent.name}/{FISSION}"
        notes.append(f"{place}: {unknown} outcomes of instances that were pushed elsewhere left out")
    return tuple(instances.values())


def _pushed(line: Line) -> RecoveryRecord:
    prompt = line.take("prompt", (str, list))
    return RecoveryRecord(
        **{name: line.take(name, str) for name in ("id", "root", "kind", "source", "feedback", "failed")},
        **{name: line.take(name, int) for name in ("step", "depth")},
        prompt=prompt if isinstance(prompt, str) else line.take_all("prompt", dict),
        leaked=line.take("leaked", bool),
        fallback=line.take("fallback", str, optional=True),
        reward=line.take("reward", NUMBER, optional=True),
    )


def _recovered(instance: RecoveryRecord, line: Line) -> RecoveryRecord:
    rewards, completions = line.take_all("rewards", NUMBER, gaps=True), line.take_all("completions", str)
    if len(rewards) != len(completions):
        raise line.wrong(f"fields 'rewards' ({len(rewards)}) and 'completions' ({len(completions)}) differ in length")
    return replace(instance, retried_at=line.take("step", int), rewards=rewards, completions=completions)


def _read_evaluations(path: Path, notes: list[str]) -> tuple[Evaluation, ...]:
    """Read the lines of `eval.jsonl`, each with the cases it is about, and the evaluations without a line."""
    found = [_evaluation(line) for line in read_lines(path / EVAL, notes)]
    for folder in _evaluation_folders(path):
        records = tuple(read_records(folder / CASES, notes))
        if not records:
            notes.append(f"{folder.name}: no case has ended yet")
            continue
        cases = EvaluationRun(read_manifest(folder), records)
        own = _evaluation_of(cases)
        lines = [i for i, evaluation in enumerate(found) if evaluation.name == own.name]
        same = [i for i in lines if (found[i].step, found[i].tasks) == (own.step, own.tasks)]
        same = [i for i in same if math.isclose(found[i].success or 0.0, own.success or 0.0)]
        if same:
            found[same[-1]] = replace(found[same[-1]], cases=cases)
        elif not lines:
            found.append(own)
        else:
            notes.append(f"{folder.name}: its cases are not those of a line in {EVAL}, so they are left out")
    return tuple(found)


def _evaluation_of(cases: EvaluationRun) -> Evaluation:
    metrics, policy = compute_metrics(cases.records), cases.manifest.policy
    step, tokens = (policy.get(name) for name in ("step", "tokens"))
    return Evaluation(
        name=printable(cases.manifest.name),
        step=step if isinstance(step, int) else 0,
        generated_tokens=tokens if isinstance(tokens, int) else 0,
        tasks=metrics.judged,
        success=metrics.success.rate,
        success_ci=metrics.success.interval,
        error_cases=metrics.recovery.of,
        recovered=metrics.recovery.hits,
        recovery_rate=metrics.recovery.rate,
        recovery_ci=metrics.recovery.interval,
        errors=metrics.own_errors,
        samples=metrics.passes[-1].k if metrics.passes else 1,
        cases=cases,
    )


def _evaluation(line: Line) -> Evaluation:
    counts = ("step", "generated_tokens", "tasks", "error_cases", "recovered", "errors")
    return Evaluation(
        name=printable(line.take("name", str)),
        **{name: line.take(name, int) for name in counts},
        samples=line.take("samples", int, optional=True) or 1,
        success=line.take("success", NUMBER, optional=True),
        success_ci=_interval(line, "success_ci"),
        recovery_rate=line.take("recovery_rate", NUMBER, optional=True),
        recovery_ci=_interval(line, "recovery_ci"),
    )


def _interval(line: Line, name: str) -> tuple[float, float] | None:
    """None is also that of a rate over the samples of a single task."""
    if line.record.get(name) is None:
        return None
    values = line.take_all(name, NUMBER)
    if len(values) != 2:
        raise line.wrong(f"field '{name}' must be [low, high], but has {len(values)} entries")
    return values[0], values[1]
