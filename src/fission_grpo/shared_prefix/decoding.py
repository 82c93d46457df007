"""Attention of new tokens over the nodes of a prefix tree, each stored once, and over each row's own tokens.

The beginning of a row is a path through levels of the tree: what all prompts begin with, then the prompt of a group.
Each level, and the row's own tokens, have a softmax of their own; they are joined by their log-sum-exps (as in flash
decoding). So the keys of a node are read in one matrix product per head for all rows that pass through it. Where many
tokens are read at once, each row is a call of PyTorch's fused attention instead, over a copy of all its keys.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

States = list[tuple[Tensor, Tensor]]
"""Keys and values of each layer, (rows, key heads, tokens, head size) each."""

MAX_WASTE = 1.5
"""[ours] Largest quotient of the scores computed for all nodes of a level together, with padding to the longest node
and the largest number of rows, and those needed. Beyond it each node is computed alone: as many calls as nodes."""

MIN_FUSED = 64
"""[ours] Smallest number of new tokens that are read by fused attention: it keeps no scores, but copies keys."""

_flash_attention_on_cpu: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
"""The kernel of `scaled_dot_product_attention`, which also gives log-sum-exps."""

_HIDDEN = torch.finfo(torch.float32).min / 2  # a score; half the least, so that differences are finite


class _Part:
    """Consecutive nodes of a level whose attention is computed together, up to a column of their keys."""

    def __init__(self, level: Level, nodes: slice, end: int):
        self.nodes, self.end = nodes, end
        self.positions = level.positions[nodes, :end]  # (u, end)
        self.padded = level.padded and bool((self.positions < 0).any())
        first = nodes.start or 0
        self.rows = ((level.node >= first) & (level.node < first + len(self.positions))).nonzero()[:, 0]  # (r,)
        node = level.node[self.rows] - first
        order = node.argsort(stable=True)
        sizes = node.bincount(minlength=len(self.positions))
        starts, largest = sizes.cumsum(0) - sizes, int(sizes.max())
        step = torch.arange(largest, device=node.device)
        # (u, G) int, the rows of each node, G the largest number of rows; unused places hold any row.
        self.members = self.rows[order[(starts[:, None] + step).clamp(max=len(node) - 1)]]
        place = torch.empty_like(node)
        place[order] = torch.arange(len(node), device=node.device) - starts[node[order]]
        self.places = node * largest + place  # (r,) int, place of each of `rows` in `members`, flattened

    def mask(self, query_at: Tensor, window: int | None) -> tuple[int, Tensor | None]:
        """The first column that a new token sees, and what it does not see from there on.

        Args:
            query_at: (B, n) int, positions of the new tokens.

        Returns:
            The column, `end` if there is none; (u, 1, G, 1, n, end - first) bool, True where a key is hidden; None:
            none is.
        """
        first, hidden = 0, (self.positions < 0)[:, None, None, None, None] if self.padded else None
        if window:
            seen = (self.positions > query_at.min() - window).any(0)
            first = int(seen.int().argmax()) if bool(seen.any()) else self.end
            too_old = self.positions[:, None, None] <= query_at[self.members][..., None] - window  # (u, G, n, end)
            hidden = too_old[:, None, :, None] if hidden is None else hidden | too_old[:, None, :, None]
            hidden = hidden[..., first:]
        return first, hidden


class Level:
    """U nodes of one level of a prefix tree, and the node that each of B rows passes through.

    Args:
        states: per layer keys and values of the nodes, (U, K, P, d).
        positions: (U, P) int, the position of each column's token; -1 where a column is padding.
        node: (B,) int, number of each row's node.
        padded: whether there is padding; found out if None.
    """

    def __init__(self, states: States, positions: Tensor, node: Tensor, padded: bool | None = None):
        self.states, self.positions, self.node = states, positions, node
        self.padded = bool((positions < 0).any()) if padded is None else padded
        self.nodes: list[int] = node.tolist()
        ends = [positions.shape[1]] * len(positions)  # of each node's last token
        if self.padded:
            ends = ((positions >= 0) * torch.arange(1, ends[0] + 1, device=node.device)).amax(1).tolist()
        sizes = node.bincount(minlength=len(positions)).tolist()
        together = len(sizes) * max(sizes) * max(ends)
        if together <= MAX_WASTE * sum(size * end for size, end in zip(sizes, ends, strict=True)):
            self.parts = [_Part(self, slice(None), max(ends))]
        else:
            used = [number for number, size in enumerate(sizes) if size]
            self.parts = [_Part(self, slice(number, number + 1), ends[number]) for number in used]

    def lengths(self) -> Tensor:
        """(B,) int, number of tokens of each row's node."""
        return (self.positions >= 0).sum(1)[self.node]

    def select(self, rows: Tensor) -> Level:
        """The level for `rows` (N,) int of the B rows only."""
        return Level(self.states, self.positions, self.node[rows], self.padded)


