"""What a run resumes from: the checkpoint it takes, whether that can be read, and whether it fits the run."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import TrainerState

from fission_grpo.core.errors import CheckpointError, RunDirectoryError
from fission_grpo.core.rewards import StepReward
from fission_grpo.core.terminal import get_logger
from fission_grpo.training import checkpoint_files
from fission_grpo.training.checkpoint_files import (
    FILE,
    MANIFEST,
    TRAINER_STATE,
    find_corruption,
    find_odd_file,
    load_state,
)
from fission_grpo.training.run_folder import lock_run, read_json_object, run_of_checkpoint, run_of_folder

PACKAGES = ("fission-grpo", "trl", "transformers", "torch")  # a checkpoint's manifest names their versions
MAX_COUNT = 2**53  # [ours] largest step or number of tokens of a checkpoint; a larger one is damage
SAMPLED_ROWS = 1000  # [ours] rows of a data set, evenly spaced, whose content is compared on a resume
_SAME_STATE = {"adamw_torch", "adamw_torch_fused"}  # optimizers that read each other's state

# Options that may change on a resume: how long, where, what is reported and saved, and how work is divided.
_FREE_BEGINNINGS = ("dataloader_", "ddp_", "do_", "eval_", "hub_", "log_", "logging_", "push_", "report", "save_")
_FREE_BEGINNINGS += ("trackio_", "vllm_g", "vllm_server_")
_FREE = {
    "batch_eval_metrics",
    "debug",
    "disable_tqdm",
    "enable_jit_checkpoint",
    "gradient_accumulation_steps",  # of `rows_per_update`
    "greater_is_better",
    "include_for_metrics",
    "include_num_input_tokens_seen",
    "load_best_model_at_end",
    "local_rank",
    "max_generated_tokens",
    "max_steps",
    "metric_for_best_model",
    "num_completions_to_print",
    "num_generations_eval",
    "num_train_epochs",
    "output_dir",
    "per_device_eval_batch_size",
    "per_device_train_batch_size",  # of `rows_per_update` and `generation_batch_size`
    "prediction_loss_only",
    "project",
    "restore_callback_states_from_checkpoint",
    "resume_from_checkpoint",
    "run_name",
    "skip_memory_metrics",
    "steps_per_generation",  # of `generation_batch_size`
    "torch_empty_cache_steps",
}

_MISFITS = (ArithmeticError, AttributeError, EOFError, LookupError, OSError, RuntimeError, SafetensorError, TypeError)
_MISFITS += (ValueError,)
_NUMBER = (int, float)
_SHAPES = {  # of the state that a checkpoint adds to TRL's
    "trainer": dict,
    "fission": dict,
    "deferred": list,
    "snapshots": list,
    "sources": list,
    "event_log": dict,
    "event_log.bytes": int,
    "event_log.tail": str,
    "generated_tokens": int,
    "trainer.step": int,
    "trainer.metrics": dict,
    "trainer.loss": list,
    "trainer.total_loss": _NUMBER,
    "trainer.last_logged": int,
    "trainer.first_step": int,
    "trainer.settings": dict,
    "fission.buffer": dict,
    "fission.schedule": dict,
    "fission.success_rates": dict,
}
_BY_RANK = ("deferred", "snapshots", "sources")
_MAY_BE_NULL = ("event_log", "trainer.settings")

_log = get_logger(__name__)


def resume_point(args: Any) -> str | bool | None:
    """`find_checkpoint` for a command with `transformers.TrainingArguments`, before it loads the model.

    Only the first process looks; others return whether to resume, and the trainer gives them the folder.
    """
    if args.process_index != 0:
        return str(args.resume_from_checkpoint).lower() not in ("none", "false")
    run = Path(str(args.output_dir)).absolute()
    with lock_run(run):
        checkpoint_files.clean_staging(run)
        checkpoint = find_checkpoint(
            args.resume_from_checkpoint, run, bool(getattr(args, "fission", False)), args.save_only_model
        )
    return None if checkpoint is None else str(checkpoint)


def find_checkpoint(wanted: Any, output: Path, fission: bool, only_model: bool = False) -> Path | None:
    """The complete checkpoint to resume from, None to start afresh. Incomplete ones are skipped and logged.

    Args:
        wanted: True or "true": the newest complete one in `output` of the run that the folder belongs to; a path, of
            whatever run; None, False, "none" or "false".
        output: the run directory.
        fission: whether the buffer is needed. Without it checkpoints of other trainers are accepted, too.
        only_model: whether a checkpoint may lack the state of optimizer, scheduler and random numbers.

    Raises:
        ValueError: there is none, or the path is no folder, or its checkpoint is damaged; the message names the file.
    """
    find_problem = partial(why_unusable, fission=fission, only_model=only_model)
    if str(wanted).lower() in ("none", "false"):
        return None
    run = run_of_folder(output)
    if str(wanted).lower() != "true":
        checkpoint = Path(str(wanted)).absolute()
        if not checkpoint.is_dir():
            raise ValueError(f"resume_from_checkpoint: {wanted} is no folder; give a checkpoint-* folder, or 'true'")
        checkpoint_files.require_complete(checkpoint, find_problem)
        other = run_of_checkpoint(checkpoint)
        if None not in (run, other) and run != other:
            _log.warning("%s was saved by another run (%s) than that in %s (%s)", checkpoint, other, output, run)
        return checkpoint

    def find_reason(path: Path) -> str | None:
        other = run_of_checkpoint(path)
        if None not in (run, other) and run != other:
            return f"{path} was saved by another run ({other}) than that in {output} ({run}); name it to go on from it"
        return find_problem(path)

    newest = checkpoint_files.last_complete_checkpoint(output, find_reason)
    if newest is None:
        raise ValueError(f"no checkpoint-* in {output} to resume from; check output_dir, or start without resuming")
    return newest


def why_unusable(checkpoint: Path, fission: bool, only_model: bool = False) -> str | None:
    """The reason why a run cannot be resumed from a checkpoint, None if it can. Other trainers' have no manifest."""
    has_manifest = (checkpoint / MANIFEST).exists()
    if (problem := find_corruption(checkpoint) if has_manifest else find_odd_file(checkpoint)) is not None:
        return problem
    if not has_manifest and not fission and not (checkpoint / TRAINER_STATE).is_file():
        return f"{checkpoint / TRAINER_STATE} is missing, so the checkpoint is unfinished"
    state: dict[str, Any] | None = None
    if fission or (checkpoint / FILE).exists():
        try:
            state = load_state(checkpoint)
            _check_shapes(checkpoint / FILE, state)
        except ValueError as error:
            if fission or has_manifest:
                return str(error)
    if not has_manifest:
        return find_corruption(checkpoint) if state is not None else _trainer_state_problem(checkpoint)
    settings = (state or {}).get("trainer", {}).get("settings") or {}
    return _missing_part(checkpoint, only_model or settings.get("save_only_model") is True) or _trainer_state_problem(
        checkpoint
    )


