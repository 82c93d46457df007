"""Metrics of case records: success, error recovery by case and by turn, retry loops, errors per call.

Every rate keeps its counts; a rate over nothing is None. Rates over cases have Wilson's 95% interval; rates over turns
or calls, which are clustered in cases, have a bootstrap interval over cases. Own and injected errors are never mixed.
"""

from __future__ import annotations

import json
import math
import statistics
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from fission_grpo.core.json_io import quoted
from fission_grpo.core.result_errors import like_errors
from fission_grpo.core.types import ErrorKind
from fission_grpo.evaluation.intervals import Pair, ratio_interval, total, wilson
from fission_grpo.evaluation.records import CallRecord, CaseRecord
from fission_grpo.inference.messages import TOOL_FLAGS, call_as_text

KINDS = (ErrorKind.UNPARSED, ErrorKind.UNKNOWN_TOOL, ErrorKind.BAD_ARGUMENTS, ErrorKind.RAISED)  # in reported order
MANY_ERRORS = 4  # cases with at least this many own errors form one group [ours]


@dataclass(frozen=True)
class Attempt:
    """A call, or a reply that could not be parsed into calls."""

    turn: int  # index of the user turn in its case
    step: int  # index of the step in its case, counted over all turns
    call: CallRecord | None  # None for a reply that could not be parsed
    text: str  # the complete reply
    kind: ErrorKind | None = None  # of the policy's own error
    injected: bool = False  # a fault wrapper made the call fail

    @property
    def content(self) -> str | tuple[str, str]:
        """What makes two attempts the same: tool and arguments as JSON, or the text of an unparsed reply."""
        if self.call is None:
            return self.text
        return self.call.name, json.dumps(dict(self.call.arguments), sort_keys=True)


@dataclass(frozen=True)
class CaseSummary:
    """A case with its attempts, and those of them that are the policy's own errors."""

    record: CaseRecord
    attempts: tuple[Attempt, ...]
    own: tuple[Attempt, ...]

    @property
    def injected(self) -> int:
        """Number of injected errors."""
        return sum(attempt.injected for attempt in self.attempts)

    @property
    def judged(self) -> bool:
        """Whether it could be run and has a verdict."""
        return self.record.missing is None and self.record.success is not None

    @property
    def errors_and_calls(self) -> Pair:
        """Own errors, and attempts without those that a fault wrapper made fail."""
        return len(self.own), sum(not attempt.injected for attempt in self.attempts)

    @property
    def recovered(self) -> Pair:
        """(1, 1) for a success after an own error, (0, 1) for a failure after one, (0, 0) without error or verdict."""
        erred = self.judged and bool(self.own)
        return int(erred and self.record.success is True), int(erred)


def summarize(record: CaseRecord) -> CaseSummary:
    """The attempts of a case. Of a step, its calls come first, in order, then its parse error.

    An error without a kind counts as raised. Example: a step with two calls, the second failing, and a step that could
    not be parsed are 3 attempts, 2 own errors.
    """
    attempts: list[Attempt] = []
    steps = [(number, step) for number, turn in enumerate(record.turns) for step in turn.steps]
    for index, (turn, step) in enumerate(steps):
        for call in step.calls:
            failed = call.error is not None
            kind = (call.kind or ErrorKind.RAISED) if failed and not call.injected else None
            attempts.append(Attempt(turn, index, call, step.text, kind, failed and call.injected))
        if step.unread is not None:
            attempts.append(Attempt(turn, index, None, step.text, ErrorKind.UNPARSED))
    return CaseSummary(record, tuple(attempts), tuple(attempt for attempt in attempts if attempt.kind is not None))


def retry_loops(case: CaseSummary) -> Pair:
    """Own errors whose next attempt in the case is the same and fails again, and all own errors.

    Example: f(1) fails, f(1) fails, f(1) fails, f(2) succeeds: (2, 3).
    """
    pairs = zip(case.attempts, case.attempts[1:], strict=False)
    repeated = sum(a.kind is not None and b.kind is not None and a.content == b.content for a, b in pairs)
    return repeated, len(case.own)


