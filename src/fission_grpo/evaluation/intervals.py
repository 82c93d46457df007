"""95% intervals: Wilson's for rates over cases, a seeded percentile bootstrap for rates clustered in cases.

Turns and calls of one case are not independent, so cases are resampled instead of turns or calls (Efron 1979; Field
and Welsh 2007 on clustered data). Needs numpy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy

Z95 = 1.959963984540054  # 97.5% quantile of the normal distribution
RESAMPLES = 2000  # per interval [ours]
SEED = 0  # the same records give the same interval [ours]
MAX_DRAWS = 1_000_000  # cases drawn at once (8 MB); more are drawn in parts [ours]

Pair = tuple[int, int]  # what one case adds to the numerator and to the denominator of a ratio


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Wilson's 95% interval of a proportion (Wilson 1927). Raises ValueError unless 0 <= successes <= trials > 0.

    Example: `wilson(5, 10)` is about (0.237, 0.763).
    """
    if trials <= 0 or not 0 <= successes <= trials:
        raise ValueError(f"an interval needs 0 <= successes <= trials and trials > 0, got {successes} of {trials}")
    rate, z2 = successes / trials, Z95 * Z95
    center = rate + z2 / (2 * trials)
    half = Z95 * math.sqrt(rate * (1 - rate) / trials + z2 / (4 * trials * trials))
    low, high = (center - half) / (1 + z2 / trials), (center + half) / (1 + z2 / trials)
    return max(low, 0.0) if successes else 0.0, min(high, 1.0) if successes < trials else 1.0


def total(pairs: Sequence[Pair]) -> Pair:
    """The sums of both numbers. Example: [(1, 2), (0, 3)] gives (1, 5)."""
    return sum(first for first, _ in pairs), sum(second for _, second in pairs)


def ratio_interval(pairs: Sequence[tuple[float, int]]) -> tuple[float, float] | None:
    """95% bootstrap interval of sum(numerators) / sum(denominators) over cases.

    Resamples with denominator 0 are left out. Where all cases agree (the ratio is 0 or 1) resampling shows no spread,
    which would look like certainty: Wilson's interval over the cases is given instead, each case as one trial. [ours]

    None if the denominator is 0, or if a ratio between 0 and 1 is that of a single case, or of each: no spread either.
    """
    numerator, denominator = sum(hits for hits, _ in pairs), sum(of for _, of in pairs)
    cases = sum(pair[1] > 0 for pair in pairs)
    if not denominator:
        return None
    if numerator in (0, denominator):
        return wilson(cases if numerator else 0, cases)
    return mean_interval(pairs)


def mean_interval(pairs: Sequence[tuple[float, int]]) -> tuple[float, float] | None:
    """95% bootstrap interval of a mean over cases, each a sum and the number of its summands.

    None with less than two cases that have any, or if resampling shows no spread.
    """
    if sum(count > 0 for _, count in pairs) < 2:
        return None
    sums = _resampled_sums(pairs)
    kept = sums[sums[:, 1] > 0]
    ratios = kept[:, 0] / kept[:, 1]
    return _percentiles(ratios) if ratios.max() > ratios.min() else None


def difference_interval(first: Sequence[Pair], second: Sequence[Pair]) -> tuple[float, float] | None:
    """95% bootstrap interval of the second ratio minus the first, both over the same resampled cases.

    None if a ratio has denominator 0, or if all resamples give the same difference and show no spread.
    """
    if not first:
        return None
    sums = _resampled_sums([(*a, *b) for a, b in zip(first, second, strict=True)])
    kept = sums[(sums[:, 1] > 0) & (sums[:, 3] > 0)]
    if not len(kept):
        return None
    differences = kept[:, 2] / kept[:, 3] - kept[:, 0] / kept[:, 1]
    return _percentiles(differences) if differences.max() > differences.min() else None


def _resampled_sums(rows: Sequence[Sequence[float]]) -> Any:
    """Column sums of `rows` [cases, columns] over cases drawn with replacement: an array [RESAMPLES, columns]."""
    table = numpy.array(rows, dtype=float)
    random = numpy.random.default_rng(SEED)
    at_once = max(1, MAX_DRAWS // len(table))
    sizes = (min(at_once, RESAMPLES - done) for done in range(0, RESAMPLES, at_once))
    draws = (random.integers(0, len(table), (size, len(table))) for size in sizes)
    return numpy.concatenate([table[drawn].sum(axis=1) for drawn in draws])


def _percentiles(values: Any) -> tuple[float, float]:
    low, high = numpy.percentile(values, [2.5, 97.5])
    return float(low), float(high)
