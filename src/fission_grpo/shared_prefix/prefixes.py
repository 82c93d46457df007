"""Common beginnings of prompts, found from token ids alone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

MIN_SHARED = 64
"""[ours] Shortest common beginning that is computed apart, in tokens. A shorter one saves less than it costs."""


def common_beginnings(
    prompts: Sequence[Sequence[int]], uses: Sequence[int] | None = None, least: int = MIN_SHARED
) -> list[tuple[int, list[int]]]:
    """Put prompts into clusters, each with one common beginning, so that fewer tokens are computed.

    Prompts stay in one cluster unless the parts into which they branch, each with a longer beginning, need fewer
    tokens: two sets of tools after the same short text are two clusters. A beginning is computed once, and the rest
    of a prompt once per use. It is at least one token shorter than each of its prompts, whose last token predicts
    the first token of a completion.

    Args:
        prompts: token ids of different prompts, none empty.
        uses: how often each prompt is computed; 1 each by default.
        least: shortest beginning, in tokens.

    Returns:
        (tokens of the beginning, numbers of its prompts) for each cluster; 0 tokens where nothing is shared. Every
        prompt is in one cluster.

    Example:
        Prompts [1, 2, 3, 4], [1, 2, 3, 5, 6] and [7, 8] with `least=2` give [(3, [0, 1]), (0, [2])].
    """
    if not prompts:
        return []
    order = sorted(range(len(prompts)), key=lambda i: tuple(prompts[i]))
    sizes = [len(prompts[i]) for i in order]
    times = [uses[i] if uses else 1 for i in order]
    shared = [_shared(prompts[a], prompts[b]) for a, b in pairwise(order)]  # of neighbours in this order

    def as_one(first: int, end: int) -> tuple[int, int]:
        """Tokens to compute if prompts `first` to `end` are one cluster, and the length of its beginning."""
        length = min(shared[first : end - 1], default=sizes[first] - 1)
        length = length if length >= least and sum(times[first:end]) > 1 else 0
        rest = (n * (size - length) for n, size in zip(times[first:end], sizes[first:end], strict=True))
        return length + sum(rest), length

    # All intervals at which the tree of prompts branches, each before its parts.
    intervals, parts = [(0, len(order))], {}
    for first, end in intervals:
        least_shared = min(shared[first : end - 1], default=0)
        borders = [i + 1 for i in range(first, end - 1) if shared[i] == least_shared]
        parts[first, end] = list(pairwise([first, *borders, end])) if borders else []
        intervals += parts[first, end]
    best: dict[tuple[int, int], tuple[int, list[tuple[int, list[int]]]]] = {}
    for first, end in reversed(intervals):
        cost, length = as_one(first, end)
        below = [best.pop(part) for part in parts[first, end]]
        if below and sum(tokens for tokens, _ in below) < cost:
            best[first, end] = sum(tokens for tokens, _ in below), [one for _, some in below for one in some]
        else:
            best[first, end] = cost, [(length, sorted(order[first:end]))]
    return sorted(best[0, len(order)][1], key=lambda cluster: cluster[1])


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Number of tokens with which both begin, less than the length of each."""
    pairs = enumerate(zip(one[:-1], other[:-1], strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)) - 1)
