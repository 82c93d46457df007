"""A suite of experiments as one YAML file says it: options all arms share, arms, seeds, evaluation points and sets.

suite: episode                     # name, and folder of the results
config: configs/desk_fission.yaml  # options of `fission-grpo train` that all arms start from, below the repository
base: {loss_type: grpo}            # ... and what all arms change of them
prepare:                           # commands run once, in order, unless `creates` exists; `arms`: only those need it
  - {creates: runs/x/tasks.jsonl, command: python benchmarks/evidence/static_tasks.py --output runs/x/tasks.jsonl}
points: [30000, 60000]             # generated tokens (policy's and extra ones) at which policies are evaluated
sets:                              # what they are evaluated on, see `sets.Spec`
  held_out: {tasks: "desk:held_out", count: 300}
  faults: {tasks: "desk:faults", count: 150, at: last, arms: [grpo, fission]}
arms:
  untrained: {seeds: 5, train: false}
  grpo: {seeds: 10, options: {fission: false, guard_tools: true}}
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

sys.path.append(str(Path(__file__).resolve().parents[1]))

from old_names import old_options

ROOT = Path(__file__).resolve().parent.parent.parent


class SuiteError(ValueError):
    """The YAML file has a mistake; the message names file and field."""


@dataclass(frozen=True)
class Set:
    """What policies are evaluated on.

    Args:
        tasks: "desk:NAME" (a set of `desk_sets`), or what `fission-grpo eval --tasks` takes.
        count: tasks; 0: all of a file.
        skip: tasks left out before them.
        max_turns: assistant turns per episode.
        max_new_tokens: per assistant turn.
        temperature: of the sampling; 0 takes the most probable token.
        in_flight: episodes side by side.
        at: "every" point, or the "last" only.
        arms: the arms evaluated on it; empty: all.
    """

    tasks: str
    count: int = 0
    skip: int = 0
    max_turns: int = 4
    max_new_tokens: int = 64
    temperature: float = 1.0
    in_flight: int = 64
    at: str = "every"
    arms: Sequence[str] = ()


@dataclass(frozen=True)
class Arm:
    """One way of training.

    Args:
        seeds: how many, from the suite's first.
        options: of `fission-grpo train`, over those all arms share.
        train: False evaluates the untrained policy, with as many seeds of sampling.
        trainer: "fission" (the library's, which is TRL's with `fission: false`) or one of `arms.VARIANTS`.
        offline: a checkpoint whose buffer is all that is recovered from; the tokens sampled for it are charged.
        charged: a checkpoint of a run that sampled what the arm's task file was made of; its tokens are charged.
    """

    seeds: int
    options: Mapping[str, Any] = field(default_factory=dict)
    train: bool = True
    trainer: str = "fission"
    offline: str | None = None
    charged: str | None = None


@dataclass(frozen=True)
class Suite:
    """All of a YAML file; `options` are those all arms share, with `config` read in."""

    name: str
    options: Mapping[str, Any]
    points: Sequence[int]
    sets: Mapping[str, Set]
    arms: Mapping[str, Arm]
    prepare: Sequence[Mapping[str, Any]] = ()
    first_seed: int = 0

    def jobs(self) -> list[tuple[str, int]]:
        """Every (arm, seed), all arms of the first seed first, so that a suite cut short is a smaller suite."""
        most = max(arm.seeds for arm in self.arms.values())
        numbers = [(name, number) for number in range(most) for name, arm in self.arms.items() if number < arm.seeds]
        return [(name, self.first_seed + number) for name, number in numbers]

    def training_options(self, arm: str) -> dict[str, Any]:
        return {**self.options, **self.arms[arm].options}

    def sets_of(self, arm: str) -> dict[str, Set]:
        return {name: one for name, one in self.sets.items() if not one.arms or arm in one.arms}

    def config(self, arm: str) -> str:
        """A digest of all that decides an arm's results but the seed and which seeds there are.

        Options have their old names in it, so that it is still that of the results made before the renaming.
        """
        told = {**asdict(self.arms[arm]), "seeds": 0, "options": old_options(self.training_options(arm))}
        if told["charged"] is None:  # older results know no such field
            del told["charged"]
        sets = {name: {**asdict(one), "arms": ()} for name, one in self.sets_of(arm).items()}
        text = json.dumps([told, list(self.points), sets], sort_keys=True, default=list)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Job:
    """An arm of a suite, a seed, and the folder of the run."""

    suite: Suite
    arm: str
    seed: int
    folder: Path

    @property
    def key(self) -> dict[str, Any]:
        config = self.suite.config(self.arm)
        return {"suite": self.suite.name, "arm": self.arm, "seed": self.seed, "config": config}


def read_suite(path: Path) -> Suite:
    """The suite of a YAML file.

    Raises:
        SuiteError: it has a mistake.
    """
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise SuiteError(f"{path}: not YAML ({error})") from error
    known = {"suite", "config", "base", "prepare", "first_seed", "points", "sets", "arms"}
    if not isinstance(given, dict) or not {"suite", "points", "sets", "arms"} <= given.keys() <= known:
        raise SuiteError(f"{path}: must be a mapping with suite, points, sets, arms and perhaps {', '.join(known)}")
    options = yaml.safe_load((ROOT / given["config"]).read_text(encoding="utf-8")) if "config" in given else {}
    sets = {name: _made(Set, path, f"sets.{name}", fields_) for name, fields_ in given["sets"].items()}
    arms = {name: _made(Arm, path, f"arms.{name}", fields_) for name, fields_ in given["arms"].items()}
    points = given["points"]
    if not points or sorted(set(points)) != points:
        raise SuiteError(f"{path}: points must be rising numbers of tokens, got {points}")
    for name, one in sets.items():
        if strangers := [arm for arm in one.arms if arm not in arms]:
            raise SuiteError(f"{path}: sets.{name}.arms names {strangers[0]!r}; there are {', '.join(arms)}")
        if one.at not in ("every", "last"):
            raise SuiteError(f"{path}: sets.{name}.at must be every or last, got {one.at!r}")
    options |= given.get("base") or {}
    prepare, first = given.get("prepare") or (), given.get("first_seed", 0)
    return Suite(given["suite"], options, points, sets, arms, prepare, first)


def _made(kind: Any, path: Path, where: str, given: Any) -> Any:
    known = [one.name for one in fields(kind)]
    if not isinstance(given, dict) or (strangers := [name for name in given if name not in known]):
        what = f"knows no {strangers[0]!r}" if isinstance(given, dict) else "must be a mapping"
        raise SuiteError(f"{path}: {where} {what}; its fields are {', '.join(known)}")
    try:
        return kind(**given)
    except TypeError as error:
        raise SuiteError(f"{path}: {where}: {error}") from error
