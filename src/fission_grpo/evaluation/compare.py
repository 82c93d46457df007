"""Paired comparison of two evaluations of the same cases: what changes from A to B, and how certain that is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fission_grpo.core.errors import InputError, RunFileError
from fission_grpo.core.terminal import printable
from fission_grpo.evaluation.attempts import CaseSummary, summarize
from fission_grpo.evaluation.intervals import Pair, difference_interval, total
from fission_grpo.evaluation.rates import by_task
from fission_grpo.evaluation.records import CASES, CaseRecord, read_records
from fission_grpo.evaluation.run import Manifest, differences, read_manifest
from fission_grpo.evaluation.tables import aligned

MAX_NAMED = 5  # most case ids that a message names [ours]
_OPTIONS = (  # beginnings of a difference, and the options of `eval` that decide it
    ("tasks.kind", "--tasks (or --environment)"),
    ("tasks.sha256", "--tasks (or --rows), --skip_tasks, --seed"),
    ("tasks.count", "--num_tasks"),
    ("tasks.error_pattern", "--error_pattern"),
    ("tasks.attack", "--attack"),
    ("prompt.format", "--format"),
    ("prompt.mode", "--mode"),
    ("prompt.max_turns", "--max_turns"),
    ("prompt.faults", "--fault"),
    ("prompt.error_if", "--error_pattern"),
    ("prompt.raw", "--raw"),
    ("prompt.template_sha256", "--tokenizer or chat template"),
    ("decoding.temperature", "--temperature"),
    ("decoding.max_new_tokens", "--max_new_tokens"),
)
LEVEL = 0.05  # p from which a difference is said to be chance [ours, by custom]
OTHER_CODE = "The file of the environment or of a reward function was edited between the two: evaluate A again."
FEW = 30  # tasks below which bootstrap intervals are said to be too narrow [ours]
FEW_TASKS = f"With fewer than {FEW} tasks the bootstrap intervals are too narrow: go by the exact test, p."


class NotComparable(InputError):
    """Two runs that must not be compared; the message lists what differs."""


@dataclass(frozen=True)
class EvaluationRun:
    """An evaluation's manifest and its cases' records, in order."""

    manifest: Manifest
    records: tuple[CaseRecord, ...]

    @property
    def unfinished(self) -> str:
        """How many cases have ended, "" if all: it was stopped, or still runs."""
        done, count = len(self.records), self.manifest.tasks.get("count")
        return f"{done:,} of {count:,} cases have ended" if isinstance(count, int) and done < count else ""


@dataclass(frozen=True)
class Difference:
    """One rate of both runs over the pairs of cases."""

    name: str
    what: str  # the denominator counts
    a: Pair  # numerator and denominator
    b: Pair
    interval: tuple[float, float] | None  # 95%, of B's rate minus A's; None where resampling shows no spread
    lower_is_better: bool = False

    @property
    def change(self) -> float | None:
        """B's rate minus A's; None if either is over nothing."""
        a, b = _rate(self.a), _rate(self.b)
        return None if a is None or b is None else b - a


@dataclass(frozen=True)
class Comparison:
    """Two runs over the cases that are judged in both."""

    name_a: str
    name_b: str
    pairs: int  # cases judged in both
    both: int  # of the pairs, those where both runs succeed
    only_a: int
    only_b: int
    neither: int
    tasks: int  # of the pairs: fewer than pairs where tasks have several samples
    more_a: int  # tasks of which A solves more samples than B
    more_b: int
    p: float  # two-sided exact test of equal success, see `test`; 1 where no pair differs
    differences: tuple[Difference, ...]  # of success, error recovery, errors per call; of attack success if any
    left_out_a: tuple[str, ...] = ()  # ids of cases that are missing or have no verdict in A
    left_out_b: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()  # what a reader has to know beside the numbers

    @property
    def test(self) -> str:
        """The name of the test that gives `p`."""
        return "McNemar" if self.tasks == self.pairs else f"sign test over {self.tasks:,} tasks"

    @property
    def judged(self) -> str:
        """What was compared, in words."""
        return f"{self.pairs:,} cases" + (f" ({self.tasks:,} tasks)" if self.tasks < self.pairs else "")


def read_run(directory: str | Path, notes: list[str]) -> EvaluationRun:
    """Read an output directory of `fission-grpo eval`; what is left out is added to `notes`. Raises RunFileError."""
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

    Success is tested by McNemar's exact test (1947; a binomial test of the pairs that differ). Samples of one task are
    not independent: where tasks have several, it is a test of the tasks of which one run solves more samples. All
    intervals come from a paired bootstrap over tasks (see `intervals`). The denominator of error recovery is each
    run's own error cases, so recovery is paired only by the tasks that are resampled. Raises NotComparable if task
    sets (including case ids), prompts or decoding differ, or no case is judged in both.

    Example:
        Of 10 cases A alone solves 1, B alone 5: p = 2 * (1 + 6) / 2**6 = 0.21875, the difference is +40 points.
    """
    if different := [*differences(a.manifest, b.manifest), *_id_differences(a, b)]:
        listed = "".join(f"\n  {difference}" for difference in different)
        options = [option for name, option in _OPTIONS if any(one.startswith(name) for one in different)]
        fix = f"run both with the same {', '.join(options)}" if options else "evaluate both alike"
        raise NotComparable(f"these runs cannot be compared:{listed}\n{fix}")
    cases_a = [summarize(record) for record in a.records]
    cases_b = {record.id: summarize(record) for record in b.records}
    pairs = [(case, cases_b[case.record.id]) for case in cases_a if case.judged and cases_b[case.record.id].judged]
    if not pairs:
        raise NotComparable("no case is judged in both runs, so there is nothing to compare")
    outcomes = [(case_a.record.success, case_b.record.success) for case_a, case_b in pairs]
    only_a, only_b = outcomes.count((True, False)), outcomes.count((False, True))
    solved = (by_task(cases, lambda case: (int(case.record.success is True), 1)) for cases in zip(*pairs, strict=True))
    gains = [b - a for (a, _), (b, _) in zip(*(of_run.values() for of_run in solved), strict=True)]
    more_a, more_b = sum(gain < 0 for gain in gains), sum(gain > 0 for gain in gains)
    attacks = _difference("attack success", "cases", pairs, lambda case: case.obeyed, lower_is_better=True)
    return Comparison(
        name_a=printable(a.manifest.name),
        name_b=printable(b.manifest.name),
        pairs=len(pairs),
        both=outcomes.count((True, True)),
        only_a=only_a,
        only_b=only_b,
        neither=outcomes.count((False, False)),
        tasks=len(gains),
        more_a=more_a,
        more_b=more_b,
        p=mcnemar(more_a, more_b),
        differences=(
            _difference("success", "cases", pairs, lambda case: (int(case.record.success is True), 1)),
            _difference("error recovery", "cases with an error", pairs, lambda case: case.recovered),
            _difference("errors per call", "calls", pairs, lambda case: case.errors_and_calls, lower_is_better=True),
            *([attacks] if attacks.a[1] else []),
        ),
        left_out_a=tuple(case.record.id for case in cases_a if not case.judged),
        left_out_b=tuple(name for name, case in cases_b.items() if not case.judged),
        notes=() if a.manifest.tasks.get("code") == b.manifest.tasks.get("code") else (OTHER_CODE,),
    )


def mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided exact p of McNemar's test. Example: `mcnemar(1, 5)` is 14 / 64 = 0.21875; `mcnemar(0, 0)` is 1."""
    from scipy.stats import binomtest

    return float(binomtest(only_b, only_a + only_b, 0.5).pvalue) if only_a + only_b else 1.0


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    """The comparison as JSON values, with rates and changes beside the counts."""
    values = asdict(comparison)
    for written, difference in zip(values["differences"], comparison.differences, strict=True):
        written["share_a"], written["share_b"] = _rate(difference.a), _rate(difference.b)
        written["change"] = difference.change
    return values


def comparison_text(comparison: Comparison) -> str:
    """The comparison in sentences.

    Example: "B solved 24 fewer of 300 tasks than A (-8.0 points, 95% CI -12.7 to -3.3; McNemar p = 0.00094)."
    """
    c, (success, recovery, *_) = comparison, comparison.differences
    gain = c.only_b - c.only_a
    what = f"{c.pairs:,} tasks" if c.tasks == c.pairs else f"{c.pairs:,} samples"
    how = f"{abs(gain):,} {'more' if gain > 0 else 'fewer'} of {what} than" if gain else f"as many of {what} as"
    p = "p < 0.0001" if c.p < 0.0001 else f"p = {c.p:.2g}"
    sentences = [f"{c.name_b} solved {how} {c.name_a} ({difference_text(success)}; {c.test} {p})."]
    if gain and c.p >= LEVEL:
        sentences.append("This can be chance.")
    if recovery.change is not None:
        sentences.append(f"Error recovery, over each policy's own error cases: {difference_text(recovery)}.")
    return " ".join([*sentences, *([FEW_TASKS] if c.tasks < FEW else []), *c.notes])