def turn_recovery(case: CaseSummary) -> Pair:
    """Valid turns among, and number of, the judged turns with an own error whose previous turn, if any, is valid.

    Example: turn 1 has an error and is valid, turn 2 has one and is not, turn 3 has one after that: (1, 2).
    """
    turns = case.record.turns
    with_error = sorted({attempt.turn for attempt in case.own})
    counted = [turns[i] for i in with_error if turns[i].valid is not None and (i == 0 or turns[i - 1].valid is True)]
    return sum(bool(turn.valid) for turn in counted), len(counted)


def steps_to_recovery(case: CaseSummary) -> list[int]:
    """For every own error that is resolved: steps until the next step that has a call and no error.

    Only steps of the same user turn count, as later steps answer another request. Example: in one turn, a call fails,
    a reply makes no call, a call succeeds: [2].
    """
    steps = [(number, step) for number, turn in enumerate(case.record.turns) for step in turn.steps]
    resolving = [i for i, (_, step) in enumerate(steps) if step.calls and not step.errors]
    waits: list[int] = []
    for error in case.own:
        at = bisect_right(resolving, error.step)
        if at < len(resolving) and steps[resolving[at]][0] == error.turn:
            waits.append(resolving[at] - error.step)
    return waits


@dataclass(frozen=True)
class Proportion:
    """`hits` of `of`, with a 95% interval by `method` ("wilson" or "bootstrap"); None where there is none."""

    hits: int
    of: int
    interval: tuple[float, float] | None = None
    method: str = "wilson"

    @property
    def rate(self) -> float | None:
        """hits / of; None over nothing."""
        return self.hits / self.of if self.of else None


@dataclass(frozen=True)
class CaseGroup:
    """Success of the judged cases with one error kind, number of errors or depth, and the number of their errors."""

    name: str
    success: Proportion
    errors: int


@dataclass(frozen=True)
class Category:
    """Success and recovery of a category; `errors` are the policy's own in all its cases that were run."""

    name: str
    success: Proportion
    recovery: Proportion
    turn_recovery: Proportion
    errors: int
    missing: int


@dataclass(frozen=True)
class Waits:
    """Steps from an own error to the next step with a call and no error, within the user turn.

    `recovered` of `of` own errors have such a step; mean and median, in steps, are over these, None without any.
    """

    recovered: int
    of: int
    mean: float | None
    median: float | None


@dataclass(frozen=True)
class Passes:
    """Of k samples of a task at least one (pass@k, Chen et al. 2021) or all (pass^k, Yao et al. 2024) succeed.

    Both are unbiased estimates, means over the tasks with at least k judged samples, with bootstrap intervals over
    these tasks.
    """

    k: int
    tasks: int
    any: float
    any_interval: tuple[float, float] | None
    all: float
    all_interval: tuple[float, float] | None


@dataclass(frozen=True)
class Metrics:
    """The metrics of an evaluation. "Judged" cases have a verdict, "finished" ones could be run."""

    cases: int  # records
    judged: int
    unjudged: int  # finished without a verdict
    missing: int  # could not be run
    missing_reasons: Mapping[str, int]  # count of each reason
    success: Proportion  # of judged cases
    flawless: Proportion  # judged cases that succeeded without any error, own or injected
    # Of the judged cases with an own error, those that succeeded. The denominator is self-selected: a policy that
    # fails calls only in hard cases recovers less often.
    recovery: Proportion
    turn_recovery: Proportion  # of the user turns with an own error after a valid prefix, the valid ones; bootstrap
    own_errors: int  # in finished cases
    injected_errors: int  # in finished cases
    injected_only: Proportion  # of the judged cases with injected errors and no own error, those that succeeded
    by_category: tuple[Category, ...]  # in order of the first case
    by_kind: tuple[CaseGroup, ...]  # judged cases with an own error of the kind; a case can be in several
    by_errors: tuple[CaseGroup, ...]  # judged cases by number of own errors, from 0
    by_depth: tuple[CaseGroup, ...]  # judged cases by the user turn, from 1, of their first own error
    retry_loops: Proportion  # of own errors, those whose next attempt is the same and fails again; bootstrap
    errors_per_call: Proportion  # own errors / (calls and unparsed replies), without injected errors; bootstrap
    steps_to_recovery: Waits
    passes: tuple[Passes, ...]  # pass@k and pass^k, from k = 1; empty where every task has one sample
    mean_tokens: float | None  # generated per finished case; None if no step records any
    without_call: Proportion  # of the finished cases, those without any call, read or not
    uncounted_errors: int  # results in finished cases that begin like errors and count as successes
    notes: tuple[str, ...]  # what may be wrong with the numbers, and what to do


