"""A micro-batch packed so that every prompt occurs once: [prompt | completion 1 | ... | completion G], next group.

The beginning that prompts of several groups have in common is not in the row: its keys and values are computed before
and stand in front of those of each group. So the tokens of a batch form a tree, [common | own part 1 | completions ...
| own part 2 | ...]. The packed row has no padding. Positions count from a prompt's first token; TRL's unshared forward
pass counts padding, too, which rotary embeddings do not see.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class GroupedBatch:
    """A micro-batch of TRL's GRPOTrainer: B rows, prompts of at most P tokens, completions of at most R.

    Raises:
        ValueError: a shape does not fit, a prompt is empty, or padding is on the wrong side.
    """

    prompt_ids: Tensor  # (B, P) int, padded on the left
    prompt_mask: Tensor  # (B, P), 1 for tokens, 0 for padding
    completion_ids: Tensor  # (B, R) int, padded on the right
    completion_mask: Tensor  # (B, R), 1 for tokens; a row of zeros is a completion that TRL masks
    tool_mask: Tensor | None = None  # (B, R), 1 where the policy wrote the token, 0 in tool results; None: all 1

    def __post_init__(self):
        shape = self.completion_ids.shape
        if self.prompt_ids.shape != self.prompt_mask.shape or shape != self.completion_mask.shape:
            raise ValueError("each mask must have the shape of its token ids: (B, P) for prompts, (B, R) completions.")
        if self.tool_mask is not None and self.tool_mask.shape != shape:
            raise ValueError(f"tool_mask is {tuple(self.tool_mask.shape)}; it must be {tuple(shape)}, as completions.")
        if len(self.prompt_ids) != len(self.completion_ids):
            raise ValueError(f"{len(self.prompt_ids)} prompts, but {len(self.completion_ids)} completions.")
        if not bool(self.prompt_mask.bool()[:, -1:].all()) or not _never_falls(self.prompt_mask):
            raise ValueError("every prompt needs a token, and padding on its left only.")
        if not _never_falls(self.completion_mask.flip(1)):
            raise ValueError("completions must be padded on their right only.")

    def rows(self, chosen: Tensor) -> GroupedBatch:
        """The rows numbered in `chosen` (K,)."""
        return GroupedBatch(**{name: rows[chosen] for name, rows in vars(self).items() if rows is not None})


def _never_falls(mask: Tensor) -> bool:
    mask = mask.bool()
    return not bool((mask[:, :-1] & ~mask[:, 1:]).any())


def rows_by_prompt(prompt_ids: Tensor, prompt_mask: Tensor) -> dict[tuple[int, ...], list[int]]:
    """Token ids of each different prompt, and numbers of its rows, in order of first occurrence."""
    groups: dict[tuple[int, ...], list[int]] = {}
    lengths = prompt_mask.sum(1).tolist()
    for row, (ids, length) in enumerate(zip(prompt_ids.tolist(), lengths, strict=True)):
        groups.setdefault(tuple(ids[len(ids) - int(length) :]), []).append(row)
    return groups


def groups_of(prompt_ids: Tensor, prompt_mask: Tensor) -> list[list[int]]:
    """Numbers of rows with the same prompt, in order of first occurrence: prompts [a, b, a] give [[0, 2], [1]]."""
    return list(rows_by_prompt(prompt_ids, prompt_mask).values())


States = dict[int, tuple[Tensor, Tensor]]
"""Keys and values (1, K, C, d) by the number of the layer."""


@dataclass(frozen=True)
class Beginning:
    """The first C tokens of several groups' prompts, computed before the packed row."""

    length: int  # C
    states: States


@dataclass(frozen=True)
class PrefixGroup:
    """The part of the packed row that holds one group: its prompt's own part, then its completions."""

    length: int  # tokens of the group in the row
    prefix: int  # tokens of the prompt in the row: without its beginning
    blocks: tuple[tuple[int, int], ...]
    """(start, end) of runs of complete completions, relative to the group's start; each is one call of attention.
    After a beginning, the first run includes the prompt's own part."""
    beginning: Beginning | None = None


