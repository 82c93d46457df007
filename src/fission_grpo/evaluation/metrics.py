"""Records to rates: success, error recovery by case and by turn, loops, errors per call. Pure functions.

Every rate keeps its counts, a rate over nothing is None. Shares of cases have Wilson's 95% interval; shares of turns
or calls, which are clustered in cases, a seeded bootstrap over cases (see `bootstrap`). The policy's own errors and
injected ones are told apart in `attempts` and never mixed.
"""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from fission_grpo.core.types import ErrorKind
from fission_grpo.evaluation.intervals import Pair, ratio_interval, wilson
from fission_grpo.evaluation.records import CallRecord, CaseRecord


@dataclass(frozen=True)
class Attempt:
    """A call, or a reply that could not be read as calls.

    Args:
        turn: number of the user turn in its case, from 0.
        step: number of the step in its case, from 0, counted over all turns.
        call: the call; None for an unreadable reply.
        text: the whole reply it stands in.
        kind: of the policy's own error; None if there is none.
        injected: a fault wrapper made it err.
    """

    turn: int
    step: int
    call: CallRecord | None
    text: str
    kind: ErrorKind | None = None
    injected: bool = False

    @property
    def own_error(self) -> bool:
        return self.kind is not None


@dataclass(frozen=True)
class Tally:
    """A case with its attempts, and of these its own errors."""

    record: CaseRecord
    attempts: tuple[Attempt, ...]
    own: tuple[Attempt, ...]

    @property
    def injected(self) -> int:
        """Errors that were injected."""
        return sum(attempt.injected for attempt in self.attempts)

    @property
    def judged(self) -> bool:
        """It could be played and has a verdict."""
        return self.record.missing is None and self.record.success is not None

    @property
    def errors_and_calls(self) -> tuple[int, int]:
        """Own errors, and attempts. Calls that a fault wrapper made err are neither: they say nothing of it."""
        return len(self.own), sum(not attempt.injected for attempt in self.attempts)

    @property
    def recovered(self) -> tuple[int, int]:
        """(1, 1) for a success after an own error, (0, 1) for a failure after one, (0, 0) without one or a verdict."""
        erred = self.judged and bool(self.own)
        return int(erred and bool(self.record.success)), int(erred)


def tally(record: CaseRecord) -> Tally:
    """The attempts of a case. In a step its calls come first, in order, then what could not be read of it.

    An error whose kind is unknown counts as raised.

    Example:
        A step with two calls, the second erring, and a step that could not be read: three attempts, two own errors.
    """
    attempts: list[Attempt] = []
    number = 0
    for turn_number, turn in enumerate(record.turns):
        for step in turn.steps:
            for call in step.calls:
                erred = call.error is not None
                kind = (call.kind or ErrorKind.RAISED) if erred and not call.injected else None
                attempts.append(Attempt(turn_number, number, call, step.text, kind, erred and call.injected))
            if step.unread is not None:
                attempts.append(Attempt(turn_number, number, None, step.text, ErrorKind.UNPARSED))
            number += 1
    return Tally(record, tuple(attempts), tuple(attempt for attempt in attempts if attempt.own_error))


def retry_loops(case: Tally) -> tuple[int, int]:
    """Own errors whose next attempt in the case is the same again and an own error again, and all own errors.

    The same: tool and arguments (as JSON), or for unreadable replies the text.

    Example:
        f(1) errs, f(1) errs, f(1) errs, f(2) succeeds: (2, 3).
    """
    pairs = zip(case.attempts, case.attempts[1:], strict=False)
    return sum(a.own_error and b.own_error and _same(a, b) for a, b in pairs), len(case.own)


def turn_recovery(case: Tally) -> tuple[int, int]:
    """Valid turns among, and number of, the judged turns with an own error and a valid prefix before them.

    A turn counts if its `valid` is not None, and the turn before it is valid or it is the first.

    Example:
        Turn 1 errs and is valid, turn 2 errs and is not, turn 3 errs after that: (1, 2).
    """
    turns = case.record.turns
    erring = sorted({attempt.turn for attempt in case.own})
    counted = [turns[at] for at in erring if turns[at].valid is not None and (at == 0 or turns[at - 1].valid is True)]
    return sum(bool(turn.valid) for turn in counted), len(counted)


