"""Checkpoints from which a run continues exactly as if it had never stopped.

They are complete or not there (see `checkpoint_files`). They are saved at ends of cycles, as TRL does not save a
generation batch that is partly used. They hold what TRL and transformers keep in memory only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from transformers import TrainerCallback

from fission_grpo.core.errors import CheckpointError, RunDirectoryError, UsageError
from fission_grpo.core.files import AGAIN, writing
from fission_grpo.core.terminal import get_logger
from fission_grpo.training import checkpoint_files, settings
from fission_grpo.training.checkpoint_files import STAGING, TRAINER_STATE, load_state
from fission_grpo.training.resume import find_checkpoint, loading
from fission_grpo.training.run_folder import claim, lock_run, model_staging, publish_model
from fission_grpo.training.trl_compat import MixinBase

REFERENCE = "ref_model.safetensors"  # the reference model's weights, if `sync_ref_model` changes them

_log = get_logger(__name__)


def shard_for_rank(by_rank: Sequence[Any], process_index: int, processes: int) -> Any:
    """One rank's entry of what all ranks saved; with another number of ranks the entry of one of them."""
    return by_rank[process_index if processes == len(by_rank) else process_index % len(by_rank)]


class CycleEnds(TrainerCallback):
    """Postpones saves, stops with a save, and evaluations for a save from the middle of a cycle to its end."""

    def __init__(self, in_cycle: Callable[[], bool], on_start: Callable[[], None]):
        self._in_cycle, self._on_start = in_cycle, on_start
        self._due: set[str] = set()
        self._has_warned = False

    def on_train_begin(self, args, state, control, **kwargs):
        self._due.clear()
        self._on_start()

    def on_step_end(self, args, state, control, **kwargs):
        if not self._in_cycle() or state.global_step >= state.max_steps:
            self._request_due(control)
            return
        due = {"save"} if control.should_save else set()
        if control.should_evaluate and (control.should_save or args.save_strategy == "best"):
            due.add("evaluate")  # the best checkpoint must be of the step that was evaluated
        if control.should_save and control.should_training_stop:
            due.add("training_stop")
        for name in due:
            setattr(control, f"should_{name}", False)
        self._due |= due
        if due and not self._has_warned and state.is_world_process_zero:
            self._has_warned = True
            _log.warning("step %d is within a cycle: saved when it ends (logged once)", state.global_step)

    def on_epoch_end(self, args, state, control, **kwargs):
        if control.should_training_stop:  # for another reason, such as the token budget
            self._request_due(control)

    def _request_due(self, control: Any) -> None:
        while self._due:
            setattr(control, f"should_{self._due.pop()}", True)


