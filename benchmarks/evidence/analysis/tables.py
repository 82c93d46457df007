"""The analysis as markdown tables."""

from __future__ import annotations

from analysis.cells import NONE, gap, name, shown, table
from analysis.intervals import Difference
from analysis.measures import AVOIDED, FIRST_TRY, FLAWLESS, MEASURES, NEEDED, OTHERS, RECOVERY, SUCCESS
from analysis.results import ArmResult, Cost, SetResult
from analysis.tables_training import curve_tables, training_tables
from analysis.verdicts import JUDGED, bracket, direction, points
from analysis.whole import Analysis

RUNAWAY = 0.3
"""A policy with less first-try success where no error is expected has run away; the starter has .63. [ours]"""
MOST = 10
"""Most kinds of task that get a table; analysis.json has them all. [ours]"""


def markdown(analysis: Analysis) -> str:
    """All tables of a suite."""
    a = analysis
    head = f"# Suite `{a.suite}`: {a.main.tasks} held-out tasks at {a.point:,} generated tokens"
    parts = [
        head,
        f"{READING}{a.suite}`.",
        headline(a),
        "## Findings by the protocol\n\n" + "\n".join(f"- {line}" for line in a.findings),
        *([controls(a)] if a.controls else []),
        "## Differences in detail\n\n" + DETAIL + "\n\n" + details(a.main),
        selection(a.main),
        *([runaways(a.main)] if any(FIRST_TRY.key in one.estimates for one in a.main.arms.values()) else []),
        *([categories(a.main)] if any(1 < len(one.categories) <= MOST for one in a.main.arms.values()) else []),
        *transfer(a),
        *curve_tables(a),
        *training_tables(a),
        "## All comparisons in words\n\nOnly those above are findings.\n\n"
        + "\n".join(f"- {line}" for line in a.verdicts),
        "## What is missing or was left out\n\n" + "\n".join(f"- {line}" for line in a.notes or ["nothing"]),
    ]
    return "\n\n".join(parts) + "\n"


READING = (
    "Means over seeds in percent, in brackets 95% intervals (bootstrap over seeds). Differences are paired by seed, "
    "over the seeds that both arms have, in percentage points; **bold** where both their bootstrap interval and "
    "their paired t-interval exclude 0. Written by "
    "`python benchmarks/evidence/analyse.py benchmarks/evidence/results/"
)
BY_KIND = (
    "Over tasks chosen by their kind, so that no arm selects them. An error is expected where the request alone "
    "suggests a call that errs; by luck or foresight it can be avoided, which the column of first tries there shows."
)
DETAIL = (
    "Arm less reference: bootstrap over seeds (primary), bootstrap over seeds and tasks, paired t-interval, two-sided "
    "p of the exact sign-flip test (not corrected for the number of arms)."
)


def headline(analysis: Analysis) -> str:
    """The headline table: every arm at the last point."""
    a = analysis
    needs = any(NEEDED.key in one.estimates for one in a.main.arms.values())
    measures = [SUCCESS, RECOVERY, *([NEEDED] if needs else []), FLAWLESS]
    columns = ["arm", "seeds", *(title for one in measures for title in (one.title, f"… less {a.reference}"))]
    columns += ["tasks with an own error", "retry loops", "policy tokens", "extra tokens", "updates", "training, s"]
    rows = []
    for arm, one in a.main.arms.items():
        row = [name(arm), str(len(one.seeds))]
        for measure in measures:
            row += [shown(one.estimates.get(measure.key)), gap(one.differences.get(measure.key))]
        row += [shown(one.estimates["error_cases"]), shown(one.estimates["retry_loops"]), *_cost(one.cost)]
        rows.append(row)
    undefined = [
        f"{name(arm)}: {one.estimates['recovery'].undefined} seeds without error cases"
        for arm, one in a.main.arms.items()
        if one.estimates["recovery"].undefined
    ]
    left_out = f"\n\nLeft out of the recovery rate: {'; '.join(undefined)}." if undefined else ""
    return "## Headline\n\n" + table(columns, rows) + left_out


def runaways(main: SetResult) -> str:
    """Policies of each arm that go wrong where nothing need go wrong."""
    rows = []
    for arm, one in main.arms.items():
        values = [value for value in one.estimates[FIRST_TRY.key].by_seed.values() if value is not None]
        rows.append([name(arm), str(len(values)), str(sum(value < RUNAWAY for value in values))])
    head = f"## Policies that ran away\n\nFirst-try success where no error is expected below {100 * RUNAWAY:.0f}%.\n\n"
    return head + table(["arm", "policies", "ran away"], rows)


def controls(analysis: Analysis) -> str:
    """Arms against arms other than the reference: fission against its controls, the untrained among themselves."""
    titles = [*(one for one in MEASURES if one.key in JUDGED)]
    rows = [
        [*map(name, pair), *(gap(found.get(one.key)) for one in titles), str(found["success"].seeds)]
        for pair, found in analysis.controls.items()
    ]
    columns = ["arm", "less", *(one.title for one in titles), "seeds"]
    return "## Against controls\n\n" + table(columns, rows)