def _missing_part(checkpoint: Path, only_model: bool) -> str | None:
    """A part that a checkpoint needs and its manifest does not list."""
    names = list(read_json_object(checkpoint / MANIFEST)["files"])
    sharded = any(name.startswith("global_step") for name in names)  # DeepSpeed: weights, optimizer and scheduler
    parts = {"the weights": sharded or any("model" in name and not name.endswith(".json") for name in names)}
    if not only_model:
        parts["optimizer.pt"] = sharded or any(name.startswith("optimizer") for name in names)
        parts["scheduler.pt"] = sharded or "scheduler.pt" in names
        parts["rng_state.pth"] = any(name.startswith("rng_state") for name in names)
    lacking = [name for name, is_listed in parts.items() if not is_listed]
    if not lacking:
        return None
    return f"{checkpoint / MANIFEST} is damaged: it does not list {', '.join(lacking)}, which every checkpoint has"


def _trainer_state_problem(checkpoint: Path) -> str | None:
    path = checkpoint / TRAINER_STATE
    try:
        fields_of_file = read_json_object(path)
        state = TrainerState(**fields_of_file)
    except (ValueError, TypeError, AttributeError) as error:
        return str(error) if str(path) in str(error) else f"{path} is damaged ({error})"
    history, callbacks = state.log_history, state.stateful_callbacks
    right = {
        "global_step": _is_count(state.global_step),
        "epoch": state.epoch is None or _is_number(state.epoch),
        "train_batch_size": state.train_batch_size is None or _is_count(state.train_batch_size),
        "log_history": isinstance(history, list) and all(isinstance(entry, dict) for entry in history),
        "stateful_callbacks": isinstance(callbacks, dict) and "TrainerControl" in callbacks,
        "best_model_checkpoint": isinstance(state.best_model_checkpoint, str | None),
        "total_flos": _is_number(state.total_flos),
    }
    wrong = next((name for name, is_right in right.items() if not is_right), None)
    return None if wrong is None else f"{path} is damaged: {wrong} is {str(getattr(state, wrong))[:60]}"


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_COUNT