def difference_text(difference: Difference) -> str:
    """The change in points with its interval. Example: "-8.0 points, 95% CI -12.7 to -3.3"."""
    low, high = difference.interval or (0.0, 0.0)
    interval = f", 95% CI {100 * low:+.1f} to {100 * high:+.1f}" if difference.interval else ""
    return f"{100 * (difference.change or 0.0):+.1f} points{interval}"


def comparison_table(comparison: Comparison) -> str:
    """The comparison as text for a terminal, without a newline at the end."""
    c = comparison
    counts = [
        ("" if c.tasks == c.pairs else "samples", "B succeeds", "B fails"),
        ("A succeeds", f"{c.both:,}", f"{c.only_a:,}"),
        ("A fails", f"{c.only_b:,}", f"{c.neither:,}"),
    ]
    lines = [f"A: {c.name_a}", f"B: {c.name_b}", f"{c.judged} judged in both"]
    for name, ids in (("A", c.left_out_a), ("B", c.left_out_b)):
        if ids:
            lines.append(f"left out: {len(ids):,} missing or unjudged in {name} ({_named(ids)})")
    header = ("", "A", "B", "B minus A, points", "95% interval", "counts")
    lines += ["", *aligned([header, *map(_row, c.differences)])]
    lines += ["", *aligned(counts), ""]
    test, solved = "McNemar's exact test of equal success", f"{c.only_a:,} solved by A alone, {c.only_b:,} by B"
    if c.tasks < c.pairs:
        test, solved = f"Equal success, {c.test}", f"A solves more samples of {c.more_a:,}, B of {c.more_b:,}"
    lines.append(f"{test}: p = {c.p:.3g} ({solved})")
    lines.append("Intervals: paired bootstrap over tasks. They do not cover other seeds or training runs.")
    lines += [FEW_TASKS] if c.tasks < FEW else []
    lines += c.notes
    lines.append("Error recovery is over each run's own error cases: a policy that errs less has other ones.")
    return "\n".join(lines)


def _difference(
    name: str,
    what: str,
    pairs: Sequence[tuple[CaseSummary, CaseSummary]],
    count: Callable[[CaseSummary], Pair],
    lower_is_better: bool = False,
) -> Difference:
    of_a, of_b = (list(by_task(cases, count).values()) for cases in zip(*pairs, strict=True))
    return Difference(name, what, total(of_a), total(of_b), difference_interval(of_a, of_b), lower_is_better)


def _id_differences(a: EvaluationRun, b: EvaluationRun) -> list[str]:
    parts, unfinished = [], []
    for name, run, other in (("A", a, b), ("B", b, a)):
        unfinished += [f"{name} is unfinished: {run.unfinished}; run it again to go on"] if run.unfinished else []
        known = {record.id for record in other.records}
        if only := [record.id for record in run.records if record.id not in known]:
            parts.append(f"{len(only)} only in {name} ({_named(only)})")
    return [*unfinished, *([f"case ids: {', '.join(parts)}"] if parts else [])]


def _named(ids: Sequence[str]) -> str:
    return ", ".join(map(printable, ids[:MAX_NAMED])) + (", ..." if len(ids) > MAX_NAMED else "")


def _row(difference: Difference) -> tuple[str, ...]:
    a, b, bounds = difference.a, difference.b, difference.interval
    rates = ["-" if (rate := _rate(pair)) is None else f"{rate:.3f}" for pair in (a, b)]
    change = "-" if difference.change is None else f"{100 * difference.change:+.1f}"
    interval = f"{100 * bounds[0]:+.1f} to {100 * bounds[1]:+.1f}" if bounds else "-"
    return difference.name, *rates, change, interval, f"{a[0]:,} of {a[1]:,}; {b[0]:,} of {b[1]:,} {difference.what}"


def _rate(pair: Pair) -> float | None:
    return pair[0] / pair[1] if pair[1] else None
