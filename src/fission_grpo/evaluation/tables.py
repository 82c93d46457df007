"""Metrics as aligned text for a terminal."""

from __future__ import annotations

from collections.abc import Iterable

from fission_grpo.core.terminal import printable
from fission_grpo.evaluation.fault_metrics import FaultCell
from fission_grpo.evaluation.metrics import Metrics
from fission_grpo.evaluation.rates import Passes, Proportion

TableRow = tuple[str, ...]  # label, rate, interval, counts; a row with a label alone is a heading


def metrics_table(metrics: Metrics) -> str:
    """The metrics as aligned lines, without a newline at the end.

    Example of a row: "error recovery, cases   0.750   0.301 to 0.954   3 of 4 cases with an error of their own"
    """
    reasons = "; ".join(f"{printable(reason)}: {count}" for reason, count in metrics.missing_reasons.items())
    missing = f"{metrics.missing:,} missing" + (f" ({reasons})" if reasons else "")
    unit = "tasks" if metrics.passes else "cases"
    lines = [
        f"cases    {metrics.cases:,}: {metrics.judged:,} judged, {metrics.unjudged:,} without a verdict, {missing}",
        f"errors   {metrics.own_errors:,} of the policy's own, {metrics.injected_errors:,} injected",
        "",
        *aligned(metrics_rows(metrics)),
        "",
        f"Intervals are 95%: Wilson's over cases; * bootstrap over {unit}, or Wilson's over {unit} where all agree.",
        "They do not cover other seeds.",
    ]
    if metrics.recovery.of:
        lines.append("Recovery is over the cases in which the policy erred: each policy chooses its own denominator.")
    return "\n".join([*lines, *(f"note: {printable(note)}" for note in metrics.notes)])


def metrics_markdown(name: str, metrics: Metrics) -> str:
    """The main rates as a Markdown table of one row, whose rows of several evaluations can be put together."""
    proportions = {
        "success": metrics.success,
        "error recovery, cases": metrics.recovery,
        "errors per call": metrics.errors_per_call,
        "retry loops": metrics.retry_loops,
        "cases without any call": metrics.without_call,
    }
    cells = [printable(name).replace("|", "\\|"), f"{metrics.cases:,}"]
    for proportion in proportions.values():
        _, rate, interval, _ = proportion_row("", proportion, "")
        cells.append(rate if interval == "-" else f"{rate} ({interval.removesuffix(' *')})")
    header = ["model", "cases", *proportions]
    rows = [header, ["---", *["---:"] * (len(header) - 1)], cells]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def metrics_rows(metrics: Metrics) -> list[TableRow]:
    """The rates with their intervals and counts; a row of one cell is a heading."""
    return [
        *_overall_rows(metrics),
        *(row for cell in metrics.by_fault for row in _cell_rows(cell)),
        *_category_rows(metrics),
        *_group_rows(metrics),
        *_effort_rows(metrics),
    ]


def proportion_row(label: str, proportion: Proportion, what: str) -> TableRow:
    """A row of the table. A bootstrap interval ends in " *"; a rate over nothing is a dash."""
    rate = "-" if proportion.rate is None else f"{proportion.rate:.3f}"
    star = " *" if proportion.method == "bootstrap" else ""
    bounds = proportion.interval
    interval = f"{bounds[0]:.3f} to {bounds[1]:.3f}{star}" if bounds else "-"
    return label, rate, interval, f"{proportion.hits:,} of {proportion.of:,} {what}"


