r"""Foreign traces as records, without running a model: transcripts in OpenAI's message format, or BFCL's result files.

A file of transcripts has one a line (JSONL):

    {"id": "t1",                                                         # optional, unique; else "line-1"
     "messages": [{"role": "user", "content": "..."},
                  {"role": "assistant", "tool_calls": [{"id": "c1", "function": {"name": "f", "arguments": "{}"}}]},
                  {"role": "tool", "tool_call_id": "c1", "content": "..."}],
     "tools": [{"type": "function", "function": {...}}],                 # optional: errors are classed by them
     "success": true,                                                    # optional: your judge's verdict
     "category": "airline"}                                              # optional: reported apart
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fission_grpo.core.chat import parse, read_result
from fission_grpo.core.errors import RunFileError
from fission_grpo.core.files import Line, read_lines
from fission_grpo.core.json_io import NotJson, quoted, read_json
from fission_grpo.core.tool_schema import check_call, check_tool_schema
from fission_grpo.core.types import ErrorKind, ToolCall
from fission_grpo.data.convert.dialogues import RowDropped
from fission_grpo.data.convert.tools import tools_of
from fission_grpo.evaluation.records import CallRecord, CaseRecord, StepRecord, TurnRecord

EXECUTOR_ERROR = "Error during execution:"
"""How BFCL's executor begins what a call raised."""


_SYSTEM, _RESULT = ("system", "developer"), ("tool", "function")


_ROLES = (*_SYSTEM, "user", "assistant", *_RESULT)


_RESPONSE = re.compile(r"\s*<tool_response>(.*?)</tool_response>\s*", re.DOTALL)


class WrongField(ValueError):
    """A field of a transcript that cannot be read; `field` names it, the message says what it must be."""

    def __init__(self, name: str, what: str):
        super().__init__(f"field '{name}' {what}")
        self.field = name


@dataclass
class _Slot:
    """A call that may be answered. `record` is None if it could not be read: its answer is then of no use."""

    id: str | None
    record: CallRecord | None
    answered: bool = False


@dataclass
class _Step:
    """A step under way, until its calls are answered."""

    text: str
    slots: list[_Slot] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)

    def record(self) -> StepRecord:
        calls = tuple(slot.record for slot in self.slots if slot.record is not None)
        return StepRecord(self.text, calls, "; ".join(self.unread) or None)


def turns_of(messages: Sequence[Any], tools: Sequence[Mapping[str, Any]] | None) -> tuple[TurnRecord, ...]:
    """The turns of a transcript, none of them judged.

    User messages one after another begin one turn; what the assistant says before the first belongs to the first. A
    result belongs to the call with its `tool_call_id`, the latest unanswered one if several have it; without such a
    call, to the first unanswered call of the last reply that has any. A call that is never answered has not erred.

    Args:
        messages: of the transcript.
        tools: their schemas, by which errors are classed; None if unknown, and every error is then `raised`.

    Raises:
        WrongField: naming the message and its field.
    """
    turns: list[list[_Step]] = [[]]
    before: str | None = None  # the role of the message before, system messages left out
    asked = False
    for number, message in enumerate(messages):
        at = f"messages[{number}]"
        role = message.get("role") if isinstance(message, Mapping) else None
        if role not in _ROLES:
            what = "must be an object with a `role`" if not isinstance(message, Mapping) else "has an unknown role"
            raise WrongField(at, f"{what} (one of {', '.join(_ROLES)}), got {quoted(message)}")
        if role == "assistant":
            turns[-1].append(_step(message, at))
        elif role in _RESULT:
            _answer(
                turns, _id(message.get("tool_call_id")), text_of(message.get("content"), f"{at}.content"), tools, at
            )
        elif role == "user" and (responses := _responses(message.get("content"))):
            for response in responses:
                _answer(turns, None, response, tools, at)
            role = "tool"
        elif role == "user":
            if asked and before != "user":
                turns.append([])
            asked = True
        before = before if role in _SYSTEM else role
    return tuple(TurnRecord(tuple(step.record() for step in turn)) for turn in turns)


