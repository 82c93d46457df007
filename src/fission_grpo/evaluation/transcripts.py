"""Read transcripts from elsewhere as records, without running a model: OpenAI's message format or BFCL result files.

Each line of a file of transcripts is {"messages": [...]} and optionally "id" (unique), "tools" (to classify errors),
"success" (a judge's verdict) and "category"; docs/evaluation.md has an example.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fission_grpo.core.chat import parse, read_result
from fission_grpo.core.errors import RowError, RunFileError
from fission_grpo.core.files import Line, read_lines
from fission_grpo.core.json_io import NotJson, quoted, read_json
from fission_grpo.core.tool_schema import check_tool_schema, classify_call
from fission_grpo.core.types import ToolCall, ToolResult
from fission_grpo.data.convert.dialogues import RowDropped
from fission_grpo.data.convert.tools import tools_of
from fission_grpo.envs.bfcl import INSTALL
from fission_grpo.evaluation.records import CallRecord, CaseRecord, StepRecord, TurnRecord

EXECUTOR_ERROR = "Error during execution:"  # prefix of a failed call's result in BFCL's executor

_SYSTEM_ROLES, _RESULT_ROLES = ("system", "developer"), ("tool", "function")
_ROLES = (*_SYSTEM_ROLES, "user", "assistant", *_RESULT_ROLES)
_RESPONSE = re.compile(r"\s*<tool_response>(.*?)</tool_response>\s*", re.DOTALL)

Tools = Sequence[Mapping[str, Any]]


@dataclass
class _PendingCall:
    """A call that waits for its result."""

    id: Any
    record: CallRecord | None  # None if the call could not be parsed; then its result is not kept
    is_answered: bool = False


@dataclass
class _PendingStep:
    text: str
    calls: list[_PendingCall] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)

    def record(self) -> StepRecord:
        calls = tuple(call.record for call in self.calls if call.record is not None)
        return StepRecord(self.text, calls, "; ".join(self.unread) or None)


def read_traces(path: str | Path, notes: list[str] | None = None) -> list[CaseRecord]:
    """Read a file of transcripts, or a BFCL result file if its first row has "id" and "result".

    A sentence about a last line that was cut off by a kill is added to `notes`; if None, that is an error.
    RunFileError names file, line and field of what cannot be read, or what has to be installed.
    """
    path = Path(path)
    if not path.is_file():
        raise RunFileError(f"{path}: no such file; give a JSONL file of transcripts or a BFCL result file")
    cut: list[str] = []
    lines = read_lines(path, cut)
    if cut and notes is None:
        raise RunFileError(f"{path}: {cut[0]}: fix or delete this line")
    if notes is not None:
        notes += cut
    if not lines:
        raise RunFileError(f"{path}: no traces in it; write one JSON object a line, with 'messages'")
    if {"id", "result"} <= lines[0].record.keys() and "messages" not in lines[0].record:
        try:
            from fission_grpo.evaluation.bfcl.results import read_result_file

            return read_result_file(path)
        except ModuleNotFoundError as error:
            raise RunFileError(f"{path}: a BFCL result file needs {error.name} to be judged; {INSTALL}") from error
    records: dict[str, tuple[int, CaseRecord]] = {}
    for line in lines:
        record = _case_record(line)
        if record.id in records:
            earlier, _ = records[record.id]
            raise line.wrong(f"field 'id' {quoted(record.id)} is line {earlier}'s already; leave it out")
        records[record.id] = line.number, record
    return [record for _, record in records.values()]


def _case_record(line: Line) -> CaseRecord:
    messages = line.take("messages", list)
    if not messages:
        raise line.wrong("field 'messages' must not be empty")
    name = line.take("id", (str, int), optional=True)
    tools = line.take("tools", list, optional=True)
    try:
        turns = read_turns(messages, None if tools is None else [_read_tool(tool, i) for i, tool in enumerate(tools)])
    except RowError as error:
        raise line.wrong(f"field '{error.field}' {error.what}") from None
    except RecursionError as error:
        raise line.wrong("it is nested too deeply to be read") from error
    return CaseRecord(
        id=_printable(str(name)) if name not in (None, "") else f"line-{line.number}",
        category=_printable(line.take("category", str, optional=True) or ""),
        turns=turns,
        success=line.take("success", bool, optional=True),
    )


def _read_tool(tool: Any, number: int) -> Mapping[str, Any]:
    """A tool unchanged if its parameters are JSON schema; else with types of BFCL or Python converted to JSON's."""
    try:
        check_tool_schema(tool)
    except ValueError as problem:
        try:
            return tools_of([tool])[0]
        except RowDropped:
            raise RowError(f"tools[{number}]", f"cannot be read: {problem}; fix it or leave 'tools' out") from None
    return tool


def read_turns(messages: Sequence[Any], tools: Tools | None) -> tuple[TurnRecord, ...]:
    """The turns of a transcript, without verdicts. RowError names the message and field of a mistake.

    Consecutive user messages start one turn; assistant messages before the first user message belong to the first
    turn. A result belongs to the latest unanswered call with its `tool_call_id`; without such a call, to the first
    unanswered call of the last reply that has calls. A call that is never answered has no error. If `tools` is None,
    every error is `raised`.
    """
    turns: list[list[_PendingStep]] = [[]]
    previous: str | None = None  # role of the message before, system messages left out
    has_request = False
    for number, message in enumerate(messages):
        place = f"messages[{number}]"
        role = message.get("role") if isinstance(message, Mapping) else None
        if role not in _ROLES:
            what = "must be an object with a `role`" if not isinstance(message, Mapping) else "has an unknown role"
            raise RowError(place, f"{what} (one of {', '.join(_ROLES)}), got {quoted(message)}")
        if role == "assistant":
            turns[-1].append(_read_step(message, place))
        elif role in _RESULT_ROLES:
            content = _read_content(message.get("content"), f"{place}.content")
            _add_result(turns, message.get("tool_call_id"), content, tools, place)
        elif role == "user" and (responses := _tool_responses(message.get("content"))):
            for response in responses:
                _add_result(turns, None, response, tools, place)
            role = "tool"
        elif role == "user":
            if has_request and previous != "user":
                turns.append([])
            has_request = True
        previous = previous if role in _SYSTEM_ROLES else role
    return tuple(TurnRecord(tuple(step.record() for step in turn)) for turn in turns)


