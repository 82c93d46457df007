"""Training steps of TRL's GRPOTrainer and of ours without fission, a clock in each part; for speed/run.py."""

from __future__ import annotations

import gc
import tempfile
import time
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from trl.chat_template_utils import qwen3_template, qwen3_training_chat_template

from fission_grpo import FissionGRPOConfig, FissionGRPOTrainer
from fission_grpo.envs.desk.env import Desk
from fission_grpo.envs.desk.tasks import make_rows
from fission_grpo.inference.pretrained import load_starter
from fission_grpo.shared_prefix.layout import groups_of

TRAINERS = {"trl": (GRPOTrainer, GRPOConfig), "ours": (FissionGRPOTrainer, FissionGRPOConfig)}
METHODS = {
    "_generate_single_turn": "generation",
    "_generate": "rollouts",
    "_get_per_token_logps_and_entropies": "logps",
    "_compute_loss": "loss",
}


@dataclass(frozen=True)
class Setting:
    """What is trained: G completions of R tokens of one prompt of P; without a model, the starter policy's tasks.

    Args:
        model: a folder; None: the starter policy with its tools at the built-in tasks, 8 groups of 8.
        layers: first layers of the model only; 0: all.
        prompt: P.
        completion: R.
        group: G.
        tools: functions that the prompt lists before its text, in Qwen3's template (SmolLM2's knows none).
        micro_batch: rows of one forward and backward of TRL's trainer, where a group does not fit into memory; it
            accumulates gradients to the same optimizer step. 0: the group. Ours takes the group in any case.
    """

    model: str | None
    layers: int = 0
    prompt: int = 0
    completion: int = 0
    group: int = 8
    micro_batch: int = 0
    tools: int = 0


class Clocks(TrainerCallback):
    """Seconds of every step's parts, of the processor and (`..._clock`) on the clock; "all": with the optimizer's."""

    def __init__(self):
        self.steps: list[dict[str, float]] = []

    def on_step_begin(self, *args, **kwargs):
        self.steps.append(defaultdict(float))
        self.whole = self.part("all")
        self.whole.__enter__()

    def on_step_end(self, *args, **kwargs):
        self.whole.__exit__(None, None, None)

    @contextmanager
    def part(self, name: str):
        processor, clock = time.process_time(), time.perf_counter()
        yield
        step = self.steps[-1]
        step[name] += time.process_time() - processor
        step[f"{name}_clock"] += time.perf_counter() - clock


def clocked(base: type) -> type:
    """The trainer class with `clocks`, a clock in each of `METHODS` and in the backward pass."""

    def timed(name: str):
        def method(self, *args, **kwargs):
            with self.clocks.part(METHODS[name]):
                result = getattr(super(Clocked, self), name)(*args, **kwargs)
            if name == "_compute_loss":
                inputs = args[1] if len(args) > 1 else kwargs["inputs"]
                _count_tokens(self.clocks.steps[-1], inputs)
            return result

        return method

    Clocked = type("Clocked", (base,), {name: timed(name) for name in METHODS})
    return Clocked


def _count_tokens(step: dict[str, float], inputs: dict[str, Any]) -> None:
    """Tokens of a micro-batch, and how many are left where every prompt of it counts once."""
    prompts, completions = inputs["prompt_mask"].sum(1), int(inputs["completion_mask"].sum())
    groups = groups_of(inputs["prompt_ids"], inputs["prompt_mask"])
    step["tokens"] += int(prompts.sum()) + completions
    step["tokens_shared"] += int(sum(prompts[group[0]] for group in groups)) + completions


def make_trainer(setting: Setting, name: str, steps: int, folder: str) -> Any:
    cls, config = TRAINERS[name]
    fields: dict[str, Any] = {
        "output_dir": folder,
        "max_steps": steps,
        "num_generations": setting.group,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "lr_scheduler_type": "constant",
    }
    if name == "ours":
        fields["fission"] = False
    model, tokenizer, own, more = _starter() if setting.model is None else _random_text(setting, name, steps)
    trainer = clocked(cls)(model=model, args=config(**fields, **own), processing_class=tokenizer, **more)
    trainer.clocks = Clocks()
    trainer.add_callback(trainer.clocks)
    backward = trainer.accelerator.backward

    def timed_backward(*args, **kwargs):
        with trainer.clocks.part("backward"):
            backward(*args, **kwargs)

    trainer.accelerator.backward = timed_backward
    return trainer