def answered(call: ToolCall, result: str, tools: Sequence[Mapping[str, Any]] | None) -> CallRecord:
    """A call and its result as a record: whether it erred, and as which kind.

    It erred if `chat.read_result` says so or the text begins as BFCL's executor begins what a call raised.

    Args:
        tools: schemas by which the kind is told; None: every error is `raised`.

    Example:
        With a tool `cd` alone, ls() answered "Error during execution: no ls" has the error "no ls" of kind
        unknown_tool.
    """
    error = read_result(call, result).error
    if error is None and result.startswith(EXECUTOR_ERROR):
        error = result.removeprefix(EXECUTOR_ERROR).strip() or result.strip()
    kind = None
    if error is not None:
        problem = check_call(call, tools) if tools is not None else None
        kind = problem.kind if problem else ErrorKind.RAISED
    return CallRecord(call.name, call.arguments, result, error, kind)


def text_of(content: Any, at: str) -> str:
    """A message's content as text: a string, text parts, null as ""; objects and lists of a tool as JSON.

    Raises:
        WrongField: it is something else.
    """
    if content is None:
        return ""
    if isinstance(content, list) and content and all(isinstance(part, dict) and "type" in part for part in content):
        return "\n".join(printable(part["text"]) for part in content if isinstance(part.get("text"), str))
    if isinstance(content, dict | list):
        return printable(json.dumps(content, ensure_ascii=False))
    if not isinstance(content, str):
        raise WrongField(at, f"must be a string, a list of parts or null, got {quoted(content)}")
    return printable(content)


