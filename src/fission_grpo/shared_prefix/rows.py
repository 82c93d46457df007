"""The rows of a batch that are still generating: the levels of the tree that they share, and each row's own tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from fission_grpo.shared_prefix.attention import final_mask
from fission_grpo.shared_prefix.decoding import MIN_FUSED, Decoding, Level, States
from fission_grpo.shared_prefix.kv_cache import CACHE_ARGUMENTS, GrowingLayer, find_cache_argument

ROOM = 64  # [ours] number of tokens by which a row's cache grows at a time
MAX_SCORES = 2**26  # [ours] most attention scores of one layer when tokens are read: 256 MiB of float32


class CachedRows:
    """B rows and the tokens that they have read.

    Args:
        model: as `generate` calls it.
        levels: what the rows share, from the beginning on; each level has a node for every row.
        states: per layer keys and values of the rows' own tokens, (B, K, S, d).
        valid: (B, S) bool, False where a column is padding.

    `index` (B,) int has the numbers in the batch of the rows left, `base` (B,) their numbers of shared tokens.
    """

    def __init__(self, model: PreTrainedModel, levels: Sequence[Level], states: States, valid: Tensor):
        self.model, self.levels, self.valid = model, list(levels), valid
        self._cache_argument = find_cache_argument(model) or CACHE_ARGUMENTS[0]
        self.index = torch.arange(len(valid), device=valid.device)
        self.base = sum((level.lengths() for level in self.levels), torch.zeros_like(self.index))
        self.has_padding = bool((~valid).any())
        self.layers = [GrowingLayer(ROOM) for _ in states]
        self._cache = Cache(layers=list(self.layers))
        if valid.shape[1]:
            for layer, (keys, values) in zip(self.layers, states, strict=True):
                layer.start(keys, values)

    def states(self) -> States:
        """Keys and values of the rows' own tokens, per layer; not before the first token is read."""
        return [(layer.keys, layer.values) for layer in self.layers]  # pyright: ignore[reportReturnType]

    def positions(self) -> Tensor:
        """(B, S) int, the position of each row's own tokens."""
        return self.base[:, None] + (self.valid.cumsum(1) - 1).clamp(min=0)

    def feed(self, ids: Tensor, valid: Tensor | None = None) -> Tensor:
        """Read n more tokens of every row.

        Args:
            ids: (B, n) int.
            valid: (B, n) bool, False where `ids` is padding (on the left); None: all are tokens.

        Returns:
            (B, V) logits of the token after the last.
        """
        heads = self.model.config.num_attention_heads
        places = [part.members.numel() * part.end for level in self.levels for part in level.parts]
        most = max([len(ids) * (self.valid.shape[1] + ids.shape[1]), *places])
        step = max(1, MAX_SCORES // (heads * most))
        if ids.shape[1] >= MIN_FUSED:  # of which only the masks are kept
            step = max(step, MIN_FUSED, MAX_SCORES // most)
        for start in range(0, ids.shape[1] - step, step):
            self._feed(ids[:, start : start + step], None if valid is None else valid[:, start : start + step])
        last = (ids.shape[1] - 1) // step * step
        return self._feed(ids[:, last:], None if valid is None else valid[:, last:])

    def _feed(self, ids: Tensor, valid: Tensor | None) -> Tensor:
        new_valid = valid if valid is not None else torch.ones_like(ids, dtype=torch.bool)
        self.valid = torch.cat([self.valid, new_valid], 1)
        self.has_padding = self.has_padding or valid is not None
        positions = self.positions()
        output: Any = self.model(
            input_ids=ids,
            attention_mask=final_mask(ids.device),
            position_ids=positions[:, -ids.shape[1] :],
            use_cache=True,
            logits_to_keep=1,
            shared_prefix=Decoding(self.levels, positions, self.valid if self.has_padding else None),
            **{self._cache_argument: self._cache},
        )
        return output.logits[:, -1]

    def keep_only(self, rows: Tensor) -> None:
        """Drop all rows but those at `rows` (N,) int, which ascend."""
        self.index, self.valid, self.base = self.index[rows], self.valid[rows], self.base[rows]
        self.levels = [level.select(rows) for level in self.levels]
        for layer in self.layers:
            layer.select(rows)

    def repeat(self, row: Tensor) -> CachedRows:
        """A batch whose row i has read what `row[i]` of this one has; what these have of their own becomes a level."""
        levels = [level.select(row) for level in self.levels]
        if len(row) == len(self.valid):  # all different
            return self if row.equal(self.index) else CachedRows(self.model, levels, *self._rows(row))
        positions = self.positions().masked_fill(~self.valid, -1)
        return CachedRows(
            self.model,
            [*levels, Level(self.states(), positions, row)],
            [(keys[:0], values[:0]) for keys, values in self.states()],
            self.valid.new_zeros(len(row), 0),
        )

    def _rows(self, row: Tensor) -> tuple[States, Tensor]:
        return [(keys[row], values[row]) for keys, values in self.states()], self.valid[row]

    def tokens_of(self, row: int, columns: Sequence[int]) -> States:
        """Per layer the states (K, n, d) of n own tokens of a row; no copies if ascending `columns` have no gap."""
        picked: Any = torch.tensor(columns, device=self.valid.device)
        if not columns or columns[-1] - columns[0] + 1 == len(columns):
            picked = slice(columns[0], columns[-1] + 1) if columns else slice(0)
        return [(keys[row, :, picked], values[row, :, picked]) for keys, values in self.states()]


def join_rows(parts: Sequence[CachedRows], levels: Sequence[Level], order: Tensor) -> CachedRows:
    """The rows of several batches as one batch, row i of which is row `order[i]` of the parts in sequence."""
    if len(parts) == 1 and order.equal(parts[0].index):
        return parts[0]
    width = max(part.valid.shape[1] for part in parts)
    valid = torch.cat([torch.nn.functional.pad(part.valid, (0, width - part.valid.shape[1])) for part in parts])
    states: States = []
    for layers in zip(*(part.states() for part in parts), strict=True):
        padded = [
            torch.cat([torch.nn.functional.pad(x, (0, 0, 0, width - x.shape[2])) for x in tensors])[order]
            for tensors in zip(*layers, strict=True)
        ]
        states.append((padded[0], padded[1]))
    return CachedRows(parts[0].model, levels, states, valid[order])
