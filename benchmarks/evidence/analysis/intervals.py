"""What may be concluded from a few seeds: means and paired differences with 95% intervals.

Primary is the percentile bootstrap over seeds (Efron 1979). Over n seeds it is narrower than it should be, by about
sqrt((n - 1) / n) * 1.96 / t(n - 1), which is 0.82 for n = 10 (of normal seeds it covers 91% there, 85% for n = 5, 75%
for n = 3); so the t-interval and an exact sign-flip test (Fisher 1935) stand beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy

RESAMPLES = 10_000
"""Of seeds. [ours]"""

BOTH_RESAMPLES = 2_000
"""Of seeds and tasks. [ours]"""

SEED = 0
"""Of all resampling, so that the same results give the same intervals. [ours]"""

EXACT_UP_TO = 12
"""Seeds up to which all 2**n signs are tried; with more, 10,000 drawn ones. [ours]"""

ROUNDING = 1e-12
"""Differences below this are rounding. [ours]"""

Interval = tuple[float, float]


@dataclass(frozen=True)
class Estimate:
    """A number over seeds.

    Args:
        mean: over the seeds that have it; None if there are none.
        interval: 95%, bootstrap over seeds; None with fewer than two seeds, or if all agree (which is no certainty).
        by_seed: None where the number is undefined (a recovery rate without error cases), which the mean leaves out.
    """

    mean: float | None
    interval: Interval | None
    by_seed: Mapping[int, float | None]

    @property
    def seeds(self) -> int:
        return sum(value is not None for value in self.by_seed.values())

    @property
    def undefined(self) -> int:
        return len(self.by_seed) - self.seeds


@dataclass(frozen=True)
class Difference(Estimate):
    """An arm's number less the reference's, seed by seed.

    Args:
        both: 95% interval of a bootstrap that resamples seeds, and tasks for both arms and all seeds alike; None
            where there are no tasks to resample.
        t: paired 95% t-interval; None like `interval`.
        p: two-sided, sign-flip permutation test of a difference that is as often up as down; None without seeds.
    """

    both: Interval | None
    t: Interval | None
    p: float | None


def estimate(by_seed: Mapping[int, float | None]) -> Estimate:
    """The mean over seeds. Example: `estimate({0: 0.2, 1: 0.4, 2: None}).mean` is 0.3, over 2 seeds."""
    values = _values(by_seed)
    return Estimate(float(values.mean()) if len(values) else None, bootstrap(values), dict(by_seed))


def difference(by_seed: Mapping[int, float | None], both: Interval | None = None) -> Difference:
    """What the differences of the seeds show; `both` is the interval over seeds and tasks, if there is one."""
    values = _values(by_seed)
    mean = float(values.mean()) if len(values) else None
    return Difference(mean, bootstrap(values), dict(by_seed), both, t_interval(values), sign_flip_p(values))


def less(first: Mapping[int, float | None], second: Mapping[int, float | None]) -> dict[int, float | None]:
    """First less second, for the seeds that both have; None where either is.

    Example:
        `less({0: 0.5, 1: None, 2: 0.3}, {0: 0.4, 1: 0.2, 3: 0.1})` is about `{0: 0.1, 1: None}`
    """
    pairs = {seed: (first[seed], second[seed]) for seed in first if seed in second}
    return {seed: None if a is None or b is None else a - b for seed, (a, b) in pairs.items()}


def bootstrap(values: Any) -> Interval | None:
    """95% percentile interval of the mean of `values` (seeds) under resampling; None if nothing spreads."""
    if not _spreads(values):
        return None
    drawn = numpy.random.default_rng(SEED).integers(0, len(values), (RESAMPLES, len(values)))
    return _percentiles(values[drawn].mean(axis=1))


def t_interval(values: Any) -> Interval | None:
    """Student's 95% interval of a mean. Example: of (0, 2), mean 1 and standard error 1: 1 -+ 12.706."""
    from scipy.stats import t

    if not _spreads(values):
        return None
    error = values.std(ddof=1) / len(values) ** 0.5
    reach = float(t.ppf(0.975, len(values) - 1) * error)
    return float(values.mean()) - reach, float(values.mean()) + reach


def sign_flip_p(values: Any) -> float | None:
    """Two-sided p of the mean under random signs, exact up to EXACT_UP_TO values.

    Example:
        Of (1, 2, 3) only all plus and all minus of the 8 sign patterns have a mean as far from 0: p = 2 / 8.
    """
    from scipy.stats import permutation_test

    if not len(values):
        return None
    if len(values) == 1 or not values.any():
        return 1.0  # +d and -d are as far from 0
    tried = permutation_test(
        (values,), _mean, permutation_type="samples", vectorized=True, rng=numpy.random.default_rng(SEED),
        n_resamples=2**EXACT_UP_TO if len(values) <= EXACT_UP_TO else RESAMPLES,
    )  # fmt: skip
    return float(tried.pvalue)


def _mean(values: Any, axis: int) -> Any:
    return values.mean(axis=axis)


def over_seeds_and_tasks(first: tuple[Any, Any], second: tuple[Any, Any]) -> Interval | None:
    """95% percentile interval of the second mean ratio less the first's, resampling seeds, and tasks for all alike.

    Each resample draws tasks (the same for both arms and all seeds) and seeds; each seed's ratio is taken on the drawn
    tasks, and averaged over the drawn seeds whose two ratios have something below the line. Resampling both sides of a
    crossed design is on the wide side (Owen 2007, the pigeonhole bootstrap), so this interval errs towards caution.

    Args:
        first, second: (above, below), each seeds by tasks, 0 or 1: what a task adds to either side of a seed's ratio.

    Returns:
        None with fewer than two seeds, or where resampling shows no spread.
    """
    seeds, tasks = first[0].shape
    if seeds < 2 or not tasks:
        return None
    seed_weights, task_weights = _drawn(seeds, tasks)
    sums = [task_weights @ matrix.T.astype(float) for pair in (first, second) for matrix in pair]
    defined = (sums[1] > 0) & (sums[3] > 0)
    of_first, of_second = (
        numpy.divide(above, below, out=numpy.zeros_like(above), where=defined) for above, below in (sums[:2], sums[2:])
    )
    weights = seed_weights * defined
    kept = weights.sum(axis=1) > 0
    if not kept.any():
        return None
    means = ((of_second - of_first) * weights).sum(axis=1)[kept] / weights.sum(axis=1)[kept]
    return _percentiles(means) if _spreads(means) else None


@cache
def _drawn(seeds: int, tasks: int) -> tuple[Any, Any]:
    """How often each seed and each task is drawn: resamples by seeds, resamples by tasks."""
    random = numpy.random.default_rng(SEED)
    task_weights = random.multinomial(tasks, [1 / tasks] * tasks, BOTH_RESAMPLES).astype(float)
    return random.multinomial(seeds, [1 / seeds] * seeds, BOTH_RESAMPLES), task_weights


def _values(by_seed: Mapping[int, float | None]) -> Any:
    return numpy.array([value for value in by_seed.values() if value is not None], dtype=float)


def _spreads(values: Any) -> bool:
    return len(values) > 1 and float(numpy.ptp(values)) > ROUNDING


def _percentiles(values: Any) -> Interval:
    low, high = numpy.percentile(values, [2.5, 97.5])
    return float(low), float(high)