def printable(text: str) -> str:
    """The text with unpaired surrogates, which no UTF-8 file can hold, replaced by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _responses(content: Any) -> list[str]:
    """The blocks of a user message that holds `<tool_response>` blocks and nothing else, else []."""
    if not isinstance(content, str) or "<tool_response>" not in content or _RESPONSE.sub("", content):
        return []
    return [printable(text.strip("\n")) for text in _RESPONSE.findall(content)]


def _step(message: Mapping[str, Any], at: str) -> _Step:
    """A reply with its calls. Structured calls win: text beside them is only asked whether it can be read."""
    text = text_of(message.get("content"), f"{at}.content")
    given = message.get("tool_calls")
    if given is None and message.get("function_call") is not None:
        given = [{"function": message["function_call"]}]
    if given is not None and not isinstance(given, list):
        raise WrongField(f"{at}.tool_calls", f"must be a list, got {quoted(given)}")
    step = _Step(text)
    if "<tool_call>" in text:
        turn = parse(text)
        step.unread += [turn.error] if turn.error else []
        step.slots += [] if given else [_Slot(None, _record(call)) for call in turn.calls]
    written = [text] if text else []
    for number, entry in enumerate(given or []):
        place = f"{at}.tool_calls[{number}]"
        name, arguments = _function(entry, place)
        written.append(f'<tool_call>\n{{"name": {json.dumps(name)}, "arguments": {arguments}}}\n</tool_call>')
        call = _read_arguments(name, arguments)
        if isinstance(call, str):
            step.unread.append(call)
        step.slots.append(_Slot(_id(entry.get("id")), None if isinstance(call, str) else _record(call)))
    step.text = "\n".join(written)
    return step


def _function(entry: Any, at: str) -> tuple[str, str]:
    """Name and arguments of a structured call, the arguments as the policy wrote them."""
    function = entry.get("function", entry) if isinstance(entry, Mapping) else None
    if not isinstance(function, Mapping):
        raise WrongField(at, f'must be like {{"id", "function": {{"name", "arguments"}}}}, got {quoted(entry)}')
    name, arguments = function.get("name"), function.get("arguments")
    if not isinstance(name, str):
        raise WrongField(f"{at}.function.name", f"must be a string, got {quoted(name)}")
    if arguments is None or arguments == "":
        arguments = "{}"  # how several servers write a call without arguments
    return printable(name), printable(arguments if isinstance(arguments, str) else json.dumps(arguments))


def _read_arguments(name: str, arguments: str) -> ToolCall | str:
    """The call, or why its arguments cannot be read."""
    text = arguments.strip()
    try:
        value, end = read_json(text)
    except NotJson as error:
        return f"the arguments of {quoted(name)} are not valid JSON: {error}"
    if not isinstance(value, dict) or end < len(text):
        return f"the arguments of {quoted(name)} are not one JSON object"
    return ToolCall(name, value)


def _id(value: Any) -> str | None:
    return None if value is None else str(value)


def _record(call: ToolCall) -> CallRecord:
    return CallRecord(call.name, call.arguments)


def _answer(
    turns: Sequence[Sequence[_Step]],
    given: str | None,
    result: str,
    tools: Sequence[Mapping[str, Any]] | None,
    at: str,
) -> None:
    """Give a result to its call; what answers an unreadable reply is left out."""
    slot = next(_waiting(turns, given), None)
    if slot is None:
        last = next((step for turn in reversed(turns) for step in reversed(turn)), None)
        if last is not None and last.unread:
            return
        raise WrongField(at, f"is a tool result without a call before it that waits for one, got {quoted(result)}")
    slot.answered = True
    if slot.record is not None:
        slot.record = answered(ToolCall(slot.record.name, slot.record.arguments), result, tools)


def _waiting(turns: Sequence[Sequence[_Step]], given: str | None) -> Iterator[_Slot]:
    """Calls the result may belong to, best first."""
    steps = [step for turn in reversed(turns) for step in reversed(turn)]
    if given is not None:
        yield from (slot for step in steps for slot in step.slots if slot.id == given and not slot.answered)
    last = next((step for step in steps if step.slots), None)
    if last is not None:
        yield from (slot for slot in last.slots if not slot.answered)


def read_traces(path: str | Path, notes: list[str] | None = None) -> list[CaseRecord]:
    """The records of a file of traces, whichever of the two layouts it is in.

    Rows of a BFCL result file have "id" and "result"; its first row tells.

    Args:
        path: of the file.
        notes: is given a sentence about a last line that was cut off by a kill; without it that is an error as well.

    Raises:
        RunFileError: naming file, line and field of what cannot be read, or what has to be installed.
    """
    path = Path(path)
    if not path.is_file():
        raise RunFileError(f"{path}: no such file; give a JSONL file of transcripts or a BFCL result file")
    cut: list[str] = []
    try:
        lines = read_lines(path, cut)
    except RecursionError as error:
        raise RunFileError(f"{path}: a line is nested too deeply to be read; delete it") from error
    except OSError as error:
        raise RunFileError(f"{path}: cannot be read ({error.strerror})") from error
    if cut and notes is None:
        raise RunFileError(f"{path}: {cut[0]}: mend or delete this line")
    if notes is not None:
        notes += cut
    if not lines:
        raise RunFileError(f"{path}: no traces in it; write one JSON object a line, with 'messages'")
    if {"id", "result"} <= lines[0].record.keys() and "messages" not in lines[0].record:
        return _bfcl_results(path)
    return _transcripts(lines)


def _bfcl_results(path: Path) -> list[CaseRecord]:
    try:
        from fission_grpo.evaluation.bfcl.results import read_result_file

        return read_result_file(path)
    except ModuleNotFoundError as error:
        from fission_grpo.envs.bfcl import INSTALL

        raise RunFileError(f"{path}: a BFCL result file needs {error.name} to be judged; {INSTALL}") from error


def _transcripts(lines: list[Line]) -> list[CaseRecord]:
    records: list[CaseRecord] = []
    first_at: dict[str, int] = {}
    for line in lines:
        record = _case_record(line)
        if record.id in first_at:
            raise line.wrong(f"field 'id' {quoted(record.id)} is line {first_at[record.id]}'s already; leave it out")
        first_at[record.id] = line.number
        records.append(record)
    return records


def _case_record(line: Line) -> CaseRecord:
    messages = line.take("messages", list)
    if not messages:
        raise line.wrong("field 'messages' must not be empty")
    name = line.take("id", (str, int), optional=True)
    tools = line.take("tools", list, optional=True)
    try:
        turns = turns_of(messages, None if tools is None else [_tool(tool, i) for i, tool in enumerate(tools)])
    except WrongField as wrong:
        raise line.wrong(str(wrong)) from None
    except RecursionError as error:
        raise line.wrong("it is nested too deeply to be read") from error
    return CaseRecord(
        id=printable(str(name)) if name not in (None, "") else f"line-{line.number}",
        category=printable(line.take("category", str, optional=True) or ""),
        turns=turns,
        success=line.take("success", bool, optional=True),
    )


def _tool(tool: Any, number: int) -> Mapping[str, Any]:
    """A tool as it is if its parameters are JSON schema; else with BFCL's, Python's and other types made JSON's."""
    try:
        check_tool_schema(tool)
    except ValueError as problem:
        try:
            return tools_of([tool])[0]
        except RowDropped:
            raise WrongField(f"tools[{number}]", f"cannot be read: {problem}; mend it or leave 'tools' out") from None
    return tool
