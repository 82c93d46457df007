"""Read transcripts from elsewhere as records, without running a model: chat messages or BFCL result files.

Each row of a file of transcripts is {"messages": [...]} and optionally "id" (unique), "tools" (to classify errors),
"success" (a judge's verdict) and "category"; docs/evaluation.md has an example and the other layouts.
"""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fission_grpo.core.call_queue import CallQueue
from fission_grpo.core.chat import read_result
from fission_grpo.core.errors import RowError, RunFileError
from fission_grpo.core.files import Line, read_file, read_lines
from fission_grpo.core.install import install_line
from fission_grpo.core.json_io import quoted, well_formed
from fission_grpo.core.messages import ChatMessage, from_text, read_messages
from fission_grpo.core.table_nulls import without_padding
from fission_grpo.core.tool_schema import check_tool_schema, classify_call
from fission_grpo.core.types import ToolCall, ToolResult
from fission_grpo.data.convert.dialogues import RowDropped
from fission_grpo.data.convert.files import as_dialogue, rows_of_document, task_of
from fission_grpo.data.convert.formats import LAYOUTS, layouts_of
from fission_grpo.data.convert.tools import tools_of
from fission_grpo.evaluation.records import CallRecord, CaseRecord, StepRecord, TurnRecord

EXECUTOR_ERROR = "Error during execution:"  # prefix of a failed call's result in BFCL's executor


Tools = Sequence[Mapping[str, Any]]


@dataclass
class _PendingCall:
    """A call that waits for its result."""

    id: Any
    record: CallRecord | None  # None if the call could not be parsed; then its result is not kept
    name: str


@dataclass
class _PendingStep:
    text: str
    calls: list[_PendingCall] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)

    def record(self) -> StepRecord:
        calls = tuple(call.record for call in self.calls if call.record is not None)
        return StepRecord(self.text, calls, "; ".join(self.unread) or None)


class _Waiting:
    """The calls without a result, found in constant time: the latest with an id, else the last reply's."""

    def __init__(self) -> None:
        self._by_id: dict[str, list[CallQueue]] = {}
        self._last = CallQueue(())
        self._taken: set[int] = set()
        self.is_unread = False  # whether the last reply could not be parsed

    def add(self, step: _PendingStep) -> None:
        self.is_unread = bool(step.unread)
        if not step.calls:
            return
        self._last = CallQueue(step.calls, self._taken)
        for name in dict.fromkeys(str(call.id) for call in step.calls if call.id is not None):
            self._by_id.setdefault(name, []).append(self._last)

    def take(self, call_id: str, name: str | None) -> Any:
        queues = self._by_id.get(call_id, [])
        while queues:
            if (call := queues[-1].take_id(call_id)) is not None:
                return call
            queues.pop()
        return self._last.take(call_id, name)


def read_traces(
    path: str | Path, notes: list[str] | None = None, error_if: Callable[[str], bool] | None = None
) -> list[CaseRecord]:
    """Read a file of transcripts, or a BFCL result file if its rows have "id" and "result".

    A sentence about a last line that was cut off by a kill is added to `notes`; if None, that is an error. A result
    of which `error_if` says so is an error as well. RunFileError names file, line and field of what cannot be read, or
    what has to be installed.
    """
    path = Path(path)
    if not path.is_file():
        raise RunFileError(f"{path}: no such file; give a file of transcripts or a BFCL result file")
    cut: list[str] = []
    lines = _read_lines(path, cut)
    if cut and notes is None:
        raise RunFileError(f"{path}: {cut[0]}: fix or delete this line")
    if notes is not None:
        notes += cut
    if not lines:
        raise RunFileError(f"{path}: no traces in it; write one JSON object a line, with 'messages'")
    if _is_result_file(lines):
        if error_if is not None:
            raise RunFileError(f"{path}: a BFCL result file, whose calls are made again; leave --error_pattern out")
        try:
            from fission_grpo.evaluation.bfcl.results import read_result_file

            return read_result_file(path)
        except ModuleNotFoundError as error:
            fix = install_line("bfcl_eval")
            raise RunFileError(f"{path}: a BFCL result file needs {error.name} to be judged; {fix}") from error
    records: dict[str, tuple[int, CaseRecord]] = {}
    for line in lines:
        record = _case_record(line, error_if)
        if record.id in records:
            earlier, _ = records[record.id]
            raise line.wrong(f"field 'id' {quoted(record.id)} is line {earlier}'s already; leave it out")
        records[record.id] = line.number, record
    return [record for _, record in records.values()]


def _read_lines(path: Path, cut: list[str]) -> list[Line]:
    """The rows of a file: one a line, or those of one JSON document, whose "lines" are their numbers in it."""
    try:
        rows = rows_of_document(json.loads(read_file(path).removeprefix(BOM_UTF8)))
    except (ValueError, RecursionError):
        return [_line(path, line.number, line.record) for line in read_lines(path, cut)]
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise RunFileError(f"{path}, row {number}: not a JSON object (it is a {type(row).__name__}); correct it")
    return [_line(path, number, row) for number, row in enumerate(rows, start=1)]


def _line(path: Path, number: int, row: Mapping[str, Any]) -> Line:
    return Line(path, number, {**as_dialogue(row), "task": task_of(row)})


def _is_result_file(lines: Sequence[Line]) -> bool:
    """Whether the lines are of a BFCL result file. RunFileError if some are and others are transcripts."""
    results = [line for line in lines if {"id", "result"} <= line.record.keys() and "messages" not in line.record]
    transcripts = [line for line in lines if "messages" in line.record]
    if results and transcripts:
        what = f"is of a BFCL result file, and line {transcripts[0].number} a transcript; keep them in two files"
        raise RunFileError(f"{results[0].path}, line {results[0].number}: {what}")
    return bool(results)


