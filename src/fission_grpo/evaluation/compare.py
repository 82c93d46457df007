"""Paired comparison of two evaluations of the same cases: what changes from A to B, and how certain that is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fission_grpo.core.errors import RunFileError
from fission_grpo.evaluation.intervals import Pair, difference_interval
from fission_grpo.evaluation.metrics import CaseSummary, summarize, total
from fission_grpo.evaluation.records import CASES, CaseRecord, read_records
from fission_grpo.evaluation.run import Manifest, differences, read_manifest
from fission_grpo.evaluation.tables import aligned

MAX_NAMED = 5
"""Most case ids that a message names. [ours]"""


class NotComparable(ValueError):
    """Two runs that must not be compared; the message lists what differs."""


@dataclass(frozen=True)
class EvaluationRun:
    """An evaluation's manifest and its cases' records, in order."""

    manifest: Manifest
    records: tuple[CaseRecord, ...]


@dataclass(frozen=True)
class Difference:
    """One rate of both runs over the pairs of cases.

    Args:
        name: of the rate.
        what: the denominator counts.
        a, b: numerator and denominator, per run.
        interval: 95%, of B's rate minus A's; None where resampling shows no spread.
        lower_is_better: as for errors.
    """

    name: str
    what: str
    a: Pair
    b: Pair
    interval: tuple[float, float] | None
    lower_is_better: bool = False

    @property
    def change(self) -> float | None:
        """B's rate minus A's; None if either is over nothing."""
        return self.b[0] / self.b[1] - self.a[0] / self.a[1] if self.a[1] and self.b[1] else None


@dataclass(frozen=True)
class Comparison:
    """Two runs over the cases that are judged in both.

    Args:
        name_a, name_b: of the runs.
        pairs: number of cases judged in both.
        both, only_a, only_b, neither: of the pairs, by which run succeeded: the 2x2 table.
        p: two-sided exact McNemar test of equal success; 1 where no pair differs.
        differences: of success, error recovery, errors per call.
        left_out_a, left_out_b: ids of cases that are missing or have no verdict in a run.
    """

    name_a: str
    name_b: str
    pairs: int
    both: int
    only_a: int
    only_b: int
    neither: int
    p: float
    differences: tuple[Difference, ...]
    left_out_a: tuple[str, ...] = ()
    left_out_b: tuple[str, ...] = ()


def read_run(directory: str | Path, notes: list[str]) -> EvaluationRun:
    """Read the output directory of `fission-grpo eval`; what is left out of it is added to `notes`.

    Raises:
        RunFileError: naming what is missing or broken in it.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise RunFileError(f"{directory}: no such directory; give the output directory of a `fission-grpo eval`")
    manifest = read_manifest(directory)
    records = read_records(directory / CASES, notes)
    if not records:
        raise RunFileError(f"{directory / CASES}: no cases in it; run the evaluation first")
    return EvaluationRun(manifest, tuple(records))


def compare(a: EvaluationRun, b: EvaluationRun) -> Comparison:
    """Compare two runs case by case.

    Success is tested by McNemar's exact test (1947; a binomial test of the pairs that differ). All intervals come from
    a paired bootstrap over cases (see `intervals`). The denominator of error recovery is each run's own error cases,
    so recovery is paired only by the cases that are resampled.

    Raises:
        NotComparable: task sets (including case ids), prompts or decoding differ, or no case is judged in both.

    Example:
        Of 10 cases A alone solves 1, B alone 5: p = 2 * (1 + 6) / 2**6 = 0.21875, the difference is +40 points.
    """
    found = [*differences(a.manifest, b.manifest), *_id_differences(a, b)]
    if found:
        listed = "".join(f"\n  {difference}" for difference in found)
        raise NotComparable(f"these runs cannot be compared:{listed}\nevaluate both alike")
    of_b = {record.id: summarize(record) for record in b.records}
    pairs = [(in_a, of_b[in_a.record.id]) for in_a in map(summarize, a.records)]
    pairs = [(in_a, in_b) for in_a, in_b in pairs if in_a.judged and in_b.judged]
    if not pairs:
        raise NotComparable("no case is judged in both runs, so there is nothing to compare")
    outcomes = [(in_a.record.success, in_b.record.success) for in_a, in_b in pairs]
    only_a, only_b = outcomes.count((True, False)), outcomes.count((False, True))
    return Comparison(
        name_a=a.manifest.name,
        name_b=b.manifest.name,
        pairs=len(pairs),
        both=outcomes.count((True, True)),
        only_a=only_a,
        only_b=only_b,
        neither=outcomes.count((False, False)),
        p=mcnemar(only_a, only_b),
        differences=(
            _difference("success", "cases", pairs, lambda case: (int(case.record.success is True), 1)),
            _difference("error recovery", "cases with an error", pairs, lambda case: case.recovered),
            _difference("errors per call", "calls", pairs, lambda case: case.errors_and_calls, lower_is_better=True),
        ),
        left_out_a=_left_out(a),
        left_out_b=_left_out(b),
    )


def mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided exact p of McNemar's test. Example: `mcnemar(1, 5)` is 14 / 64 = 0.21875; `mcnemar(0, 0)` is 1."""
    from scipy.stats import binomtest

    return float(binomtest(only_b, only_a + only_b, 0.5).pvalue) if only_a + only_b else 1.0


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    """The comparison as JSON values, with rates and changes beside the counts."""
    values = asdict(comparison)
    for written, difference in zip(values["differences"], comparison.differences, strict=True):
        rates = {"share_a": _rate(difference.a), "share_b": _rate(difference.b)}
        written |= {**rates, "change": difference.change}
    return values


def comparison_table(comparison: Comparison) -> str:
    """The comparison as text for a terminal, without a newline at the end."""
    c = comparison
    counts = [
        ("", "B succeeds", "B fails"),
        ("A succeeds", f"{c.both:,}", f"{c.only_a:,}"),
        ("A fails", f"{c.only_b:,}", f"{c.neither:,}"),
    ]
    lines = [f"A: {c.name_a}", f"B: {c.name_b}", f"{c.pairs:,} cases judged in both"]
    for name, ids in (("A", c.left_out_a), ("B", c.left_out_b)):
        if ids:
            lines.append(f"left out: {len(ids):,} missing or unjudged in {name} ({_named(ids)})")
    header = ("", "A", "B", "B minus A, points", "95% interval", "counts")
    lines += ["", *aligned([header, *map(_row, c.differences)])]
    lines += ["", *aligned(counts), ""]
    solved = f"({c.only_a:,} solved by A alone, {c.only_b:,} by B)"
    lines.append(f"McNemar's exact test of equal success: p = {c.p:.3g} {solved}")
    lines.append("Intervals: paired bootstrap over cases. They do not cover other seeds or training runs.")
    lines.append("Error recovery is over each run's own error cases: a policy that errs less has other ones.")
    return "\n".join(lines)


def _difference(
    name: str,
    what: str,
    pairs: Sequence[tuple[CaseSummary, CaseSummary]],
    count: Callable[[CaseSummary], Pair],
    lower_is_better: bool = False,
) -> Difference:
    of_a, of_b = [count(in_a) for in_a, _ in pairs], [count(in_b) for _, in_b in pairs]
    return Difference(name, what, total(of_a), total(of_b), difference_interval(of_a, of_b), lower_is_better)


def _id_differences(a: EvaluationRun, b: EvaluationRun) -> list[str]:
    ids_a, ids_b = [record.id for record in a.records], [record.id for record in b.records]
    known_a, known_b = set(ids_a), set(ids_b)
    only_a, only_b = [i for i in ids_a if i not in known_b], [i for i in ids_b if i not in known_a]
    if not only_a and not only_b:
        return []
    parts = [f"{len(only)} only in {name} ({_named(only)})" for name, only in (("A", only_a), ("B", only_b)) if only]
    return [f"case ids: {', '.join(parts)}; an evaluation that was killed goes on if run again"]


def _left_out(run: EvaluationRun) -> tuple[str, ...]:
    return tuple(record.id for record in run.records if record.missing is not None or record.success is None)


def _named(ids: Sequence[str]) -> str:
    return ", ".join(ids[:MAX_NAMED]) + (", ..." if len(ids) > MAX_NAMED else "")


def _row(difference: Difference) -> tuple[str, ...]:
    a, b, bounds = difference.a, difference.b, difference.interval
    rates = ["-" if (rate := _rate(pair)) is None else f"{rate:.3f}" for pair in (a, b)]
    change = "-" if difference.change is None else f"{100 * difference.change:+.1f}"
    interval = f"{100 * bounds[0]:+.1f} to {100 * bounds[1]:+.1f}" if bounds else "-"
    return difference.name, *rates, change, interval, f"{a[0]:,} of {a[1]:,}; {b[0]:,} of {b[1]:,} {difference.what}"


def _rate(pair: Pair) -> float | None:
    return pair[0] / pair[1] if pair[1] else None
