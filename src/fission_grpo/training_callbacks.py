"""Live progress of a `FissionGRPOTrainer`, its token budget, and stopping any trainer on Ctrl-C or SIGTERM."""

from __future__ import annotations

import signal
import sys
import time
from types import FrameType
from typing import Any

from accelerate.utils import gather_object
from transformers import TrainerCallback

from fission_grpo.progress import Moment, progress_line


class LiveProgress(TrainerCallback):
    """A rich progress bar with the line of `progress_line`; plain lines, one per log, where stderr is no terminal.

    Remove transformers' own `ProgressCallback` and `PrinterCallback` from the trainer when using it.
    """

    def __init__(self) -> None:
        self._bar: Any = None
        self._task: Any = None
        self._started = 0.0
        self._first_step = 0
        self._first_tokens: float | None = 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        self._started, self._first_step = time.monotonic(), state.global_step
        self._first_tokens = 0.0 if state.global_step == 0 else None
        if not state.is_world_process_zero or not sys.stderr.isatty():
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        console = Console(stderr=True)
        self._bar = Progress(BarColumn(bar_width=20), TextColumn("{task.description}"), console=console)
        self._task = self._bar.add_task("sampling the first batch", total=state.max_steps, completed=state.global_step)
        self._bar.start()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or not logs or "fission/generated_tokens" not in logs:
            return
        tokens = logs["fission/generated_tokens"]
        moment = Moment(
            step=state.global_step,
            max_steps=state.max_steps,
            seconds=time.monotonic() - self._started,
            first_step=self._first_step,
            tokens=tokens,
            first_tokens=self._first_tokens,
            max_tokens=getattr(args, "max_generated_tokens", 0),
        )
        if self._first_tokens is None:  # resumed: count from the first log on
            self._first_tokens, self._started, self._first_step = tokens, time.monotonic(), state.global_step
        line = progress_line(moment, logs)
        if self._bar is None:
            print(line, file=sys.stderr, flush=True)
        else:
            self._bar.update(self._task, completed=state.global_step, description=line)

    def on_train_end(self, args, state, control, **kwargs):
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class TokenBudget(TrainerCallback):
    """Ends training with the cycle in which a `FissionGRPOTrainer` has sampled so many tokens; 0: no limit.

    A stop asked for any earlier would throw away what was sampled last: transformers then leaves out the rest of the
    step, the update included.
    """

    def __init__(self, tokens: int, trainer: Any):
        self._tokens, self._trainer = tokens, trainer

    def on_step_end(self, args, state, control, **kwargs):
        if 0 < self._tokens <= self._trainer.generated_tokens and not self._trainer._in_cycle():
            control.should_training_stop = True


class StopAndSave(TrainerCallback):
    """On SIGINT or SIGTERM: finish the cycle, save a checkpoint, end training. A second signal ends at once.

    `signal` is the number of the signal that some rank received, None if there was none. Use as a context manager
    around `train()`, in the main thread.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopAndSave:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._received)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _received(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self.__exit__()
        print("\nstopping after this cycle, then saving; once more to stop at once", file=sys.stderr, flush=True)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % steps_per_cycle(args):
            return
        received = [number for number in gather_object([self.signal]) if number is not None]  # from all ranks
        if received:
            self.signal = received[0]
            control.should_save = control.should_training_stop = True


def steps_per_cycle(args: Any) -> int:
    """Optimizer steps made with one generation batch: steps_per_generation * num_iterations / accumulation.

    1 where nothing is generated (`trl.SFTConfig`).
    """
    if not hasattr(args, "steps_per_generation"):
        return 1
    return max(1, args.steps_per_generation * args.num_iterations // args.gradient_accumulation_steps)
