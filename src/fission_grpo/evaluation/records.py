"""What an evaluation keeps of a case: every turn, step and call, as one line of JSON.

A case has user turns, a turn has steps (assistant turns, each one reply of the policy), a step has calls. Transcripts
from elsewhere are read into the same records. Metrics are computed from records only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fission_grpo.core.files import Line, read_lines
from fission_grpo.core.json_io import quoted
from fission_grpo.core.types import ErrorKind, Message

CASES = "cases.jsonl"  # the file of records in an evaluation's directory
OBEYED, RESISTED, UNSEEN = "obeyed", "resisted", "unseen"
MAX_TOKENS = 10**12  # of one reply [ours]; more is no count, and sums over cases could not be divided


@dataclass(frozen=True)
class CallRecord:
    """One tool call and its outcome."""

    name: str  # of the tool, as the policy wrote it
    arguments: Mapping[str, Any] = field(default_factory=dict)  # as the policy wrote them
    result: str = ""  # text that the policy was shown
    error: str | None = None  # the environment's message if the call failed
    kind: ErrorKind | None = None  # of the error: unknown_tool, bad_arguments (they violate the schema) or raised
    injected: bool = False  # a fault wrapper made the call fail, not the policy
    fault: str = ""  # that a fault wrapper injected, as cell/kind, such as "implicit-transient/empty"


@dataclass(frozen=True)
class StepRecord:
    """One reply of the policy."""

    text: str = ""  # exactly what the policy wrote
    calls: tuple[CallRecord, ...] = ()
    unread: str | None = None  # why a call in the text could not be parsed; counts as an error of kind unparsed
    tokens: int = 0  # generated
    truncated: bool = False  # the reply reached its length limit

    @property
    def errors(self) -> int:
        """Number of failed calls, plus 1 if the reply could not be parsed."""
        return sum(call.error is not None for call in self.calls) + (self.unread is not None)


@dataclass(frozen=True)
class TurnRecord:
    """The steps from one user message to the next."""

    steps: tuple[StepRecord, ...] = ()
    valid: bool | None = None  # whether all is right up to its end; None: not judged
    request: str = ""  # the user's text; empty in records of earlier releases


@dataclass(frozen=True)
class CaseRecord:
    """One evaluated case."""

    id: str  # unique in its evaluation
    category: str = ""  # under which it is reported, such as "multi_turn_base"
    turns: tuple[TurnRecord, ...] = ()  # turns after a forced end are missing
    success: bool | None = None  # None where nothing judges it (a transcript without a verdict)
    verdict: str | None = None  # the judge's reason for a failure (BFCL's `error_type`)
    # Why the case could not be run or judged (endpoint down, environment broken). Missing cases enter no metric except
    # their count, and are run again when the evaluation is resumed.
    missing: str | None = None
    seconds: float = 0.0  # of wall-clock time, 0 if unknown
    task: str = ""  # id of the task, of which there may be several samples; empty where the case is the only one
    needed: Mapping[str, int] = field(default_factory=dict)  # the environment's reference: number of calls by tool
    attack: str | None = None  # what became of injected instructions, see `attack_outcome`; None without any

    @property
    def of_task(self) -> str:
        """The id of the task that this case is a sample of."""
        return self.task or self.id

    @property
    def steps(self) -> tuple[StepRecord, ...]:
        return tuple(step for turn in self.turns for step in turn.steps)

    @property
    def calls(self) -> tuple[CallRecord, ...]:
        return tuple(call for step in self.steps for call in step.calls)


def request_text(messages: Iterable[Message]) -> str:
    """What the user says after the last reply in messages; parts that are no text are left out."""
    texts: list[str] = []
    for message in messages:
        if message["role"] == "assistant":
            texts.clear()
        elif message["role"] == "user":
            content = message.get("content")
            parts = content if isinstance(content, list) else [{"text": content}]
            found = (part.get("text") for part in parts)
            texts += [text for text in found if isinstance(text, str)]
    return "\n".join(texts)


def attack_outcome(verdict: float | None) -> str:
    """What became of injected instructions, from a judge's 1 (done), 0 (not done) or -1 (not done, and not shown)."""
    verdict = verdict or 0.0
    return OBEYED if verdict > 0 else UNSEEN if verdict < 0 else RESISTED


def to_line(record: CaseRecord) -> str:
    """The record as one line of JSON without a line end. Raises ValueError for arguments that are not JSON."""
    fields = asdict(record)
    text = json.dumps(fields, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # a tool's result holds an unpaired surrogate, which UTF-8 cannot encode
        return json.dumps(fields, allow_nan=False)
    return text


def read_records(path: str | Path, notes: list[str] | None = None) -> list[CaseRecord]:
    """Read a file of records; of several records with the same id the last one counts.

    A last line that was cut off by a kill is left out, and a sentence about it is added to `notes`. RunFileError names
    file, line and field of any other mistake.
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
        seconds=_seconds(line),
        task=line.take("task", str, optional=True) or "",
        needed=_counts(line),
        attack=line.take("attack", str, optional=True),
    )


def _counts(line: Line) -> Mapping[str, int]:
    counts = line.take("needed", dict, optional=True) or {}
    if not all(isinstance(count, int) and count > 0 for count in counts.values()):
        raise line.wrong(f"field 'needed' must hold positive numbers by tool, but is {quoted(counts)}")
    return counts


def _seconds(line: Line) -> float:
    seconds = float(line.take("seconds", (int, float)))
    if not seconds >= 0:  # also NaN
        raise line.wrong(f"field 'seconds' must be a number of at least 0, but is {seconds}")
    return seconds


def _turn(line: Line, turn: Mapping[str, Any]) -> TurnRecord:
    try:
        record = TurnRecord(tuple(_step(step) for step in turn["steps"]), turn["valid"], turn.get("request", ""))
        _check_types(record, valid=bool | None, request=str)
        return record
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise line.wrong(f"field 'turns' is not as an evaluation writes it ({error!r})") from error


def _step(step: Mapping[str, Any]) -> StepRecord:
    calls = tuple(CallRecord(**{**call, "kind": call["kind"] and ErrorKind(call["kind"])}) for call in step["calls"])
    for call in calls:
        _check_types(call, name=str, arguments=Mapping, result=str, error=str | None, injected=bool, fault=str)
    record = StepRecord(**{**step, "calls": calls})
    _check_types(record, text=str, unread=str | None, tokens=int, truncated=bool)
    if not 0 <= record.tokens <= MAX_TOKENS:
        raise ValueError(f"tokens is {quoted(record.tokens)}")
    return record


def _check_types(record: Any, **kinds: Any) -> None:
    for name, kind in kinds.items():
        value = getattr(record, name)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise TypeError(f"{name} is {quoted(value)}")
