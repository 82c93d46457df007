"""TRL's GRPOTrainer with shared prompts: in generation, in all log-probability passes and in the backward pass.

What it changes of TRL's: `generate`, for the time of the rollouts; the work of one method,
`_get_per_token_logps_and_entropies`, which gives the same numbers; and the order of rows within an optimizer step.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

import torch
from torch import Tensor
from trl import GRPOTrainer

from fission_grpo.training.shared_prefix.check import agrees
from fission_grpo.training.shared_prefix.generate import SharedGeneration
from fission_grpo.training.shared_prefix.layout import GroupedBatch, groups_of
from fission_grpo.training.shared_prefix.update import (
    causal_lm,
    enable,
    rows_with_gradient,
    shared_logps,
    unsupported,
)
from fission_grpo.training.trl_compat import has_fused_head

_log = logging.getLogger(__name__)


SHARING_COUNTS = ("shared_prefix/prompt_tokens", "shared_prefix/read_tokens", "shared_prefix/unshared")
"""What `take_sharing_counts` counts."""


class SharedPrefixTrainer(GRPOTrainer):
    """`trl.GRPOTrainer`, faster where prompts are shared; `args.shared_prefix` (True if there is none) switches it.

    Attributes:
        shared_generation: what generation shared, and why it did not.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        self.shared_generation = SharedGeneration()
        self._shares: dict[int, bool] = {}  # by id of the causal LM, after its self-check
        self._with_gradient: Tensor | None = None
        self._generated = False
        self._told: Counter[str] = Counter()
        super().__init__(*args, **kwargs)
        self.shared_generation.remember = bool(self.tools)

    @property
    def _sharing(self) -> bool:
        return getattr(self.args, "shared_prefix", True)

    def take_sharing_counts(self) -> Counter[str]:
        """What this rank's calls of `generate` shared since this was last asked; empty if there was none.

        Returns:
            Of `SHARING_COUNTS`: prompt tokens that were asked for and those of them that were computed, both of the
            calls that shared; and calls that were left to transformers.
        """
        counts, told = self.shared_generation.counts, self._told
        self._told = counts.copy()
        found = {name: counts[key := name.split("/")[1]] - told[key] for name in SHARING_COUNTS}
        return Counter({name: number for name, number in found.items() if number})

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        self._generated = True
        if not self._sharing:
            return super()._generate_and_score_completions(inputs)
        model: Any = self.model
        with self.shared_generation.on(model):
            return super()._generate_and_score_completions(inputs)

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        """TRL's, which shuffles rows; then the rows of a prompt meet again within each optimizer step's micro-batches.

        Every optimizer step has the rows that it has with TRL, so its gradient is the same where the loss weighs rows
        or tokens alike in all micro-batches: "grpo", "sapo", "dr_grpo", "luspo", "dapo", "cispo", "vespo". ("bnpo"
        divides by each micro-batch's own tokens, so there the order matters, as it does with TRL's shuffle.)
        """
        self._generated = False
        inputs = super()._prepare_inputs(generation_batch)
        buffered, step = self._buffered_inputs, self.args.gradient_accumulation_steps
        mine = self._generated and self._sharing and buffered and any(one is inputs for one in buffered)
        if not mine or "pixel_values" in inputs:
            return inputs
        size = len(buffered) if step % len(buffered) == 0 else step  # micro-batches of one optimizer step
        if size == 1 or len(buffered) % size:
            return inputs
        at = next(i for i, one in enumerate(buffered) if one is inputs)
        parts = [together(buffered[start : start + size]) for start in range(0, len(buffered), size)]
        self._buffered_inputs = [one for part in parts for one in part]
        return self._buffered_inputs[at]

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
        if self.accelerator.num_processes == 1:  # ranks of DDP must make as many forward passes as each other
            self._with_gradient = rows_with_gradient(
                inputs["advantages"],
                beta=self.beta,
                entropy_bonus=self._entropy_bonus_enabled,
                aux_loss=self.aux_loss_enabled,
            )
        try:
            return super()._compute_loss(model, inputs)
        finally:
            self._with_gradient = None

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **more: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        self.shared_generation.forget()  # the rollouts are done
        multimodal = any(value is not None for value in more.values())
        more |= {"batch_size": batch_size, "compute_entropy": compute_entropy, "compute_aux_loss": compute_aux_loss}
        given = (input_ids, attention_mask, logits_to_keep)
        if not self._sharing or compute_aux_loss or multimodal:
            return super()._get_per_token_logps_and_entropies(model, *given, **more)
        ids, masks = (x.tensor_split([x.shape[1] - logits_to_keep], 1) for x in (input_ids, attention_mask))
        batch = GroupedBatch(ids[0], masks[0], ids[1], masks[1])
        with self.accelerator.autocast():
            if not self._shares_with(model, batch):
                return super()._get_per_token_logps_and_entropies(model, *given, **more)
            room = None if batch_size is None else ids[0].shape[1] + batch_size * logits_to_keep
            scores = shared_logps(model, batch, with_gradient=self._with_gradient, max_tokens=room)
        return scores.logps, scores.entropies if compute_entropy else None, None

    def _shares_with(self, model: Any, batch: GroupedBatch) -> bool:
        decoder = causal_lm(model)
        if id(decoder) not in self._shares:
            sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
            reason = "the model is sharded, which is not tested" if sharded else unsupported(model)
            if not reason and not has_fused_head(decoder):
                reason = "this TRL gives the model no fused head; 1.15 and newer do"
            if reason:
                _log.warning("log-probabilities do not share prompts: %s.", reason)
            else:
                enable(model)
            self._shares[id(decoder)] = reason is None and agrees(model, batch)
        return self._shares[id(decoder)]


def together(batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same rows in micro-batches of the same size, rows with equal prompts one after the other.

    Groups stand in the order in which their first rows stood, so a shuffled batch has its groups in random order.

    Args:
        batches: as TRL buffers them: values of N rows each (tensors or lists), or without rows (0-dim tensors, None).
    """
    prompts, masks = (torch.cat([one[name] for one in batches]) for name in ("prompt_ids", "prompt_mask"))
    order = [row for group in groups_of(prompts, masks) for row in group]
    size = len(batches[0]["prompt_ids"])
    regrouped: list[dict[str, Any]] = [{} for _ in batches]
    for name, first in batches[0].items():
        if isinstance(first, Tensor) and first.ndim:
            rows: Any = torch.cat([one[name] for one in batches])[torch.tensor(order, device=first.device)]
        elif isinstance(first, list):
            every = [value for one in batches for value in one[name]]
            rows = [every[i] for i in order]
        else:
            for one, batch in zip(regrouped, batches, strict=True):
                one[name] = batch[name]
            continue
        for number, one in enumerate(regrouped):
            one[name] = rows[number * size : (number + 1) * size]
    return regrouped
