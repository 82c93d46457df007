"""Checkpoints from which a run goes on exactly as if it had never stopped.

What they add to TRL's: they are whole or not there (`checkpoint_files`); they fall on ends of cycles, as TRL keeps no
half-used generation batch; and they hold what TRL and transformers keep in memory only: metrics and loss since the
last log, the count of forward passes, how often the order of rows was drawn, and a reference model that moves.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list, gather_object
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from transformers import TrainerCallback

from fission_grpo.core.files import check_writable, writing
from fission_grpo.core.serialization import faithful, task_to_json
from fission_grpo.core.types import Task
from fission_grpo.training.checkpoint_files import (
    MANIFEST,
    STAGING,
    TRAINER_STATE,
    check_named,
    fault_in,
    newest_whole,
    publish,
    rotate,
    tidy,
)
from fission_grpo.training.shared_prefix.trainer import SharedPrefixTrainer

FILE = "fission_state.json"


VERSION = 3
"""Of the file: 2 had no sources, no trainer's counts and no journal's length."""


def source_states(sources: Iterable[Any]) -> list[dict[str, Any]]:
    """What the sources of diagnoses remember, of those that have a `state()` (see `diagnose.Source`).

    Raises:
        ValueError: a source's state is not plain JSON; the message names the source.
    """
    states = []
    for source in sources:
        state = source.state() if callable(getattr(source, "state", None)) else None
        if faithful(state) is None:
            raise ValueError(
                f"source of diagnoses {source.name!r}: state() must return plain JSON (objects with string keys, "
                "lists, strings, numbers, booleans, null), else it cannot be kept in a checkpoint"
            )
        states.append({"name": source.name, "state": state})
    return states


def load_source_states(sources: Sequence[Any], states: Sequence[Mapping[str, Any]]) -> list[str]:
    """Give every source its state back; returns the names of those that the checkpoint knows nothing of."""
    strangers = []
    for i, source in enumerate(sources):
        saved = states[i] if i < len(states) and states[i]["name"] == source.name else None
        if saved is None:
            strangers.append(source.name)
        elif saved["state"] is not None and callable(getattr(source, "load_state", None)):
            source.load_state(saved["state"])
    return strangers


def packed_snapshots(states: Mapping[str, Any]) -> dict[str, Any]:
    """The snapshots of environments that JSON gives back as they are; the worlds of the others will be replayed."""
    return {name: state for name, state in states.items() if faithful(state) is not None}


def share_of(by_rank: Sequence[Any], process_index: int, processes: int) -> Any:
    """One rank's part of what all ranks saved; with another number of ranks the part of one of them."""
    return by_rank[process_index if processes == len(by_rank) else process_index % len(by_rank)]


def check_columns(dataset: Any) -> None:
    """Raise ValueError if the first row cannot be kept in a JSON checkpoint; the message names the column."""
    if not len(dataset):
        raise ValueError("train_dataset is empty: it needs at least one row.")
    try:
        task_to_json(Task("row 0", "", columns=dict(dataset[0])))
    except ValueError as error:
        raise ValueError(
            f"train_dataset, {error} (with fission=True the buffer keeps rows as JSON; fission=False does without)"
        ) from error


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Write the state into a checkpoint folder, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / (FILE + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump({"version": VERSION, **state}, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / FILE)


def has_state(folder: Path) -> bool:
    """Whether a checkpoint folder holds fission's state (plain GRPO can do without it)."""
    return (folder / FILE).exists()


def load_state(folder: Path) -> dict[str, Any]:
    """Read it back. Raises ValueError naming the file if it is missing, cut off or of another version."""
    path = folder / FILE
    if not has_state(folder):
        raise ValueError(
            f"{path} does not exist: this checkpoint has no fission buffer, so it was not saved by "
            "FissionGRPOTrainer. Resume from one of its checkpoints, or load the model alone (model=CHECKPOINT) and "
            "train without resume_from_checkpoint."
        )
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}). Resume from an earlier checkpoint.") from error
    version = state.get("version") if isinstance(state, dict) else None
    if version in (1, 2):
        raise ValueError(
            f"{path} is of version {version}, written by an earlier release, and this one reads version {VERSION}. Go "
            "on with that release, or load the model alone (model=CHECKPOINT) and do without resume_from_checkpoint."
        )
    if version != VERSION:
        raise ValueError(f"{path} is not a fission state of version {VERSION}. Resume from another checkpoint.")
    return state


PACKAGES = ("fission-grpo", "trl", "transformers", "torch")
"""Whose versions a checkpoint's manifest names."""


REFERENCE = "ref_model.safetensors"
"""The reference model's weights, where `sync_ref_model` changes them."""


_log = logging.getLogger(__name__)


