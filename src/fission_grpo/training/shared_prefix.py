"""Shared prefixes in TRL's GRPOTrainer: in generation, in log-probability passes and in the backward pass."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor

from fission_grpo.core.terminal import get_logger, warn_once
from fission_grpo.shared_prefix.beginnings import Beginnings
from fission_grpo.shared_prefix.check import agrees
from fission_grpo.shared_prefix.generate import SharedGeneration
from fission_grpo.shared_prefix.layout import GroupedBatch, groups_of, rows_by_prompt
from fission_grpo.shared_prefix.models import causal_lm
from fission_grpo.shared_prefix.update import enable, rows_with_gradient, shared_logps
from fission_grpo.training.trl_compat import MixinBase

_log = get_logger(__name__)

UNSHARED_UPDATES = "shared_prefix/unshared_updates"
SHARING_COUNTS = (
    "shared_prefix/prompt_tokens",
    "shared_prefix/read_tokens",
    "shared_prefix/unshared",
    UNSHARED_UPDATES,
)


class SharedPrefixMixin(MixinBase):
    """Computes shared prefixes once, in `class Trainer(SharedPrefixMixin, GRPOTrainer)`.

    What all prompts of an optimizer step have in common (system message, tools) is computed once a step, and each
    group's prompt once. Adds: `args.shared_prefix` (True if there is no such field), `shared_generation`,
    `take_sharing_counts`, and `share_common` (False: only rows of one group share, for comparison). A model
    that does not support it, or fails the self-check, is left to TRL, with a warning and a count.

    Overrides: `_generate_and_score_completions` (replaces the model's `generate` during rollouts),
    `_get_per_token_logps_and_entropies` (the same numbers, computed on packed rows), `_prepare_inputs` (order of rows
    within an optimizer step) and `_compute_loss` (leaves out rows without a gradient; ends the common parts).

    Without it every completion computes its prompt again: the same results up to rounding, more time and memory.
    """

    share_common = True

    def __init__(self, *args: Any, **kwargs: Any):
        self.shared_generation = SharedGeneration()
        self._step_rows: list[dict[str, Any]] = []  # micro-batches whose prompts have their beginnings in common
        self._beginnings: Beginnings | None = None
        self._shares: dict[int, bool] = {}  # by id of the causal LM, after its self-check
        self._with_gradient: Tensor | None = None
        self._unshared_updates = 0
        self._generated = False
        self._taken_counts: Counter[str] = Counter()
        super().__init__(*args, **kwargs)
        self.shared_generation.remember = bool(self.tools)

    @property
    def _sharing(self) -> bool:
        return getattr(self.args, "shared_prefix", True)

    def take_sharing_counts(self) -> Counter[str]:
        """Counts of this rank since the last time: see `SharedGeneration`, and passes left to TRL; without zeros."""
        counts = Counter({name: self.shared_generation.counts[name.split("/")[1]] for name in SHARING_COUNTS})
        counts[UNSHARED_UPDATES] = self._unshared_updates
        new = counts - self._taken_counts
        self._taken_counts = counts
        return new

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        self._generated = True
        if not self._sharing:
            return super()._generate_and_score_completions(inputs)
        with self.shared_generation.on(self.model):  # pyright: ignore[reportArgumentType]
            return super()._generate_and_score_completions(inputs)

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        """TRL's, then rows with equal prompts put together within each optimizer step's micro-batches.

        Every optimizer step keeps the rows that it has with TRL, so its gradient is the same for all losses that weigh
        rows or tokens alike in all micro-batches. The loss type "bnpo" and `top_entropy_quantile` do not: they depend
        on TRL's own shuffle, too.
        """
        self._generated, self._step_rows = False, []
        inputs = super()._prepare_inputs(generation_batch)
        buffered, step = self._buffered_inputs or [], self.args.gradient_accumulation_steps
        at = next((i for i, batch in enumerate(buffered) if batch is inputs), None)
        if at is None or not self._sharing or "pixel_values" in inputs:
            return inputs
        size = len(buffered) if step % len(buffered) == 0 else step  # micro-batches of one optimizer step
        if size == 1 or len(buffered) % size:
            return inputs
        if self._generated:
            parts = [group_micro_batches(buffered[start : start + size]) for start in range(0, len(buffered), size)]
            self._buffered_inputs = buffered = [batch for part in parts for batch in part]
        if at % size == 0:
            self._beginnings = None  # left by a step that was not finished
        self._step_rows = buffered[at : at - at % size + size]
        return buffered[at]

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
        if self.accelerator.num_processes == 1:  # all ranks of DDP must make the same number of forward passes
            self._with_gradient = rows_with_gradient(
                inputs["advantages"],
                beta=self.beta,
                entropy_bonus=self._entropy_bonus_enabled,
                aux_loss=self.aux_loss_enabled,
            )
        finished = False
        try:
            loss = super()._compute_loss(model, inputs)
            finished = True
            return loss
        finally:
            self._with_gradient = None
            if self._beginnings is not None and not finished:
                _log.warning("after an error, this optimizer step has no gradient through what its prompts share.")
            if self._is_last or not finished:
                self._beginnings = None

    @property
    def _is_last(self) -> bool:
        """Whether the weights change, or other rows follow, after this micro-batch."""
        return len(self._step_rows) < 2 or self.accelerator.sync_gradients

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        self.shared_generation.forget()  # the rollouts are done
        unshared = sorted(name for name, value in options.items() if value is not None)  # images
        options |= {"batch_size": batch_size, "compute_entropy": compute_entropy, "compute_aux_loss": compute_aux_loss}
        tensors = (input_ids, attention_mask, logits_to_keep)
        if compute_aux_loss:
            unshared.append("an auxiliary loss (of a mixture of experts; off with router_aux_loss_coef=0)")
        if not self._sharing or unshared:
            if self._sharing:
                self._unshared_updates += 1
                warn_once(_log, f"log-probabilities do not share prompts with {', '.join(unshared)}")
            return super()._get_per_token_logps_and_entropies(model, *tensors, **options)
        width = input_ids.shape[1] - logits_to_keep
        batch = GroupedBatch(
            input_ids[:, :width], attention_mask[:, :width], input_ids[:, width:], attention_mask[:, width:]
        )
        with self.accelerator.autocast():
            if not self._shares_with(model, batch):
                self._unshared_updates += 1
                return super()._get_per_token_logps_and_entropies(model, *tensors, **options)
            max_tokens = None if batch_size is None else width + batch_size * logits_to_keep
            beginnings = self._common_beginnings(model)
            zero = beginnings.attach() if beginnings and self._is_last else None
            scores = shared_logps(
                model, batch, with_gradient=self._with_gradient, max_tokens=max_tokens, beginnings=beginnings
            )
        logps = scores.logps if zero is None else scores.logps + zero
        return logps, scores.entropies if compute_entropy else None, None

    def _common_beginnings(self, model: Any) -> Beginnings | None:
        """Those of the optimizer step's prompts; None where each call of `shared_logps` finds its own."""
        if not self.share_common:
            return Beginnings(model, {})
        if not torch.is_grad_enabled():
            return None
        if self._beginnings is None and len(self._step_rows) > 1:
            uses: Counter[tuple[int, ...]] = Counter()
            for rows in self._step_rows:
                uses.update(rows_by_prompt(rows["prompt_ids"], rows["prompt_mask"]).keys())
            self._beginnings = Beginnings(model, uses, across_backward=True)
        return self._beginnings

    def _shares_with(self, model: Any, batch: GroupedBatch) -> bool:
        """Whether prompts can be shared with this model; checked once, on the first batch."""
        key = id(causal_lm(model))
        if key not in self._shares:
            try:
                if self.is_fsdp_enabled or self.is_deepspeed_enabled:
                    raise ValueError("the model is sharded, which is not tested")
                enable(model)
            except ValueError as error:
                _log.warning("log-probabilities do not share prompts: %s.", error)
                self._shares[key] = False
            else:
                self._shares[key] = agrees(model, batch)
        return self._shares[key]


def group_micro_batches(batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Reorder rows over micro-batches of the same sizes, so that rows with equal prompts follow each other.

    Groups are in the order of their first rows, so a shuffled batch has its groups in random order.

    Args:
        batches: as TRL buffers them: values of N rows each (tensors or lists), or without rows (0-dim tensors, None).
    """
    prompts, masks = (torch.cat([batch[name] for batch in batches]) for name in ("prompt_ids", "prompt_mask"))
    order = [row for group in groups_of(prompts, masks) for row in group]
    size = len(batches[0]["prompt_ids"])
    regrouped = [dict(batch) for batch in batches]
    for name, first in batches[0].items():
        if isinstance(first, Tensor) and first.ndim:
            rows: Any = torch.cat([batch[name] for batch in batches])[torch.tensor(order, device=first.device)]
        elif isinstance(first, list):
            values = [value for batch in batches for value in batch[name]]
            rows = [values[i] for i in order]
        else:
            continue
        for number, batch in enumerate(regrouped):
            batch[name] = rows[number * size : (number + 1) * size]
    return regrouped
