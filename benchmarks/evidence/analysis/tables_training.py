"""Markdown tables of learning curves, comparisons at other equal costs, and of what the training logs tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from analysis.cells import NONE, by_points, gap, name, shown, table
from analysis.intervals import Estimate
from analysis.measures import RECOVERY, SUCCESS
from analysis.training import LOGGED, QUARTERS, Training
from analysis.whole import Analysis

COST_NAMES = {"tokens": "policy tokens alone", "all_tokens": "tokens, extra ones included", "seconds": "wall-clock"}


def curve_tables(analysis: Analysis) -> list[str]:
    """Success and recovery at every point, and the differences where other costs are equal."""
    a = analysis
    columns = sorted({one.point for ones in a.curves.values() for one in ones})
    text = "## Learning curves\n\nBelow each mean the difference to the reference at that point."
    for measure in (SUCCESS, RECOVERY):
        rows = []
        for arm, ones in a.curves.items():
            cells = {
                one.point: shown(one.estimates[measure.key])
                + (f"<br>{gap(one.differences[measure.key])}" if one.differences else "")
                for one in ones
            }
            on_the_way = gap(a.over_points[arm][measure.key]) if arm in a.over_points else NONE
            rows.append([name(arm), *by_points(cells, columns), on_the_way])
        title = measure.title[0].upper() + measure.title[1:]
        text += f"\n\n{title} by tokens of the point:\n\n" + table(
            ["arm", *(f"{one:,}" for one in columns), "difference, mean of points"], rows
        )
    return [text, *_equal_costs(a), *_eval_errors(a)]


def _equal_costs(analysis: Analysis) -> list[str]:
    rows = [
        [
            name(arm),
            COST_NAMES[cost],
            f"{one.budget:,.0f}",
            *(gap(one.differences[key]) for key in ("success", "recovery")),
            str(one.differences["success"].seeds),
        ]
        for cost, arms in analysis.equal_cost.items()
        for arm, one in arms.items()
    ]
    if not rows:
        return []
    columns = ["arm", "equal cost", "budget", "success, difference", "recovery, difference", "seeds"]
    return [
        "## At equal cost of another kind\n\nWhere an arm's cost at the point is not the reference's: both at the "
        "lower of their two last costs, seed by seed, interpolated between evaluations.\n\n" + table(columns, rows)
    ]


def _eval_errors(analysis: Analysis) -> list[str]:
    """Errors per call, loops and the commonest error kinds at the first and last point of each arm."""
    kinds = sorted({kind for ones in analysis.curves.values() for one in ones for kind in one.kinds})
    rows = []
    for arm, ones in analysis.curves.items():
        for one in dict.fromkeys((0, len(ones) - 1)):
            at = ones[one]
            rates = [shown(at.estimates[key]) for key in ("errors_per_call", "retry_loops")]
            rows.append([name(arm), f"{at.point:,}", *rates, *(f"{at.kinds.get(kind, 0.0):.1f}" for kind in kinds)])
    columns = ["arm", "point", "errors per 100 calls", "retry loops per 100 errors", *(f"`{kind}`" for kind in kinds)]
    return ["## Error kinds on held-out tasks\n\nBy kind: per 100 calls.\n\n" + table(columns, rows)] if rows else []


def training_tables(analysis: Analysis) -> list[str]:
    """Variance, rescued groups, ages, leaks; the same by quarters; error kinds by quarters."""
    trainings = analysis.training
    if not trainings:
        return ["## Training logs\n\nNo finished run has logged cycles yet."]
    return [_totals(trainings), _quarters(trainings), _kinds(trainings)]


def _totals(trainings: Mapping[str, Training]) -> str:
    columns = ["arm", "runs", "explore cycles", "recover cycles", "explore groups without variance",
               "recovery groups without variance", "rescued groups per run", "… of recovery groups",
               "… of explore groups without variance", "age when used, steps", "leaks per pushed instance",
               "fallbacks per pushed instance", "training, s"]  # fmt: skip
    rows = []
    for arm, one in trainings.items():
        recovers, totals = one.recovers, one.totals
        dash = Estimate(None, None, {})
        rows.append([
            name(arm), str(one.seconds.seeds),
            shown(totals["explore_cycles"], 1), shown(totals["recover_cycles"], 1),
            shown(one.whole["fission/frac_zero_std"]), shown(one.whole["recovery/frac_zero_std"]),
            shown(totals["rescued_groups"] if recovers else dash, 1),
            shown(totals["rescued_of_recovery_groups"]), shown(totals["rescued_of_flat_groups"] if recovers else dash),
            shown(one.whole["fission/age"], 1), shown(totals["leaks"]), shown(totals["fallbacks"]),
            shown(one.seconds, 1, 0),
        ])  # fmt: skip
    note = "A rescued group is a recovery group with variance whose explore group had none. Shares in percent. "
    note += "A cycle that explores and recovers in one batch counts as both."
    return f"## Training logs\n\n{note}\n\n{table(columns, rows)}"


def _quarters(trainings: Mapping[str, Training]) -> str:
    columns = ["arm", "number", *(f"quarter {quarter + 1}" for quarter in range(QUARTERS))]
    rows = []
    for arm, one in trainings.items():
        for key, words, _ in LOGGED:
            found = one.quarters[key]
            if any(quarter.mean is not None for quarter in found):
                scale = 1.0 if key == "fission/age" else 100.0
                rows.append([name(arm), words, *(shown(quarter, scale) for quarter in found)])
    return f"## Over training, by quarters of a run's tokens\n\n{table(columns, rows)}"


def _kinds(trainings: Mapping[str, Training]) -> str:
    kinds = sorted({kind for one in trainings.values() for kind in one.kinds})
    columns = ["arm", "quarter", *(f"`{kind}`" for kind in kinds)]
    rows = [
        [name(arm), str(quarter + 1), *(_count(one.kinds.get(k), quarter) for k in kinds)]
        for arm, one in trainings.items()
        for quarter in range(QUARTERS)
        if one.kinds
    ]
    note = "Failed rollouts per explore cycle by error kind."
    return f"## Error kinds over training\n\n{note}\n\n{table(columns, rows)}"


def _count(by_quarter: Sequence[float | None] | None, quarter: int) -> str:
    found = by_quarter[quarter] if by_quarter else None
    return NONE if found is None else f"{found:.1f}"
