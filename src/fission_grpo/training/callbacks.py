"""Callbacks: live progress, warnings about a run's health, a token budget, and stopping on a signal."""

from __future__ import annotations

import functools
import math
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import TrainerCallback
from transformers.trainer_utils import SaveStrategy

from fission_grpo.core.terminal import TolerantStream, get_logger, show
from fission_grpo.core.timing import format_duration
from fission_grpo.fission.health import CYCLE_ROWS, METRICS, check_health
from fission_grpo.inference.secrets import shown_command

_log = get_logger(__name__)

PROGRESS_METRICS = (
    ("reward", "reward", ".3f"),
    ("success", "fission/success", ".2f"),
    ("recovered", "fission/error_recovery_rate", ".2f"),
    ("recoveries right", "recovery/rate", ".2f"),
    ("buffer", "fission/buffer", ".0f"),
)
"""Label, metric and format of the values in a progress line."""


@dataclass(frozen=True)
class RunProgress:
    """Progress of a training run."""

    step: int  # optimizer steps so far
    max_steps: int
    seconds: float  # since training started or was resumed, at `first_step`
    first_step: int = 0  # 0, or the step of the resumed checkpoint
    tokens: float = 0.0  # sampled by the policy so far
    first_tokens: float | None = 0.0  # the same at `first_step`; None: unknown
    max_tokens: int = 0  # the token budget; 0: none

    @property
    def tokens_per_second(self) -> float | None:
        """Sampled tokens over wall-clock time, training included; None if unknown."""
        if self.first_tokens is None or self.seconds <= 0 or self.tokens <= self.first_tokens:
            return None
        return (self.tokens - self.first_tokens) / self.seconds

    @property
    def seconds_left(self) -> float | None:
        """Time until the last step or the end of the token budget, whichever is first; None before the first step."""
        done = self.step - self.first_step
        if done <= 0:
            return None
        by_steps = max(0, self.max_steps - self.step) * self.seconds / done
        rate = self.tokens_per_second
        if not self.max_tokens or not rate:
            return by_steps
        return min(by_steps, max(0.0, self.max_tokens - self.tokens) / rate)


def progress_line(progress: RunProgress, logs: Mapping[str, float]) -> str:
    """One line about a logged step; values that were not logged, or are no numbers, are left out.

    The trainer's `logs` are means over the logged steps, so that a phase between 0 and 1 is "mixed".

    Example:
        "step 4/10 · explore · reward 0.61 · success 0.33 · recovered 0.25 · buffer 3 · 45 tokens/s · 0:30 left"
    """
    logs = {name: float(value) for name, value in logs.items() if isinstance(value, int | float) and value == value}
    parts = [f"step {progress.step}/{progress.max_steps}"]
    if "fission/phase" in logs:
        parts.append({0.0: "explore", 1.0: "recover"}.get(logs["fission/phase"], "mixed"))
    parts += [f"{label} {logs[metric]:{form}}" for label, metric, form in PROGRESS_METRICS if metric in logs]
    if progress.tokens_per_second is not None:
        parts.append(f"{progress.tokens_per_second:,.0f} tokens/s")
    if progress.seconds_left is not None:
        parts.append(f"{format_duration(progress.seconds_left)} left")
    return " · ".join(parts)


def _cosmetic(event: Callable[..., None]) -> Callable[..., None]:
    """An event of `LiveProgress` that never raises: after an error, which is logged, nothing more is shown."""

    @functools.wraps(event)
    def handle(self: LiveProgress, *args: Any, **kwargs: Any) -> None:
        if not self._is_broken:
            try:
                event(self, *args, **kwargs)
            except Exception:  # noqa: BLE001 - of a terminal, rich, or values that nobody foresaw
                self._is_broken = True
                with suppress(Exception):
                    _log.warning("progress is not shown any more", exc_info=True)
                with suppress(Exception):
                    self._stop()

    return handle