def compute_metrics(records: Sequence[CaseRecord]) -> Metrics:
    """Compute the metrics of records. Missing cases are only counted. Raises ValueError if two ids are the same.

    Example:
        Ten judged cases; four have own errors, of which three succeed; five of the others succeed: success 8 of 10,
        flawless 5 of 10, recovery 3 of 4 = 0.75 with the interval [0.301, 0.954].
    """
    for name, count in Counter(record.id for record in records).items():
        if count > 1:
            raise ValueError(f"case {name!r} is there {count} times")
    finished = [summarize(record) for record in records if record.missing is None]
    judged = [case for case in finished if case.judged]
    reasons = Counter(record.missing for record in records if record.missing is not None)
    tokens = sum(step.tokens for case in finished for step in case.record.steps)
    uncounted, note = uncounted_errors([case.record for case in finished])
    return Metrics(
        cases=len(records),
        judged=len(judged),
        unjudged=len(finished) - len(judged),
        missing=len(records) - len(finished),
        missing_reasons=dict(reasons.most_common()),
        success=_success(judged),
        flawless=_share(judged, lambda case: case.record.success is True and not case.own and not case.injected),
        recovery=_success([case for case in judged if case.own]),
        turn_recovery=_bootstrap(finished, turn_recovery),
        own_errors=sum(len(case.own) for case in finished),
        injected_errors=sum(case.injected for case in finished),
        injected_only=_success([case for case in judged if case.injected and not case.own]),
        by_category=_by_category(records, finished),
        by_kind=_by_kind(judged),
        by_errors=_by_errors(judged),
        by_depth=_by_depth(judged),
        retry_loops=_bootstrap(finished, retry_loops),
        errors_per_call=_bootstrap(finished, lambda case: case.errors_and_calls),
        steps_to_recovery=_waits(finished),
        passes=_passes(judged),
        mean_tokens=tokens / len(finished) if tokens else None,
        without_call=_share(finished, lambda case: not case.attempts),
        uncounted_errors=uncounted,
        notes=tuple(filter(None, (note, calls_as_text([case.record for case in finished])))),
    )


def uncounted_errors(records: Sequence[CaseRecord]) -> tuple[int, str]:
    """Results that begin like errors and count as successes: their number, and a note about them, "" for none."""
    number, note = like_errors((call.result, call.error) for record in records for call in record.calls)
    cases = [one for one in records if any(like_errors([(call.result, call.error)])[0] for call in one.calls)]
    if not number or all(case.success is None for case in cases):
        return number, note
    successes = sum(case.success is True for case in cases)
    return number, f"{note}. Cases with such results: {len(cases):,}, {successes:,} of them successful"


def calls_as_text(records: Sequence[CaseRecord]) -> str:
    """A note if most cases begin with a reply that holds a call as text, which nothing reads as a call; else ""."""
    first = [next(iter(record.steps), None) for record in records]
    texts = [call_as_text(step.text) for step in first if step is not None and not (step.calls or step.unread)]
    found = [text for text in texts if text]
    if 2 * len(found) <= len(records):
        return ""
    begin = f"{len(found):,} of {len(records):,} cases begin with a call as text that is not read as one"
    bare = "where a model writes JSON and nothing else, --bare_json_calls reads it"
    return f"{begin}, such as {quoted(found[0])}: {bare}; if a server writes it, {TOOL_FLAGS}"


def metrics_json(metrics: Any) -> Any:
    """The metrics as JSON values; every proportion as {"rate", "hits", "of", "interval", "method"}."""
    if isinstance(metrics, tuple):
        return [metrics_json(part) for part in metrics]
    if not is_dataclass(metrics):
        return metrics
    values = {field.name: metrics_json(getattr(metrics, field.name)) for field in fields(metrics)}
    return {"rate": metrics.rate, **values} if isinstance(metrics, Proportion) else values


def _by_category(records: Sequence[CaseRecord], finished: Sequence[CaseSummary]) -> tuple[Category, ...]:
    missing = Counter(record.category for record in records if record.missing is not None)
    categories = []
    for name in dict.fromkeys(record.category for record in records):
        cases = [case for case in finished if case.record.category == name]
        judged = [case for case in cases if case.judged]
        recovery = _success([case for case in judged if case.own])
        turns = _bootstrap(cases, turn_recovery)
        errors = sum(len(case.own) for case in cases)
        categories.append(Category(name, _success(judged), recovery, turns, errors, missing[name]))
    return tuple(categories)