def record_call(call: ToolCall, text: str, tools: Tools | None) -> CallRecord:
    """The record of a call and its result `text`, with the error that the result reports.

    A result reports an error if `chat.read_result` finds one or if it has the prefix of BFCL's executor. If `tools` is
    None, every error is `raised`.

    Example: with a tool `cd` alone, ls() answered "Error during execution: no ls" has the error "no ls" of kind
    unknown_tool.
    """
    error = read_result(call, text).error
    if error is None and text.startswith(EXECUTOR_ERROR):
        error = text.removeprefix(EXECUTOR_ERROR).strip() or text.strip()
    problem = classify_call(call, ToolResult(call, text, error), tools)
    return CallRecord(call.name, call.arguments, text, error, problem.kind if problem else None)


def _read_content(content: Any, place: str) -> str:
    """A message's content as text: a string, text parts, null as ""; objects and lists of a tool as JSON."""
    if content is None:
        return ""
    if isinstance(content, list) and content and all(isinstance(part, dict) and "type" in part for part in content):
        return "\n".join(_printable(part["text"]) for part in content if isinstance(part.get("text"), str))
    if isinstance(content, dict | list):
        return _printable(json.dumps(content, ensure_ascii=False))
    if not isinstance(content, str):
        raise RowError(place, f"must be a string, a list of parts or null, got {quoted(content)}")
    return _printable(content)


def _printable(text: str) -> str:
    """The text with unpaired surrogates, which UTF-8 cannot encode, replaced by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _tool_responses(content: Any) -> list[str]:
    """The blocks of a user message that holds nothing but `<tool_response>` blocks, else []."""
    if not isinstance(content, str) or "<tool_response>" not in content or _RESPONSE.sub("", content):
        return []
    return [_printable(text.strip("\n")) for text in _RESPONSE.findall(content)]


def _read_step(message: Mapping[str, Any], place: str) -> _PendingStep:
    """A reply with its calls. If it has structured calls, calls in its text are only checked, not kept."""
    text = _read_content(message.get("content"), f"{place}.content")
    entries = message.get("tool_calls")
    if entries is None and message.get("function_call") is not None:
        entries = [{"function": message["function_call"]}]
    if entries is not None and not isinstance(entries, list):
        raise RowError(f"{place}.tool_calls", f"must be a list, got {quoted(entries)}")
    step = _PendingStep(text)
    if "<tool_call>" in text:
        turn = parse(text)
        step.unread += [turn.error] if turn.error else []
        step.calls += [] if entries else [_PendingCall(None, CallRecord(c.name, c.arguments)) for c in turn.calls]
    written = [text] if text else []
    for number, entry in enumerate(entries or []):
        name, arguments = _read_function(entry, f"{place}.tool_calls[{number}]")
        written.append(f'<tool_call>\n{{"name": {json.dumps(name)}, "arguments": {arguments}}}\n</tool_call>')
        call = _parse_arguments(name, arguments)
        if isinstance(call, str):
            step.unread.append(call)
        step.calls.append(_PendingCall(entry.get("id"), None if isinstance(call, str) else call))
    step.text = "\n".join(written)
    return step


def _read_function(entry: Any, place: str) -> tuple[str, str]:
    """Name and arguments of a structured call, the arguments as the policy wrote them."""
    function = entry.get("function", entry) if isinstance(entry, Mapping) else None
    if not isinstance(function, Mapping):
        raise RowError(place, f'must be like {{"id", "function": {{"name", "arguments"}}}}, got {quoted(entry)}')
    name, arguments = function.get("name"), function.get("arguments")
    if not isinstance(name, str):
        raise RowError(f"{place}.function.name", f"must be a string, got {quoted(name)}")
    if arguments is None or arguments == "":
        arguments = "{}"  # some servers write a call without arguments like this
    return _printable(name), _printable(arguments if isinstance(arguments, str) else json.dumps(arguments))


def _parse_arguments(name: str, arguments: str) -> CallRecord | str:
    """The unanswered call, or why its arguments cannot be parsed."""
    text = arguments.strip()
    try:
        value, end = read_json(text)
    except NotJson as error:
        return f"the arguments of {quoted(name)} are not valid JSON: {error}"
    if not isinstance(value, dict) or end < len(text):
        return f"the arguments of {quoted(name)} are not one JSON object"
    return CallRecord(name, value)


def _add_result(
    turns: Sequence[Sequence[_PendingStep]], call_id: Any, result: str, tools: Tools | None, place: str
) -> None:
    """Add a result to its call; a result of a reply that could not be parsed is left out."""
    steps = [step for turn in reversed(turns) for step in reversed(turn)]
    named = [call for step in steps for call in step.calls if call.id is not None and str(call.id) == str(call_id)]
    of_last_reply = next((step.calls for step in steps if step.calls), [])
    call = next((call for call in (*named, *of_last_reply) if not call.is_answered), None)
    if call is not None:
        call.is_answered = True
        if call.record is not None:
            call.record = record_call(ToolCall(call.record.name, call.record.arguments), result, tools)
    elif not (steps and steps[0].unread):
        raise RowError(place, f"is a tool result without a call before it that waits for one, got {quoted(result)}")
