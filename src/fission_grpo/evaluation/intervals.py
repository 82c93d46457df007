"""95% intervals: Wilson's for shares of cases, a seeded percentile bootstrap over cases for what is clustered in them.

Turns and calls of one case are not independent, so cases are resampled, not turns or calls (Efron 1979; Field and
Welsh 2007 on clustered data). Needs numpy, which scipy brings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

Z95 = 1.959963984540054
"""97.5% quantile of the normal distribution."""


RESAMPLES = 2000
"""Resamples of an interval. [ours]"""


SEED = 0
"""Of the resampling, so that the same records give the same interval. [ours]"""


AT_ONCE = 1_000_000
"""Draws of cases held at once, 8 MB; more cases are resampled in parts. [ours]"""


Pair = tuple[int, int]
"""What one case adds above and below the line of a ratio."""


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share (Wilson 1927). Raises ValueError unless 0 <= successes <= trials, trials > 0.

    Example:
        `wilson(5, 10)` is about (0.237, 0.763)
    """
    if trials <= 0 or not 0 <= successes <= trials:
        raise ValueError(f"an interval needs 0 <= successes <= trials and trials > 0, got {successes} of {trials}")
    share, z2 = successes / trials, Z95 * Z95
    middle = share + z2 / (2 * trials)
    half = Z95 * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials * trials))
    low, high = (middle - half) / (1 + z2 / trials), (middle + half) / (1 + z2 / trials)
    return max(low, 0.0) if successes else 0.0, min(high, 1.0) if successes < trials else 1.0


def ratio_interval(pairs: Sequence[Pair]) -> tuple[float, float] | None:
    """95% percentile interval of sum(above) / sum(below) over cases; resamples with nothing below are left out.

    Where every case agrees (the ratio is 0 or 1) resampling shows no spread, which would pass for certainty: Wilson's
    interval over the cases is given instead, as if each were one trial. [ours]

    Args:
        pairs: per case, with 0 <= above <= below; cases that add nothing may be among them.

    Returns:
        (low, high); None where nothing is below, or one case alone gives a ratio between 0 and 1.
    """
    above, below = (sum(pair[side] for pair in pairs) for side in (0, 1))
    cases = sum(pair[1] > 0 for pair in pairs)
    if not below:
        return None
    if above in (0, below):
        return wilson(cases if above else 0, cases)
    if cases < 2:
        return None
    sums = _resampled_sums(pairs)
    kept = sums[sums[:, 1] > 0]
    return _percentiles(kept[:, 0] / kept[:, 1])


def difference_interval(first: Sequence[Pair], second: Sequence[Pair]) -> tuple[float, float] | None:
    """95% percentile interval of the second ratio less the first, both over the same resampled cases.

    Args:
        first, second: what each case adds to either ratio, in the same order of cases.

    Returns:
        (low, high) in [-1, 1] for shares; None where a ratio has nothing below it, or no resample differs from
        another, so that nothing can be said of the spread.
    """
    if not first:
        return None
    sums = _resampled_sums([(*a, *b) for a, b in zip(first, second, strict=True)])
    kept = sums[(sums[:, 1] > 0) & (sums[:, 3] > 0)]
    if not len(kept):
        return None
    differences = kept[:, 2] / kept[:, 3] - kept[:, 0] / kept[:, 1]
    return _percentiles(differences) if differences.max() > differences.min() else None


def _resampled_sums(rows: Sequence[Sequence[int]]) -> Any:
    """Sums of the columns of `rows` (cases by columns) over cases drawn with replacement: resamples by columns."""
    import numpy

    table = numpy.array(rows, dtype=float)
    random = numpy.random.default_rng(SEED)
    at_once = max(1, AT_ONCE // len(table))
    sizes = (min(at_once, RESAMPLES - done) for done in range(0, RESAMPLES, at_once))
    draws = (random.integers(0, len(table), (size, len(table))) for size in sizes)
    return numpy.concatenate([table[drawn].sum(axis=1) for drawn in draws])


def _percentiles(values: Any) -> tuple[float, float]:
    import numpy

    low, high = numpy.percentile(values, [2.5, 97.5])
    return float(low), float(high)
