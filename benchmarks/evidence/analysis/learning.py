"""Learning curves, and comparisons at equal cost other than the points: interpolated between a seed's evaluations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy

from analysis.intervals import Difference, Estimate, difference, estimate, less
from analysis.measures import RECOVERY, SUCCESS, Measure, chosen, errors_per_call, retry_loops, shares
from analysis.raw import Evaluation, Suite
from analysis.results import MAIN_SET, by_arm, untrained

CURVES = (SUCCESS, RECOVERY)
EQUAL = 0.05
"""Costs whose means over seeds differ by less than this share are called equal: a cycle more or less. [ours]"""

COSTS: Mapping[str, Callable[[Evaluation], float]] = {
    "tokens": lambda one: float(one.tokens),
    "all_tokens": lambda one: float(one.all_tokens),
    "seconds": lambda one: one.seconds,
}


@dataclass(frozen=True)
class CurvePoint:
    """An arm at a point on the main set: means of the three costs, measures with intervals, differences by measure.

    `kinds` are the policy's erring calls of each kind per 100 calls, mean over seeds.
    """

    point: int
    costs: Mapping[str, float]
    estimates: Mapping[str, Estimate]
    differences: Mapping[str, Difference]
    kinds: Mapping[str, float]


def over_points(suite: Suite, arm: str, reference: str) -> dict[str, Difference]:
    """Differences of each seed's mean over the points after 0 that both arms have: who was ahead on the way.

    Example:
        Success 0.2 and 0.6 against 0.2 and 0.5 at two points is a difference of 0.05.
    """
    ours, theirs = (_by_seed(suite, name) for name in (arm, reference))
    found = {}
    for measure in CURVES:
        among = chosen(measure, suite.sets[MAIN_SET])
        by_seed: dict[int, float | None] = {}
        for seed in (seed for seed in ours if seed in theirs):
            rates = [
                {one.point: shares({0: one}, measure, among)[0] for one in side[seed] if one.point}
                for side in (ours, theirs)
            ]
            gaps = [gap for gap in less(*rates).values() if gap is not None]
            by_seed[seed] = sum(gaps) / len(gaps) if gaps else None
        found[measure.key] = difference(by_seed)
    return found


@dataclass(frozen=True)
class AtEqualCost:
    """Differences to the reference where both had cost the same: seed by seed the lower of their last costs."""

    cost: str
    budget: float
    differences: Mapping[str, Difference]


def curves(suite: Suite, reference: str) -> dict[str, list[CurvePoint]]:
    """For each trained arm its points in order; one without a point 0 of its own begins with the untrained arm's."""
    evaluations = [one for one in suite.evaluations if one.set == MAIN_SET]
    if not evaluations:
        return {}
    before = untrained(evaluations)
    found: dict[str, list[CurvePoint]] = {}
    for point in sorted({one.point for one in evaluations}):
        trained = [one for one in evaluations if one.arm not in before]
        arms = by_arm(trained, MAIN_SET, point)
        for arm, mine in arms.items():
            found.setdefault(arm, []).append(_curve_point(suite, point, mine, arms.get(reference, {}), arm, reference))
    start = by_arm(evaluations, MAIN_SET, 0).get("untrained")
    if start is not None:
        begin = _curve_point(suite, 0, start, {}, "untrained", reference)
        found = {arm: points if points[0].point == 0 else [begin, *points] for arm, points in found.items()}
    return found


def _curve_point(
    suite: Suite,
    point: int,
    mine: Mapping[int, Evaluation],
    theirs: Mapping[int, Evaluation],
    arm: str,
    reference: str,
) -> CurvePoint:
    tasks = suite.sets[MAIN_SET]
    rates = [*((one.key, _shares_of(one, chosen(one, tasks))) for one in CURVES), ("retry_loops", retry_loops)]
    rates.append(("errors_per_call", errors_per_call))
    differences = {}
    if arm != reference and theirs:
        differences = {key: difference(less(rate(mine), rate(theirs))) for key, rate in rates}
    kinds = sorted({kind for one in mine.values() for kind in one.error_kinds})
    called = [one for one in mine.values() if one.calls]
    return CurvePoint(
        point=point,
        costs={name: float(numpy.mean([cost(one) for one in mine.values()])) for name, cost in COSTS.items()},
        estimates={key: estimate(rate(mine)) for key, rate in rates},
        differences=differences,
        kinds={k: 100 * float(numpy.mean([one.error_kinds.get(k, 0) / one.calls for one in called])) for k in kinds},
    )


def _shares_of(measure: Measure, among: object) -> Callable[[Mapping[int, Evaluation]], dict[int, float | None]]:
    return lambda evaluations: shares(evaluations, measure, among)


def at_equal_cost(suite: Suite, cost: str, arm: str, reference: str) -> AtEqualCost | None:
    """Compare where both arms had cost the same, which the points do not give for every cost.

    Seed by seed the budget is the lower of the two last costs; a rate at the budget is interpolated linearly between
    that seed's evaluations (of which those without the rate are left out).

    Returns:
        None for arms that share no seed with two evaluations, or whose last costs are equal anyhow; and for the
        policy's tokens where neither arm has extra ones.
    """
    curve_of = COSTS[cost]
    ours, theirs = (_by_seed(suite, name) for name in (arm, reference))
    extra = any(one.extra_tokens for side in (ours, theirs) for ones in side.values() for one in ones)
    if cost == "tokens" and not extra:
        return None
    budgets = {
        seed: (curve_of(ours[seed][-1]), curve_of(theirs[seed][-1]))
        for seed in ours
        if seed in theirs and len(ours[seed]) > 1 and len(theirs[seed]) > 1
    }
    our_mean, their_mean = (sum(pair[side] for pair in budgets.values()) for side in (0, 1))
    if abs(our_mean - their_mean) <= EQUAL * max(our_mean, their_mean):
        return None  # also without a seed: both are 0
    found = {}
    for measure in CURVES:
        among = chosen(measure, suite.sets[MAIN_SET])
        sides = [
            {seed: _interpolated(side[seed], measure, among, curve_of, min(budgets[seed])) for seed in budgets}
            for side in (ours, theirs)
        ]
        found[measure.key] = difference(less(*sides))
    return AtEqualCost(cost, float(numpy.mean([min(pair) for pair in budgets.values()])), found)


def _by_seed(suite: Suite, arm: str) -> dict[int, list[Evaluation]]:
    mine = sorted((one for one in suite.evaluations if (one.arm, one.set) == (arm, MAIN_SET)), key=lambda e: e.point)
    return {seed: [one for one in mine if one.seed == seed] for seed in sorted({one.seed for one in mine})}


def _interpolated(
    ones: Sequence[Evaluation],
    measure: Measure,
    among: object,
    cost: Callable[[Evaluation], float],
    budget: float,
) -> float | None:
    """Example: success 0.2 at 100 tokens and 0.4 at 200 is 0.3 at 150; before the first evaluation it is undefined."""
    pairs = [(cost(one), shares({0: one}, measure, among)[0]) for one in ones]
    known = [(x, y) for x, y in pairs if y is not None]
    if len(known) < 2 or not known[0][0] <= budget <= known[-1][0]:
        return None
    return float(numpy.interp(budget, [x for x, _ in known], [y for _, y in known]))
