"""KV caches of a batch in generation: each prompt's once, and each row's own tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from fission_grpo.shared_prefix.decoding import Decoding
from fission_grpo.shared_prefix.kv_cache import (
    CACHE_ARGUMENTS,
    GrowingLayer,
    States,
    find_cache_argument,
    read_prompts,
)

ROOM = 64  # [ours] number of tokens by which a row's cache grows at a time
MAX_SCORES = 2**26  # [ours] most attention scores of one layer when tool results are read: 256 MiB of float32


@dataclass(frozen=True)
class Prompts:
    """U prompts whose keys and values are computed."""

    states: States  # (U, K, P, d) keys and values per layer, padded on the left
    lengths: Tensor  # (U,) int
    padded: bool  # some prompt is shorter than P


@dataclass(frozen=True)
class FinishedRows:
    """Rows that have left the batch, kept because a later turn may continue them."""

    states: States  # (N, K, S, d) keys and values per layer, of the rows' own tokens
    valid: Tensor  # (N, S) bool, False where a column is padding
    prompt: Tensor  # (N,) int, number of each row's prompt
    tokens: list[bytes]  # token ids in the caches, the prompt's and the row's own, as int64 bytes


def token_bytes(ids: Tensor) -> bytes:
    """Token ids as int64 bytes, which are fast to compare."""
    return ids.to("cpu", torch.int64).numpy().tobytes()


def compute_prompts(model: PreTrainedModel, ids: Tensor, mask: Tensor) -> tuple[Prompts, Tensor]:
    """Compute U different prompts: (U, P) ids and mask, padded on the left.

    Returns:
        The prompts, and (U, V) logits of the token after each.
    """
    lengths = mask.sum(1)
    padded = bool((lengths < ids.shape[1]).any())
    states, logits = read_prompts(model, ids, mask if padded else None)
    return Prompts(states, lengths, padded), logits


class CachedRows:
    """The rows of a batch that are still generating.

    Args:
        model: as `generate` calls it.
        prompts: the prompts of the rows.
        prompt: (B,) int, number of each row's prompt.
        continued: caches of the rows' earlier turns, in the order of the rows; None: only prompts are cached.
    """

    def __init__(
        self, model: PreTrainedModel, prompts: Prompts, prompt: Tensor, continued: FinishedRows | None = None
    ):
        self.model, self.prompts = model, prompts
        self._cache_argument = find_cache_argument(model) or CACHE_ARGUMENTS[0]
        self.index = torch.arange(len(prompt), device=prompt.device)  # numbers in the batch of the rows left
        no_tokens = prompt.new_ones((len(prompt), 0), dtype=torch.bool)
        self.valid = continued.valid if continued else no_tokens
        self.has_padding = bool((~self.valid).any())
        self._set(prompt, continued.states if continued else None)

    def _set(self, prompt: Tensor, states: States | None) -> None:
        """Make the cache of the rows' own tokens, and the index of the rows of each prompt."""
        self.prompt = prompt
        self.cache = Cache(layers=[GrowingLayer(ROOM) for _ in self.prompts.states])
        if states and states[0][0].shape[2]:
            for number, (keys, values) in enumerate(states):
                self.cache.update(keys, values, number)
        order = prompt.argsort(stable=True)
        sizes = prompt.bincount(minlength=len(self.prompts.lengths))
        starts, largest = sizes.cumsum(0) - sizes, int(sizes.max())
        step = torch.arange(largest, device=prompt.device)
        self._members = order[(starts[:, None] + step).clamp(max=len(prompt) - 1)]
        place = torch.empty_like(prompt)
        place[order] = torch.arange(len(prompt), device=prompt.device) - starts[prompt[order]]
        self._places = prompt * largest + place

    def states(self) -> States:
        """(B, K, S, d) keys and values of the rows' own tokens, per layer."""
        if not self.valid.shape[1]:
            none = torch.zeros_like(self.prompt)
            return [(k[none, :, :0], v[none, :, :0]) for k, v in self.prompts.states]
        return [(layer.keys, layer.values) for layer in self.cache.layers]  # pyright: ignore

    def feed(self, ids: Tensor, valid: Tensor | None = None) -> Tensor:
        """Read n more tokens of every row.

        Args:
            ids: (B, n) int.
            valid: (B, n) bool, False where `ids` is padding (on the left); None: all are tokens.

        Returns:
            (B, V) logits of the token after the last.
        """
        heads = self.model.config.num_attention_heads
        width = self.prompts.states[0][0].shape[2] + self.valid.shape[1] + ids.shape[1]
        step = max(1, MAX_SCORES // (len(ids) * heads * width))
        for start in range(0, ids.shape[1] - step, step):
            self._feed(ids[:, start : start + step], None if valid is None else valid[:, start : start + step])
        last = (ids.shape[1] - 1) // step * step
        return self._feed(ids[:, last:], None if valid is None else valid[:, last:])

    def _feed(self, ids: Tensor, valid: Tensor | None) -> Tensor:
        new_valid = valid if valid is not None else torch.ones_like(ids, dtype=torch.bool)
        self.valid = torch.cat([self.valid, new_valid], 1)
        self.has_padding = self.has_padding or valid is not None
        positions = self.prompts.lengths[self.prompt, None] + (self.valid.cumsum(1) - 1).clamp(min=0)
        state = Decoding(
            self.prompts.states,
            self.prompts.lengths,
            self.prompts.padded,
            self._members,
            self._places,
            positions,
            self.valid if self.has_padding else None,
        )
        output: Any = self.model(
            input_ids=ids,
            # transformers takes a mask of four dimensions as final; the attention reads `state` instead.
            attention_mask=torch.zeros(1, 1, 1, 1, dtype=torch.bool, device=ids.device),
            position_ids=positions[:, -ids.shape[1] :],
            use_cache=True,
            logits_to_keep=1,
            shared_prefix=state,
            **{self._cache_argument: self.cache},
        )
        return output.logits[:, -1]

    def keep_only(self, rows: Tensor) -> None:
        """Drop all rows but those at `rows` (N,) int, which ascend."""
        states = self.states()
        self.index, self.valid = self.index[rows], self.valid[rows]
        self._set(self.prompt[rows], [(k.index_select(0, rows), v.index_select(0, rows)) for k, v in states])


def select_rows(parts: list[FinishedRows], chosen: list[tuple[int, int]]) -> FinishedRows:
    """The `chosen` rows (part, row in it) of several parts as one, padded on the right."""
    count, width = len(chosen), max(parts[part].valid.shape[1] for part, _ in chosen)
    device = parts[0].valid.device
    valid = torch.zeros(count, width, dtype=torch.bool, device=device)
    prompt = torch.zeros(count, dtype=torch.int64, device=device)
    shapes = [(count, keys.shape[1], width, keys.shape[3]) for keys, _ in parts[0].states]
    layers = zip(parts[0].states, shapes, strict=True)
    states = [(keys.new_zeros(shape), values.new_zeros(shape)) for (keys, values), shape in layers]
    for number, part in enumerate(parts):
        targets = [(target, row) for target, (source, row) in enumerate(chosen) if source == number]
        if not targets:
            continue
        to, rows = (torch.tensor(x, device=device) for x in zip(*targets, strict=True))
        columns = part.valid.shape[1]
        valid[to, :columns] = part.valid[rows]
        prompt[to] = part.prompt[rows]
        for (keys, values), (part_keys, part_values) in zip(states, part.states, strict=True):
            keys[to, :, :columns] = part_keys[rows]
            values[to, :, :columns] = part_values[rows]
    return FinishedRows(states, valid, prompt, [parts[part].tokens[row] for part, row in chosen])
