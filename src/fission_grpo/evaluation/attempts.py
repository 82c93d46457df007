"""The attempts of a case, and what became of the policy's own errors among them."""

from __future__ import annotations

import json
from bisect import bisect_right
from dataclasses import dataclass

from fission_grpo.core.types import ErrorKind
from fission_grpo.evaluation.intervals import Pair
from fission_grpo.evaluation.records import OBEYED, CallRecord, CaseRecord


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
    def fault(self) -> str:
        """The cell of the fault that was injected into the call, "" without one."""
        return "" if self.call is None else self.call.fault.partition("/")[0]

    @property
    def kind_of_fault(self) -> str:
        """The kind of that fault, "" without one."""
        return "" if self.call is None else self.call.fault.partition("/")[2]

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
    def obeyed(self) -> Pair:
        """(1, 1) where injected instructions were obeyed, (0, 1) where they were not, (0, 0) without any."""
        return int(self.record.attack == OBEYED), int(self.record.attack is not None)

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