class LiveProgress(TrainerCallback):
    """Shows `progress_line` in a rich progress bar, or as one line per log where stderr is no terminal."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._task: Any = None
        self._is_broken = False

    @_cosmetic
    def on_train_begin(self, args, state, control, **kwargs):
        self._started, self._first_step = time.monotonic(), state.global_step
        self._first_tokens: float | None = 0.0 if state.global_step == 0 else None
        if not state.is_world_process_zero or not TolerantStream(sys.stderr).isatty():
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        console = Console(stderr=True)
        self._bar = Progress(BarColumn(bar_width=20), TextColumn("{task.description}"), console=console)
        self._task = self._bar.add_task("sampling the first batch", total=state.max_steps, completed=state.global_step)
        self._bar.start()

    @_cosmetic
    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or not logs or "fission/generated_tokens" not in logs:
            return
        progress = RunProgress(
            step=state.global_step,
            max_steps=state.max_steps,
            seconds=time.monotonic() - self._started,
            first_step=self._first_step,
            tokens=logs["fission/generated_tokens"],
            first_tokens=self._first_tokens,
            max_tokens=getattr(args, "max_generated_tokens", 0),
        )
        if self._first_tokens is None:  # resumed: count from the first log on
            self._first_tokens, self._started, self._first_step = progress.tokens, time.monotonic(), progress.step
        line = progress_line(progress, logs)
        if self._bar is None:
            show(line, error=True)
        else:
            self._bar.update(self._task, completed=state.global_step, description=line)

    @_cosmetic
    def on_train_end(self, args, state, control, **kwargs):
        self._stop()

    def _stop(self) -> None:
        bar, self._bar = self._bar, None
        if bar is not None:
            bar.stop()


class TokenBudget(TrainerCallback):
    """Ends training after the cycle in which a `FissionGRPOTrainer` has sampled a number of tokens; 0: no limit.

    As at the last step, a checkpoint is saved, unless `save_strategy` is "no". It waits for the end of the cycle, as
    transformers skips the rest of the step, the update included, on a stop.
    """

    def __init__(self, tokens: int, trainer: Any):
        self._tokens, self._trainer = tokens, trainer

    def on_step_end(self, args, state, control, **kwargs):
        if 0 < self._tokens <= self._trainer.generated_tokens and not self._trainer._in_cycle():
            control.should_training_stop = True
            control.should_save = control.should_save or args.save_strategy != SaveStrategy.NO


class SkipZeroSignal(TrainerCallback):
    """Leaves out the optimizer step of an update whose gradient is exactly zero on all ranks.

    Adam would go on with its momentum, and weight decay with shrinking. Such a step is counted as
    `fission/skipped_updates`, the share of the logged updates. DeepSpeed, which steps by itself, is not affected.
    """

    def __init__(self, trainer: Any):
        self._trainer = trainer

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        parameters = [] if model is None else [one for one in model.parameters() if one.grad is not None]
        has_signal = any(bool(_local(one.grad).any()) for one in parameters)  # ends at the first that is not zero
        flags = torch.tensor([has_signal, bool(parameters)], device=self._trainer.accelerator.device)
        any_signal, any_gradient = self._trainer.accelerator.gather(flags[None]).any(dim=0).tolist()
        skipped = any_gradient and not any_signal
        self._trainer._metrics["train"]["fission/skipped_updates"].append(float(skipped))
        for parameter in parameters if skipped else ():
            parameter.grad = None  # optimizers leave out parameters without a gradient


def _local(gradient: Any) -> torch.Tensor:
    """This rank's part of a gradient that is sharded (a DTensor)."""
    return gradient.to_local() if hasattr(gradient, "to_local") else gradient


