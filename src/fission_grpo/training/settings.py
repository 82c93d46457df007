"""The settings that decide what a run computes: kept in checkpoints, compared on a resume."""

from __future__ import annotations

import copy
import hashlib
import json
import platform
import sys
from collections.abc import Mapping
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fission_grpo.core.checkpoints import MANIFEST
from fission_grpo.core.errors import CheckpointError
from fission_grpo.core.rewards import StepReward
from fission_grpo.core.terminal import get_logger
from fission_grpo.inference.secrets import hide_in_urls, shown_command
from fission_grpo.training.run_folder import read_json_object

PACKAGES = ("fission-grpo", "trl", "transformers", "torch")  # a checkpoint's manifest names their versions
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

_log = get_logger(__name__)


def without_secrets(args: Any) -> Any:
    """A copy of training arguments without the tokens for the hub."""
    copied = copy.copy(args)
    for name in ("hub_token", "push_to_hub_token"):
        if getattr(copied, name, None) is not None:
            setattr(copied, name, None)
    if isinstance(options := getattr(copied, "model_init_kwargs", None), dict):
        copied.model_init_kwargs = {key: value for key, value in options.items() if key != "token"}
    return copied


def installed_versions() -> dict[str, str]:
    """The versions of `PACKAGES`."""
    return {name: version(name) for name in PACKAGES}


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
        "error_if": getattr(getattr(trainer, "error_if", None), "name", None),
    }


def describe_run(trainer: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a run is, for people and reports: command, model, tasks, machine, `settings`, versions. Without secrets."""
    program, *arguments = sys.argv
    name = Path(program).name
    words = ["fission-grpo"] if name == "__main__.py" else ["python", name] if name.endswith(".py") else [name]
    model = trainer.accelerator.unwrap_model(trainer.model)
    count = getattr(model, "num_parameters", None)
    limits = ("max_steps", "num_train_epochs", "max_generated_tokens")
    return {
        "command": None if "ipykernel" in sys.modules else shown_command([*words, *arguments]),
        "model": hide_in_urls(str(getattr(model.config, "_name_or_path", ""))),
        "parameters": None if count is None else int(count()),
        "tasks": trainer.tasks,
        "device": trainer.args.device.type,
        "processes": trainer.accelerator.num_processes,
        "settings": {**settings, **{name: getattr(trainer.args, name, None) for name in limits}},
        "versions": {"python": platform.python_version(), **installed_versions()},
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
        versions = read_json_object(checkpoint / MANIFEST).get("versions") or {}
    except ValueError:  # of another trainer
        return
    pairs = ((name, versions.get(name, now), now) for name, now in installed_versions().items())
    if changes := "; ".join(f"{name}: {old} -> {new}" for name, old, new in pairs if old != new):
        _log.warning("%s was saved under other versions: %s", checkpoint, changes)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
