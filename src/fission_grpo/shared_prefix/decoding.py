"""Attention of new tokens over a prompt whose keys are stored once per group, and over each row's own tokens.

Each part has its own softmax; the two are joined by their log-sum-exps (as in flash decoding). So the keys of a prompt
are read in one matrix product per head for all rows of its group.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Decoding:
    """State of one forward pass: B rows, n new tokens each, S tokens of their own, the new ones included."""

    prompts: list[tuple[Tensor, Tensor]]  # per layer keys and values of U prompts, (U, K, P, d), padded on the left
    prompt_lengths: Tensor  # (U,) int, tokens of each prompt
    padded: bool  # some prompt is shorter than P
    members: Tensor  # (U, G) int, the rows of each prompt, G the largest group's size; unused places hold any row
    places: Tensor  # (B,) int, place of each row in `members`, flattened
    positions: Tensor  # (B, S) int, positions of the rows' own tokens; the new ones are the last n
    valid: Tensor | None = None  # (B, S) bool, False where a column is a row's padding; None: all are tokens
    masks: dict[Any, Tensor | None] = field(default_factory=dict)  # cache; layers with the same window share masks

    def prompt_mask(self, new: int, window: int | None, first: int) -> Tensor | None:
        """(U, 1, G, 1, n, P - first) True where a new token does not see a key of its prompt; None: sees all."""
        if ("prompt", window) in self.masks:
            return self.masks["prompt", window]
        width = self.prompts[0][0].shape[2]
        columns = torch.arange(first, width, device=self.prompt_lengths.device)
        key_at = columns - (width - self.prompt_lengths[:, None])  # (U, P - first), negative in padding
        hidden = (key_at < 0)[:, None, None, None, None] if self.padded else None
        if window:
            query_at = self.positions[:, -new:][self.members]  # (U, G, n)
            too_old = (key_at[:, None, None] <= query_at[..., None] - window)[:, None, :, None]
            hidden = too_old if hidden is None else hidden | too_old
        self.masks["prompt", window] = hidden
        return hidden

    def own_mask(self, new: int, window: int | None) -> Tensor | None:
        """(B, 1, 1, n, S) True where a new token does not see one of its row's own; None: sees all."""
        total = self.positions.shape[1]
        if new == 1 and self.valid is None and (window is None or total <= window):
            return None
        if ("own", window) in self.masks:
            return self.masks["own", window]
        column = torch.arange(total, device=self.positions.device)
        hidden = (column > column[-new:, None])[None]  # a later token
        if self.valid is not None:
            # Nothing sees padding but padding itself, whose softmax must not be over nothing.
            hidden = hidden | (~self.valid[:, None] & (column != column[-new:, None]))
        if window:
            hidden = hidden | (self.positions[:, None] <= self.positions[:, -new:, None] - window)
        self.masks["own", window] = hidden[:, None, None]
        return self.masks["own", window]


def decode_attention(
    state: Decoding, layer: int, query: Tensor, key: Tensor, value: Tensor, window: int | None, scale: float | None
) -> Tensor:
    """Attention of n new tokens in one layer; returns (B, n, H, d).

    Args:
        query: (B, H, n, d).
        key, value: (B, K, S, d), of the rows' own tokens, the new ones last; K divides H.
        window: number of keys a query sees, itself included; None: all before it.
        scale: factor of the scores; None: 1 / sqrt(d).
    """
    rows, heads, new, size = query.shape
    key_heads = key.shape[1]
    query = (query * (scale or size**-0.5)).reshape(rows, key_heads, -1, size)  # (B, K, H/K n, d)
    shape = (rows, key_heads, heads // key_heads, new)
    own, own_sum = _attend(query, key, value, state.own_mask(new, window), shape)
    prompt_keys, prompt_values = state.prompts[layer]
    prompts, most = state.members.shape
    first = max(0, prompt_keys.shape[2] - window + 1) if window else 0
    if first < prompt_keys.shape[2]:
        prompt_keys, prompt_values = (x[:, :, first:] for x in (prompt_keys, prompt_values))
        grouped = query[state.members].transpose(1, 2).reshape(prompts, key_heads, -1, size)  # (U, K, G H/K n, d)
        shape = (prompts, key_heads, most, heads // key_heads, new)
        shared, shared_sum = _attend(grouped, prompt_keys, prompt_values, state.prompt_mask(new, window, first), shape)
        shared, shared_sum = (
            x.view(prompts, key_heads, most, -1, x.shape[-1]).transpose(1, 2).flatten(0, 1)[state.places]
            for x in (shared, shared_sum)
        )
        own = own + (shared - own) * torch.sigmoid(shared_sum - own_sum).to(own.dtype)
    return own.view(rows, heads, new, size).transpose(1, 2)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, hidden: Tensor | None, shape: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Softmax-weighted values (..., q, d), and log-sum-exps of the scores (..., q, 1)."""
    scores = (query @ key.transpose(-1, -2)).float()
    if hidden is not None:
        scores.view(*shape, -1).masked_fill_(hidden, torch.finfo(torch.float32).min / 2)
    weights = scores.softmax(-1)
    # The largest weight is exp(largest score - log-sum-exp): cheaper than another pass of exponentials.
    log_sum = scores.amax(-1, keepdim=True) - weights.amax(-1, keepdim=True).log()
    return weights.to(value.dtype) @ value, log_sum
