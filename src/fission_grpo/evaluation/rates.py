"""Rates over cases with their 95% intervals, also where tasks have several samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fission_grpo.evaluation.attempts import CaseSummary
from fission_grpo.evaluation.intervals import Pair, ratio_interval, total, wilson


@dataclass(frozen=True)
class Proportion:
    """`hits` of `of`, with a 95% interval by `method` ("wilson" or "bootstrap"); None where there is none."""

    hits: int
    of: int
    interval: tuple[float, float] | None = None
    method: str = "wilson"

    @property
    def rate(self) -> float | None:
        """hits / of; None over nothing."""
        return self.hits / self.of if self.of else None


@dataclass(frozen=True)
class Passes:
    """Of k samples of a task at least one (pass@k, Chen et al. 2021) or all (pass^k, Yao et al. 2024) succeed.

    Both are unbiased estimates, means over the tasks with at least k judged samples, with bootstrap intervals over
    these tasks.
    """

    k: int
    tasks: int
    any: float
    any_interval: tuple[float, float] | None
    all: float
    all_interval: tuple[float, float] | None


def success_of(cases: Sequence[CaseSummary]) -> Proportion:
    """The share of cases that succeeded, see `share_of`."""
    return share_of(cases, lambda case: case.record.success is True)


def share_of(cases: Sequence[CaseSummary], is_hit: Callable[[CaseSummary], bool]) -> Proportion:
    """The share of cases, with Wilson's interval; by bootstrap over tasks where tasks have several samples."""
    if len({case.record.of_task for case in cases}) < len(cases):
        return bootstrap_of(cases, lambda case: (int(is_hit(case)), 1))
    hits, of = sum(map(is_hit, cases)), len(cases)
    return Proportion(hits, of, wilson(hits, of) if of else None)


def bootstrap_of(cases: Sequence[CaseSummary], count: Callable[[CaseSummary], Pair]) -> Proportion:
    """A ratio with a bootstrap interval over tasks."""
    pairs = list(by_task(cases, count).values())
    return Proportion(*total(pairs), ratio_interval(pairs), "bootstrap")


def by_task(cases: Sequence[CaseSummary], count: Callable[[CaseSummary], Pair]) -> dict[str, Pair]:
    """The sums of `count` over the samples of each task, as samples of one task are not independent."""
    sums: dict[str, Pair] = {}
    for case in cases:
        task = case.record.of_task
        sums[task] = total([sums.get(task, (0, 0)), count(case)])
    return sums


def passes_of(judged: Sequence[CaseSummary]) -> tuple[Passes, ...]:
    tasks = by_task(judged, lambda case: (int(case.record.success is True), 1)).values()
    most = max((samples for _, samples in tasks), default=0)
    passes = []
    for k in range(1, most + 1) if most > 1 else ():
        draws = [(hits, samples, math.comb(samples, k)) for hits, samples in tasks if samples >= k]
        with_one = [(1 - math.comb(samples - hits, k) / ways, 1) for hits, samples, ways in draws]
        with_all = [(math.comb(hits, k) / ways, 1) for hits, _, ways in draws]
        rates = [sum(value for value, _ in values) / len(values) for values in (with_one, with_all)]
        intervals = [ratio_interval(values) for values in (with_one, with_all)]
        passes.append(Passes(k, len(draws), rates[0], intervals[0], rates[1], intervals[1]))
    return tuple(passes)