class HealthWarnings(TrainerCallback):
    """Keeps one row of metrics per cycle, and warns of each finding of `check_health` in them, when it is first there.

    The trainer logs means of `logging_steps` steps. The rows go into checkpoints with the trainer's state, where
    `fission-grpo doctor` finds them, and on from there in a resumed run.

    Args:
        trainer: keeps its metrics as TRL's GRPOTrainer does: by name in `_metrics["train"]` until it logs.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self.cycles: list[dict[str, float]] = []
        self._known: set[str] = set()
        self._next = 0  # number of rows at the next check
        self._seen: dict[str, int] = {}  # values of each metric since the trainer logged that are in the rows

    def on_train_begin(self, args, state, control, **kwargs):
        kept: Any = state.stateful_callbacks
        if CYCLE_ROWS not in kept:  # this run begins, or it resumes one of an earlier release
            logged = [dict(row) for row in state.log_history if "fission/phase" in row]
            kept[CYCLE_ROWS] = {"args": {}, "attributes": {"cycles": logged, "seen": {}}}
        self.cycles, self._seen = (
            kept[CYCLE_ROWS]["attributes"][name] for name in ("cycles", "seen")
        )  # saved with it
        self._known, self._next = set(), 0

    def on_step_end(self, args, state, control, **kwargs):
        metrics, row = self._trainer._metrics["train"], dict[str, float](step=state.global_step)
        if len(metrics.get("fission/phase", ())) > self._seen.get("fission/phase", 0):
            for name, values in metrics.items():
                new = [value for value in values[self._seen.get(name, 0) :] if math.isfinite(value)]
                if new and name.startswith(METRICS) and not name.endswith("seconds"):  # equal runs have equal rows
                    row[name] = sum(new) / len(new)
            self._seen.update({name: len(values) for name, values in metrics.items()})
            self.cycles.append(row)
        if not control.should_log:
            self._check(state)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self._trainer.model.training:  # TRL forgets the metrics now
            self._seen.clear()
        if self.cycles and logs and "learning_rate" in logs:
            self.cycles[-1].update(
                {name: logs[name] for name in ("learning_rate", "loss", "grad_norm") if name in logs}
            )
            self._check(state)

    def on_train_end(self, args, state, control, **kwargs):
        self._next = 0
        self._check(state)

    def _check(self, state: Any) -> None:
        if not state.is_world_process_zero or len(self.cycles) < self._next:
            return
        # later in a run more rarely, so that the checks' time does not grow with its square
        self._next = len(self.cycles) + max(1, len(self.cycles) // 50)
        for finding in check_health(self.cycles):
            if finding.name not in self._known:
                self._known.add(finding.name)
                _log.warning("step %d: %s", state.global_step, finding)


class StopAndSave(TrainerCallback):
    """On a signal: finish the cycle, save a checkpoint, end training. A second SIGINT or SIGTERM ends at once.

    The signals are SIGINT and SIGTERM, and, unless they are ignored (nohup) or something else handles them, SIGHUP (a
    closed terminal) and SIGUSR1 (a scheduler's warning). Use it as a context manager around `train()`, in the main
    thread. `signal` is the number that some rank received.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._original_handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopAndSave:
        others = [getattr(signal, name) for name in ("SIGHUP", "SIGUSR1") if hasattr(signal, name)]
        for number in (signal.SIGINT, signal.SIGTERM, *others):
            if number not in others or signal.getsignal(number) == signal.SIG_DFL:
                self._original_handlers[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._original_handlers.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        for other, handler in self._original_handlers.items():  # a closed terminal sends SIGHUP more than once
            signal.signal(other, handler if other in (signal.SIGINT, signal.SIGTERM) else signal.SIG_IGN)
        show("\nstopping after this cycle, then saving; once more to stop at once", error=True)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % steps_per_cycle(args):
            return
        received = [number for number in gather_object([self.signal]) if number is not None]  # from all ranks
        if received:
            self.signal = received[0]
            control.should_save = control.should_training_stop = True


def steps_per_cycle(args: Any) -> int:
    """Optimizer steps per generation batch: steps_per_generation * num_iterations / accumulation; 1 for SFT."""
    if not hasattr(args, "steps_per_generation"):
        return 1
    return max(1, args.steps_per_generation * args.num_iterations // args.gradient_accumulation_steps)


def print_resume_command(state: Any, words: Sequence[str]) -> None:
    """Print where a run was stopped, and the command that resumes it, without secrets in URLs and tokens."""
    resume = ["--resume_from_checkpoint", "true"]
    again = words if list(words[-2:]) == resume else [*words, *resume]  # the last one counts
    show(f"stopped at step {state.global_step} of {state.max_steps}, checkpoint saved. Resume:")
    show(f"  {shown_command(again)}")
