"""KV caches of a batch in generation: every prompt's once, every row's own tokens apart, and what later turns need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache

from fission_grpo.inference.local import roomy_layer
from fission_grpo.training.shared_prefix.decoding import Decoding

States = list[tuple[Tensor, Tensor]]
"""Keys and values per layer."""


ROOM = 64
"""[ours] New tokens for which a row's cache grows at a time."""


AT_ONCE = 16_384
"""[ours] Most tokens of prompts, padding included, that one forward reads."""


MOST_SCORES = 2**26
"""[ours] Most attention scores of one layer when tool results are read: 256 MiB of float32."""


@dataclass(frozen=True)
class Prompts:
    """U prompts that were read once.

    Args:
        states: (U, K, P, d) keys and values per layer, padded on the left.
        lengths: (U,) int.
        padded: some prompt is shorter than P.
        ids: token ids of each prompt as int64 bytes.
    """

    states: States
    lengths: Tensor
    padded: bool
    ids: list[bytes]


@dataclass(frozen=True)
class Part:
    """Rows that have left the batch, kept for a later turn of theirs.

    Args:
        states: (N, K, S, d) keys and values per layer, of the rows' own tokens.
        valid: (N, S) bool, False where a column is padding.
        prompt: (N,) int, number of each row's prompt.
        known: token ids, the prompt's and the row's own, as int64 bytes: what the caches hold.
    """

    states: States
    valid: Tensor
    prompt: Tensor
    known: list[bytes]


def token_bytes(ids: Tensor) -> bytes:
    return ids.to("cpu", torch.int64).numpy().tobytes()


