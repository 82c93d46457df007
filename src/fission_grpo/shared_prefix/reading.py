"""Reading the prompts of a batch: each token of their prefix tree once, and not what is kept from earlier calls."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fission_grpo.shared_prefix.check import eval_mode, is_within
from fission_grpo.shared_prefix.decoding import Level, States
from fission_grpo.shared_prefix.kv_cache import read_prompts
from fission_grpo.shared_prefix.prefix_cache import PrefixCache
from fission_grpo.shared_prefix.prefixes import common_beginnings
from fission_grpo.shared_prefix.rows import CachedRows, join_rows

MIN_LEVEL = 512
"""[ours] Shortest beginning that several beginnings share as a level of its own. Its tokens are computed once in any
case; a level saves their copies, and costs a softmax for each token drawn."""

MAX_TOKENS_PER_FORWARD = 16_384
"""[ours] Largest number of prompt tokens, padding included, in one forward pass."""

CHECKED_STEPS = 4  # [ours] number of tokens that the self-check of generation decodes
CHECKED_TOKENS = 128  # [ours] longest prompt of the self-check, or two sliding windows: longer ones lose their middle

MAX_PADDING = 4  # [ours] prompts are read in one forward pass if the shortest lacks 1 / 4 of the longest, or 16 tokens


class Reader:
    """Reads prompts into the rows of a batch.

    Args:
        model: as `generate` calls it.
        cache: where tokens read are kept, and looked up.
        keep: keep whole prompts for later calls; False: only what several begin with.

    `read` is the number of tokens computed so far, padding not counted.
    """

    def __init__(self, model: PreTrainedModel, cache: PrefixCache, keep: bool = True):
        self.model, self.cache, self.keep, self.read = model, cache, keep, 0

    def rows_of(self, prompts: Sequence[list[int]]) -> tuple[CachedRows, Tensor]:
        """The rows after their prompts (token ids, none empty), and (B, V) logits of their first new tokens."""
        numbers: dict[tuple[int, ...], int] = {}
        row = self._tensor([numbers.setdefault(tuple(prompt), len(numbers)) for prompt in prompts])
        different = [list(prompt) for prompt in numbers]
        rows, logits = self._rows_of_different(different)
        if self.keep and len(row) > len(different):
            self.store(rows, different, torch.arange(len(different), device=row.device), rows.valid)
        return rows.repeat(row), logits[row]

    def store(self, rows: CachedRows, tokens: Sequence[list[int]], which: Tensor, valid: Tensor) -> None:
        """Keep `tokens`, the sequences that `rows` numbered in `which` (N,) have read.

        Args:
            valid: (N, S) bool, False where an own column of such a row is padding.
        """
        chosen = zip(tokens, which.tolist(), rows.base[which].tolist(), valid.tolist(), strict=True)
        for sequence, row, start, are_tokens in chosen:
            columns = [column for column, is_token in enumerate(are_tokens) if is_token]
            self.cache.insert(sequence, start, rows.tokens_of(row, columns))

    def _rows_of_different(self, prompts: list[list[int]]) -> tuple[CachedRows, Tensor]:
        levels = self._levels(prompts)
        base = sum((level.lengths() for level in levels), self._tensor([0] * len(prompts))).tolist()
        known = [self.cache.match(prompt[:-1]) for prompt in prompts]
        parts, logits, order = [], [], []
        for some in _of_similar_size([len(prompt) - n for prompt, n in zip(prompts, known, strict=True)]):
            chosen = self._tensor(some)
            part, after = self._read(
                [prompts[i] for i in some],
                [level.select(chosen) for level in levels],
                [base[i] for i in some],
                [known[i] for i in some],
            )
            parts.append(part)
            logits.append(after)
            order += some
        order = self._tensor(order).argsort()
        return join_rows(parts, levels, order), torch.cat(logits)[order]

    def _levels(self, prompts: list[list[int]]) -> list[Level]:
        """Compute what several prompts begin with."""
        beginnings = _nested_beginnings(prompts)
        levels, starts = [], [0] * len(prompts)
        for clusters in beginnings:
            node, spans = [0] * len(prompts), []
            for number, (length, members) in enumerate(clusters):
                beginning = prompts[members[0]][:length]
                self._read_beginning(beginning)
                spans.append((beginning, starts[members[0]] if length else 0))
                for i in members:
                    node[i], starts[i] = number, length or starts[i]
            states, positions = self._kept(spans)
            levels.append(Level(states, positions, self._tensor(node)))
        return levels

    def _read_beginning(self, tokens: list[int]) -> None:
        known = self.cache.match(tokens)
        if known == len(tokens):
            return
        levels = []
        if known:
            states, positions = self._kept([(tokens[:known], 0)])
            levels = [Level(states, positions, self._tensor([0]))]
        rows, _ = self._read([tokens], levels, [known], [known])
        self.store(rows, [tokens], self._tensor([0]), rows.valid)

    def _read(
        self, prompts: list[list[int]], levels: list[Level], base: list[int], known: list[int]
    ) -> tuple[CachedRows, Tensor]:
        """Rows of different prompts: `base` tokens of each are in levels, and `known` are kept."""
        new = [prompt[n:] for prompt, n in zip(prompts, known, strict=True)]
        sizes = self._tensor([len(tokens) for tokens in new])
        width = max(map(len, new))
        ids = self._tensor([[0] * (width - len(tokens)) + tokens for tokens in new])
        valid = torch.arange(width, device=ids.device) >= width - sizes[:, None]
        padding = None if bool(valid.all()) else valid
        self.read += int(sizes.sum())
        if not any(known):
            states, logits = read_prompts(self.model, ids, None if padding is None else valid.long())
            return CachedRows(self.model, levels, states, valid), logits
        states, positions = self._kept([(p[:n], start) for p, n, start in zip(prompts, known, base, strict=True)])
        rows = CachedRows(self.model, levels, states, positions >= 0)
        return rows, rows.feed(ids, padding)

    def _kept(self, spans: list[tuple[list[int], int]]) -> tuple[States, Tensor]:
        """States (U, K, P, d) and positions (U, P), -1 in padding, of kept tokens of U sequences, each from a start.

        One sequence in one piece is not copied.
        """
        pieces = [self.cache.pieces(tokens, start) for tokens, start in spans]
        sizes = [len(tokens) - start for tokens, start in spans]
        width = max(sizes)
        column = torch.arange(width, device=self.model.device)
        starts, ends = self._tensor([start for _, start in spans]), self._tensor(sizes)
        positions = (starts[:, None] + column).masked_fill(column >= ends[:, None], -1)
        if len(pieces) == 1 and len(pieces[0]) == 1:
            keys, values = pieces[0][0]
            return [(keys[i, None], values[i, None]) for i in range(len(keys))], positions
        like = self.cache.pieces(max((tokens for tokens, _ in spans), key=len), 0)[0]
        joined = []
        for which in (0, 1):
            layers, heads, _, size = like[which].shape
            target = like[which].new_zeros(layers, len(spans), heads, width, size)
            for number, row in enumerate(pieces):
                ends_of_pieces = accumulate(piece[which].shape[2] for piece in row)
                for piece, end in zip(row, ends_of_pieces, strict=True):
                    target[:, number, :, end - piece[which].shape[2] : end] = piece[which]
            joined.append(target)
        return list(zip(*joined, strict=True)), positions

    def _tensor(self, values: list) -> Tensor:
        return torch.tensor(values, device=self.model.device)


def _nested_beginnings(prompts: list[list[int]]) -> list[list[tuple[int, list[int]]]]:
    """Levels of clusters, the outermost first, each as `common_beginnings` gives them; no level shares nothing."""
    levels: list[list[tuple[int, list[int]]]] = []
    parts, members = prompts, [[i] for i in range(len(prompts))]
    while True:
        found = common_beginnings(parts, least=MIN_LEVEL) if levels else common_beginnings(parts)
        if not any(length for length, _ in found):
            return levels
        clusters = [(length, [i for part in some for i in members[part]]) for length, some in found]
        levels.insert(0, clusters)
        apart = [(prompts[some[0]][:length], some) for length, some in clusters if length]
        apart += [(parts[i], members[i]) for length, some in found if not length for i in some]  # beginnings stay so
        parts, members = [tokens for tokens, _ in apart], [some for _, some in apart]


@torch.no_grad()
def generation_agrees(model: PreTrainedModel, prompts: Sequence[list[int]]) -> bool:
    """Compare decoding on a prefix tree to one plain forward pass; warn if log-probabilities differ.

    Takes two rows of the largest group of equal prompts and one of another, at most `CHECKED_TOKENS` of each, and
    decodes `CHECKED_STEPS` tokens greedily. No random numbers are used; dropout is off. The difference is a mean over
    the vocabulary, with the limits of `agrees`.
    """
    device, half = model.device, max(CHECKED_TOKENS, 2 * (getattr(model.config, "sliding_window", None) or 0)) // 2
    groups: dict[tuple[int, ...], list[list[int]]] = {}
    for prompt in (one if len(one) <= 2 * half else one[:half] + one[-half:] for one in prompts):
        groups.setdefault(tuple(prompt), []).append(prompt)
    first, *others = sorted(groups.values(), key=len, reverse=True)
    chosen = [*first[:2], *(others[0][:1] if others else ())]
    width = max(map(len, chosen))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in chosen], device=device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in chosen], device=device)
    with eval_mode(model):
        rows, after_prompt = Reader(model, PrefixCache()).rows_of(chosen)
        logits = [after_prompt]
        for _ in range(CHECKED_STEPS):
            tokens = logits[-1].argmax(-1)[:, None]
            ids, mask = torch.cat([ids, tokens], 1), torch.cat([mask, torch.ones_like(tokens)], 1)
            logits.append(rows.feed(tokens))
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        output: Any = model(
            input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=CHECKED_STEPS + 1
        )
    shared, unshared = (x.float().log_softmax(-1) for x in (torch.stack(logits, 1), output.logits))
    difference = (shared - unshared).abs().mean(-1).max().item()
    return is_within(difference, model, device.type, "generated with")


def _of_similar_size(sizes: list[int]) -> list[list[int]]:
    """Numbers of prompts with so many tokens to read, in parts that have little padding each."""
    parts: list[list[int]] = []
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        longest = sizes[parts[-1][0]] if parts else 0
        most = max(1, MAX_TOKENS_PER_FORWARD // max(longest, 1))
        if not parts or longest - sizes[i] > max(longest // MAX_PADDING, 16) or len(parts[-1]) >= most:
            parts.append([])
        parts[-1].append(i)
    return parts
