"""One arm with one seed: train, evaluate at every point, leave the raw results in the run's folder.

`points.jsonl` gets a line per evaluation, `run.json` is written last: a folder with it is finished. A run that was
killed goes on from its newest checkpoint if its options save any, else it begins anew.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arms import VARIANTS, recover_offline
from evaluations import card, evaluate, raw_line
from suite import ROOT, Suite
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from fission_grpo.evaluate import eval_line
from fission_grpo.evaluation.players import versions
from fission_grpo.evaluation.rates import rates_of
from fission_grpo.model_path import model_path
from fission_grpo.run_state import load_state
from fission_grpo.simulator.chosen import closing, endpoint_options, sources_from
from fission_grpo.train_command import make_trainer, parse, resume_point
from fission_grpo.training_callbacks import steps_per_cycle

KEPT = ("fission/", "recovery/", "simulator/", "reward", "completions/mean_length", "grad_norm", "entropy", "loss")
"""Beginnings of the logged numbers that are kept of every cycle."""
BEGUN, POINTS, RUN, CLOCK = "begun.json", "points.jsonl", "run.json", "clock.json"


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


def run(job: Job) -> None:
    """Do a job; `run.json` is there afterwards."""
    began = time.monotonic()
    if job.suite.arms[job.arm].train:
        finished = _train(job)
    else:
        job.folder.mkdir(parents=True, exist_ok=True)
        name = model_path(job.suite.training_options(job.arm)["model_name_or_path"])
        tokenizer = AutoTokenizer.from_pretrained(name, padding_side="left")
        model = AutoModelForCausalLM.from_pretrained(name, dtype="float32")
        Recorder(job, lambda: model, tokenizer).evaluate(0, Moment(0, {}, 0, 0.0), last=True)
        finished = {"options": job.suite.training_options(job.arm), "seconds": 0.0, "extra_tokens": {}, "cycles": []}
    finished |= {"eval_seconds": round(time.monotonic() - began - finished["seconds"], 1), "versions": versions()}
    (job.folder / RUN).write_text(json.dumps({**job.key, **finished}) + "\n")


def _train(job: Job) -> dict[str, Any]:
    arm, points = job.suite.arms[job.arm], list(job.suite.points)
    begun = job.folder / BEGUN
    if not list(job.folder.glob("checkpoint-*")) or json.loads(begun.read_text()) != job.key:
        shutil.rmtree(job.folder, ignore_errors=True)
    job.folder.mkdir(parents=True, exist_ok=True)
    begun.write_text(json.dumps(job.key))
    offline: dict[str, Any] = load_state(ROOT / arm.offline) if arm.offline else {"generated_tokens": 0}
    options = job.suite.training_options(job.arm) | {
        "output_dir": str(job.folder),
        "seed": job.seed,
        "max_generated_tokens": points[-1] - offline["generated_tokens"],
        "max_steps": 1_000_000,
        "resume_from_checkpoint": "true" if list(job.folder.glob("checkpoint-*")) else "none",
    }
    script, args, model, reward = parse(_as_arguments(options))
    checkpoint = resume_point(args)
    with closing(sources_from(script.diagnose, *endpoint_options(script.simulator))) as sources:
        trainer = make_trainer(script, args, model, reward, sources, VARIANTS[arm.trainer])
        if arm.offline:
            recover_offline(trainer, offline["fission"]["buffer"])
        recorder = Recorder(job, lambda: trainer.accelerator.unwrap_model(trainer.model), trainer.processing_class)
        points_reached = EvaluateAtPoints(trainer, recorder, points, offline["generated_tokens"])
        trainer.add_callback(points_reached)
        trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_state()
    trainer.save_model()  # so that one can look into why a policy does what it does
    cycles = [_cycle(row, points_reached.clock.by_step) for row in trainer.state.log_history if "fission/phase" in row]
    return {
        "options": job.suite.training_options(job.arm),
        "seconds": round(points_reached.clock.seconds, 2),
        "extra_tokens": points_reached.extra(),
        "cycles": cycles,
    }


def _as_arguments(options: Mapping[str, Any]) -> list[str]:
    """`{"seed": 1, "simulator": {"url": "x"}}` as `["--seed", "1", "--simulator", '{"url": "x"}']`."""
    given: list[str] = []
    for name, value in options.items():
        if isinstance(value, list):
            given += [f"--{name}", *map(str, value)]
        elif value is not None:
            given += [f"--{name}", json.dumps(value) if isinstance(value, dict | bool) else str(value)]
    return given


def _cycle(row: Mapping[str, Any], seconds: Mapping[str, float]) -> dict[str, Any]:
    kept = {name: float(f"{value:.4g}") for name, value in row.items() if name.startswith(KEPT)}
    del kept["fission/phase"], kept["fission/generated_tokens"]
    return {
        "step": row["step"],
        "phase": int(row["fission/phase"]),
        "tokens": int(row["fission/generated_tokens"]),
        "seconds": seconds.get(str(row["step"])),
        **kept,
    }


@dataclass(frozen=True)
class Moment:
    """Where training stands: the policy's sampled tokens, extra ones by cause, updates, seconds of training."""

    tokens: int
    extra: Mapping[str, int]
    updates: int
    seconds: float


