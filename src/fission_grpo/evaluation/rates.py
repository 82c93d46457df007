"""Records to rates: success, error recovery by case and by turn, loops, errors per call. Pure functions.

Every rate keeps its counts, a rate over nothing is None. Shares of cases have Wilson's 95% interval; shares of turns
or calls, which are clustered in cases, a seeded bootstrap over cases (see `bootstrap`). The policy's own errors and
injected ones are told apart in `attempts` and never mixed.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from fission_grpo.evaluation.attempts import Tally, retry_loops, steps_to_recovery, tally, total, turn_recovery
from fission_grpo.evaluation.intervals import Pair, ratio_interval, wilson
from fission_grpo.evaluation.records import CaseRecord
from fission_grpo.trajectory import ErrorKind

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