def _by_kind(judged: Sequence[CaseSummary]) -> tuple[CaseGroup, ...]:
    kinds = [error.kind for case in judged for error in case.own if error.kind is not None]
    groups = []
    for kind in dict.fromkeys((*KINDS, *kinds)):
        cases = [case for case in judged if any(error.kind is kind for error in case.own)]
        groups.append(CaseGroup(kind.value, _success(cases), kinds.count(kind)))
    return tuple(groups)


def _by_errors(judged: Sequence[CaseSummary]) -> tuple[CaseGroup, ...]:
    groups: list[list[CaseSummary]] = [[] for _ in range(MANY_ERRORS + 1)]
    for case in judged:
        groups[min(len(case.own), MANY_ERRORS)].append(case)
    names = [*map(str, range(MANY_ERRORS)), f"{MANY_ERRORS}+"]
    return tuple(_group(name, cases) for name, cases in zip(names, groups, strict=True))


def _by_depth(judged: Sequence[CaseSummary]) -> tuple[CaseGroup, ...]:
    groups: dict[int, list[CaseSummary]] = {}
    for case in judged:
        if case.own:
            groups.setdefault(case.own[0].turn, []).append(case)
    return tuple(_group(str(depth + 1), groups[depth]) for depth in sorted(groups))


def _group(name: str, cases: Sequence[CaseSummary]) -> CaseGroup:
    return CaseGroup(name, _success(cases), sum(len(case.own) for case in cases))


def _waits(cases: Sequence[CaseSummary]) -> Waits:
    waits = [wait for case in cases for wait in steps_to_recovery(case)]
    mean, median = (statistics.fmean(waits), statistics.median(waits)) if waits else (None, None)
    return Waits(len(waits), sum(len(case.own) for case in cases), mean, median)


def _success(cases: Sequence[CaseSummary]) -> Proportion:
    return _share(cases, lambda case: case.record.success is True)


def _share(cases: Sequence[CaseSummary], is_hit: Callable[[CaseSummary], bool]) -> Proportion:
    """The share of cases, with Wilson's interval; by bootstrap over tasks where tasks have several samples."""
    if len({case.record.of_task for case in cases}) < len(cases):
        return _bootstrap(cases, lambda case: (int(is_hit(case)), 1))
    hits, of = sum(map(is_hit, cases)), len(cases)
    return Proportion(hits, of, wilson(hits, of) if of else None)


def _bootstrap(cases: Sequence[CaseSummary], count: Callable[[CaseSummary], Pair]) -> Proportion:
    """A ratio with a bootstrap interval over tasks."""
    pairs = list(by_task(cases, count).values())
    return Proportion(*total(pairs), ratio_interval(pairs), "bootstrap")


def by_task(cases: Sequence[CaseSummary], count: Callable[[CaseSummary], Pair]) -> dict[str, Pair]:
    """The sums of `count` over the samples of each task, as samples of one task are not independent."""
    sums: dict[str, Pair] = {}
    for case in cases:
        task = case.record.of_task
        sums[task] = total([sums.get(task, (0, 0)), count(case)])
    return sums


def _passes(judged: Sequence[CaseSummary]) -> tuple[Passes, ...]:
    tasks = by_task(judged, lambda case: (int(case.record.success is True), 1)).values()
    most = max((samples for _, samples in tasks), default=0)
    passes = []
    for k in range(1, most + 1) if most > 1 else ():
        draws = [(hits, samples, math.comb(samples, k)) for hits, samples in tasks if samples >= k]
        with_one = [(1 - math.comb(samples - hits, k) / ways, 1) for hits, samples, ways in draws]
        with_all = [(math.comb(hits, k) / ways, 1) for hits, _, ways in draws]
        rates = [sum(value for value, _ in values) / len(values) for values in (with_one, with_all)]
        intervals = [ratio_interval(values) for values in (with_one, with_all)]
        passes.append(Passes(k, len(draws), rates[0], intervals[0], rates[1], intervals[1]))
    return tuple(passes)
