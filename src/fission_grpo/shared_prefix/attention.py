"""Attention over a packed row in two parts: prompts causally, completions over their prompt and themselves.

What prompts of several groups have in common is a part of its own, whose keys and values stand in the layout. The two
parts are those of Prefix Grouper (arXiv 2506.05433). Both call PyTorch's `scaled_dot_product_attention`, so fused
kernels run on CPU and GPU, forward and backward, and no attention probabilities are kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from fission_grpo.shared_prefix.decoding import Decoding, decode_attention
from fission_grpo.shared_prefix.layout import Layout, PrefixGroup

NAME = "shared_prefix_sdpa"  # argument of `model.set_attn_implementation`


def register() -> None:
    """Register `NAME` with transformers. For ordinary batches it equals transformers' "sdpa"."""
    AttentionInterface.register(NAME, shared_prefix_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def final_mask(device: torch.device) -> Tensor:
    """A mask that transformers takes as final (four dimensions); the attention reads `shared_prefix` instead."""
    return torch.zeros(1, 1, 1, 1, dtype=torch.bool, device=device)


def shared_prefix_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    shared_prefix: Layout | Decoding | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of one layer, with the signature of transformers' `AttentionInterface`; returns (1, N, H, d).

    Args:
        query: (1, H, N, d), rotary embeddings applied.
        key, value: (1, K, N, d); K divides H (grouped queries).
        attention_mask: used for ordinary batches only.
        sliding_window: number of keys a query sees, itself included; None: all before it.
        shared_prefix: the layout of the packed row; in generation, the state of the B rows of n new tokens; None: an
            ordinary batch, computed by "sdpa".

    Raises:
        ValueError: the layer needs soft-capped or biased scores or sinks, which fused kernels do not support.
    """
    if shared_prefix is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, sliding_window=sliding_window, **kwargs
        )
    for name in ("softcap", "s_aux", "position_bias"):
        if kwargs.get(name) is not None:
            raise ValueError(f"attention with {name} cannot share prefixes; set shared_prefix=False for this model.")
    if isinstance(shared_prefix, Decoding):
        layer: Any = module.layer_idx
        return decode_attention(shared_prefix, layer, query, key, value, sliding_window, scaling), None
    number: Any = module.layer_idx
    if shared_prefix.captured is not None:
        shared_prefix.captured.setdefault(number, (key, value))  # gradient checkpointing computes a layer again
    # The heads of one key head are one element of the batch, so that keys are expanded without a copy.
    query = query[0].unflatten(0, (key.shape[1], -1))
    sizes = [group.length for group in shared_prefix.groups]
    parts = query.split(sizes, 2), key[0].split(sizes, 1), value[0].split(sizes, 1)
    outputs, start = [], 0
    for group, q, k, v in zip(shared_prefix.groups, *parts, strict=True):
        if group.beginning:
            k, v = (torch.cat([x[0], own], 1) for x, own in zip(group.beginning.states[number], (k, v), strict=True))
        part = _GroupAttention(shared_prefix, group, start, sliding_window, dropout, scaling)
        outputs += part(q, k, v)
        start += group.length
    return torch.cat(outputs, 2).flatten(0, 1).transpose(0, 1)[None], None


class _GroupAttention:
    """One group's attention in one layer: q is (K, H/K, group.length, d), k and v (K, C + group.length, d).

    C tokens are the common beginning. Numbers of queries are relative to the group's start, those of keys to C before.
    """

    def __init__(
        self, layout: Layout, group: PrefixGroup, start: int, window: int | None, dropout: float, scale: float | None
    ):
        self.layout, self.group, self.start, self.window = layout, group, start, window
        self.common = group.beginning.length if group.beginning else 0
        self.options: dict[str, Any] = {"dropout_p": dropout, "scale": scale}

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
        prompt = [] if self.common else self._prefix(q, k, v)
        return [*prompt, *(self._block(q, k, v, *block) for block in self.group.blocks)]

    def _prefix(self, q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
        prefix, window = self.group.prefix, self.window or self.group.prefix
        if prefix <= window:
            q, (k, v) = q[:, :, :prefix], (_expanded(x[:, :prefix], q) for x in (k, v))
            return [scaled_dot_product_attention(q, k, v, is_causal=True, **self.options)]
        outputs = []
        for start in range(0, prefix, window):  # a window of queries sees two windows of keys
            end, first = min(start + window, prefix), max(0, start - window + 1)
            outputs.append(self._masked(q, k, v, (start, end), ((first, end),)))
        return outputs

    def _block(self, q: Tensor, k: Tensor, v: Tensor, start: int, end: int) -> Tensor:
        prefix, common = self.group.prefix, self.common
        first = max(0, common + min(start, prefix) - self.window + 1) if self.window else 0
        if start <= prefix:
            keys = ((first, common + end),)
        else:
            keys = ((first, common + prefix), (common + start, common + end))
        return self._masked(q, k, v, (start, end), keys)

    def _masked(
        self, q: Tensor, k: Tensor, v: Tensor, queries: tuple[int, int], keys: tuple[tuple[int, int], ...]
    ) -> Tensor:
        q, mask = _runs(q, (queries,), 2), self._mask(queries, keys, q.dtype)
        k, v = (_expanded(_runs(x, keys), q) for x in (k, v))
        return scaled_dot_product_attention(q, k, v, attn_mask=mask, **self.options)

    def _mask(self, queries: tuple[int, int], keys: tuple[tuple[int, int], ...], dtype: torch.dtype) -> Tensor:
        """(queries, keys), 0 where a query sees a key, -inf elsewhere; cached for all layers with this window."""
        cache_key = (self.start, queries, keys, self.window, dtype)
        if cache_key not in self.layout.masks:
            group = slice(self.start, self.start + self.group.length)
            position, owner = self.layout.positions[group], self.layout.owner[group]
            query_at, query_owner = position[slice(*queries), None], owner[slice(*queries), None]
            if self.common:
                before = torch.arange(self.common, device=position.device)
                position, owner = torch.cat([before, position]), torch.cat([torch.full_like(before, -1), owner])
            key_at, key_owner = _runs(position, keys, 0), _runs(owner, keys, 0)
            visible = (key_at <= query_at) & ((key_owner == -1) | (key_owner == query_owner))
            if self.window:
                visible &= key_at > query_at - self.window
            mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
            self.layout.masks[cache_key] = mask.masked_fill_(~visible, float("-inf"))
        return self.layout.masks[cache_key]


def _expanded(x: Tensor, query: Tensor) -> Tensor:
    """(K, N, d) keys or values for queries (K, H/K, n, d), without a copy."""
    return x[:, None].expand(-1, query.shape[1], -1, -1)


def _runs(x: Tensor, runs: tuple[tuple[int, int], ...], dim: int = 1) -> Tensor:
    """The entries from `start` to `end` of each run, one run after the other."""
    if runs == ((0, x.shape[dim]),):
        return x  # autograd need not put its gradient into zeros
    parts = [x.narrow(dim, start, end - start) for start, end in runs]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)