class Recorder:
    """Evaluates a job's policy and writes `points.jsonl`, and what `fission-grpo report` and the results need."""

    def __init__(self, job: Job, model: Callable[[], Any], tokenizer: Any):
        self.job, self.model, self.tokenizer = job, model, tokenizer

    def evaluate(self, point: int, moment: Moment, last: bool) -> None:
        """Evaluate on the sets of this point, but not again on those that are there."""
        cards: dict[str, Any] = {}
        for name, one in self.job.suite.sets_of(self.job.arm).items():
            if one.at == "last" and not last:
                continue
            records = evaluate(self.model(), self.tokenizer, one, seed=self.job.seed)
            cards[name] = card(records)
            line = {
                **self.job.key,
                "point": point,
                "tokens": moment.tokens,
                "extra_tokens": dict(moment.extra),
                "updates": moment.updates,
                "seconds": round(moment.seconds, 2),
                "set": name,
                **raw_line(records),
                "versions": versions(),
            }
            with (self.job.folder / POINTS).open("a") as file:
                file.write(json.dumps(line) + "\n")
            if one.at == "every":
                shown = f"{self.job.arm} {name}"
                with (self.job.folder / "eval.jsonl").open("a") as file:
                    file.write(eval_line(rates_of(records), shown, moment.updates, moment.tokens) + "\n")
        (self.job.folder / "sets.json").write_text(json.dumps(cards))


class Clock:
    """Seconds of training, evaluations left out; kept in `clock.json` with every checkpoint."""

    def __init__(self, file: Path):
        self.file, self.by_step, self._before = file, {}, 0.0
        self._began: float | None = None
        if file.is_file():
            kept = json.loads(file.read_text())
            self._before, self.by_step = kept["seconds"], kept["by_step"]

    @property
    def seconds(self) -> float:
        return self._before + (0.0 if self._began is None else time.monotonic() - self._began)

    def start(self) -> None:
        self._began = time.monotonic()

    def stop(self) -> None:
        self._before, self._began = self.seconds, None

    def save(self) -> None:
        self.file.write_text(json.dumps({"seconds": self.seconds, "by_step": self.by_step}))


class EvaluateAtPoints(TrainerCallback):
    """Evaluates at the end of the cycle in which a point is reached, and ends training at the last point.

    Args:
        trainer: a FissionGRPOTrainer.
        recorder: evaluates.
        points: rising numbers of tokens, the policy's and extra ones together.
        offline_tokens: extra ones spent before training.
    """

    def __init__(self, trainer: Any, recorder: Recorder, points: list[int], offline_tokens: int):
        self.trainer, self.recorder, self.points = trainer, recorder, points
        self.offline_tokens, self.simulator_tokens = offline_tokens, 0
        self.clock = Clock(recorder.job.folder / CLOCK)

    def extra(self) -> dict[str, int]:
        found = {"offline": self.offline_tokens, "simulator": self.simulator_tokens}
        return {cause: tokens for cause, tokens in found.items() if tokens}

    def _all_tokens(self) -> int:
        return self.trainer.generated_tokens + sum(self.extra().values())

    def on_train_begin(self, args, state, control, **kwargs):
        logged = [row.get("simulator/completion_tokens", 0) for row in state.log_history]
        self.simulator_tokens = int(sum(logged))
        self.points = [point for point in self.points if point > self._all_tokens()]
        self.clock.start()

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.simulator_tokens += int((logs or {}).get("simulator/completion_tokens", 0))
        self.clock.by_step[str(state.global_step)] = round(self.clock.seconds, 2)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % steps_per_cycle(args):
            return
        reached = [point for point in self.points if point <= self._all_tokens()]
        if not reached:
            return
        self.points = self.points[len(reached) :]
        self.clock.stop()
        tokens = self.trainer.generated_tokens
        moment = Moment(tokens, self.extra(), state.global_step, self.clock.seconds)
        self.recorder.evaluate(reached[-1], moment, last=not self.points)
        self.clock.start()
        if not self.points:
            control.should_training_stop = True

    def on_save(self, args, state, control, **kwargs):
        self.clock.save()

    def on_train_end(self, args, state, control, **kwargs):
        self.clock.stop()