def details(result: SetResult) -> str:
    """Every difference with all its intervals."""
    columns = ["arm", "number", "difference", "over seeds", "over seeds and tasks", "t-interval", "p", "seeds"]
    titles = {one.key: one.title for one in MEASURES} | {
        "retry_loops": "retry loops per own error",
        "errors_per_call": "errors per call",
    }
    rows = [
        [name(arm), titles[key], *_difference_cells(found)]
        for arm, one in result.arms.items()
        for key, found in one.differences.items()
    ]
    return table(columns, rows)


def selection(result: SetResult) -> str:
    """Recovery on the same tasks for both arms, and success where errors can and cannot be avoided."""
    columns = ["arm", "common error cases", "recovery on them", f"{result.reference}'s", "difference", "over seeds",
               "over seeds and tasks", "t-interval", "p", "seeds"]  # fmt: skip
    rows = []
    for arm, one in result.arms.items():
        if one.common is not None:
            rates = [NONE if rate is None else f"{100 * rate:.1f}" for rate in (one.common.arm, one.common.reference)]
            rows.append([name(arm), f"{one.common.cases:,}", *rates, *_difference_cells(one.common.difference)])
    text = (
        "## Recovery without self-selection\n\nAn arm's recovery rate is over its own error cases: one that errs less "
        "often is left with other tasks. Here both arms are compared on the (task, seed)s where both met an own error."
        f"\n\n{table(columns, rows)}"
    )
    needs = [
        one
        for one in (NEEDED, AVOIDED, OTHERS, FIRST_TRY)
        if any(one.key in arm.estimates for arm in result.arms.values())
    ]
    if needs:
        rows = [
            [
                name(arm),
                *(cell for m in needs for cell in (shown(one.estimates[m.key]), gap(one.differences.get(m.key)))),
            ]
            for arm, one in result.arms.items()
        ]
        titles = ["arm", *(title for one in needs for title in (one.title, f"… less {result.reference}"))]
        text += f"\n\n{BY_KIND}\n\n{table(titles, rows)}"
    return text


def categories(result: SetResult) -> str:
    """Success, recovery and share of tasks with an own error by category of task."""
    kinds = list(next(one.categories for one in result.arms.values() if one.categories))
    text = "## By kind of task"
    for key, title in (
        ("success", SUCCESS.title),
        ("recovery", RECOVERY.title),
        ("error_cases", "tasks with an own error"),
    ):
        rows = [[name(arm), *(shown(one.categories[k][key]) for k in kinds)] for arm, one in result.arms.items()]
        text += f"\n\n{title[0].upper()}{title[1:]}:\n\n" + table(["arm", *kinds], rows)
    return text


def transfer(analysis: Analysis) -> list[str]:
    """For every other set success and recovery per arm, less the reference's, and less those on the main set."""
    parts = []
    for title, result in analysis.transfer.items():
        changes = any(one.less_main for one in result.arms.values())
        columns = ["arm", "seeds", "success", f"… less {result.reference}", "error recovery rate",
                   f"… less {result.reference}", "common error cases", "recovery on them, difference",
                   "tasks with an own error"]  # fmt: skip
        if changes:
            columns += ["success … less held out", "recovery … less held out"]
        rows = [[name(arm), *_transfer_cells(one, changes)] for arm, one in result.arms.items()]
        parts.append(f"## Transfer: `{title}` ({result.tasks} tasks)\n\n{table(columns, rows)}")
    return parts


def _transfer_cells(one: ArmResult, changes: bool) -> list[str]:
    cells = [str(len(one.seeds))]
    for key in ("success", "recovery"):
        cells += [shown(one.estimates[key]), gap(one.differences.get(key))]
    cells += [f"{one.common.cases:,}", gap(one.common.difference)] if one.common else [NONE, NONE]
    cells.append(shown(one.estimates["error_cases"]))
    return [*cells, *(gap(one.less_main.get(key)) for key in ("success", "recovery") if changes)]


def _difference_cells(found: Difference) -> list[str]:
    if found.mean is None:
        return [NONE] * 5 + [str(found.seeds)]
    bold = "**" if direction(found) else ""
    spans = [NONE if one is None else bracket(one) for one in (found.interval, found.both, found.t)]
    return [
        f"{bold}{points(found.mean)}{bold}",
        *spans,
        NONE if found.p is None else f"{found.p:.3g}",
        str(found.seeds),
    ]


def _cost(cost: Cost) -> list[str]:
    extra = ", ".join(f"{round(count):,} {kind}" for kind, count in cost.extra_tokens.items()) or "0"
    return [f"{round(cost.tokens):,}", extra, f"{round(cost.updates):,}", f"{cost.seconds:,.0f}"]
