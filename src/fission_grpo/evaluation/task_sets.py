"""What `fission-grpo eval --tasks` can be given, as plays: the built-in environment, files, and BFCL's own cases."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

from fission_grpo.envs.desk.tasks import make_rows, requests_of
from fission_grpo.envs.faults import Fault, inject_faults
from fission_grpo.evaluation.episodes import EpisodeConfig, run_episode, run_step
from fission_grpo.evaluation.runner import RunningCase

DESK_TASKS = 256
"""Held-out tasks drawn for the built-in environment where no number is given. [ours]"""


@dataclass(frozen=True)
class TaskSet:
    """Cases to evaluate on.

    Args:
        plays: how to begin each, by id.
        kind: "desk" or "desk:2", "cases", "steps", or BFCL's categories joined by commas.
        sha256: of all the cases' contents.
        official: BFCL's own cases, for its result files; empty for other kinds.
    """

    plays: Mapping[str, Callable[[], RunningCase]]
    kind: str
    sha256: str
    official: Sequence[Any] = ()


@dataclass(frozen=True)
class TaskSpec:
    """Which tasks, and how they are played.

    Args:
        tasks: "desk", or "desk:2" for two requests a task; a case or step-task file; or categories of BFCL joined by
            commas, of which those in `GROUPS` stand for several.
        count: cases taken (of each BFCL category); 0: all (256 of the desk).
        skip: cases left out before them (of each category).
        seed: of the desk's tasks, and of faults.
        max_turns: assistant turns per episode (not for BFCL's own cases, whose limit is official).
        format: how BFCL's own cases are shown: see `bfcl.formats`.
        mode: "strict" as officially, or "told": see `bfcl.play`.
        faults: injected into environments (not into BFCL's own cases).
    """

    tasks: str = "desk"
    count: int = 0
    skip: int = 0
    seed: int = 0
    max_turns: int = 4
    format: str = "chat"
    mode: str = "strict"
    faults: tuple[Fault, ...] = ()

    @property
    def prompt(self) -> dict[str, Any]:
        """What of this decides how cases are put to a policy, for manifests."""
        if self.official:
            return {"format": self.format, "mode": self.mode}
        faults = [asdict(fault) for fault in self.faults]
        return {"format": "chat", "max_turns": self.max_turns, **({"faults": faults} if faults else {})}

    @property
    def desk_requests(self) -> int | None:
        """Requests of each of the desk's tasks, None if the tasks are others. Raises ValueError for "desk:x"."""
        return requests_of(self.tasks)

    @property
    def official(self) -> tuple[str, ...]:
        """BFCL's categories asked for; empty if the tasks are something else."""
        names = [name for part in self.tasks.split(",") for name in GROUPS.get(part, (part,))]
        return tuple(dict.fromkeys(names)) if set(names) <= {*GROUPS["multi_turn"], *GROUPS["single_turn"]} else ()


GROUPS = {
    "multi_turn": tuple(f"multi_turn_{kind}" for kind in ("base", "miss_func", "miss_param", "long_context")),
    "ast": ("simple_python", "multiple", "parallel", "parallel_multiple"),
    "single_turn": (
        *("simple_python", "multiple", "parallel", "parallel_multiple", "irrelevance", "live_simple", "live_multiple"),
        *("live_parallel", "live_parallel_multiple", "live_irrelevance", "live_relevance"),
    ),
}
"""Names that stand for several of BFCL's categories."""


def task_set(choice: TaskSpec) -> TaskSet:
    """The cases of a choice.

    Raises:
        ValueError: there are no such tasks (TaskFileError where a file is wrong), or none are left.
        ModuleNotFoundError: they need bfcl-eval.
    """
    if choice.official:
        found = _bfcl(choice)
    elif choice.desk_requests:
        found = _desk(choice, choice.desk_requests)
    elif not Path(choice.tasks).is_file():
        raise ValueError(
            f"--tasks {choice.tasks!r} is no file; give 'desk', 'desk:2', a case or step-task file (.jsonl), or "
            f"categories of BFCL: {', '.join((*GROUPS, *GROUPS['multi_turn'], *GROUPS['single_turn']))}"
        )
    else:
        found = _file(choice)
    if not found.plays:
        raise ValueError(f"no case of --tasks {choice.tasks} is left; lower --skip_tasks")
    return found


def _desk(choice: TaskSpec, requests: int) -> TaskSet:
    from fission_grpo.envs.desk.env import Desk

    rows = make_rows(choice.skip + (choice.count or DESK_TASKS), choice.seed, "held_out", requests)[choice.skip :]
    return TaskSet(_episodes(rows, Desk, choice), "desk" if requests == 1 else f"desk:{requests}", sha256_of(rows))


def _file(choice: TaskSpec) -> TaskSet:
    from fission_grpo.data.load import case_rows, is_case_file, load_tasks

    if is_case_file(choice.tasks):
        rows, environments = case_rows(choice.tasks, choice.skip, choice.count)
        return TaskSet(_episodes(rows, environments, choice), "cases", sha256_of(rows))
    tasks = load_tasks(choice.tasks)[choice.skip :][: choice.count or None]
    return TaskSet({task.id: lambda task=task: run_step(task) for task in tasks}, "steps", sha256_of(tasks))


def _episodes(
    rows: Sequence[Mapping[str, Any]], environments: Any, choice: TaskSpec
) -> dict[str, Callable[[], RunningCase]]:
    if choice.faults:
        named = isinstance(environments, Mapping)
        wrapped = {
            name: inject_faults(make, choice.faults, choice.seed)
            for name, make in (environments if named else {None: environments}).items()
        }
        environments = wrapped if named else wrapped[None]
    rules = EpisodeConfig(choice.max_turns)
    return {
        str(row.get("id", number)): lambda row=row, number=number: run_episode(environments, row, number, rules)
        for number, row in enumerate(rows)
    }


def _bfcl(choice: TaskSpec) -> TaskSet:
    from fission_grpo.envs.bfcl.official import MULTI_TURN, multi_turn_cases, single_turn_cases
    from fission_grpo.evaluation.bfcl.run_case import run_case, run_single_turn

    if choice.faults:
        raise ValueError("faults are injected into environments of ours, not into BFCL's own cases; leave out --fault")
    plays: dict[str, Callable[[], RunningCase]] = {}
    cases: list[Any] = []
    chosen = slice(choice.skip, choice.skip + choice.count if choice.count else None)
    for category in choice.official:
        if category in MULTI_TURN:
            here = multi_turn_cases(category)[chosen]
            plays |= {case.id: lambda case=case: run_case(case, choice.format, choice.mode) for case in here}
        else:
            here = single_turn_cases(category)[chosen]
            plays |= {case.id: lambda case=case: run_single_turn(case, choice.format) for case in here}
        cases += here
    return TaskSet(plays, ",".join(choice.official), sha256_of(cases), cases)


def sha256_of(cases: Iterable[Any]) -> str:
    """A digest of what cases hold, the same for the same cases in the same order."""
    digest = hashlib.sha256()
    for case in cases:
        values = asdict(case) if is_dataclass(case) and not isinstance(case, type) else case
        digest.update(json.dumps(values, sort_keys=True, default=str).encode() + b"\n")
    return digest.hexdigest()
