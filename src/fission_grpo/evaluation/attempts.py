"""What a policy attempted in a case: its calls and its unreadable replies, in order, with the errors told apart.

An *own error* is a call that erred without a fault wrapper's doing, or a reply that could not be read. An *injected*
error was made by a fault wrapper. No error is ever both.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from fission_grpo.evaluation.records import CallRecord, CaseRecord
from fission_grpo.trajectory import ErrorKind


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
