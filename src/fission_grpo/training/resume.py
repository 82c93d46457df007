"""What a run resumes from: the checkpoint it takes, and whether that can be read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from transformers import TrainerState

from fission_grpo.core.checkpoints import MANIFEST, find_corruption, find_odd_file
from fission_grpo.core.errors import CheckpointError, RunDirectoryError
from fission_grpo.training import checkpoint_files
from fission_grpo.training.checkpoint_files import FILE, TRAINER_STATE, load_state
from fission_grpo.training.run_folder import is_of_other_run, lock_run, read_json_object

MAX_COUNT = 2**53  # [ours] largest step or number of tokens of a checkpoint; a larger one is damage


def _object(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required)}


_COUNT = {"type": "integer", "minimum": 0, "maximum": MAX_COUNT}
_NUMBER = {"type": "number"}
_NUMBERS = {"type": "array", "items": _NUMBER}
_BY_RANK = {"type": "array", "minItems": 1}
_OF_TRAINER = {
    "step": _COUNT,
    "metrics": {"type": "object", "additionalProperties": _NUMBERS},
    "loss": _NUMBERS | _BY_RANK,
    "total_loss": _NUMBER,
    "last_logged": _COUNT,
    "first_step": _COUNT,
}
_ITEMS = {"type": "array", "items": _object(("step", "reward"), step=_COUNT, reward=_NUMBER)}

# What neither a library nor a reader of these files would notice before training; the rest is up to `loading`.
_RUN_STATE = Draft202012Validator(
    _object(
        trainer=_object(tuple(_OF_TRAINER), **_OF_TRAINER, settings={"type": ["object", "null"]}),
        fission=_object(buffer=_object(items=_ITEMS)),
        deferred={"type": "array", "items": {"type": "object"}},
        snapshots=_BY_RANK,
        sources=_BY_RANK,
        event_log=_object(("bytes", "tail"), bytes=_COUNT, tail={"type": "string"}) | {"type": ["object", "null"]},
        generated_tokens=_COUNT,
    )
)
_TRAINER_STATE = Draft202012Validator(
    _object(
        ("global_step", "stateful_callbacks"),
        global_step=_COUNT,
        epoch=_COUNT | {"type": ["number", "null"]},
        **dict.fromkeys(("max_steps", "num_train_epochs", "logging_steps", "eval_steps", "save_steps"), _NUMBER),
        train_batch_size=_COUNT | {"type": ["integer", "null"]},
        log_history={"type": "array", "items": {"type": "object"}},
        stateful_callbacks=_object(("TrainerControl",)),
        best_global_step=_COUNT | {"type": ["integer", "null"]},
        best_model_checkpoint={"type": ["string", "null"]},
        total_flos=_NUMBER,
    )
    | {"propertyNames": {"enum": [field.name for field in fields(TrainerState)]}}
)


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

    def find_problem(path: Path) -> str | None:
        return why_unusable(path, fission, only_model)

    def find_reason(path: Path) -> str | None:
        if is_of_other_run(path, output):
            return f"{path} was saved by another run than that in {output}; name it to go on from it"
        return find_problem(path)

    if str(wanted).lower() in ("none", "false"):
        return None
    if str(wanted).lower() == "true":
        newest = checkpoint_files.last_complete_checkpoint(output, find_reason)
        if newest is None:
            raise ValueError(
                f"no checkpoint-* in {output} to resume from; check output_dir, or start without resuming"
            )
        return newest
    checkpoint = Path(str(wanted)).absolute()
    if not checkpoint.is_dir():
        raise ValueError(f"resume_from_checkpoint: {wanted} is no folder; give a checkpoint-* folder, or 'true'")
    checkpoint_files.require_complete(checkpoint, find_problem)
    return checkpoint


def why_unusable(checkpoint: Path, fission: bool, only_model: bool = False) -> str | None:
    """The reason why a run cannot be resumed from a checkpoint, None if it can. Other trainers' have no manifest."""
    has_manifest = os.path.lexists(checkpoint / MANIFEST)
    if (problem := find_corruption(checkpoint) if has_manifest else find_odd_file(checkpoint)) is not None:
        return problem
    state: dict[str, Any] = {}
    try:
        try:
            state = load_state(checkpoint)
            _check(checkpoint / FILE, state, _RUN_STATE)
        except ValueError:
            if fission or has_manifest:
                raise
        if state and not has_manifest:
            return find_corruption(checkpoint)
        if not has_manifest and not (checkpoint / TRAINER_STATE).is_file():
            return f"{checkpoint / TRAINER_STATE} is missing, so the checkpoint is unfinished"
        _check(checkpoint / TRAINER_STATE, read_json_object(checkpoint / TRAINER_STATE), _TRAINER_STATE)
    except ValueError as error:
        return str(error)
    settings = state.get("trainer", {}).get("settings") or {}
    return _missing_part(checkpoint, only_model or bool(settings.get("save_only_model"))) if has_manifest else None


def _check(path: Path, content: Mapping[str, Any], schema: Draft202012Validator) -> None:
    """Raise ValueError, naming file and field, if a file's JSON does not fit a schema."""
    error = next(schema.iter_errors(content), None)
    if error is not None:
        raise ValueError(f"{path} is damaged: {error.json_path[2:] or 'it'}: {error.message[:100]}")


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


@contextmanager
def loading(checkpoint: Path) -> Iterator[None]:
    """Turn what is raised for a state that does not fit into a CheckpointError that names the checkpoint."""
    try:
        yield
    except (CheckpointError, RunDirectoryError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:400] or type(error).__name__
        reason = reason if type(error) in (ValueError, OSError) else f"{type(error).__name__}: {reason}"
        raise CheckpointError(
            f"{checkpoint} cannot be resumed from ({reason}). Use the model, the options and the versions "
            "it was saved with, or another checkpoint"
        ) from error
