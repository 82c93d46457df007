"""KV caches for generation: what a plain forward pass reads, and layers that grow in place."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from fission_grpo.shared_prefix.decoding import States

CACHE_ARGUMENTS = ("past_key_values", "cache")
"""Names by which models take their KV cache: the first up to transformers 5.23, the second since."""


def read_prompts(model: Any, ids: Tensor, mask: Tensor | None = None) -> tuple[States, Tensor]:
    """Compute the keys and values of U prompts in one forward pass.

    Args:
        model: a causal language model.
        ids: (U, P) int, padded on the left.
        mask: (U, P), 1 where `ids` is a token; None: there is no padding.

    Returns:
        Keys and values per layer, (U, K, P, d) each, and (U, V) logits of the token after each prompt.
    """
    cache = DynamicCache()
    output = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=None if mask is None else (mask.cumsum(1) - 1).clamp(min=0),
        use_cache=True,
        logits_to_keep=1,
        **{find_cache_argument(model) or CACHE_ARGUMENTS[0]: cache},
    )
    return [(layer.keys, layer.values) for layer in cache.layers], output.logits[:, -1]  # pyright: ignore


def find_cache_argument(model: Any) -> str | None:
    """The keyword by which a causal language model, wrapped by PEFT or not, takes its KV cache; None without one."""
    decoder = model.get_base_model() if hasattr(model, "get_base_model") else model
    parameters = inspect.signature(type(decoder).forward).parameters  # not the instance's, which TRL replaces
    return next((name for name in CACHE_ARGUMENTS if name in parameters), None)


class GrowingLayer(DynamicLayer):
    """A cache layer whose storage grows by `room` tokens at a time, so that most are appended without a copy."""

    def __init__(self, room: int):
        super().__init__()
        self.room = room
        self.storage: tuple[Tensor, ...] = ()

    def start(self, keys: Tensor, values: Tensor) -> None:
        """Take the first tokens' keys and values as they are; they are copied when more tokens come."""
        self.lazy_initialization(keys, values)
        self.storage, self.keys, self.values = (keys, values), keys, values

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append n tokens' keys and values, (B, K, n, d) each; returns those of all tokens."""
        used, new = self.get_seq_length(), (key_states, value_states)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = used + key_states.shape[-2]
        if not self.storage or end > self.storage[0].shape[-2]:
            grown = tuple(x.new_empty((*x.shape[:2], end + self.room, x.shape[-1])) for x in new)
            if self.storage:
                for target, old in zip(grown, self.storage, strict=True):
                    target[:, :, :used] = old[:, :, :used]
            self.storage = grown
        for target, states in zip(self.storage, new, strict=True):
            target[:, :, used:end] = states
        self.keys, self.values = (store[:, :, :end] for store in self.storage)
        return self.keys, self.values

    def select(self, rows: Tensor) -> None:
        """Keep `rows` (N,) int only."""
        if self.storage:
            used = self.get_seq_length()
            self.storage = tuple(x.index_select(0, rows) for x in self.storage)
            self.keys, self.values = (store[:, :, :used] for store in self.storage)