def steps_to_recovery(case: Tally) -> list[int]:
    """For every own error that was worked past: steps until the next one with a call and without any error.

    Only steps of the same user turn are looked at: what is done after the next request is no answer to the error.

    Example:
        In one turn: a call errs, a reply without calls, a call that succeeds: [2].
    """
    steps = [(number, step) for number, turn in enumerate(case.record.turns) for step in turn.steps]
    waits: list[int] = []
    for error in case.own:
        later = (
            at - error.step
            for at in range(error.step + 1, len(steps))
            if steps[at][0] == error.turn and steps[at][1].calls and not steps[at][1].errors
        )
        waits += [wait for wait in [next(later, 0)] if wait]
    return waits


def total(pairs: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The sums of both numbers. Example: [(1, 2), (0, 3)] gives (1, 5)."""
    return sum(hits for hits, _ in pairs), sum(of for _, of in pairs)


def _same(one: Attempt, other: Attempt) -> bool:
    if one.call is None or other.call is None:
        return one.call is other.call and one.text == other.text
    return one.call.name == other.call.name and _key(one.call) == _key(other.call)


def _key(call: CallRecord) -> str:
    return json.dumps(dict(call.arguments), sort_keys=True)


KINDS = (ErrorKind.UNPARSED, ErrorKind.UNKNOWN_TOOL, ErrorKind.BAD_ARGUMENTS, ErrorKind.RAISED)
"""The kinds of error a call can have, in the order they are reported in."""


MANY_ERRORS = 4
"""Cases with so many own errors or more are one group. [ours]"""


@dataclass(frozen=True)
class Share:
    """`hits` of `of`, with a 95% interval made by `method` ("wilson" or "bootstrap"); None where it has none."""

    hits: int
    of: int
    interval: tuple[float, float] | None = None
    method: str = "wilson"

    @property
    def rate(self) -> float | None:
        """hits / of; None over nothing."""
        return self.hits / self.of if self.of else None


@dataclass(frozen=True)
class Group:
    """The judged cases of one error kind, number of errors or depth: their success, and their own errors."""

    name: str
    success: Share
    errors: int


@dataclass(frozen=True)
class Category:
    """A category's own success and recovery; `errors` are the policy's own in all its played cases."""

    name: str
    success: Share
    recovery: Share
    turn_recovery: Share
    errors: int
    missing: int


@dataclass(frozen=True)
class Waits:
    """Steps from an own error to the next step with a call and no error, within the user turn.

    `recovered` of `of` own errors have one; mean and median, in steps, are over these and None without any.
    """

    recovered: int
    of: int
    mean: float | None
    median: float | None


@dataclass(frozen=True)
class Rates:
    """What the records of an evaluation amount to.

    Args:
        cases: records given; of these `missing` could not be played, `unjudged` have no verdict, `judged` have one.
        missing_reasons: how often each.
        success: judged cases that succeeded.
        flawless: judged cases that succeeded without any error, own or injected.
        recovery: of the judged cases with at least one own error, those that succeeded. The denominator is
            self-selected: a policy that errs only in hard cases recovers less often.
        turn_recovery: of the user turns with an own error whose earlier prefix is valid, the valid ones. Bootstrap.
        own_errors: the policy's, in all played cases.
        injected_errors: made by a fault wrapper, in all played cases.
        injected_only: of the judged cases with injected errors and none of their own, those that succeeded.
        by_category: in order of their first case.
        by_kind: judged cases with at least one own error of the kind; a case can be in several.
        by_errors: judged cases by number of own errors, none included.
        by_depth: judged cases by the user turn, from 1, of their first own error.
        retry_loops: of the own errors, those whose next attempt is the same again and errs again. Bootstrap.
        errors_per_call: own errors of all attempts: calls and unreadable replies, injected errors left out. Bootstrap.
        steps_to_recovery: how long own errors take to be worked past.
        mean_tokens: generated per played case; None if no step tells any.
    """

    cases: int
    judged: int
    unjudged: int
    missing: int
    missing_reasons: Mapping[str, int]
    success: Share
    flawless: Share
    recovery: Share
    turn_recovery: Share
    own_errors: int
    injected_errors: int
    injected_only: Share
    by_category: tuple[Category, ...]
    by_kind: tuple[Group, ...]
    by_errors: tuple[Group, ...]
    by_depth: tuple[Group, ...]
    retry_loops: Share
    errors_per_call: Share
    steps_to_recovery: Waits
    mean_tokens: float | None


def rates_of(records: Sequence[CaseRecord]) -> Rates:
    """The rates of records, missing ones counted apart. Raises ValueError if two have the same id.

    Example:
        Ten judged cases; four have own errors, of which three succeed; five of the others succeed: success 8 of 10,
        flawless 5 of 10, recovery 3 of 4 = 0.75 with the interval [0.301, 0.954].
    """
    repeated = [name for name, count in Counter(record.id for record in records).items() if count > 1]
    if repeated:
        raise ValueError(f"case {repeated[0]!r} is there {sum(r.id == repeated[0] for r in records)} times")
    played = [tally(record) for record in records if record.missing is None]
    judged = [case for case in played if case.judged]
    reasons = Counter(record.missing for record in records if record.missing is not None)
    spared = [case for case in judged if case.injected and not case.own]
    tokens = sum(step.tokens for case in played for step in case.record.steps)
    return Rates(
        cases=len(records),
        judged=len(judged),
        unjudged=len(played) - len(judged),
        missing=len(records) - len(played),
        missing_reasons=dict(reasons.most_common()),
        success=_success(judged),
        flawless=_wilson(sum(_succeeded(case) and not case.own and not case.injected for case in judged), len(judged)),
        recovery=_success([case for case in judged if case.own]),
        turn_recovery=_bootstrap([turn_recovery(case) for case in played]),
        own_errors=sum(len(case.own) for case in played),
        injected_errors=sum(case.injected for case in played),
        injected_only=_success(spared),
        by_category=_by_category(records, played),
        by_kind=_by_kind(judged),
        by_errors=_by_errors(judged),
        by_depth=_by_depth(judged),
        retry_loops=_bootstrap([retry_loops(case) for case in played]),
        errors_per_call=_bootstrap([case.errors_and_calls for case in played]),
        steps_to_recovery=_waits(played),
        mean_tokens=tokens / len(played) if tokens else None,
    )


def rates_json(rates: Rates) -> dict[str, Any]:
    """The rates as JSON values; every share as {"rate", "hits", "of", "interval", "method"}."""
    return _plain(rates)


def _plain(value: Any) -> Any:
    if isinstance(value, Share):
        return {"rate": value.rate, **{field.name: _plain(getattr(value, field.name)) for field in fields(value)}}
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return dict(value) if isinstance(value, Mapping) else value


def _by_category(records: Sequence[CaseRecord], played: Sequence[Tally]) -> tuple[Category, ...]:
    def category(name: str) -> Category:
        here = [case for case in played if case.record.category == name]
        judged = [case for case in here if case.judged]
        return Category(
            name=name,
            success=_success(judged),
            recovery=_success([case for case in judged if case.own]),
            turn_recovery=_bootstrap([turn_recovery(case) for case in here]),
            errors=sum(len(case.own) for case in here),
            missing=sum(record.category == name and record.missing is not None for record in records),
        )

    return tuple(category(name) for name in dict.fromkeys(record.category for record in records))


def _by_kind(judged: Sequence[Tally]) -> tuple[Group, ...]:
    found = [error.kind for case in judged for error in case.own if error.kind is not None]
    return tuple(
        Group(
            kind.value,
            _success([case for case in judged if any(error.kind is kind for error in case.own)]),
            found.count(kind),
        )
        for kind in dict.fromkeys((*KINDS, *found))
    )


def _by_errors(judged: Sequence[Tally]) -> tuple[Group, ...]:
    def number(case: Tally) -> int:
        return min(len(case.own), MANY_ERRORS)

    names = [*map(str, range(MANY_ERRORS)), f"{MANY_ERRORS}+"]
    return tuple(_group(name, judged, lambda case, n=n: number(case) == n) for n, name in enumerate(names))


def _by_depth(judged: Sequence[Tally]) -> tuple[Group, ...]:
    depths = sorted({case.own[0].turn for case in judged if case.own})
    return tuple(
        _group(str(depth + 1), judged, lambda case, depth=depth: bool(case.own) and case.own[0].turn == depth)
        for depth in depths
    )


def _group(name: str, judged: Sequence[Tally], belongs: Callable[[Tally], bool]) -> Group:
    here = [case for case in judged if belongs(case)]
    return Group(name, _success(here), sum(len(case.own) for case in here))


def _waits(played: Sequence[Tally]) -> Waits:
    waits = [wait for case in played for wait in steps_to_recovery(case)]
    return Waits(
        recovered=len(waits),
        of=sum(len(case.own) for case in played),
        mean=statistics.fmean(waits) if waits else None,
        median=statistics.median(waits) if waits else None,
    )


def _succeeded(case: Tally) -> bool:
    return case.record.success is True


def _success(cases: Sequence[Tally]) -> Share:
    return _wilson(sum(map(_succeeded, cases)), len(cases))


def _wilson(hits: int, of: int) -> Share:
    return Share(hits, of, wilson(hits, of) if of else None)


def _bootstrap(pairs: Sequence[Pair]) -> Share:
    return Share(*total(pairs), ratio_interval(pairs), "bootstrap")


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
