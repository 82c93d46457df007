"""What an evaluation keeps of a case: every turn, step and call, as a line of JSON. Rates are computed from these.

A case has user turns; a turn has steps (assistant turns, each one reply of the policy); a step has calls. Foreign
transcripts are read into the same records.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fission_grpo.core.files import Line, read_lines
from fission_grpo.core.types import ErrorKind

CASES = "cases.jsonl"
"""The file of an evaluation's records, in its directory."""


@dataclass(frozen=True)
class CallRecord:
    """One tool call and how it went.

    Args:
        name: of the tool, as the policy wrote it.
        arguments: as the policy wrote them.
        result: what the policy was shown.
        error: the environment's message if the call erred, else None.
        kind: of the error: unknown_tool, bad_arguments (against the tool's schema) or raised; None without one.
        injected: a fault wrapper made this error, not the policy.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    result: str = ""
    error: str | None = None
    kind: ErrorKind | None = None
    injected: bool = False


@dataclass(frozen=True)
class StepRecord:
    """One reply of the policy.

    Args:
        text: exactly what it wrote.
        calls: in order.
        unread: why a call in it could not be read, None if nothing was wrong. Counts as an error of kind unparsed.
        tokens: generated.
        truncated: it hit the limit of its length.
    """

    text: str = ""
    calls: tuple[CallRecord, ...] = ()
    unread: str | None = None
    tokens: int = 0
    truncated: bool = False

    @property
    def errors(self) -> int:
        """Calls that erred, and 1 if the reply could not be read."""
        return sum(call.error is not None for call in self.calls) + (self.unread is not None)


@dataclass(frozen=True)
class TurnRecord:
    """The steps from one user message to the next. `valid`: everything up to its end is right; None: not judged."""

    steps: tuple[StepRecord, ...] = ()
    valid: bool | None = None


@dataclass(frozen=True)
class CaseRecord:
    """One evaluated case.

    Args:
        id: unique in its evaluation.
        category: what it is reported under, such as "multi_turn_base".
        turns: in order; after a forced end the later ones are missing.
        success: the case's verdict; None where nothing judges (a foreign trace without a verdict).
        verdict: why it failed, in the judge's word (BFCL's `error_type`); None if it succeeded or nothing is known.
        missing: why it could not be played or judged at all (endpoint down, environment broken). It then counts
            nowhere but among the missing, and is played again when the evaluation is resumed.
        seconds: wall-clock time it took, 0 if unknown.
    """

    id: str
    category: str = ""
    turns: tuple[TurnRecord, ...] = ()
    success: bool | None = None
    verdict: str | None = None
    missing: str | None = None
    seconds: float = 0.0

    @property
    def steps(self) -> tuple[StepRecord, ...]:
        return tuple(step for turn in self.turns for step in turn.steps)

    @property
    def calls(self) -> tuple[CallRecord, ...]:
        return tuple(call for step in self.steps for call in step.calls)


def to_line(record: CaseRecord) -> str:
    """The record as one line of JSON, without the line's end. Raises ValueError for arguments that are not JSON."""
    fields = asdict(record)
    text = json.dumps(fields, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # a tool answered with an unpaired surrogate, which only an escape can hold
        return json.dumps(fields, allow_nan=False)
    return text


def read_records(path: str | Path, notes: list[str] | None = None) -> list[CaseRecord]:
    """The records of a file, of equal ids the last. A last line that was cut off by a kill is left out and noted.

    Raises:
        RunFileError: naming file, line and field of anything else that is wrong.
    """
    records = [_record(line) for line in read_lines(Path(path), [] if notes is None else notes)]
    return list({record.id: record for record in records}.values())


def _record(line: Line) -> CaseRecord:
    return CaseRecord(
        id=line.take("id", str),
        category=line.take("category", str),
        turns=tuple(_turn(line, turn) for turn in line.take_all("turns", dict)),
        success=line.take("success", bool, optional=True),
        verdict=line.take("verdict", str, optional=True),
        missing=line.take("missing", str, optional=True),
        seconds=float(line.take("seconds", (int, float))),
    )


def _turn(line: Line, turn: Mapping[str, Any]) -> TurnRecord:
    try:
        return TurnRecord(tuple(_step(step) for step in turn["steps"]), turn["valid"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise line.wrong(f"field 'turns' is not as an evaluation writes it ({error!r})") from error


def _step(step: Mapping[str, Any]) -> StepRecord:
    calls = tuple(CallRecord(**{**call, "kind": call["kind"] and ErrorKind(call["kind"])}) for call in step["calls"])
    return StepRecord(**{**step, "calls": calls})
