"""Intervals against the same computations written out."""

import numpy
import pytest

from fission_grpo.evaluation import intervals
from fission_grpo.evaluation.intervals import difference_interval, ratio_interval, wilson

PAIRS = [(i % 3 > 0, 1 + i % 4) for i in range(37)]
OTHERS = [(i % 5 > 1, 1 + i % 3) for i in range(37)]


def resampled(rows, resamples=2000):
    """Sums over cases drawn with replacement, one resample after another."""
    random = numpy.random.default_rng(0)
    table = numpy.array(rows, dtype=float)
    return numpy.array([table[random.integers(0, len(table), len(table))].sum(axis=0) for _ in range(resamples)])


def test_the_interval_of_a_ratio_is_of_two_thousand_resamples():
    sums = resampled(PAIRS)
    expected = numpy.percentile(sums[:, 0] / sums[:, 1], [2.5, 97.5])
    assert ratio_interval(PAIRS) == pytest.approx(tuple(expected), abs=1e-12)
    fewer = resampled(PAIRS, 200)
    assert ratio_interval(PAIRS) != pytest.approx(tuple(numpy.percentile(fewer[:, 0] / fewer[:, 1], [2.5, 97.5])))


def test_the_interval_of_a_difference_is_of_two_thousand_paired_resamples():
    sums = resampled([(*a, *b) for a, b in zip(PAIRS, OTHERS, strict=True)])
    differences = sums[:, 2] / sums[:, 3] - sums[:, 0] / sums[:, 1]
    expected = numpy.percentile(differences, [2.5, 97.5])
    assert difference_interval(PAIRS, OTHERS) == pytest.approx(tuple(expected), abs=1e-12)


def test_cases_drawn_in_parts_give_as_many_resamples(monkeypatch):
    whole = ratio_interval(PAIRS)
    monkeypatch.setattr(intervals, "MAX_DRAWS", 37 * 300)
    assert ratio_interval(PAIRS) == pytest.approx(whole, abs=1e-12)
    assert len(intervals._resampled_sums(PAIRS)) == 2000


def test_cases_that_agree_have_wilsons_interval():
    assert ratio_interval([(1, 1)] * 10) == wilson(10, 10)
    assert ratio_interval([(0, 2)] * 10) == wilson(0, 10)
    assert ratio_interval([(0, 0)]) is None
    assert ratio_interval([(1, 2)]) is None
    assert difference_interval(PAIRS, PAIRS) is None
