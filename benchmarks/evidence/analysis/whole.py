"""The whole analysis of a suite as one value, and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from analysis.findings import CONTROLS, SAME_CHANGE, findings
from analysis.intervals import Difference
from analysis.learning import AtEqualCost, CurvePoint, at_equal_cost, curves, over_points
from analysis.raw import RunFileError, Suite, arms_of, read_suite
from analysis.results import (
    FIRST,
    MAIN_SET,
    OF_STATIC,
    SetResult,
    by_arm,
    differences,
    last_point,
    set_result,
    untrained,
)
from analysis.training import Training, trainings
from analysis.verdicts import control_verdicts, verdicts

SAME_COST = 0.05
"""Arms whose tokens differ by more than this share from the reference's are named. [ours]"""


@dataclass(frozen=True)
class Analysis:
    """All that is computed of a suite.

    Args:
        suite, reference, point: what was analysed, against which arm, at which point.
        main: the arms on the main set at the point.
        controls: differences on the main set between arms of which neither is the reference (CONTROLS, SAME_CHANGE).
        transfer: on the other sets.
        over_points: by trained arm, differences of the means over all points.
        equal_cost: by kind of cost and arm, where the costs at the point differ from the reference's.
        findings: what the protocol's rules make of the headline comparisons.
        verdicts: sentences, one per arm and measure.
        notes: what is missing or was left out.
    """

    suite: str
    reference: str
    point: int
    main: SetResult
    controls: Mapping[tuple[str, str], Mapping[str, Difference]]
    transfer: Mapping[str, SetResult]
    curves: Mapping[str, Sequence[CurvePoint]]
    over_points: Mapping[str, Mapping[str, Difference]]
    training: Mapping[str, Training]
    equal_cost: Mapping[str, Mapping[str, AtEqualCost]]
    findings: Sequence[str]
    verdicts: Sequence[str]
    notes: Sequence[str]

    @property
    def main_arms(self) -> list[str]:
        """The main arms that are there; all arms if they are few (then there is no need to choose)."""
        arms = list(self.main.arms)
        return arms if len(arms) <= len(FIRST) + 1 else [arm for arm in arms if arm in (*FIRST, *OF_STATIC)]


def analyse(folder: Path, reference: str = "grpo", point: int | None = None) -> Analysis:
    """Analyse a suite's results.

    Args:
        folder: with the raw results.
        reference: the arm that others are compared to.
        point: nominal tokens; None: the reference's last.

    Raises:
        RunFileError: results are missing or broken, or know no such arm or point.
    """
    suite = read_suite(folder)
    arms = arms_of(suite.evaluations)
    if reference not in arms:
        raise RunFileError(
            f"{folder}: no arm '{reference}' to compare with; give --reference, one of {', '.join(arms)}"
        )
    if MAIN_SET not in suite.sets:
        raise RunFileError(f"{folder / 'sets.json'}: there must be a set '{MAIN_SET}'; it has {', '.join(suite.sets)}")
    points = sorted({one.point for one in suite.evaluations})
    if point is not None and point not in points:
        raise RunFileError(f"{folder}: no evaluations at point {point:,}; there are {', '.join(map(str, points))}")
    point = last_point(suite.evaluations, reference) if point is None else point
    main = set_result(suite, MAIN_SET, point, reference)
    others = [name for name in suite.sets if name != MAIN_SET and by_arm(suite.evaluations, name, point)]
    costs = {
        cost: {arm: at_equal_cost(suite, cost, arm, reference) for arm in arms}
        for cost in ("tokens", "all_tokens", "seconds")
    }
    controls = against_controls(suite, point, reference)
    return Analysis(
        suite=suite.name,
        reference=reference,
        point=point,
        main=main,
        controls=controls,
        transfer={name: set_result(suite, name, point, reference) for name in others},
        curves=curves(suite, reference),
        over_points={
            arm: over_points(suite, arm, reference)
            for arm in arms
            if arm != reference and arm not in untrained(suite.evaluations)
        },
        training=trainings(suite),
        equal_cost={cost: {arm: one for arm, one in ones.items() if one} for cost, ones in costs.items()},
        findings=findings(main, controls),
        verdicts=[*verdicts(main), *control_verdicts(controls)],
        notes=[*suite.notes, *missing(suite, main)],
    )


def against_controls(suite: Suite, point: int, reference: str) -> dict[tuple[str, str], dict[str, Difference]]:
    """Differences of the pairs of CONTROLS and SAME_CHANGE, and of every other untrained arm to the untrained one."""
    arms, before = by_arm(suite.evaluations, MAIN_SET, point), untrained(suite.evaluations)
    pairs = [*CONTROLS, *SAME_CHANGE, *((arm, "untrained") for arm in before if arm != "untrained")]
    return {
        (arm, other): differences(arms[arm], arms[other], suite.sets[MAIN_SET])
        for arm, other in pairs
        if arm in arms and other in arms and reference not in (arm, other)
    }


def missing(suite: Suite, main: SetResult) -> list[str]:
    """Sentences on what is not there: seeds, points, sets, finished runs; and on unequal cost."""
    found, before = [], untrained(suite.evaluations)
    seeds = {arm: {one.seed for one in suite.evaluations if one.arm == arm} for arm in arms_of(suite.evaluations)}
    finished = {(run.arm, run.seed) for run in suite.runs}
    found += [f"{arm} was evaluated before training only (point 0)" for arm in before if arm != "untrained"]
    for arm, mine in seeds.items():
        there = set(main.arms[arm].seeds) if arm in main.arms else set()
        if absent := sorted(mine - there):
            found.append(f"{arm}: {MAIN_SET} at point {main.point:,} is missing for seeds {_listed(absent)}")
        if arm not in before and (open_runs := [seed for seed in sorted(mine) if (arm, seed) not in finished]):
            found.append(f"{arm}: no finished run (runs.jsonl) for seeds {_listed(open_runs)}")
    most = max(len(one.seeds) for one in main.arms.values()) if main.arms else 0
    fewer = [f"{arm} {len(one.seeds)}" for arm, one in main.arms.items() if len(one.seeds) < most]
    if fewer:
        found.append(f"fewer seeds than {most}: {', '.join(fewer)}")
    found += [f"{arm}: {one.missing:,} outcomes missing, left out" for arm, one in main.arms.items() if one.missing]
    if main.reference in main.arms:
        found += _unequal(main)
    return found


def _unequal(main: SetResult) -> list[str]:
    def charged(arm: str) -> float:
        cost = main.arms[arm].cost
        return cost.tokens + sum(cost.extra_tokens.values())

    budget = charged(main.reference)
    apart = {arm: charged(arm) / budget - 1 for arm, one in main.arms.items() if one.point and budget}
    return [
        f"{arm} was charged {100 * share:+.1f}% tokens against {main.reference}: not an equal cost"
        for arm, share in apart.items()
        if abs(share) > SAME_COST
    ]


def as_json(analysis: Analysis) -> dict[str, Any]:
    """The analysis as JSON values; shares between 0 and 1, numbers with six digits."""
    values = asdict(replace(analysis, controls={}))
    values["controls"] = {
        " less ".join(pair): {key: asdict(one) for key, one in found.items()}
        for pair, found in analysis.controls.items()
    }
    return _rounded(values)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {str(key): _rounded(one) for key, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list | tuple) else value


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))
