"""TRL's SFTTrainer for simulators: prompt settings saved with the weights, and what a model from nothing needs."""

from __future__ import annotations

import fission_grpo.trl_checked  # noqa: F401 - before TRL

# isort: split
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from trl import SFTTrainer

from fission_grpo.progress import clock
from fission_grpo.simulator.settings import PromptSettings, write_settings
from fission_grpo.starter_training import muon_update

MOMENTUM = 0.95


class SimulatorTrainer(SFTTrainer):
    """An `SFTTrainer` that writes `simulator.json` beside every model it saves.

    Args:
        settings: of the prompts.
        prompt_weight: loss weight of the prompt's tokens in training; 0 is TRL's completion-only loss. Evaluation is
            always of the completions only.
        muon: use `MuonAdamW`.
    """

    def __init__(
        self, *args: Any, settings: PromptSettings, prompt_weight: float = 0.0, muon: bool = False, **kwargs: Any
    ):
        self.settings, self._prompt_weight, self._muon = settings, prompt_weight, muon
        super().__init__(*args, **kwargs)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if not self._prompt_weight or not model.training or return_outputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        ids, labels, mask = inputs["input_ids"], inputs["labels"], inputs["attention_mask"]
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        own = (labels[:, 1:] != -100).flatten().float()
        weights = own + self._prompt_weight * (mask[:, 1:].flatten().float() - own)
        loss = (losses * weights).sum() / weights.sum()  # a mean, so that losses and gradients keep their usual size
        return loss if num_items_in_batch is None else loss * own.sum() / num_items_in_batch

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        if self._muon and self.optimizer is None:
            trained: Any = self.model if model is None else model
            self.optimizer = MuonAdamW(trained, self.args.learning_rate)
        return super().create_optimizer(model)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            write_settings(Path(str(output_dir or self.args.output_dir)), self.settings)


class MuonAdamW(torch.optim.AdamW):
    """Muon (Jordan 2024) for the layers' matrices, AdamW for embeddings and norms, at one learning rate."""

    def __init__(self, model: torch.nn.Module, lr: float):
        named = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
        matrices = [weight for name, weight in named if weight.ndim == 2 and "embed" not in name]
        rest = [weight for name, weight in named if weight.ndim != 2 or "embed" in name]
        groups = [{"params": matrices, "muon": True}, {"params": rest, "muon": False}]
        super().__init__(groups, lr=lr, betas=(0.9, 0.98), weight_decay=0.01)

    @torch.no_grad()
    def step(self, closure=None):
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group["muon"]]
        loss = super().step(closure)
        self.param_groups = groups
        for group in groups:
            if group["muon"]:
                self._muon_step(group)
        return loss

    def _muon_step(self, group: dict[str, Any]) -> None:
        by_shape: dict[Any, list[torch.Tensor]] = {}
        for weight in group["params"]:
            if weight.grad is not None:
                by_shape.setdefault(weight.shape, []).append(weight)
        for same in by_shape.values():
            for weight in same:
                state = self.state[weight]
                if "momentum" not in state:
                    state["momentum"], state["step"] = (
                        torch.zeros_like(weight),
                        torch.tensor(0.0),
                    )  # AdamW wants a step
                state["momentum"].lerp_(weight.grad, 1 - MOMENTUM)  # pyright: ignore[reportArgumentType]
            directions = [weight.grad.lerp(self.state[weight]["momentum"], MOMENTUM) for weight in same]  # pyright: ignore
            for weight, update in zip(same, muon_update(directions), strict=True):
                weight.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * update)


class LossLines(TrainerCallback):
    """One line on stderr per log: step, loss, and the time left."""

    def on_train_begin(self, args, state, control, **kwargs):
        self._began, self._first = time.monotonic(), state.global_step

    def on_log(self, args, state, control, logs=None, **kwargs):
        done = state.global_step - self._first
        if not state.is_world_process_zero or not logs or "loss" not in logs or done < 1:
            return
        left = (state.max_steps - state.global_step) * (time.monotonic() - self._began) / done
        line = f"step {state.global_step}/{state.max_steps} · loss {logs['loss']:.4f} · {clock(left)} left"
        print(line, file=sys.stderr, flush=True)