def _starter():
    fields = {
        "learning_rate": 3e-4,
        "per_device_train_batch_size": 32,
        "gradient_accumulation_steps": 2,
        "max_completion_length": 160,
        "max_tool_calling_iterations": 3,
    }
    data = Dataset.from_list(make_rows(64, seed=5, split="train"))
    return *load_starter(), fields, {"train_dataset": data, "environment_factory": Desk}


def _random_text(setting: Setting, name: str, steps: int):
    cut = {"num_hidden_layers": setting.layers} if setting.layers else {}
    model = AutoModelForCausalLM.from_pretrained(setting.model, dtype=torch.float32, **cut)
    tokenizer = AutoTokenizer.from_pretrained(setting.model)
    rows = (name == "trl" and setting.micro_batch) or setting.group
    fields = {
        "learning_rate": 1e-5,
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": setting.group // rows,
        "max_completion_length": setting.completion,
        "generation_kwargs": {"min_new_tokens": setting.completion},
    }
    words = [word for word in (tokenizer.decode([i]) for i in range(1000, 20_000)) if _is_word(word)]
    words = [word for word in words[:4000] if len(tokenizer(word)["input_ids"]) == 1]
    chosen = torch.randint(len(words), (steps, setting.prompt), generator=torch.Generator().manual_seed(0))
    prompts: list[Any] = ["".join(words[i] for i in row) for row in chosen.tolist()]
    more: dict[str, Any] = {"reward_funcs": _every_second}
    if setting.tools:
        tokenizer.chat_template, tokenizer.response_template = qwen3_training_chat_template, qwen3_template
        prompts = [[{"role": "user", "content": text}] for text in prompts]
        more["tools"] = [_tool(i) for i in range(setting.tools)]
        fields["max_tool_calling_iterations"] = 0
    return model, tokenizer, fields, {"train_dataset": Dataset.from_list([{"prompt": p} for p in prompts]), **more}


def _tool(number: int) -> Any:
    """A function whose schema is as long as that of a usual tool."""

    def book(city: str, nights: int, breakfast: bool) -> str:
        """Book a room in one of the hotels of the chain and return the number of the booking.

        Args:
            city: The city in which the hotel lies, written as in the list of hotels.
            nights: How many nights the guest stays, at least one and at most thirty.
            breakfast: Whether the guest has breakfast in the hotel every morning.
        """
        return f"{city} {nights} {breakfast}"

    book.__name__ = f"book_room_{number}"
    return book


def _is_word(text: str) -> bool:
    """Of such tokens a text has as many as it has words."""
    return text[:1] == " " and text[1:].isascii() and text[1:].isalpha() and text[1:].islower()


def _every_second(completions, **_):
    return [float(i % 2) for i in range(len(completions))]


def train(setting: Setting, name: str, steps: int) -> dict[str, Any]:
    """Seconds of the parts of every step, what the trainer logged of its steps, and what ours shared."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(setting, name, steps, folder)
        trainer.train()
    keys = ("loss", "grad_norm", "completions/mean_length")
    logged = [[entry[key] for key in keys] for entry in trainer.state.log_history if "loss" in entry]
    counts = dict(trainer.shared_generation.counts) if name == "ours" else {}
    return {"steps": [dict(step) for step in trainer.clocks.steps], "logged": logged, "counts": counts}


def peak(setting: Setting, name: str) -> dict[str, float]:
    """Peak resident MiB of one step, and what of it the step needed beyond the model. In a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(setting, name, 1, folder)
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak of loading
        before = _resident("VmRSS")
        trainer.train()
    return {"peak_mib": _resident("VmHWM"), "step_mib": _resident("VmHWM") - before}


def _resident(name: str) -> float:
    return int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0]) / 1024
