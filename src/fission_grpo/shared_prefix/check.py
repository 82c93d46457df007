"""Self-checks: do shared and unshared computation agree, for this model on this batch?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fission_grpo.core.terminal import get_logger
from fission_grpo.shared_prefix.layout import GroupedBatch, groups_of
from fission_grpo.shared_prefix.rows import CachedRows, compute_prompts
from fission_grpo.shared_prefix.update import shared_logps

_log = get_logger(__name__)

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.02}
"""[ours] Largest mean absolute difference of a completion's log-probabilities, by the type the model computes in."""

CHECKED_STEPS = 4  # [ours] number of tokens that the self-check of generation decodes


@torch.no_grad()
def unshared_logps(model: nn.Module, batch: GroupedBatch) -> Tensor:
    """(B, R) log-probabilities as TRL computes them, one row per completion, 0 where `completion_mask` is 0."""
    ids = torch.cat([batch.prompt_ids, batch.completion_ids], 1)
    mask = torch.cat([batch.prompt_mask, batch.completion_mask], 1)
    labels, width = ids.masked_fill(mask == 0, -100), batch.completion_ids.shape[1]
    labels[:, :-width] = -100
    return model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True).log_probs[:, -width:]


@torch.no_grad()
def agrees(model: nn.Module, batch: GroupedBatch) -> bool:
    """Compare shared and unshared log-probabilities on two rows of each of two groups; warn if they differ.

    Args:
        model: a model after `enable`; dropout is off during the check.
        batch: B rows, for example the first that training meets, so that the lengths are realistic.

    Returns:
        Whether the mean absolute difference over a completion's tokens is within `TOLERANCE`.
    """
    largest = sorted(groups_of(batch.prompt_ids, batch.prompt_mask), key=len, reverse=True)[:2]
    chosen = torch.tensor([row for group in largest for row in group[:2]], device=batch.prompt_ids.device)
    batch = batch.rows(chosen)
    with _eval_mode(model):
        shared, unshared = shared_logps(model, batch).logps, unshared_logps(model, batch)
    tokens = batch.completion_mask.sum(1).clamp(min=1)
    difference = ((shared.float() - unshared.float()).abs().sum(1) / tokens).max().item()
    return _is_within(difference, model, batch.prompt_ids.device.type, "with")


@torch.no_grad()
def generation_agrees(model: PreTrainedModel, ids: Tensor, mask: Tensor) -> bool:
    """Compare decoding with shared prompts to one plain forward pass; warn if log-probabilities differ.

    Takes two rows of the largest group and one of another from (B, P) ids and mask, padded on the left, and decodes
    `CHECKED_STEPS` tokens greedily. No random numbers are used; dropout is off. The difference is a mean over the
    vocabulary, with the limits of `agrees`.
    """
    groups = sorted(groups_of(ids, mask), key=len, reverse=True)[:2]
    chosen = torch.tensor([*groups[0][:2], *(groups[1][:1] if len(groups) > 1 else ())], device=ids.device)
    ids, mask = ids[chosen], mask[chosen]
    prompt = torch.tensor([0] * len(groups[0][:2]) + [1] * (len(groups) - 1), device=ids.device)
    firsts = torch.tensor([0, len(ids) - 1][: len(groups)], device=ids.device)
    with _eval_mode(model):
        prompts, prompt_logits = compute_prompts(model, ids[firsts], mask[firsts])
        rows, logits = CachedRows(model, prompts, prompt), [prompt_logits[prompt]]
        for _ in range(CHECKED_STEPS):
            tokens = logits[-1].argmax(-1)[:, None]
            ids, mask = torch.cat([ids, tokens], 1), torch.cat([mask, torch.ones_like(tokens)], 1)
            logits.append(rows.feed(tokens))
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        output: Any = model(
            input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=CHECKED_STEPS + 1
        )
    shared, unshared = (x.float().log_softmax(-1) for x in (torch.stack(logits, 1), output.logits))
    difference = (shared - unshared).abs().mean(-1).max().item()
    return _is_within(difference, model, ids.device.type, "generated with")


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _is_within(difference: float, model: nn.Module, device: str, how: str) -> bool:
    autocast = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if autocast else next(model.parameters()).dtype
    tolerance = TOLERANCE.get(dtype, TOLERANCE[torch.float32])
    if difference <= tolerance:
        return True
    _log.warning(
        "log-probabilities %s shared prefixes differ from the model's own by %.2g (limit %.2g): "
        "prefixes cannot be shared with this model; set shared_prefix=False and please report it.",
        how,
        difference,
        tolerance,
    )
    return False