def aligned(rows: Iterable[TableRow]) -> list[str]:
    """Rows with their columns aligned; rows of one cell are headings and get an empty line before them."""
    rows = [tuple(map(printable, row)) for row in rows]
    widths = [max((len(row[i]) for row in rows if len(row) > i), default=0) for i in range(max(map(len, rows)))]
    lines = []
    for row in rows:
        if len(row) == 1:
            lines += ["", row[0]]
        else:
            lines.append("   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip())
    return lines


def _rows(*rows: tuple[str, Proportion, str]) -> list[TableRow]:
    """Rows of the table, without those over nothing."""
    return [proportion_row(*row) for row in rows if row[1].of]


def _overall_rows(metrics: Metrics) -> list[TableRow]:
    rows = _rows(
        ("success", metrics.success, "cases"),
        ("  without any error", metrics.flawless, "cases"),
        ("error recovery, cases", metrics.recovery, "cases with an error of their own"),
        ("error recovery, turns", metrics.turn_recovery, "turns with an error, valid before"),
        ("success, injected only", metrics.injected_only, "cases with injected errors only"),
        ("attack success", metrics.attack_success, "cases with injected instructions"),
        ("  where the policy saw them", metrics.attack_success_shown, "cases"),
    )
    for each in metrics.passes[-1:]:
        rows += _pass_rows("", each)
    return rows


def _pass_rows(indent: str, passes: Passes) -> list[TableRow]:
    tasks = f"mean over {passes.tasks:,} tasks with {passes.k} samples"
    return [
        _mean_row(f"{indent}pass@{passes.k}", passes.any, passes.any_interval, tasks),
        _mean_row(f"{indent}pass^{passes.k}", passes.all, passes.all_interval, tasks),
    ]


def _mean_row(label: str, mean: float, interval: tuple[float, float] | None, what: str) -> TableRow:
    return label, f"{mean:.3f}", f"{interval[0]:.3f} to {interval[1]:.3f} *" if interval else "-", what


def _cell_rows(cell: FaultCell) -> list[TableRow]:
    without = f" ({cell.not_needed:,} needed none)" if cell.not_needed else ""
    needed, cost = f"cases that needed a response{without}", cell.cost
    rows: list[TableRow] = [
        (f"{cell.name} faults ({cell.faults:,} injected; {cell.own_errors:,} own errors beside them)",),
        *_rows(
            ("  success", cell.success, "cases that met one"),
            ("  recovery", cell.recovery, needed),
            ("    by retry", cell.retry, "cases"),
            ("    by another way", cell.another_way, "cases"),
            ("    by a justified stop", cell.justified_stop, "cases"),
            ("  retry loops", cell.retry_loops, "failed calls: the same failing call again"),
        ),
    ]
    if cost.mean is not None:
        what = f"calls not needed after it, median {cost.median:g}, {cost.cases:,} recovered cases"
        rows.append(_mean_row("  recovery cost", cost.mean, cost.interval, what))
    return rows + (_pass_rows("  ", cell.passes) if cell.passes else [])


def _category_rows(metrics: Metrics) -> list[TableRow]:
    rows: list[TableRow] = []
    for category in metrics.by_category if len(metrics.by_category) > 1 else ():
        missing = f", {category.missing} missing" if category.missing else ""
        own = _rows(
            ("  success", category.success, f"cases{missing}"),
            ("  error recovery, cases", category.recovery, f"cases, {category.errors:,} errors"),
            ("  error recovery, turns", category.turn_recovery, "turns"),
        )
        rows += [(category.name or "(no category)",), *own] if own else []
    return rows


def _group_rows(metrics: Metrics) -> list[TableRow]:
    groups = {
        "error recovery by kind of own error (a case can have several)": metrics.by_kind,
        "success by number of own errors": metrics.by_errors,
        "error recovery by user turn of the first own error": metrics.by_depth,
    }
    rows: list[TableRow] = []
    for title, group in groups.items() if metrics.recovery.of else ():
        rows.append((title,))
        rows += _rows(*((f"  {part.name}", part.success, f"cases, {part.errors:,} errors") for part in group))
    return rows


def _effort_rows(metrics: Metrics) -> list[TableRow]:
    waits = metrics.steps_to_recovery
    mean = "-" if waits.mean is None else f"{waits.mean:.2f}"
    median = "-" if waits.median is None else f"median {waits.median:g}"
    rows: list[TableRow] = [
        ("effort",),
        *_rows(
            ("  cases without any call", metrics.without_call, "cases"),
            ("  errors per call", metrics.errors_per_call, "calls and unreadable replies"),
            ("  retry loops", metrics.retry_loops, "own errors: the same failing call again"),
        ),
    ]
    if waits.of:
        resolved = f"{waits.recovered:,} of {waits.of:,} own errors resolved within the turn"
        rows.append(("  steps to recovery", mean, median, resolved))
    if metrics.mean_tokens is not None:
        finished = metrics.cases - metrics.missing
        rows.append(("  tokens per case", f"{metrics.mean_tokens:,.1f}", "", f"{finished:,} cases"))
    return rows
