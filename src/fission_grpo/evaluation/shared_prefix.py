"""KV caches of a batch: what all prompts begin with (system prompt, tools) is read once, and room is kept for replies.

transformers' own cache copies all keys and values for every new token, which at 16 prompts of 1,000 tokens took more
time than the model did.
"""

from __future__ import annotations

import functools
import inspect
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


def read_once(model: Any, prefix: Sequence[int], rows: int, room: int) -> Any:
    """The KV cache of the shared beginning, repeated for every row of the batch.

    None if the model keeps anything else than plain keys and values of all positions (sliding windows, states), for
    which a gap between beginning and rest would not do.

    Args:
        model: a causal language model in evaluation mode.
        prefix: token ids.
        rows: of the batch.
        room: tokens that will follow the beginning in every row, with padding and reply.
    """
    import torch
    from transformers.cache_utils import DynamicLayer

    with torch.no_grad():
        out = model.base_model(input_ids=torch.tensor([list(prefix)], device=model.device), use_cache=True)
    cache: Any = getattr(out, "past_key_values", None)
    layers = getattr(cache, "layers", ())
    if not layers or any(type(layer) is not DynamicLayer for layer in layers):
        return None
    for number, layer in enumerate(layers):
        cache.layers[number] = roomy = roomy_layer()(room)
        roomy.update(*(states.expand(rows, -1, -1, -1) for states in (layer.keys, layer.values)))
    return cache


def empty_cache(model: Any, room: int) -> Any:
    """An empty KV cache that keeps room for replies; None for models that need a cache of another kind.

    Args:
        model: a causal language model.
        room: tokens that will follow the prompts.
    """
    from transformers.cache_utils import DynamicCache, DynamicLayer

    if "past_key_values" not in inspect.signature(model.forward).parameters:
        return None
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    if not cache.layers or any(type(layer) is not DynamicLayer for layer in cache.layers):
        return None
    cache.layers = [roomy_layer()(room) for _ in cache.layers]
    return cache


@functools.cache
def roomy_layer() -> Any:
    """The class of a cache layer whose first states are stored with room behind them, into which later ones go."""
    from transformers.cache_utils import DynamicLayer

    class RoomyLayer(DynamicLayer):
        def __init__(self, room: int):
            super().__init__()
            self.room, self.stores = room, ()

        def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> Any:
            used = self.get_seq_length()
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
            end, given = used + key_states.shape[-2], (key_states, value_states)
            if not self.stores or end > self.stores[0].shape[-2]:
                grown = [new.new_empty((*new.shape[:2], end + self.room, new.shape[-1])) for new in given]
                for store, old in zip(grown, (self.keys, self.values), strict=True):
                    if used:
                        store[:, :, :used] = old
                self.stores = tuple(grown)
            for store, new in zip(self.stores, given, strict=True):
                store[:, :, used:end] = new
            self.keys, self.values = (store[:, :, :end] for store in self.stores)
            return self.keys, self.values

    return RoomyLayer
