"""The beginning that all prompts of a batch share (system prompt, tools) is read once, not once a prompt."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

MIN_SHARED = 32
"""Shortest shared beginning that is read apart, in tokens. [ours] Below, one forward pass more costs what it saves."""


def shared_length(prompts: Sequence[Sequence[int]]) -> int:
    """Tokens that all prompts begin with, leaving each at least one of its own; 0 where sharing does not pay.

    Example:
        two prompts of 100 tokens that differ in the last ten share 90; two equal ones share 99; one alone shares 0
    """
    if len(prompts) < 2:
        return 0
    ordered = sorted(list(prompt) for prompt in prompts)
    first, last = ordered[0], ordered[-1]  # all others lie between them, so they share what these two share
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    length = min(sum(1 for _ in same), min(map(len, prompts)) - 1)
    return length if length >= MIN_SHARED else 0


def read_once(model: Any, prefix: Sequence[int], rows: int) -> Any:
    """The KV cache of the shared beginning, repeated for every row of the batch.

    None if the model keeps anything else than plain keys and values of all positions (sliding windows, states), for
    which a gap between beginning and rest would not do.

    Args:
        model: a causal language model in evaluation mode.
        prefix: token ids.
        rows: of the batch.
    """
    import torch
    from transformers.cache_utils import DynamicLayer

    with torch.no_grad():
        cache = model.base_model(
            input_ids=torch.tensor([list(prefix)], device=model.device), use_cache=True
        ).past_key_values
    layers = getattr(cache, "layers", ())
    if not layers or any(type(layer) is not DynamicLayer for layer in layers):
        return None
    cache.batch_repeat_interleave(rows)
    return cache