def _is_number(value: Any) -> bool:
    return type(value) in _NUMBER and abs(value) < float("inf")


def _check_shapes(path: Path, state: Mapping[str, Any]) -> None:
    """Check the types in a run's state, as far as they are there. Raises ValueError, naming file and field."""
    for name, kind in _SHAPES.items():
        parent, _, key = name.rpartition(".")
        holder = state.get(parent) if parent else state
        if not isinstance(holder, Mapping) or key not in holder or (holder[key] is None and name in _MAY_BE_NULL):
            continue
        value = holder[key]
        is_right = _is_count(value) if kind is int else isinstance(value, kind) and not isinstance(value, bool)
        if not is_right:
            raise ValueError(f"{path} is damaged: {name} is {json.dumps(value)[:60]}")
    trainer = state.get("trainer") or {}
    for name in _SHAPES if trainer else ():
        if name.startswith("trainer.") and name not in _MAY_BE_NULL and name.partition(".")[2] not in trainer:
            raise ValueError(f"{path} is damaged: {name} is missing")
    ranks = [len(by_rank) for by_rank in (trainer.get("loss"), *map(state.get, _BY_RANK)) if by_rank is not None]
    if ranks and (0 in ranks or len(set(ranks)) > 1):
        raise ValueError(f"{path} is damaged: trainer.loss and {', '.join(_BY_RANK)} have not one entry for each rank")
    for name, values in {**(trainer.get("metrics") or {}), "loss": trainer.get("loss") or []}.items():
        if not isinstance(values, list) or not all(type(value) in _NUMBER for value in values):
            raise ValueError(f"{path} is damaged: trainer.{name} holds something that is no number")
    buffered = (state.get("fission") or {}).get("buffer") or {}
    for number, item in enumerate(buffered.get("items") or []):
        if not isinstance(item, dict) or not _is_count(item.get("step")) or not _is_number(item.get("reward")):
            raise ValueError(f"{path} is damaged: item {number} of fission.buffer has no step or no reward")


@contextmanager
def loading(checkpoint: Path) -> Iterator[None]:
    """Turn what libraries raise for a state that does not fit into a CheckpointError that names the checkpoint."""
    try:
        yield
    except (CheckpointError, RunDirectoryError):
        raise
    except Exception as error:
        if not isinstance(error, _MISFITS) and type(error).__name__ != "UnpicklingError":  # of torch.load
            raise
        reason = " ".join(str(error).split())[:400] or type(error).__name__
        reason = reason if type(error) in (ValueError, OSError) else f"{type(error).__name__}: {reason}"
        raise CheckpointError(
            f"{checkpoint} cannot be resumed from ({reason}). Use the model, the options and the versions "
            "it was saved with, or another checkpoint"
        ) from error


def without_secrets(args: Any) -> Any:
    """A copy of training arguments without the tokens for the hub."""
    copied = copy.copy(args)
    for name in ("hub_token", "push_to_hub_token"):
        if getattr(copied, name, None) is not None:
            setattr(copied, name, None)
    if isinstance(options := getattr(copied, "model_init_kwargs", None), dict):
        copied.model_init_kwargs = {key: value for key, value in options.items() if key != "token"}
    return copied


