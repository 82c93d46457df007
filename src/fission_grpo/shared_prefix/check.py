"""Self-checks: do shared and unshared computation agree, for this model on this batch?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fission_grpo.core.terminal import get_logger
from fission_grpo.shared_prefix.layout import GroupedBatch, groups_of
from fission_grpo.shared_prefix.update import shared_logps

_log = get_logger(__name__)

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
    with eval_mode(model):
        shared, unshared = shared_logps(model, batch).logps, unshared_logps(model, batch)
    tokens = batch.completion_mask.sum(1).clamp(min=1)
    difference = ((shared.float() - unshared.float()).abs().sum(1) / tokens).max().item()
    return is_within(difference, model, batch.prompt_ids.device.type, "with")


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Dropout off for the duration of the context."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def is_within(difference: float, model: nn.Module, device: str, how: str) -> bool:
    """Whether a difference of log-probabilities is within `TOLERANCE` of the type computed in; warn if not."""
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
