"""What is counted in the outcomes of a task set: shares of tasks, per seed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy

from analysis.intervals import Difference, difference, less, over_seeds_and_tasks
from analysis.raw import Evaluation, TaskSet

DESK_KINDS = frozenset({"plain", "formats", "names", "ids", "locked", "conflicts"})
NEED_ERROR = frozenset({"names", "ids", "locked", "conflicts"})
"""The desk's kinds of task in which the request alone suggests a call that errs (see environments/desk_tasks.py).

Not that an error is certain: `locked` files can be unlocked first, and in `conflicts` the next time may be guessed.
AVOIDED counts how often that happened.
"""

JUDGED = "srxf"


@dataclass(frozen=True)
class Measure:
    """A share of tasks.

    Args:
        key: in analysis.json.
        title: in tables and pictures.
        above, below: letters of the outcomes counted above and below the line.
        need: only tasks that need an error (True), or only those that do not (False); None: all.
    """

    key: str
    title: str
    above: str
    below: str
    need: bool | None = None


SUCCESS = Measure("success", "success", "sr", JUDGED)
RECOVERY = Measure("recovery", "error recovery rate", "r", "rx")
FLAWLESS = Measure("flawless", "first-try success", "s", JUDGED)
ERROR_CASES = Measure("error_cases", "tasks with an own error", "rx", JUDGED)
NEEDED = Measure("success_after_needed_error", "success where an error is expected", "sr", JUDGED, True)
OTHERS = Measure("success_without_need", "success where none is expected", "sr", JUDGED, False)
FIRST_TRY = Measure("flawless_without_need", "first-try success where no error is expected", "s", JUDGED, False)
AVOIDED = Measure("flawless_despite_need", "first-try success where an error is expected", "s", JUDGED, True)
MEASURES = (SUCCESS, RECOVERY, FLAWLESS, ERROR_CASES, NEEDED, AVOIDED, OTHERS, FIRST_TRY)

BySeed = Mapping[int, Evaluation]
"""An arm's evaluations on one set at one point, by seed."""


def has_needs(tasks: TaskSet) -> bool:
    """Whether it is known of a set's tasks which need an error: those of the desk."""
    kinds = {kind for category in tasks.categories for kind in _kinds(category)}
    return kinds <= DESK_KINDS and bool(kinds & NEED_ERROR)


def _kinds(category: str) -> list[str]:
    """Example: two requests in one task, `_kinds("names+plain")`, are `["names", "plain"]`."""
    return re.findall("[a-z]+", category)


def measures_of(tasks: TaskSet) -> list[Measure]:
    """The measures that a set of tasks has."""
    return [one for one in MEASURES if one.need is None or has_needs(tasks)]


def chosen(measure: Measure, tasks: TaskSet) -> Any:
    """Which tasks a measure counts: bool, one per task."""
    need = numpy.array([not NEED_ERROR.isdisjoint(_kinds(category)) for category in tasks.categories])
    return numpy.ones(len(need), bool) if measure.need is None else need == measure.need


def table(outcomes: Sequence[str], measure: Measure, among: Any) -> tuple[Any, Any]:
    """What each task adds above and below the line: two bool arrays, rows of `outcomes` by tasks.

    Args:
        outcomes: a letter per task.
        among: bool, of tasks or rows by tasks: which count at all.

    Example:
        "srx-" and the error recovery rate: above is (0, 1, 0, 0), below (0, 1, 1, 0).
    """
    letters = numpy.array([list(row) for row in outcomes])
    return numpy.isin(letters, list(measure.above)) & among, numpy.isin(letters, list(measure.below)) & among


def shares(evaluations: BySeed, measure: Measure, among: Any) -> dict[int, float | None]:
    """A measure per seed; None where nothing is below the line."""
    if not evaluations:
        return {}
    above, below = (side.sum(axis=1) for side in table(_outcomes(evaluations), measure, among))
    return {seed: _share(int(a), int(b)) for seed, a, b in zip(evaluations, above, below, strict=True)}


def measured_difference(arm: BySeed, reference: BySeed, measure: Measure, among: Any) -> Difference:
    """An arm less the reference over the seeds that both have, in a measure, with both bootstraps."""
    arm, reference = _shared(arm, reference)
    by_seed = less(shares(arm, measure, among), shares(reference, measure, among))
    both = None
    if arm:
        both = over_seeds_and_tasks(*(table(_outcomes(side), measure, among) for side in (reference, arm)))
    return difference(by_seed, both)


@dataclass(frozen=True)
class CommonErrors:
    """Recovery on the same tasks: those where, in the same seed, both arms met an own error.

    Args:
        cases: such (task, seed)s.
        arm, reference: recovery rates on them, mean over seeds; None without such cases.
        difference: arm less reference.
    """

    cases: int
    arm: float | None
    reference: float | None
    difference: Difference


def common_errors(arm: BySeed, reference: BySeed) -> CommonErrors:
    """Compare recovery where both arms had something to recover from.

    Example:
        Seed 0, arm "rxrs", reference "xxsr": tasks 0 and 1 are common; the arm recovers from 1 of 2, the reference 0.
    """
    arm, reference = _shared(arm, reference)
    if not arm:
        return CommonErrors(0, None, None, difference({}))
    everything = numpy.ones((len(arm), len(next(iter(arm.values())).outcomes)), bool)
    common = table(_outcomes(arm), RECOVERY, everything)[1] & table(_outcomes(reference), RECOVERY, everything)[1]
    ours, theirs = (shares(side, RECOVERY, common) for side in (arm, reference))
    both = over_seeds_and_tasks(*(table(_outcomes(side), RECOVERY, common) for side in (reference, arm)))
    found = difference(less(ours, theirs), both)
    return CommonErrors(int(common.sum()), _mean(ours), _mean(theirs), found)


def retry_loops(evaluations: BySeed) -> dict[int, float | None]:
    """Retry loops per error that could have begun one."""
    return {seed: _share(*one.loops) for seed, one in evaluations.items()}


def errors_per_call(evaluations: BySeed) -> dict[int, float | None]:
    """The policy's erring calls per call."""
    return {seed: _share(sum(one.error_kinds.values()), one.calls) for seed, one in evaluations.items()}


def missing_tasks(evaluations: BySeed) -> int:
    """Outcomes that are missing (the environment broke): they count nowhere."""
    return sum(one.outcomes.count("-") for one in evaluations.values())


def _shared(arm: BySeed, reference: BySeed) -> tuple[BySeed, BySeed]:
    seeds = [seed for seed in arm if seed in reference]
    return {seed: arm[seed] for seed in seeds}, {seed: reference[seed] for seed in seeds}


def _outcomes(evaluations: BySeed) -> list[str]:
    return [one.outcomes for one in evaluations.values()]


def _share(above: int, below: int) -> float | None:
    return above / below if below else None


def _mean(by_seed: Mapping[int, float | None]) -> float | None:
    values = [value for value in by_seed.values() if value is not None]
    return sum(values) / len(values) if values else None