def resume_from(wanted: Any, output: Path, fission: bool) -> Path | None:
    """The checkpoint that is meant, whole, or None to begin anew. Checkpoints that are not whole are told of.

    Args:
        wanted: True or "true": the newest whole one in `output`; a path; None, False, "none" or "false".
        output: the run directory.
        fission: whether the buffer is needed. Without it checkpoints of TRL's own trainers will do, too.

    Raises:
        ValueError: there is none, or the one asked for is no folder, or damaged; the message names the file.
    """
    unusable = partial(why_unusable, fission=fission)
    if str(wanted).lower() in ("none", "false"):
        return None
    if str(wanted).lower() != "true":
        if not Path(str(wanted)).is_dir():
            raise ValueError(f"resume_from_checkpoint: {wanted} is no folder; give a checkpoint-* folder, or 'true'")
        check_named(Path(str(wanted)), unusable)
        return Path(str(wanted))
    found = newest_whole(output, unusable)
    if found is None:
        raise ValueError(f"no checkpoint-* in {output} to resume from; check output_dir, or start without resuming")
    return found


def why_unusable(checkpoint: Path, fission: bool) -> str | None:
    """Why a run cannot be resumed from a checkpoint, None if it can. One of plain TRL has no manifest to go by."""
    if (checkpoint / MANIFEST).exists():
        if (fault := fault_in(checkpoint)) is not None:
            return fault
    elif not fission and not (checkpoint / TRAINER_STATE).is_file():
        return f"{checkpoint / TRAINER_STATE} is missing, so the checkpoint is unfinished"
    if not fission and not has_state(checkpoint):
        return None
    try:
        load_state(checkpoint)
    except ValueError as error:
        return None if not fission and not (checkpoint / MANIFEST).exists() else str(error)
    return fault_in(checkpoint) if not (checkpoint / MANIFEST).exists() else None


class CycleEnds(TrainerCallback):
    """Puts off what is due in the middle of a cycle to its end: saves, stops with a save, evaluations for a save.

    Args:
        in_cycle: whether the trainer is in the middle of a cycle.
        begun: called when training begins.
    """

    def __init__(self, in_cycle: Callable[[], bool], begun: Callable[[], None]):
        self._in_cycle, self._begun = in_cycle, begun
        self._due: set[str] = set()
        self._told = False

    def on_train_begin(self, args, state, control, **kwargs):
        self._due = set()
        self._begun()

    def on_step_end(self, args, state, control, **kwargs):
        if not self._in_cycle() or state.global_step >= state.max_steps:
            self._settle(control)
            return
        due = {"save"} if control.should_save else set()
        if control.should_evaluate and (control.should_save or args.save_strategy == "best"):
            due.add("evaluate")  # a best checkpoint is one of the step that was evaluated
        if control.should_save and control.should_training_stop:
            due.add("training_stop")
        for name in due:
            setattr(control, f"should_{name}", False)
        self._due |= due
        if due and not self._told and state.is_world_process_zero:
            self._told = True
            _log.warning("step %d is within a cycle: saved when it ends (this is said once)", state.global_step)

    def on_epoch_end(self, args, state, control, **kwargs):
        if control.should_training_stop:  # for another reason, such as the token budget
            self._settle(control)

    def _settle(self, control: Any) -> None:
        for name in self._due:
            setattr(control, f"should_{name}", True)
        self._due = set()