def read_prompts(model: PreTrainedModel, ids: Tensor, mask: Tensor) -> tuple[Prompts, Tensor]:
    """Read U different prompts, padded on the left to P tokens.

    Args:
        ids: (U, P) int.
        mask: (U, P), 1 where `ids` is a token.

    Returns:
        The prompts, and (U, V) logits of the token after each.
    """
    lengths = mask.sum(1)
    padded = bool((lengths < ids.shape[1]).any())
    read: list[States] = []
    logits = []
    for part in torch.arange(len(ids), device=ids.device).split(max(1, AT_ONCE // ids.shape[1])):
        cache: Any = DynamicCache()
        positions = (mask[part].cumsum(1) - 1).clamp(min=0)
        seen = mask[part] if padded else None
        output: Any = model(
            input_ids=ids[part],
            attention_mask=seen,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits.append(output.logits[:, -1])
        read.append([(layer.keys, layer.values) for layer in cache.layers])
    states = read[0]
    if len(read) > 1:
        layers = zip(*read, strict=True)
        states = [(torch.cat([k for k, _ in parts]), torch.cat([v for _, v in parts])) for parts in layers]
    known = [token_bytes(row[row_mask.bool()]) for row, row_mask in zip(ids, mask, strict=True)]
    return Prompts(states, lengths, padded, known), torch.cat(logits)


class Rows:
    """The rows of a batch that still grow.

    Args:
        model: as `generate` calls it.
        prompts: what the rows begin with.
        prompt: (B,) int, number of each row's prompt.
        kept: what rows' caches hold already, in the order of the rows; None: nothing but the prompts.
    """

    def __init__(self, model: PreTrainedModel, prompts: Prompts, prompt: Tensor, kept: Part | None = None):
        self.model, self.prompts = model, prompts
        self.index = torch.arange(len(prompt), device=prompt.device)  # rows of the batch that are still here
        self.valid = kept.valid if kept else torch.ones(len(prompt), 0, dtype=torch.bool, device=prompt.device)
        self.holes = bool((~self.valid).any())
        self._set(prompt, kept.states if kept else None)

    def _set(self, prompt: Tensor, states: States | None) -> None:
        self.prompt = prompt
        layers = [roomy_layer()(ROOM) for _ in self.prompts.states]
        if states and states[0][0].shape[2]:
            for layer, own in zip(layers, states, strict=True):
                layer.update(*own)
        self.cache = Cache(layers=layers)
        order = prompt.argsort(stable=True)
        sizes = prompt.bincount(minlength=len(self.prompts.lengths))
        starts, most = sizes.cumsum(0) - sizes, int(sizes.max())
        step = torch.arange(most, device=prompt.device)
        self._members = order[(starts[:, None] + step).clamp(max=len(prompt) - 1)]
        place = torch.empty_like(prompt)
        place[order] = torch.arange(len(prompt), device=prompt.device) - starts[prompt[order]]
        self._places = prompt * most + place

    def states(self) -> States:
        """(B, K, S, d) keys and values of the rows' own tokens, per layer."""
        if not self.valid.shape[1]:
            none = torch.zeros_like(self.prompt)
            return [(k[none, :, :0], v[none, :, :0]) for k, v in self.prompts.states]
        return [(layer.keys, layer.values) for layer in self.cache.layers]  # pyright: ignore

    def feed(self, ids: Tensor, valid: Tensor | None = None) -> Tensor:
        """Read n more tokens of every row here.

        Args:
            ids: (B, n) int.
            valid: (B, n) bool, False where `ids` is padding (on the left); None: all are tokens.

        Returns:
            (B, V) logits of the token after the last.
        """
        heads = self.model.config.num_attention_heads
        width = self.prompts.states[0][0].shape[2] + self.valid.shape[1] + ids.shape[1]
        step = max(1, MOST_SCORES // (len(ids) * heads * width))
        logits = None
        for start in range(0, ids.shape[1], step):
            part = None if valid is None else valid[:, start : start + step]
            logits = self._feed(ids[:, start : start + step], part)
        assert logits is not None
        return logits

    def _feed(self, ids: Tensor, valid: Tensor | None) -> Tensor:
        new = ids.shape[1]
        fresh = valid if valid is not None else torch.ones_like(ids, dtype=torch.bool)
        self.valid = torch.cat([self.valid, fresh], 1)
        self.holes = self.holes or valid is not None
        positions = self.prompts.lengths[self.prompt, None] + (self.valid.cumsum(1) - 1).clamp(min=0)
        state = Decoding(
            self.prompts.states,
            self.prompts.lengths,
            self.prompts.padded,
            self._members,
            self._places,
            positions,
            self.valid if self.holes else None,
        )
        output: Any = self.model(
            input_ids=ids,
            # Four dimensions tell transformers that a mask is ready; the state is what attention reads.
            attention_mask=torch.zeros(1, 1, 1, 1, dtype=torch.bool, device=ids.device),
            position_ids=positions[:, -new:],
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
            shared_prefix=state,
        )
        return output.logits[:, -1]

    def only(self, here: Tensor) -> None:
        """Go on with some of the rows: those at `here` (N,) int, which ascend."""
        states = self.states()
        self.index, self.valid = self.index[here], self.valid[here]
        self._set(self.prompt[here], [(k.index_select(0, here), v.index_select(0, here)) for k, v in states])


def joined(parts: list[Part], chosen: list[tuple[int, int]]) -> Part:
    """Rows of several parts as one.

    Args:
        parts: what was kept.
        chosen: (part, row in it) of each row wanted.
    """
    width = max(parts[part].valid.shape[1] for part, _ in chosen)
    device = parts[0].valid.device
    valid = torch.zeros(len(chosen), width, dtype=torch.bool, device=device)
    prompt = torch.zeros(len(chosen), dtype=torch.int64, device=device)
    states: States = []
    for keys, values in parts[0].states:
        states.append(
            (
                keys.new_zeros(len(chosen), *keys.shape[1:2], width, keys.shape[3]),
                values.new_zeros(len(chosen), *values.shape[1:2], width, values.shape[3]),
            )
        )
    for number, part in enumerate(parts):
        here = [(i, row) for i, (of, row) in enumerate(chosen) if of == number]
        if not here:
            continue
        to, rows = (torch.tensor(x, device=device) for x in zip(*here, strict=True))
        columns = part.valid.shape[1]
        valid[to, :columns], prompt[to] = part.valid[rows], part.prompt[rows]
        for store, own in zip(states, part.states, strict=True):
            for target, given in zip(store, own, strict=True):
                target[to, :, :columns] = given[rows]
    return Part(states, valid, prompt, [parts[part].known[row] for part, row in chosen])