class ExactCheckpointMixin(MixinBase):
    """Makes checkpoints complete and exact, in `class Trainer(ExactCheckpointMixin, GRPOTrainer)`.

    Adds to a checkpoint: a manifest of its files; metrics and loss since the last log, the count of forward passes,
    and a reference model that `sync_ref_model` changes; the settings that decide what the run computes; and the state
    of subclasses, which extend `_run_state` and `_load_run_state`.

    Overrides: `train` (locks the run's folder, finds and checks the checkpoint), `_run_epoch` (nothing, if the resumed
    run was at its end), `_save_checkpoint`, `save_model`, `save_state`, `_get_output_dir`, `_push_from_checkpoint`
    (write to a staging folder, then rename), `_save` (no token in a file), `_load_from_checkpoint`,
    `_load_optimizer_and_scheduler`, `_get_train_sampler` (restore state and order of rows), `log` (mean `train_loss`).

    Without it a killed run may leave a checkpoint that is partly written, and a resumed run samples other rollouts
    and logs other values than one that never stopped, or trains on beyond its end.
    """

    args: Any
    tasks: str | None = None  # what is trained on, in words; for reports
    was_finished = False  # the resumed checkpoint was at the run's end, so that nothing was trained
    _is_staging = False  # transformers is writing a checkpoint
    _must_push = False
    _sampler: Any = None
    _resumed_from: Path | None = None
    _resumed_state: dict[str, Any] | None = None
    _first_step = 0
    _run: str | None = None  # id of the run, in its checkpoints
    _settings: Mapping[str, Any] = {}

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """TRL's, from a complete checkpoint. `resume_from_checkpoint` is `wanted` of `find_checkpoint`.

        A run that was at its end is loaded, and not trained. A run that starts sets checkpoints of earlier runs in
        its folder aside.

        Raises:
            CheckpointError: there is no checkpoint, or it is damaged or does not fit this trainer.
            RunDirectoryError: another process trains into the folder, or it cannot be written.
        """
        with ExitStack() as stack:
            self._resumed_from = checkpoint = self._open_run(resume_from_checkpoint, stack)
            self._resumed_state, self._first_step, self.was_finished = None, 0, False
            self._settings = settings.settings_of(self)
            self.remove_callback(CycleEnds)  # it must come last, after the callbacks that request saves
            self.add_callback(CycleEnds(self._in_cycle, self._begin))
            output = super().train(None if checkpoint is None else str(checkpoint), *args, **kwargs)
        if not self.state.global_step:
            raise UsageError(
                "training ended without a step: train_dataset gave no full generation batch "
                f"({self.args.generation_batch_size} rollouts), or max_steps or num_train_epochs is 0"
            )
        return output._replace(training_loss=output.metrics.get("train_loss", output.training_loss))

    def _open_run(self, wanted: Any, stack: ExitStack) -> Path | None:
        """Lock the run's folder until `stack` is closed; return the checkpoint to resume from, on all ranks."""
        run = Path(str(self.args.output_dir))

        def look() -> Path | None:
            if self.args.should_save:
                stack.enter_context(lock_run(run))
                checkpoint_files.clean_staging(run)
            if self.accelerator.is_main_process:
                return find_checkpoint(wanted, run, getattr(self.args, "fission", False), self.args.save_only_model)
            return None

        return self._together(look)

    @staticmethod
    def _together(action: Callable[[], Any]) -> Any:
        """Do something on all ranks; return what the first one's returns, or raise on every rank what one raises."""
        result, error = None, None
        try:
            result = action()
        except RunDirectoryError as raised:
            error = raised
        except (ValueError, OSError) as raised:
            error = CheckpointError(str(raised))
        outcomes = gather_object([(result, error)])
        for _, other in outcomes:
            if other is not None:  # without this the other ranks would wait
                raise error or other
        return outcomes[0][0]

    def _on_claim(self, state: Mapping[str, Any] | None) -> None:
        """Called when the folder is this run's, with the state of the checkpoint; None at a start without one."""

    def _in_cycle(self) -> bool:
        """Whether updates with the current generation batch are still to come."""
        return self._step % (self.args.steps_per_generation * self.num_iterations) != 0

    def _run_state(self) -> dict[str, Any]:
        """The state that a checkpoint adds to TRL's, as JSON. Called on all ranks; the first one's is saved."""
        state = {
            "step": self._step,
            "metrics": {name: list(values) for name, values in self._metrics["train"].items()},
            "loss": gather_object([self._tr_loss.item()]),
            "total_loss": self._total_loss_scalar,
            "last_logged": self._globalstep_last_logged,
            "first_step": self._first_step,
        }
        return {"trainer": {**state, "settings": dict(self._settings)}}

    def _load_run_state(self, state: dict[str, Any], checkpoint: Path) -> None:
        """Restore what `_run_state` returned, but for the loss, which transformers resets after this."""
        self._resumed_state, resumed = state, state["trainer"]
        self._step, self._buffered_inputs = resumed["step"], None
        self._metrics["train"].clear()
        self._metrics["train"].update(resumed["metrics"])

    def _is_at_end(self) -> bool:
        """Whether nothing is left to train; asked once a checkpoint is loaded."""
        return self.state.global_step >= self.state.max_steps

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.was_finished:  # transformers would make one step more before it looks
            self.model.train()  # pyright: ignore - as training leaves it: TRL logs the metrics of this mode
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _begin(self) -> None:
        """Called when everything is loaded, so that nothing is left to refuse, and transformers has reset the loss."""
        run, is_first = Path(str(self.args.output_dir)), self.accelerator.is_main_process
        description = settings.describe_run(self, self._settings)
        claimed = partial(claim, run, self._resumed_from, self.state.global_step, description)
        self._run = self._together(claimed if is_first else lambda: None)
        self._on_claim(self._resumed_state)
        best = run / f"checkpoint-{self.state.best_global_step}"
        if self.state.global_step and best.is_dir():  # where it is now: the folder may have been moved
            self.state.best_model_checkpoint = str(best)
        self.was_finished = self.state.global_step > 0 and self._is_at_end()
        if self._resumed_state is None:
            self._first_step = self.state.global_step
            if not self._first_step:
                self._step, self._buffered_inputs = 0, None  # of an earlier train()
            return
        resumed = self._resumed_state["trainer"]
        if self._in_cycle() and not self.was_finished:
            _log.warning(
                "the checkpoint of step %d was saved in the middle of a cycle, at the end of its run: a new batch is "
                "sampled, so this run is not exactly the one that would have continued",
                self.state.global_step,
            )
        rank = self.accelerator.process_index, self.accelerator.num_processes
        self._tr_loss.fill_(shard_for_rank(resumed["loss"], *rank))
        self._total_loss_scalar = resumed["total_loss"]
        self._globalstep_last_logged = resumed["last_logged"]
        self._first_step = resumed["first_step"]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "train_loss" in logs:  # of all steps, not of those since the last resume
            logs["train_loss"] = self._total_loss_scalar / max(self.state.global_step - self._first_step, 0.001)
        super().log(logs, *args, **kwargs)

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        self._sampler = super()._get_train_sampler(*args, **kwargs)
        return self._sampler

    def _moving_reference(self) -> Any:
        """The reference model if it changes during training and is complete in this process, else None."""
        if not self.args.sync_ref_model or self.ref_model is None:
            return None
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            _log.warning("the sharded reference model is in no checkpoint: a resumed run starts with the initial one")
            return None
        return self.accelerator.unwrap_model(self.ref_model)

    def _get_output_dir(self, trial: Any) -> str:
        run = super()._get_output_dir(trial)
        return str(Path(run) / STAGING) if self._is_staging else run

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        self._must_push = self._is_staging  # uploads run in the background: they start when the folder is in place
        if not self._is_staging:
            super()._push_from_checkpoint(checkpoint_folder)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        run = Path(self._get_output_dir(trial))
        final = run / f"checkpoint-{self.state.global_step}"
        staged = run / STAGING / final.name
        with writing(final, SafetensorError, RuntimeError):  # torch.save raises RuntimeError
            self._is_staging = True
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._is_staging = False
            self._complete(staged, final)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """TRL's, but the files appear in `output_dir` when all of them are written.

        Raises:
            RunDirectoryError: a file could not be written, or another process trains into the folder.
        """
        if self._is_staging:
            super().save_model(output_dir, _internal_call)
            return
        run = Path(str(output_dir or self.args.output_dir)).absolute()
        staged = model_staging(run)
        with ExitStack() as stack:
            if self.args.should_save:
                stack.enter_context(lock_run(run))
                checkpoint_files.clean_staging(run)
            self.accelerator.wait_for_everyone()
            with writing(run / "model.safetensors", Exception, advice=AGAIN):  # tokenizers raises a bare Exception
                super().save_model(str(staged), _internal_call=True)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                publish_model(staged, run)
            self.accelerator.wait_for_everyone()
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _save(self, *args: Any, **kwargs: Any) -> None:
        given = self.args
        self.args = settings.without_secrets(given)  # it is written as training_args.bin
        try:
            super()._save(*args, **kwargs)
        finally:
            self.args = given

    def save_state(self) -> None:
        if not self.args.should_save:
            return
        path = Path(str(self.args.output_dir)) / TRAINER_STATE
        half = path.with_name(f".{TRAINER_STATE}.half")
        with writing(path, advice=AGAIN):
            self.state.save_to_json(str(half))
            half.replace(path)

    def _complete(self, staged: Path, final: Path) -> None:
        """Add our files to a checkpoint that transformers has written, and move it to its place."""
        if self.state.best_model_checkpoint == str(staged):
            self.state.best_model_checkpoint = str(final)
        state = self._run_state()
        if self.args.should_save:
            self.state.save_to_json(str(staged / TRAINER_STATE))
            checkpoint_files.save_state(staged, {"run": self._run, **state})
            if (reference := self._moving_reference()) is not None:
                save_model(reference, str(staged / REFERENCE))
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            checkpoint_files.commit(staged, final, settings.installed_versions(), self._run)
            checkpoint_files.rotate(final.parent, self.args.save_total_limit, final, self.state.best_model_checkpoint)
        self.accelerator.wait_for_everyone()
        if self._must_push:
            self._push_from_checkpoint(str(final))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with loading(Path(resume_from_checkpoint)):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: Any) -> None:
        if checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        folder = Path(checkpoint)
        with loading(folder):
            try:
                state = load_state(folder)
            except ValueError as error:
                if getattr(self.args, "fission", False):
                    raise
                state = {}
                _log.warning("%s Metrics and loss since its last log are lost.", error)
            settings.compare_settings(folder, (state.get("trainer") or {}).get("settings"), self._settings)
            super()._load_optimizer_and_scheduler(checkpoint)
            if (folder / REFERENCE).exists() and (reference := self._moving_reference()) is not None:
                load_model(reference, str(folder / REFERENCE))
            if state:
                self._load_run_state(state, folder)
        if (sampler := self._sampler) is not None:
            for _ in range(int(self.state.epoch or 0)):  # each epoch draws its order from the same generator
                next(iter(sampler), None)
