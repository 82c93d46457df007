"""A self-check: do shared and unshared log-probabilities agree, for this model on this batch?"""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

from fission_grpo.shared_prefix.layout import GroupedBatch, groups_of
from fission_grpo.shared_prefix.update import shared_logps

_log = logging.getLogger(__name__)

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.02}
"""[ours] Largest mean absolute difference of a completion's log-probabilities, by the type the model computes in."""


@torch.no_grad()
def unshared_logps(model: nn.Module, batch: GroupedBatch) -> Tensor:
    """(B, R) log-probabilities as TRL computes them, one row per completion, 0 where `completion_mask` is 0."""
    ids = torch.cat([batch.prompt_ids, batch.completion_ids], 1)
    mask = torch.cat([batch.prompt_mask, batch.completion_mask], 1)
    labels, width = ids.masked_fill(mask == 0, -100), batch.completion_ids.shape[1]
    labels[:, :-width] = -100
    return model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True).log_probs[:, -width:]


@torch.no_grad()
def agrees(model: nn.Module, batch: GroupedBatch, tolerance: float | None = None) -> bool:
    """Whether both ways give the same log-probabilities on two rows of each of two groups; a warning if they do not.

    Args:
        model: a model after `enable`; dropout is off during the check.
        batch: B rows, such as the first that training meets, so that its lengths are those to come.
        tolerance: largest mean absolute difference over a completion's tokens; None: `TOLERANCE` of the type that
            the model computes in (autocast's, or the parameters').

    Returns:
        True if they agree, and where there is no token to compare.
    """
    largest = sorted(groups_of(batch.prompt_ids, batch.prompt_mask), key=len, reverse=True)[:2]
    chosen = torch.tensor([row for group in largest for row in group[:2]], device=batch.prompt_ids.device)
    batch, device = batch.rows(chosen), batch.prompt_ids.device.type
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        shared, unshared = shared_logps(model, batch).logps, unshared_logps(model, batch)
    finally:
        for module in training:
            module.training = True
    tokens = batch.completion_mask.sum(1).clamp(min=1)
    difference = ((shared.float() - unshared.float()).abs().sum(1) / tokens).max().item()
    if tolerance is None:
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else next(model.parameters()).dtype
        tolerance = TOLERANCE.get(dtype, TOLERANCE[torch.float32])
    if difference <= tolerance:
        return True
    _log.warning(
        "log-probabilities with shared prefixes differ from the model's own by %.2g (at most %.2g may be): "
        "prefixes cannot be shared with this model; set shared_prefix=False and please report it.",
        difference,
        tolerance,
    )
    return False