@dataclass(frozen=True)
class Layout:
    """Structure of a packed row of N tokens with M scored predictions, for attention and the head."""

    groups: tuple[PrefixGroup, ...]  # in order; their lengths sum to N
    positions: Tensor  # (N,) int, of each token in its prompt and completion
    owner: Tensor  # (N,) int, number of the completion a token belongs to, -1 in a prompt
    scored: Tensor  # (M,) int, packed position whose hidden state predicts the m-th scored token
    masks: dict[Any, Tensor] = field(default_factory=dict)  # cache of attention masks, shared by layers
    captured: States | None = None  # where attention puts keys and values, if the row is a beginning


@dataclass(frozen=True)
class Packed:
    """A batch in one row."""

    input_ids: Tensor  # (1, N) int
    layout: Layout
    labels: Tensor  # (1, M) int, the scored tokens
    cells: tuple[Tensor, Tensor]  # rows (M,) and columns (M,) of the scored tokens in the (B, R) completions


def beginning_layout(length: int, device: torch.device) -> Layout:
    """The layout of a row that holds one beginning and nothing else; its keys and values are captured."""
    positions = torch.arange(length, device=device)
    return Layout(
        (PrefixGroup(length, length, ()),), positions, torch.full_like(positions, -1), positions[:0], captured={}
    )


def pack(
    batch: GroupedBatch,
    rows: list[list[int]],
    wanted: Tensor,
    beginnings: Sequence[Beginning | None] | None = None,
) -> Packed:
    """Pack groups of rows, each prompt once.

    Args:
        batch: B rows.
        rows: groups of row numbers with equal prompts, as `groups_of` gives them.
        wanted: (B, R) bool, the completion tokens whose log-probabilities are wanted.
        beginnings: of each group's prompt, shorter than it; None where the row holds the whole prompt.

    Example:
        Two completions of 3 and 2 tokens after a prompt of 4: N = 9, and the 5 scored tokens are predicted at
        3, 4, 5 and 3, 7.
    """
    device, width = batch.prompt_ids.device, batch.prompt_ids.shape[1]
    prefixes, lengths = batch.prompt_mask.sum(1).tolist(), batch.completion_mask.sum(1).tolist()
    ids, positions, owner, groups = [], [], [], []
    scored, cell_rows, cell_columns = [], [], []
    at = 0
    for members, beginning in zip(rows, beginnings or [None] * len(rows), strict=True):
        common, size = beginning.length if beginning else 0, int(prefixes[members[0]])
        prefix, start = size - common, at
        ids.append(batch.prompt_ids[members[0], width - prefix :])
        positions.append(torch.arange(common, size, device=device))
        owner.append(torch.full((prefix,), -1, device=device))
        at += prefix
        ends = []
        for row in members:
            length = int(lengths[row])
            columns = wanted[row, :length].nonzero()[:, 0]
            ids.append(batch.completion_ids[row, :length])
            positions.append(torch.arange(size, size + length, device=device))
            owner.append(torch.full((length,), row, device=device))
            scored.append(torch.where(columns == 0, start + prefix - 1, at + columns - 1))
            cell_rows.append(torch.full_like(columns, row))
            cell_columns.append(columns)
            at += length
            ends.append(at - start)
        groups.append(PrefixGroup(at - start, prefix, _blocks(common, prefix, ends), beginning))
    cells = torch.cat(cell_rows), torch.cat(cell_columns)
    layout = Layout(tuple(groups), torch.cat(positions), torch.cat(owner), torch.cat(scored))
    return Packed(torch.cat(ids)[None], layout, batch.completion_ids[cells][None], cells)


_MIN_BLOCK = 256  # [ours] smallest number of completion tokens in one call of attention, where there are enough


def _blocks(common: int, prefix: int, ends: list[int]) -> tuple[tuple[int, int], ...]:
    """Runs of completions of about as many tokens as the prompt.

    A completion needs the scores of the prompt and itself, and its run computes those of the prompt and the run: with
    runs no longer than the prompt at most half is wasted, and each run copies the prompt's keys once only.
    """
    blocks, start, last = [], 0 if common else prefix, prefix
    for end in ends:
        if end - start > max(common + prefix, _MIN_BLOCK) and last > start:
            blocks.append((start, last))
            start = last
        last = end
    return (*blocks, (start, last)) if last > start else tuple(blocks)