class CheckpointTrainer(SharedPrefixTrainer):
    """TRL's trainer with checkpoints that are whole and exact.

    Subclasses add to `_run_state` and `_load_run_state`.
    """

    args: Any

    def __init__(self, *args: Any, **kwargs: Any):
        self._staging = False  # transformers is writing a checkpoint
        self._pushing: str | None = None
        self._sampler: Any = None
        self._before: dict[str, Any] | None = None  # of the checkpoint, until training begins
        self._first_step = 0
        super().__init__(*args, **kwargs)

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """TRL's, from a checkpoint that is whole: the newest for True; a path is checked. See `resume_from`.

        Raises:
            ValueError: there is none, or the one asked for is damaged or not fit for this trainer.
        """
        run = Path(str(self.args.output_dir))
        found: list[Any] = [None, None]
        if self.args.should_save:
            check_writable(run)
            tidy(run)
        if self.accelerator.is_main_process:
            try:
                found[0] = resume_from(resume_from_checkpoint, run, bool(getattr(self.args, "fission", False)))
            except ValueError as error:
                found[1] = str(error)
        broadcast_object_list(found)
        if found[1] is not None:
            raise ValueError(found[1])
        self._before, self._first_step = None, 0
        if found[0] is None:
            self._begin_anew()
        self.remove_callback(CycleEnds)  # it comes last, after the callbacks that ask for saves
        self.add_callback(CycleEnds(self._in_cycle, self._begun))
        output = super().train(None if found[0] is None else str(found[0]), *args, **kwargs)
        return output._replace(training_loss=output.metrics.get("train_loss", output.training_loss))

    def _begin_anew(self) -> None:
        """Training begins without a checkpoint."""

    def _in_cycle(self) -> bool:
        """Whether updates with the present generation batch are still to come."""
        return self._step % (self.args.steps_per_generation * self.num_iterations) != 0

    # -- what is kept -------------------------------------------------------------------------------------------------

    def _run_state(self) -> dict[str, Any]:
        """What a checkpoint holds beside TRL's, as JSON. Called on all ranks; the first one's is kept."""
        return {
            "trainer": {
                "step": self._step,
                "metrics": {name: list(values) for name, values in self._metrics["train"].items()},
                "loss": gather_object([self._tr_loss.item()]),
                "total_loss": self._total_loss_scalar,
                "last_logged": self._globalstep_last_logged,
                "first_step": self._first_step,
            }
        }

    def _load_run_state(self, state: dict[str, Any], checkpoint: Path) -> None:
        """Take what `_run_state` gave. The loss is taken when training begins, as transformers resets it."""
        self._before = before = state["trainer"]
        self._step, self._buffered_inputs = before["step"], None
        self._metrics["train"].clear()
        self._metrics["train"].update(before["metrics"])
        if self._in_cycle():
            _log.warning(
                "%s was saved in the middle of a cycle, at the end of its run: a new batch is sampled, so this run "
                "is not to the bit the one that would have gone on",
                checkpoint,
            )

    def _begun(self) -> None:
        if self._before is None:
            self._first_step = self.state.global_step
            return
        before, processes = self._before, self.accelerator.num_processes
        self._tr_loss.fill_(share_of(before["loss"], self.accelerator.process_index, processes))
        self._total_loss_scalar, self._globalstep_last_logged = before["total_loss"], before["last_logged"]
        self._first_step = before["first_step"]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "train_loss" in logs:  # of the whole run, not of the steps since the last resume
            logs["train_loss"] = self._total_loss_scalar / max(self.state.global_step - self._first_step, 0.001)
        super().log(logs, *args, **kwargs)

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        self._sampler = super()._get_train_sampler(*args, **kwargs)
        return self._sampler

    def _moving_reference(self) -> Any:
        """The reference model if it changes during training and lies whole in this process, else None."""
        if not self.args.sync_ref_model or self.ref_model is None:
            return None
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            _log.warning(
                "the reference model is sharded and in no checkpoint: a resumed run begins with its first one"
            )
            return None
        return self.accelerator.unwrap_model(self.ref_model)

    # -- saving and loading -------------------------------------------------------------------------------------------

    def _get_output_dir(self, trial: Any) -> str:
        run = super()._get_output_dir(trial)
        return str(Path(run) / STAGING) if self._staging else run

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._staging:  # it is uploaded in the background, from where it will stay
            self._pushing = checkpoint_folder
        else:
            super()._push_from_checkpoint(checkpoint_folder)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        run = Path(self._get_output_dir(trial))
        final = run / f"checkpoint-{self.state.global_step}"
        staged = run / STAGING / final.name
        with writing(final, SafetensorError, RuntimeError):  # a RuntimeError is what torch.save raises
            self._staging = True
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._staging = False
            self._complete(staged, final, run)

    def _complete(self, staged: Path, final: Path, run: Path) -> None:
        """Add what is ours to a checkpoint that transformers has written, and put it in its place."""
        if self.state.best_model_checkpoint == str(staged):
            self.state.best_model_checkpoint = str(final)
        state = self._run_state()
        if self.args.should_save:
            self.state.save_to_json(str(staged / TRAINER_STATE))
            save_state(staged, state)
            if (reference := self._moving_reference()) is not None:
                save_model(reference, str(staged / REFERENCE))
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            publish(staged, final, {name: version(name) for name in PACKAGES})
            rotate(run, self.args.save_total_limit, final, self.state.best_model_checkpoint)
        self.accelerator.wait_for_everyone()
        if self._pushing is not None:
            self._pushing = None
            self._push_from_checkpoint(str(final))

    def _load_optimizer_and_scheduler(self, checkpoint: Any) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        if (Path(checkpoint) / REFERENCE).exists() and (reference := self._moving_reference()) is not None:
            load_model(reference, str(Path(checkpoint) / REFERENCE))
        if (sampler := self._sampler) is not None:
            for _ in range(int(self.state.epoch or 0)):  # each epoch draws its order from the one generator
                next(iter(sampler), None)
        if has_state(Path(checkpoint)) and (getattr(self.args, "fission", False) or _version_fits(Path(checkpoint))):
            self._load_run_state(load_state(Path(checkpoint)), Path(checkpoint))


def _version_fits(checkpoint: Path) -> bool:
    """Whether a checkpoint's state is of this version; one of an earlier release serves plain GRPO without it."""
    try:
        return load_state(checkpoint)["version"] == VERSION
    except ValueError:
        return False
