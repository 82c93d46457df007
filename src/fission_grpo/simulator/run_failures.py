"""Failures that runs and transcripts left on disk: `fission.jsonl`, an evaluation's records, foreign transcripts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fission_grpo.chat import parse
from fission_grpo.evaluation.records import StepRecord, TurnRecord, read_records
from fission_grpo.evaluation.traces import read_traces
from fission_grpo.failure import find_failure
from fission_grpo.json_lines import read_lines
from fission_grpo.schema import check_tool_schema
from fission_grpo.simulator.collect import Found, api_of
from fission_grpo.simulator.instances import instance, read_instance
from fission_grpo.task_rows import RowError
from fission_grpo.trajectory import Message, Task, ToolCall, ToolResult, Trajectory, Turn, Verdict


@dataclass(frozen=True)
class Asked:
    """A user turn that an evaluation asked: what its records do not hold.

    Args:
        messages: said before the policy's first reply of this turn, without what the turns before added.
        tools: schemas.
        reference: the calls that do what the turn asks for.
    """

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...]
    reference: tuple[ToolCall, ...]


def journal_failures(path: Path, unused: Counter[str], notes: list[str]) -> list[Found]:
    """The "failed" events of a run's `fission.jsonl`. What a resumed run made void is left out.

    Args:
        path: of the file.
        unused: counts "pushed" events without a "failed" one (an older run: tools and reference are not known).
        notes: is told of a line that a kill cut off.

    Raises:
        RunFileError: naming file, line and field of what is wrong.
    """
    tools: dict[str, list[Any]] = {}
    found: dict[str, tuple[int, Found]] = {}
    pushed: dict[str, int] = {}
    for line in read_lines(path, notes):
        event = line.take("event", str)
        if event == "tools":
            tools[line.take("key", str)] = list(line.take_all("tools", dict))
        elif event == "resumed":
            step = line.take("step", int)
            found = {name: pair for name, pair in found.items() if pair[0] < step}
            pushed = {name: at for name, at in pushed.items() if at < step}
        elif event == "pushed":
            pushed[line.take("id", str)] = line.take("step", int)
        elif event == "failed":
            row = {**line.record, "api": "", "origin": "fission", "diagnosis": "", "teacher": ""}
            try:
                name, one = read_instance(row, tools)
            except RowError as wrong:
                raise line.wrong(f"field '{wrong.field}' {wrong.what}") from None
            one = replace(one, api=api_of(one.failure))
            found[name] = line.take("step", int), Found(one, line.take("root", str))
    missing = len(pushed.keys() - found.keys())
    if missing:
        unused["fission.jsonl: pushed before failures were written down (no tools, no reference)"] += missing
    return [one for _, one in found.values()]


def record_failures(path: Path, asked: Mapping[str, Sequence[Asked]], unused: Counter[str]) -> list[Found]:
    """The erring steps of an evaluation's `cases.jsonl`, with the environment's own errors.

    Args:
        path: of the file.
        asked: the user turns of every case by id; records hold no dialogue, so cases not here cannot be used.
        unused: counts, by reason, what could not be used.

    Raises:
        RunFileError: naming file, line and field of what is wrong.
    """
    found: list[Found] = []
    for record in read_records(path):
        if record.id not in asked:
            unused["evaluation: case without its task file (a record holds no request and no tools)"] += 1
            continue
        messages: list[Message] = []
        here = len(found)
        for turn, question in zip(record.turns, asked[record.id], strict=False):
            messages += question.messages
            for number, step in enumerate(turn.steps):
                name = f"{path}:{record.id}:{len(messages)}:{number}"
                task = Task(name, tuple(messages), question.tools, root=record.id.split("#")[0])
                found += _failures(task, step, question.reference, unused, "evaluation")
                messages += _told(step)
        if len(found) == here and record.success is False:
            unused["evaluation: failed without any error (no single call to blame)"] += 1
    return found


def transcript_failures(path: Path, unused: Counter[str], notes: list[str]) -> list[Found]:
    """The erring steps of foreign transcripts (`evaluation.traces`). Their references are unknown.

    Raises:
        RunFileError: naming file, line and field of what is wrong.
    """
    records = read_traces(path, notes)
    found: list[Found] = []
    for line, record in zip(read_lines(path, []), records, strict=True):
        tools = _schemas(line.record.get("tools"))
        if tools is None:
            unused["transcript: tools are no JSON schemas"] += 1
            continue
        messages = line.record["messages"]
        replies = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
        for at, step in zip(replies, _steps(record.turns), strict=True):
            task = Task(f"{path}:{record.id}:{at}", tuple(messages[:at]), tools, root=record.id)
            found += _failures(task, step, None, unused, "transcript")
    return found


def _steps(turns: Iterable[TurnRecord]) -> list[StepRecord]:
    return [step for turn in turns for step in turn.steps]


def _schemas(tools: Any) -> tuple[Mapping[str, Any], ...] | None:
    try:
        for tool in tools or ():
            check_tool_schema(tool)
    except ValueError:
        return None
    return tuple(tools or ())


def _failures(
    task: Task, step: StepRecord, expected: tuple[ToolCall, ...] | None, unused: Counter[str], what: str
) -> list[Found]:
    """The failure of a step if one of its calls erred or it could not be read."""
    if not step.errors:
        return []
    if any(call.injected for call in step.calls):
        unused[f"{what}: error injected by a fault, not the policy's"] += 1
        return []
    read = parse(step.text, step.truncated)
    if step.unread is None and tuple(call.name for call in step.calls) != tuple(call.name for call in read.calls):
        unused[f"{what}: calls that the reply's text does not show"] += 1
        return []
    calls = tuple(ToolCall(call.name, call.arguments) for call in step.calls)
    results = tuple(ToolResult(call, one.result, one.error) for call, one in zip(calls, step.calls, strict=True))
    turn = Turn(step.text, read.content, calls, step.unread, results, step.truncated)
    failure = find_failure(Trajectory(task, (turn,)), Verdict(0.0, True))
    if failure is None:
        return []
    failure = replace(failure, expected=expected)
    return [Found(instance(failure, api_of(failure), "trace"), task.root)]


def _told(step: StepRecord) -> list[Message]:
    said: list[Message] = [{"role": "assistant", "content": step.text}]
    return said + [{"role": "tool", "name": call.name, "content": call.result} for call in step.calls]