def settings_of(trainer: Any) -> dict[str, Any]:
    """The settings that decide what a run computes, by name, as JSON values; secrets are left out."""
    args = trainer.args
    found: dict[str, Any] = {
        option.name: _plain(getattr(args, option.name))
        for option in fields(args)
        if option.name not in _FREE and not option.name.startswith(_FREE_BEGINNINGS)
    }
    processes = trainer.accelerator.num_processes
    name = str(getattr(trainer.accelerator.unwrap_model(trainer.model).config, "_name_or_path", ""))
    peft = getattr(trainer.model, "peft_config", None)
    sources = getattr(getattr(trainer, "fission", None), "sources", ())
    return found | {
        "save_only_model": bool(args.save_only_model),  # not compared: says what a checkpoint may lack
        "rows_per_update": args.per_device_train_batch_size * processes * args.gradient_accumulation_steps,
        "model": Path(name).name,  # a folder may have moved
        "peft_config": None if peft is None else {key: _plain(one.to_dict()) for key, one in peft.items()},
        "train_dataset": _rows_digest(trainer.train_dataset),
        "reward_funcs": [str(one) for one in getattr(trainer, "reward_func_names", ())],
        "reward_options": [vars(one.config) for one in trainer.reward_funcs if isinstance(one, StepReward)],
        "feedback": [str(source.name) for source in sources],
    }


def _plain(value: Any) -> Any:
    def convert(other: Any) -> Any:
        if isinstance(other, set | frozenset):
            return sorted(map(str, other))
        return other.to_dict() if hasattr(other, "to_dict") else type(other).__name__

    if isinstance(value, Mapping):
        value = {str(key): one for key, one in value.items() if key != "token"}
    return json.loads(json.dumps(value, default=convert))


def _rows_digest(dataset: Any) -> str:
    """The number of rows and a hash of their content (of `SAMPLED_ROWS` of them); of a stream its type."""
    if not hasattr(dataset, "__len__"):
        return type(dataset).__name__
    digest, count = hashlib.sha256(), len(dataset)
    for k in range(0, count, max(1, count // SAMPLED_ROWS)):
        row = json.dumps(dataset[k], sort_keys=True, default=lambda value: type(value).__name__)
        digest.update(row.encode("utf-8", "surrogatepass"))
    return f"{count} rows, {digest.hexdigest()[:12]}"


def compare_settings(checkpoint: Path, saved: Mapping[str, Any] | None, now: Mapping[str, Any]) -> None:
    """Warn of settings and versions that differ from a checkpoint's; those that only one side knows are left out.

    Raises:
        CheckpointError: the optimizer is another one, which cannot read the checkpoint's state.
    """
    known = saved or {}
    changed = {
        name: (known[name], value)
        for name, value in now.items()
        if name in known and known[name] != value and name != "save_only_model"
    }
    if "optim" in changed and not set(changed["optim"]) <= _SAME_STATE:
        old, new = changed["optim"]
        raise CheckpointError(
            f"{checkpoint} holds the state of the optimizer {old}, which {new} cannot read; set optim to {old}, or "
            "load the model alone (model=CHECKPOINT) and train without resume_from_checkpoint"
        )
    if changed:
        pairs = "; ".join(f"{name}: {_short(old)} -> {_short(new)}" for name, (old, new) in changed.items())
        _log.warning("%s was saved under other settings, so this run is not its continuation: %s", checkpoint, pairs)
    try:
        versions = read_json_object(checkpoint / MANIFEST).get("versions")
    except ValueError:  # of another trainer
        return
    if isinstance(versions, dict) and (
        newer := {name: (versions[name], version(name)) for name in PACKAGES if name in versions}
    ):
        pairs = "; ".join(f"{name}: {old} -> {new}" for name, (old, new) in newer.items() if old != new)
        if pairs:
            _log.warning("%s was saved under other versions: %s", checkpoint, pairs)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
