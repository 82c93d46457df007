"""All arms on one set of tasks at one point of training: numbers per arm and differences to the reference arm."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from analysis.intervals import Difference, Estimate, difference, estimate, less
from analysis.measures import (
    ERROR_CASES,
    RECOVERY,
    SUCCESS,
    BySeed,
    CommonErrors,
    chosen,
    common_errors,
    errors_per_call,
    measured_difference,
    measures_of,
    missing_tasks,
    retry_loops,
    shares,
)
from analysis.raw import Evaluation, Suite, TaskSet, arms_of

MAIN_SET = "held_out"
FIRST = ("untrained", "grpo", "grpo_large_g", "fission", "fission_fixed", "fission_shuffled")
"""The main arms, in the order of tables and pictures."""
OF_STATIC = ("paper", "shuffled", "fixed", "rules", "simulator", "offline_guess", "offline_other", "live_grpo")
"""The main arms that only `static` has."""

RATES = {"retry_loops": retry_loops, "errors_per_call": errors_per_call}
"""Rates that are known of a whole evaluation only."""


@dataclass(frozen=True)
class Cost:
    """Means over seeds of what an arm had cost at its point: tokens by the policy, by others, updates, seconds."""

    tokens: float
    extra_tokens: Mapping[str, float]
    updates: float
    seconds: float


@dataclass(frozen=True)
class ArmResult:
    """One arm on a set of tasks.

    Args:
        point: of its evaluations: the asked one, 0 for an arm that is not trained.
        estimates: by measure; also `retry_loops` (per error that could have begun one) and `errors_per_call`.
        differences: to the reference arm, by measure; empty for the reference itself.
        common: recovery on the tasks where both this arm and the reference erred; None for the reference.
        categories: by category, success, recovery and share of tasks with an own error.
        less_main: success and recovery on this set less those on the same tasks of the main set, same policies;
            empty for the main set itself, and for sets of other tasks.
        missing: outcomes left out, as the environment broke.
    """

    point: int
    cost: Cost
    estimates: Mapping[str, Estimate]
    differences: Mapping[str, Difference]
    common: CommonErrors | None
    categories: Mapping[str, Mapping[str, Estimate]]
    less_main: Mapping[str, Difference]
    missing: int

    @property
    def seeds(self) -> list[int]:
        return list(self.estimates["success"].by_seed)


@dataclass(frozen=True)
class SetResult:
    """All arms that have results on a set at `point` (or are not trained), in the order of tables."""

    name: str
    point: int
    tasks: int
    reference: str
    arms: Mapping[str, ArmResult]


def ordered(arms: Iterable[str]) -> list[str]:
    """The main arms first, in their order, then the others as they come."""
    arms = list(arms)
    return [arm for arm in FIRST if arm in arms] + [arm for arm in arms if arm not in FIRST]


def last_point(evaluations: Sequence[Evaluation], reference: str) -> int:
    """The reference arm's last point on the main set; without any, the last of all arms."""
    mine = [one.point for one in evaluations if one.arm == reference and one.set == MAIN_SET]
    return max(mine or [one.point for one in evaluations])


def untrained(evaluations: Sequence[Evaluation]) -> list[str]:
    """Arms that were only ever evaluated before training."""
    return [arm for arm in arms_of(evaluations) if all(one.point == 0 for one in evaluations if one.arm == arm)]


def by_arm(evaluations: Sequence[Evaluation], name: str, point: int) -> dict[str, BySeed]:
    """For each arm its evaluations on a set at a point (untrained arms: at 0) by seed; arms without any left out."""
    before = untrained(evaluations)
    found: dict[str, BySeed] = {}
    for arm in ordered(arms_of(evaluations)):
        wanted = 0 if arm in before else point
        mine = {one.seed: one for one in evaluations if (one.arm, one.set, one.point) == (arm, name, wanted)}
        if mine:
            found[arm] = dict(sorted(mine.items()))
    return found


def set_result(suite: Suite, name: str, point: int, reference: str) -> SetResult:
    """Analyse one set at one point."""
    tasks, arms = suite.sets[name], by_arm(suite.evaluations, name, point)
    at_main = by_arm(suite.evaluations, MAIN_SET, point) if name != MAIN_SET else {}
    results = {
        arm: _arm_result(
            mine,
            arms.get(reference, {}) if arm != reference else None,
            tasks,
            _less_main(mine, at_main[arm], tasks, suite.sets[MAIN_SET]) if arm in at_main else {},
        )
        for arm, mine in arms.items()
    }
    return SetResult(name, point, len(tasks.ids), reference, results)


def differences(mine: BySeed, theirs: BySeed, tasks: TaskSet) -> dict[str, Difference]:
    """One arm less another over the seeds that both have, by measure."""
    found = {one.key: measured_difference(mine, theirs, one, chosen(one, tasks)) for one in measures_of(tasks)}
    return found | {key: difference(less(rate(mine), rate(theirs))) for key, rate in RATES.items()}


def _less_main(mine: BySeed, at_main: BySeed, tasks: TaskSet, main: TaskSet) -> dict[str, Difference]:
    """The same policies on the same tasks in another setting; the tasks are known by their ids."""
    places = {task: place for place, task in enumerate(main.ids)}
    if not all(task in places for task in tasks.ids):
        return {}
    same = [places[task] for task in tasks.ids]
    theirs = {s: replace(one, outcomes="".join(one.outcomes[i] for i in same)) for s, one in at_main.items()}
    return {one.key: measured_difference(mine, theirs, one, chosen(one, tasks)) for one in (SUCCESS, RECOVERY)}


def _arm_result(
    mine: BySeed, reference: BySeed | None, tasks: TaskSet, less_main: Mapping[str, Difference]
) -> ArmResult:
    estimates = {one.key: estimate(shares(mine, one, chosen(one, tasks))) for one in measures_of(tasks)}
    estimates |= {key: estimate(rate(mine)) for key, rate in RATES.items()}
    return ArmResult(
        point=next(iter(mine.values())).point,
        cost=_cost(mine),
        estimates=estimates,
        differences={} if reference is None else differences(mine, reference, tasks),
        common=None if reference is None else common_errors(mine, reference),
        categories=_categories(mine, tasks),
        less_main=less_main,
        missing=missing_tasks(mine),
    )


def _categories(mine: BySeed, tasks: TaskSet) -> dict[str, dict[str, Estimate]]:
    """None where a set has a single category, which says nothing beside the whole."""
    names = list(dict.fromkeys(tasks.categories))
    if len(names) < 2:
        return {}
    among = {name: [category == name for category in tasks.categories] for name in names}
    return {
        name: {one.key: estimate(shares(mine, one, among[name])) for one in (SUCCESS, RECOVERY, ERROR_CASES)}
        for name in names
    }


def _cost(mine: BySeed) -> Cost:
    ones = list(mine.values())
    kinds = sorted({kind for one in ones for kind in one.extra_tokens})
    return Cost(
        tokens=_mean([one.tokens for one in ones]),
        extra_tokens={kind: _mean([one.extra_tokens.get(kind, 0) for one in ones]) for kind in kinds},
        updates=_mean([one.updates for one in ones]),
        seconds=_mean([one.seconds for one in ones]),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
