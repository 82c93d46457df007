"""The points of a run at which its policy is evaluated: when they are reached, and what is written then."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluations import card, evaluate, raw_line
from old_names import new_names
from suite import Job
from transformers import TrainerCallback

from fission_grpo.evaluation.metrics import compute_metrics
from fission_grpo.evaluation.policies import versions
from fission_grpo.evaluation.run import eval_line
from fission_grpo.training.callbacks import steps_per_cycle

POINTS, CLOCK = "points.jsonl", "clock.json"


@dataclass(frozen=True)
class Moment:
    """Where training stands: the policy's sampled tokens, extra ones by cause, updates, seconds of training."""

    tokens: int
    extra: Mapping[str, int]
    updates: int
    seconds: float


class Recorder:
    """Evaluates a job's policy and writes `points.jsonl`, and what `fission-grpo report` and the results need.

    `seconds` are those that its evaluations took, not counting any before the run was resumed.
    """

    def __init__(self, job: Job, model: Callable[[], Any], tokenizer: Any):
        self.job, self.model, self.tokenizer = job, model, tokenizer
        self.seconds = 0.0

    def evaluate(self, point: int, moment: Moment, last: bool) -> None:
        """Evaluate on the sets of this point."""
        began = time.monotonic()
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
                    file.write(eval_line(compute_metrics(records), shown, moment.updates, moment.tokens) + "\n")
        (self.job.folder / "sets.json").write_text(json.dumps(cards))
        self.seconds += time.monotonic() - began


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


def _simulator_tokens(logged: Mapping[str, Any]) -> int:
    return int(new_names(logged).get("feedback/model/completion_tokens", 0))


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
        self.simulator_tokens = sum(map(_simulator_tokens, state.log_history))
        self.points = [point for point in self.points if point > self._all_tokens()]
        self.clock.start()

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.simulator_tokens += _simulator_tokens(logs or {})
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