@dataclass(frozen=True)
class Decoding:
    """State of one forward pass: B rows, n new tokens each, S tokens of their own, the new ones included."""

    levels: list[Level]
    positions: Tensor  # (B, S) int, positions of the rows' own tokens; the new ones are the last n
    valid: Tensor | None = None  # (B, S) bool, False where a column is a row's padding; None: all are tokens
    masks: dict[Any, Any] = field(default_factory=dict)  # cache; layers with the same window share masks

    def part_mask(self, level: int, part: int, new: int, window: int | None) -> tuple[int, Tensor | None]:
        """`_Part.mask` of a part of a level."""
        if (level, part, window) not in self.masks:
            found = self.levels[level].parts[part].mask(self.positions[:, -new:], window)
            self.masks[level, part, window] = found
        return self.masks[level, part, window]

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

    def row_mask(self, row: int, new: int, window: int | None) -> Tensor:
        """(n, T) bool, True where a new token of a row sees one of the T tokens of its nodes and its own."""
        if (row, window) not in self.masks:
            query_at = self.positions[row, -new:, None]
            key_at = torch.cat([level.positions[level.nodes[row]] for level in self.levels] or [query_at[:0, 0]])
            visible = (key_at >= 0).expand(new, -1)
            if window:
                visible = visible & (key_at > query_at - window)
            own = self.own_mask(new, window)
            assert own is not None  # there is more than one new token
            self.masks[row, window] = torch.cat([visible, ~own[row if len(own) > 1 else 0, 0, 0]], 1)
        return self.masks[row, window]


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
    if new >= MIN_FUSED:
        return _fused_attention(state, layer, query, key, value, window, scale)
    query = (query * (scale or size**-0.5)).reshape(rows, key_heads, -1, size)  # (B, K, H/K n, d)
    shape = (rows, key_heads, heads // key_heads, new)
    joined, log_sum = _attend(query, key, value, state.own_mask(new, window), shape)
    for number, level in enumerate(state.levels):
        above, above_sum = torch.zeros_like(joined), torch.full_like(log_sum, float("-inf"))
        for i, part in enumerate(level.parts):
            first, hidden = state.part_mask(number, i, new, window)
            if first == part.end:
                continue
            keys, values = (x[part.nodes, :, first : part.end] for x in level.states[layer])
            nodes, most = part.members.shape
            grouped = query[part.members].transpose(1, 2).reshape(nodes, key_heads, -1, size)  # (u, K, G H/K n, d)
            shape = (nodes, key_heads, most, heads // key_heads, new)
            for all_rows, x in zip((above, above_sum), _attend(grouped, keys, values, hidden, shape), strict=True):
                own_rows = x.view(nodes, key_heads, most, -1, x.shape[-1]).transpose(1, 2).flatten(0, 1)[part.places]
                all_rows[part.rows] = own_rows.to(all_rows.dtype)  # autocast mixes types
        joined = joined + (above - joined) * torch.sigmoid(above_sum - log_sum).to(joined.dtype)
        log_sum = torch.logaddexp(log_sum, above_sum)
    return joined.view(rows, heads, new, size).transpose(1, 2)


def _fused_attention(
    state: Decoding, layer: int, query: Tensor, key: Tensor, value: Tensor, window: int | None, scale: float | None
) -> Tensor:
    """As `decode_attention`, row by row."""
    outputs = []
    for row in range(len(query)):
        nodes = [(level.states[layer], level.nodes[row]) for level in state.levels]
        q = query[row].unflatten(0, (key.shape[1], -1))  # (K, H/K, n, d)
        k, v = (
            torch.cat([*(states[which][node] for states, node in nodes), own[row]], 1)[:, None].expand(
                -1, q.shape[1], -1, -1
            )
            for which, own in enumerate((key, value))
        )
        mask = state.row_mask(row, query.shape[2], window)
        outputs.append(scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale).flatten(0, 1))
    return torch.stack(outputs).transpose(1, 2)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, hidden: Tensor | None, shape: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Softmax-weighted values (N, K, q, d), and log-sum-exps of the scores (N, K, q, 1).

    `shape` is that of the queries, of which q are the last three or two dimensions, as `hidden` has them.
    """
    if query.device.type == "cpu":  # 3 times faster in bfloat16, and no scores are rounded
        mask = None
        query, key = query.to(value.dtype), key.to(value.dtype)  # rotary embeddings are float32 under autocast
        if hidden is not None:
            mask = torch.zeros_like(hidden, dtype=query.dtype).masked_fill_(hidden, _HIDDEN)
            queries = (shape[0], 1, *shape[2:], key.shape[2])
            mask = mask.expand(queries).reshape(shape[0], 1, -1, key.shape[2])
        found, log_sum = _flash_attention_on_cpu(query, key, value, attn_mask=mask, scale=1.0)
        return found, log_sum[..., None]
    scores = (query @ key.transpose(-1, -2)).float()  # rounded once in bfloat16, as in transformers' eager attention
    if hidden is not None:
        scores.view(*shape, -1).masked_fill_(hidden, _HIDDEN)
    weights = scores.softmax(-1)
    # The largest weight is exp(largest score - log-sum-exp): cheaper than another pass of exponentials.
    log_sum = scores.amax(-1, keepdim=True) - weights.amax(-1, keepdim=True).log()
    return weights.to(value.dtype) @ value, log_sum
