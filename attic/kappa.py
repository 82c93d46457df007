"""Agreement of raters beyond chance: Cohen's kappa for two, Fleiss' for more, with bootstrap intervals over items."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fission_grpo.evaluation.intervals import RESAMPLES, SEED

Ratings = Sequence[Sequence[bool]]
"""Per item, one answer of every rater, in the raters' order."""


def cohen_kappa(ratings: Ratings) -> float | None:
    """Cohen's kappa (1960) of two raters who answer yes or no. None if chance alone would agree fully, or of nothing.

    Example:
        Of 50 items both say yes to 20, both no to 15, the first alone yes to 5, the second alone to 10: they agree in
        0.7; by chance in 0.5 * 0.6 + 0.5 * 0.4 = 0.5; kappa is 0.2 / 0.5 = 0.4.
    """
    if any(len(item) != 2 for item in ratings):
        raise ValueError("Cohen's kappa needs two answers for every item")
    return _kappa(_counts(ratings))


def fleiss_kappa(ratings: Ratings) -> float | None:
    """Fleiss' kappa (1971) of two or more raters who answer yes or no; None as for `cohen_kappa`.

    Example:
        Three raters, four items, of which 3, 3, 0 and 1 said yes: pairs agree in (1 + 1 + 1 + 1/3) / 4 = 0.8333; the
        share of yes is 7/12, so by chance in (7/12)**2 + (5/12)**2 = 0.5139; kappa is 0.6571.
    """
    raters = len(ratings[0]) if ratings else 2
    if raters < 2 or any(len(item) != raters for item in ratings):
        raise ValueError("Fleiss' kappa needs the same number of answers, two or more, for every item")
    return _fleiss([sum(item) for item in ratings], raters)


def kappa(ratings: Ratings) -> tuple[float | None, tuple[float, float] | None]:
    """Cohen's kappa of two raters, Fleiss' of more, with a 95% percentile interval over resampled items.

    Returns:
        (kappa, (low, high)); the interval is None where kappa is, or no resample differs from another. Resamples of
        which it is not defined are left out.
    """
    import numpy

    two = bool(ratings) and len(ratings[0]) == 2
    whole = cohen_kappa(ratings) if two or not ratings else fleiss_kappa(ratings)
    if whole is None:
        return None, None
    random, found = numpy.random.default_rng(SEED), []
    table = numpy.array(ratings, dtype=int)
    for _ in range(RESAMPLES):
        drawn: Any = table[random.integers(0, len(table), len(table))]
        if two:
            first, second = drawn[:, 0], drawn[:, 1]
            both, one, other = (int(x.sum()) for x in (first & second, first & (1 - second), (1 - first) & second))
            value = _kappa((both, one, other, len(table) - both - one - other))
        else:
            value = _fleiss([int(yes) for yes in drawn.sum(axis=1)], table.shape[1])
        if value is not None:
            found.append(value)
    if not found or min(found) == max(found):
        return whole, None
    low, high = numpy.percentile(found, [2.5, 97.5])
    return whole, (float(low), float(high))


def _counts(ratings: Ratings) -> tuple[int, int, int, int]:
    """Items with yes of both, of the first alone, of the second alone, of neither."""
    pairs = [(bool(first), bool(second)) for first, second in ratings]
    return (
        pairs.count((True, True)),
        pairs.count((True, False)),
        pairs.count((False, True)),
        pairs.count((False, False)),
    )


def _kappa(counts: tuple[int, int, int, int]) -> float | None:
    both, first, second, neither = counts
    items = both + first + second + neither
    if not items:
        return None
    yes_first, yes_second = both + first, both + second
    chance = yes_first * yes_second + (items - yes_first) * (items - yes_second)  # over items squared
    if chance == items * items:
        return None
    return ((both + neither) * items - chance) / (items * items - chance)


def _fleiss(yes: Sequence[int], raters: int) -> float | None:
    if not yes:
        return None
    pairs = raters * (raters - 1)
    agreement = math.fsum((n * (n - 1) + (raters - n) * (raters - n - 1)) / pairs for n in yes) / len(yes)
    share = sum(yes) / (raters * len(yes))
    chance = share * share + (1 - share) * (1 - share)
    return None if chance == 1.0 else (agreement - chance) / (1 - chance)
