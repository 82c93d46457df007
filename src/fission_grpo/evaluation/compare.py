"""Two evaluations of the same cases, paired: what changed from A to B, and how sure that is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fission_grpo.core.errors import RunFileError
from fission_grpo.evaluation.intervals import Pair, difference_interval
from fission_grpo.evaluation.metrics import Tally, aligned, tally, total
from fission_grpo.evaluation.records import CASES, CaseRecord, read_records
from fission_grpo.evaluation.run import Manifest, differences, read_manifest

NAMED = 5
"""Most case ids a message names. [ours]"""


class NotComparable(ValueError):
    """Two runs that must not be compared; the message lists what differs."""


@dataclass(frozen=True)
class EvaluationRun:
    """A run directory of `fission-grpo eval`: what was evaluated and the cases' records, in their order."""

    manifest: Manifest
    records: tuple[CaseRecord, ...]


@dataclass(frozen=True)
class Difference:
    """One number of both runs over the pairs.

    Args:
        name: of the number, a share.
        what: is counted below the line.
        a, b: hits and of, per run.
        interval: 95%, of B's share less A's; None where resampling tells nothing.
        lower_is_better: errors.
    """

    name: str
    what: str
    a: Pair
    b: Pair
    interval: tuple[float, float] | None
    lower_is_better: bool = False

    @property
    def change(self) -> float | None:
        """B's share less A's; None if either is over nothing."""
        return self.b[0] / self.b[1] - self.a[0] / self.a[1] if self.a[1] and self.b[1] else None


@dataclass(frozen=True)
class Comparison:
    """Two runs over the cases judged in both.

    Args:
        name_a, name_b: of the runs.
        pairs: cases judged in both.
        both, only_a, only_b, neither: of the pairs, by which run succeeded: the 2x2 table.
        p: two-sided exact McNemar test of equal success; 1 where no pair differs.
        differences: success, error recovery, errors per call.
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
    """A run directory's manifest and records; what was left out is added to `notes`.

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

    Success is tested by McNemar's exact test (1947; a binomial test of the pairs that differ). Intervals of all
    differences come from one paired bootstrap over cases (see `bootstrap`): both runs' numbers are computed on the
    same resampled cases. Error recovery has each run's own error cases below the line, so that it is not paired in
    what it counts, only in the cases it is resampled by.

    Raises:
        NotComparable: task sets (their case ids too), prompts or decoding differ, or no case is judged in both.

    Example:
        Of 10 cases A alone solves 1, B alone 5: p = 2 * (1 + 6) / 2**6 = 0.21875, the difference is +40 points.
    """
    found = [*differences(a.manifest, b.manifest), *_other_ids(a, b)]
    if found:
        raise NotComparable(
            "these runs cannot be compared:" + "".join(f"\n  {one}" for one in found) + "\nevaluate both alike"
        )
    of_b = {record.id: tally(record) for record in b.records}
    pairs = [(one, of_b[one.record.id]) for one in map(tally, a.records)]
    pairs = [(one, other) for one, other in pairs if one.judged and other.judged]
    if not pairs:
        raise NotComparable("no case is judged in both runs, so there is nothing to compare")
    outcomes = [(one.record.success, other.record.success) for one, other in pairs]
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
            _difference("success", "cases", pairs, _succeeded),
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
    """The comparison as JSON values; shares and changes are given beside their counts."""
    values = asdict(comparison)
    for written, one in zip(values["differences"], comparison.differences, strict=True):
        written |= {"share_a": _share(one.a), "share_b": _share(one.b), "change": one.change}
    return values


def comparison_table(comparison: Comparison) -> str:
    """The comparison as plain text for a terminal, without a newline at the end."""
    c = comparison
    rows = [("", "A", "B", "B minus A, points", "95% interval", "counts"), *map(_row, c.differences)]
    lines = [f"A: {c.name_a}", f"B: {c.name_b}", f"{c.pairs:,} cases judged in both", *_left_out_lines(c), ""]
    lines += [line.rstrip() for line in aligned(rows)]
    square = [("", "B succeeds", "B fails"), ("A succeeds", f"{c.both:,}", f"{c.only_a:,}")]
    lines += ["", *aligned([*square, ("A fails", f"{c.only_b:,}", f"{c.neither:,}")]), ""]
    lines.append(
        f"McNemar's exact test of equal success: p = {c.p:.3g} ({c.only_a:,} solved by A alone, {c.only_b:,} by B)"
    )
    lines.append("Intervals: paired bootstrap over cases. They say nothing about other seeds or training runs.")
    lines.append("Error recovery is over each run's own error cases: a policy that errs less has other ones.")
    return "\n".join(lines)


def _difference(
    name: str,
    what: str,
    pairs: Sequence[tuple[Tally, Tally]],
    count: Callable[[Tally], Pair],
    lower_is_better: bool = False,
) -> Difference:
    of_a, of_b = [count(one) for one, _ in pairs], [count(other) for _, other in pairs]
    return Difference(name, what, total(of_a), total(of_b), difference_interval(of_a, of_b), lower_is_better)


def _succeeded(case: Tally) -> Pair:
    return int(case.record.success is True), 1


def _other_ids(a: EvaluationRun, b: EvaluationRun) -> list[str]:
    ids_a, ids_b = [record.id for record in a.records], [record.id for record in b.records]
    known_a, known_b = set(ids_a), set(ids_b)
    only_a, only_b = [i for i in ids_a if i not in known_b], [i for i in ids_b if i not in known_a]
    if not only_a and not only_b:
        return []
    parts = [f"{len(only)} only in {name} ({_named(only)})" for name, only in (("A", only_a), ("B", only_b)) if only]
    return [f"case ids: {', '.join(parts)}; an evaluation that was killed goes on if run again"]


def _left_out(run: EvaluationRun) -> tuple[str, ...]:
    return tuple(record.id for record in run.records if record.missing is not None or record.success is None)


def _left_out_lines(c: Comparison) -> list[str]:
    sides = (("A", c.left_out_a), ("B", c.left_out_b))
    return [f"left out: {len(ids):,} missing or unjudged in {name} ({_named(ids)})" for name, ids in sides if ids]


def _named(ids: Sequence[str]) -> str:
    return ", ".join(ids[:NAMED]) + (", ..." if len(ids) > NAMED else "")


def _row(one: Difference) -> tuple[str, ...]:
    change = "-" if one.change is None else f"{100 * one.change:+.1f}"
    interval = f"{100 * one.interval[0]:+.1f} to {100 * one.interval[1]:+.1f}" if one.interval else "-"
    counts = f"{one.a[0]:,} of {one.a[1]:,}; {one.b[0]:,} of {one.b[1]:,} {one.what}"
    return one.name, _shown(one.a), _shown(one.b), change, interval, counts


def _share(pair: Pair) -> float | None:
    return pair[0] / pair[1] if pair[1] else None


def _shown(pair: Pair) -> str:
    return f"{pair[0] / pair[1]:.3f}" if pair[1] else "-"
