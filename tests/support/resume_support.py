"""Runs that are compared to the last bit: what a resumed one must share with one that never stopped."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from trainer_settings import QUIETLY_ON_CPU

from fission_grpo import FissionGRPOConfig, FissionGRPOTrainer
from fission_grpo.envs.desk.env import Desk
from fission_grpo.envs.desk.tasks import make_rows
from fission_grpo.feedback.shuffled import ShuffledFeedback
from fission_grpo.feedback.spec import make_chain
from fission_grpo.inference.pretrained import load_starter

TIMES = ("step_time", "fission/seconds", "feedback/seconds", "train_runtime")
TIMES += ("train_samples_per_second", "train_steps_per_second")
COMMON = {
    **QUIETLY_ON_CPU,
    "logging_steps": 2,
    "save_strategy": "steps",
    "save_steps": 1,
    "learning_rate": 1e-4,
    "max_tool_calling_iterations": 1,
    "max_completion_length": 40,
    "per_device_train_batch_size": 8,
    "num_generations": 4,
    "num_recovery_generations": 4,
}

FOUR_UPDATES = {"per_device_train_batch_size": 4, "steps_per_generation": 2, "num_iterations": 2}


def varied(completions: list[Any], **_: Any) -> list[float]:
    """Rewards that differ within nearly every group, so that something is learned in nearly every step."""
    return [len(json.dumps(completion)) % 7 / 7 for completion in completions]


def tiny_trainer(
    folder: Path, more: dict[str, Any] | None = None, count: int = 6, factory: Any = Desk, **fields: Any
) -> Any:
    """The starter policy on the desk: 2 tasks of 4 rollouts a cycle, `count` / 2 cycles an epoch; sources shuffled."""
    model, tokenizer = load_starter()
    return FissionGRPOTrainer(
        model=model,
        args=FissionGRPOConfig(output_dir=str(folder), **(COMMON | fields)),
        train_dataset=Dataset.from_list(make_rows(count, seed=5, split="train")),
        processing_class=tokenizer,
        environment_factory=factory,
        **(
            {
                "reward_funcs": varied,
                "feedback": [ShuffledFeedback(source) for source in make_chain(["rules", "environment"])],
            }
            | (more or {})
        ),
    )


def as_it_was(run: Path, step: int, target: Path) -> Path:
    """A copy of a finished run, as a kill some time after checkpoint `step` leaves it; returns the checkpoint."""
    shutil.copytree(run, target)
    for checkpoint in target.glob("checkpoint-*"):
        if int(checkpoint.name.split("-")[1]) > step:
            shutil.rmtree(checkpoint)
    return target / f"checkpoint-{step}"


def without_times(value: Any) -> Any:
    """JSON without what a clock measured."""
    if isinstance(value, dict):
        return {key: without_times(one) for key, one in value.items() if key not in TIMES}
    return [without_times(one) for one in value] if isinstance(value, list) else value


def differences(one: Path, other: Path, checkpoint: str) -> list[str]:
    """Names of what two runs do not share: files of their last checkpoint, `log_history`, log. Empty: the same."""
    found = []
    for name in ("trainer_state.json", "fission_state.json"):
        first, second = (without_times(json.loads((run / checkpoint / name).read_text())) for run in (one, other))
        first.pop("run", None)  # a random id
        found += [f"{name}: {key}" for key in first if json.dumps(first[key]) != json.dumps(second[key])]
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        first, second = (torch.load(run / checkpoint / name, weights_only=False) for run in (one, other))
        found += [] if _equal(first, second) else [name]
    weights = [next((run / checkpoint).glob("*model.safetensors")).read_bytes() for run in (one, other)]
    found += [] if weights[0] == weights[1] else ["weights"]
    journals = [
        (run / "fission.jsonl").read_bytes() if (run / "fission.jsonl").exists() else b"" for run in (one, other)
    ]
    return found + ([] if journals[0] == journals[1] else ["fission.jsonl"])


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool((one == other).all()) if hasattr(one, "all") else one == other