def _case_record(line: Line, error_if: Callable[[str], bool] | None) -> CaseRecord:
    try:
        messages, tools = _messages_and_tools(line)
        turns = read_turns(messages, tools, error_if)
    except RowDropped as reason:
        raise line.wrong(f"it cannot be read: {reason}") from None
    except RowError as error:
        raise line.wrong(f"field '{error.field}' {error.what}") from None
    except RecursionError as error:
        raise line.wrong("it is nested too deeply to be read") from error
    name = line.take("id", (str, int), optional=True)
    success = line.record.get("success")
    if not isinstance(success, int | float) or success not in (0, 1):
        success = line.take("success", bool, optional=True)
    return CaseRecord(
        id=well_formed(str(name)) if name not in (None, "") else f"line-{line.number}",
        category=well_formed(line.take("category", str, optional=True) or ""),
        turns=turns,
        success=None if success is None else bool(success),
        task=well_formed(line.take("task", str)),
    )


def _messages_and_tools(line: Line) -> tuple[Sequence[Any], Tools | None]:
    """The dialogue of a row, also of one with ShareGPT's `conversations`, and its tools, None without any."""
    if "messages" not in line.record and (layouts := layouts_of(line.record)) and layouts[0] in LAYOUTS:
        dialogue = LAYOUTS[layouts[0]](line.record)
        return list(dialogue.messages), dialogue.tools or None
    messages = from_text(line.record.get("messages"), "messages")
    if not isinstance(messages, list):
        messages = line.take("messages", list)
    if not messages:
        raise line.wrong("field 'messages' must not be empty")
    return messages, _read_tools(line)


def _read_tools(line: Line) -> list[Mapping[str, Any]] | None:
    """The tools of a transcript, with types of BFCL or Python converted to JSON's; None without them."""
    tools = from_text(line.record.get("tools"), "tools")
    if not isinstance(tools, list):
        return line.take("tools", list, optional=True) if tools is not None else None
    read = []
    for number, tool in enumerate(tools):
        try:
            read += tools_of([tool])
        except RowDropped:
            try:
                check_tool_schema(tool)
                problem = "its form is not known"
            except ValueError as error:
                problem = str(error)
            what = f"cannot be read: {problem}; fix it or leave 'tools' out"
            raise RowError(f"tools[{number}]", what) from None
    return read


def read_turns(
    messages: Any, tools: Tools | None, error_if: Callable[[str], bool] | None = None
) -> tuple[TurnRecord, ...]:
    """The turns of a transcript, without verdicts. RowError names the message and field of a mistake.

    Consecutive user messages start one turn; assistant messages before the first user message belong to the first
    turn. A result belongs to the latest unanswered call with its id; without such a call, to the first unanswered
    call of the last reply that has calls, one with its name if there is one. A call that is never answered has no
    error. If `tools` is None, every error is `raised`. A result of which `error_if` says so is one as well.
    """
    turns: list[list[_PendingStep]] = [[]]
    requests: list[list[str]] = [[]]
    waiting = _Waiting()
    previous: str | None = None  # role of the message before, system messages left out
    has_request = False
    for number, read in enumerate(read_messages(messages, media=True)):
        for message in read:
            if message.role == "assistant":
                turns[-1].append(step := _pending_step(message, tools))
                waiting.add(step)
            elif message.role == "tool":
                _add_result(waiting, message, tools, error_if, f"messages[{number}]")
            elif message.role == "user":
                if has_request and previous != "user":
                    turns.append([])
                    requests.append([])
                requests[-1].append(message.text)
                has_request = True
            previous = previous if message.role == "system" else message.role
    return tuple(
        TurnRecord(tuple(step.record() for step in turn), request="\n".join(request))
        for turn, request in zip(turns, requests, strict=True)
    )


def record_call(call: ToolCall, text: str, tools: Tools | None, error: str | None = None) -> CallRecord:
    """The record of a call and its result `text`, with the error that the result reports, or the `error` given.

    A result reports an error if `chat.read_result` finds one or if it has the prefix of BFCL's executor. If `tools` is
    None, every error is `raised`.

    Example: with a tool `cd` alone, ls() answered "Error during execution: no ls" has the error "no ls" of kind
    unknown_tool.
    """
    if error is None:
        error = read_result(call, text).error
    if error is None and text.startswith(EXECUTOR_ERROR):
        error = text.removeprefix(EXECUTOR_ERROR).strip() or text.strip()
    problem = classify_call(call, ToolResult(call, text, error), tools)
    return CallRecord(call.name, call.arguments, text, error, problem.kind if problem else None)


def _pending_step(message: ChatMessage, tools: Tools | None) -> _PendingStep:
    step = _PendingStep(message.written, unread=[message.unread] if message.unread else [])
    for one in message.calls:
        record = None
        if one.arguments is not None:
            call = ToolCall(one.name, one.arguments)
            call = without_padding(call, tools or ()) if one.is_object else call
            record = CallRecord(call.name, call.arguments)
        step.calls.append(_PendingCall(one.id, record, one.name))
    return step


def _add_result(
    waiting: _Waiting,
    result: ChatMessage,
    tools: Tools | None,
    error_if: Callable[[str], bool] | None,
    place: str,
) -> None:
    """Add a result to its call; a result of a reply that could not be parsed is left out."""
    call = waiting.take(str(result.call_id), result.name)
    if call is not None:
        if call.record is not None:
            error = result.error
            if error is None and error_if is not None and error_if(result.text):
                error = result.text.strip() or result.text
            call.record = record_call(ToolCall(call.record.name, call.record.arguments), result.text, tools, error)
    elif not waiting.is_unread:
        what = f"is a tool result without a call before it that waits for one, got {quoted(result.text)}"
        raise RowError(place, what)
