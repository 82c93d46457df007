"""Rates as a plain-text table for terminals: counts beside every rate."""

from __future__ import annotations

from collections.abc import Iterable

from fission_grpo.evaluation.rates import Rates, Share

Row = tuple[str, ...]
"""Label, rate, interval, counts; a row with a label alone is a heading."""


def rates_table(rates: Rates) -> str:
    """The rates as aligned lines, without a newline at the end.

    Example of a row: "error recovery, cases   0.750   0.301 to 0.954   3 of 4 cases with an error of their own"
    """
    rows = [*_overall(rates), *_categories(rates), *_groups(rates), *_effort(rates)]
    return "\n".join([*_head(rates), "", *aligned(rows), "", *_notes(rates)])


def share_row(label: str, share: Share, what: str) -> Row:
    """A row of the table. A bootstrap interval ends in " *"; a rate over nothing is a dash."""
    rate = "-" if share.rate is None else f"{share.rate:.3f}"
    star = " *" if share.method == "bootstrap" else ""
    interval = f"{share.interval[0]:.3f} to {share.interval[1]:.3f}{star}" if share.interval else "-"
    return label, rate, interval, f"{share.hits:,} of {share.of:,} {what}"


def aligned(rows: Iterable[Row]) -> list[str]:
    """Rows with their columns aligned; rows of one cell are headings and get an empty line before them."""
    rows = list(rows)
    widths = [max((len(row[i]) for row in rows if len(row) > i), default=0) for i in range(max(map(len, rows)))]
    lines = []
    for row in rows:
        if len(row) == 1:
            lines += ["", row[0]]
        else:
            lines.append("   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip())
    return lines


def _head(rates: Rates) -> list[str]:
    reasons = "; ".join(f"{reason}: {count}" for reason, count in rates.missing_reasons.items())
    missing = f"{rates.missing:,} missing" + (f" ({reasons})" if reasons else "")
    return [
        f"cases    {rates.cases:,}: {rates.judged:,} judged, {rates.unjudged:,} without a verdict, {missing}",
        f"errors   {rates.own_errors:,} of the policy's own, {rates.injected_errors:,} injected",
    ]


def _overall(rates: Rates) -> list[Row]:
    rows = [
        share_row("success", rates.success, "cases"),
        share_row("  without any error", rates.flawless, "cases"),
        share_row("error recovery, cases", rates.recovery, "cases with an error of their own"),
        share_row("error recovery, turns", rates.turn_recovery, "turns with an error, valid before"),
    ]
    if rates.injected_errors:
        rows.append(share_row("success, injected only", rates.injected_only, "cases with injected errors only"))
    return rows


def _categories(rates: Rates) -> list[Row]:
    if len(rates.by_category) < 2:
        return []
    rows: list[Row] = []
    for category in rates.by_category:
        missing = f", {category.missing} missing" if category.missing else ""
        rows += [
            (category.name or "(no category)",),
            share_row("  success", category.success, f"cases{missing}"),
            share_row("  error recovery, cases", category.recovery, f"cases, {category.errors:,} errors"),
            share_row("  error recovery, turns", category.turn_recovery, "turns"),
        ]
    return rows


def _groups(rates: Rates) -> list[Row]:
    if not rates.recovery.of:
        return []
    rows: list[Row] = []
    for title, groups in (
        ("error recovery by kind of own error (a case can have several)", rates.by_kind),
        ("success by number of own errors", rates.by_errors),
        ("error recovery by user turn of the first own error", rates.by_depth),
    ):
        named = [share_row(f"  {one.name}", one.success, f"cases, {one.errors:,} errors") for one in groups]
        rows += [(title,), *named]
    return rows


def _effort(rates: Rates) -> list[Row]:
    waits = rates.steps_to_recovery
    rows: list[Row] = [
        ("effort",),
        share_row("  errors per call", rates.errors_per_call, "calls and unreadable replies"),
        share_row("  retry loops", rates.retry_loops, "own errors: the same failing call again"),
    ]
    worked_past = f"{waits.recovered:,} of {waits.of:,} own errors worked past within the turn"
    if waits.mean is None or waits.median is None:
        rows.append(("  steps to recovery", "-", "-", worked_past))
    else:
        rows.append(("  steps to recovery", f"{waits.mean:.2f}", f"median {waits.median:g}", worked_past))
    if rates.mean_tokens is not None:
        rows.append(("  tokens per case", f"{rates.mean_tokens:,.1f}", "", f"{rates.cases - rates.missing:,} cases"))
    return rows


def _notes(rates: Rates) -> list[str]:
    notes = [
        "Intervals are 95%: Wilson's over cases; * bootstrap over cases, or Wilson's over the cases where all agree.",
        "They say nothing about other seeds.",
    ]
    if rates.recovery.of:
        notes.append("Recovery is over the cases in which the policy erred: each policy chooses its own denominator.")
    return notes
