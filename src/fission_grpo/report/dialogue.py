"""Rollouts and evaluated cases as dialogues: messages with a role, a text and calls written like function calls."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fission_grpo.core.chat import parse, read_result, without_blocks
from fission_grpo.core.types import Message, ToolCall
from fission_grpo.evaluation.records import CallRecord, CaseRecord, StepRecord, request_text
from fission_grpo.report.run import RecoveryRecord

_RESULT = re.compile(r"\[([^\]\n]+)\] (.*)")  # a line of `Rollout.text` that begins a tool's result


@dataclass(frozen=True)
class Shown:
    """A message as the page shows it."""

    role: str  # "user", "assistant", "tool" or "system"
    text: str = ""
    calls: tuple[str, ...] = ()  # such as 'move_file(name="a", folder="b")'
    name: str = ""  # of the tool that answers
    is_error: bool = False
    note: str = ""  # what stands beside the role


@dataclass(frozen=True)
class Recovery:
    """Recoveries with the same text and reward. `reward` is None if they could not be judged."""

    dialogue: tuple[Shown, ...]
    reward: float | None
    count: int


@dataclass(frozen=True)
class RecoveryStory:
    """A corrective instance as people read it: what was asked, what failed, what the answer was, what came of it."""

    request: str
    failed: Shown
    answers: tuple[Shown, ...]
    recoveries: tuple[Recovery, ...]  # highest reward first
    earlier: int  # messages of the rollout between the request and the failed turn


def shown_call(call: ToolCall) -> str:
    """Write a call like one in Python. Example: 'move_file(name="a", folder="b")'."""
    values = (f"{name}={json.dumps(value, ensure_ascii=False, default=str)}" for name, value in call.arguments.items())
    return f"{call.name}({', '.join(values)})"


def shown_turn(text: str) -> Shown:
    """An assistant's message, with its calls taken out of the text if all of them can be read."""
    turn = parse(text)
    if not turn.calls:
        return Shown("assistant", text)
    return Shown("assistant", without_blocks(text, "tool_call").strip(), tuple(map(shown_call, turn.calls)))


def shown_message(message: Message) -> Shown:
    """A chat message. Structured calls and calls in the text are shown alike."""
    role, entries = str(message.get("role")), message.get("tool_calls")
    text = request_text([{**message, "role": "user"}])
    if role == "assistant":
        shown = shown_turn(text)
        functions = [entry.get("function") or entry for entry in entries or () if isinstance(entry, Mapping)]
        return replace(shown, calls=shown.calls + tuple(map(_shown_function, functions)))
    return Shown(role, text, name=str(message.get("name") or ""), is_error=role == "tool" and _is_error(text))


def _shown_function(function: Mapping[str, Any]) -> str:
    arguments = function.get("arguments")
    return shown_call(ToolCall(str(function.get("name")), arguments if isinstance(arguments, Mapping) else {}))


def rollout_dialogue(text: str) -> tuple[Shown, ...]:
    """Split the text of a rollout (`types.Rollout.text`) into what the policy wrote and what the tools returned."""
    messages: list[Shown] = []
    lines: list[str] = []
    tool: str | None = None  # whose result the lines are; None: the policy's turn
    has_call = False  # in the policy's turn
    for line in text.split("\n"):
        result = _RESULT.fullmatch(line)
        if result and (tool is not None or has_call):
            messages.append(_shown_part(tool, lines))
            tool, lines = result[1], [result[2]]
        elif tool is not None and line.startswith("  "):
            lines.append(line[2:])
        else:
            if tool is not None:
                messages.append(_shown_part(tool, lines))
                tool, lines, has_call = None, [], False
            lines.append(line)
            has_call = has_call or "<tool_call>" in line
    return (*messages, _shown_part(tool, lines))


def _shown_part(tool: str | None, lines: Sequence[str]) -> Shown:
    text = "\n".join(lines)
    return shown_turn(text) if tool is None else Shown("tool", text, name=tool, is_error=_is_error(text))


def _is_error(result: str) -> bool:
    return read_result(ToolCall(""), result).error is not None


def tell_recovery(record: RecoveryRecord) -> RecoveryStory:
    """Split a corrective instance's prompt at the failed turn, and sort its recoveries."""
    counts = Counter(zip(record.completions, record.rewards, strict=True))
    found = [Recovery(rollout_dialogue(text), reward, count) for (text, reward), count in counts.items()]
    found.sort(key=lambda one: (one.reward is None, -(one.reward or 0.0)))
    failed, feedback = shown_turn(record.failed), Shown("user", record.feedback)
    if isinstance(record.prompt, str):
        before, _, after = record.prompt.rpartition(record.failed)
        answers = (Shown("user", after.strip()),) if after.strip() else (feedback,)
        return RecoveryStory(before, failed, answers, tuple(found), 0)
    roles = [message.get("role") for message in record.prompt]
    at = max((i for i, role in enumerate(roles) if role == "assistant"), default=len(roles))
    asked = max((i for i, role in enumerate(roles[:at]) if role == "user"), default=-1)
    answers = tuple(map(shown_message, record.prompt[at + 1 :])) or (feedback,)
    return RecoveryStory(request_text(record.prompt[asked : asked + 1]), failed, answers, tuple(found), at - asked - 1)


def case_dialogue(record: CaseRecord) -> list[Shown]:
    """The turns of an evaluated case, each with the user's request, the policy's replies, and their results."""
    messages: list[Shown] = []
    for turn in record.turns:
        if turn.request:
            messages.append(Shown("user", turn.request))
        for step in turn.steps:
            messages += _shown_step(step)
    return messages


def _shown_step(step: StepRecord) -> Sequence[Shown]:
    shown = shown_turn(step.text)
    calls = [ToolCall(call.name, call.arguments) for call in step.calls]
    if not step.text:
        shown = replace(shown, calls=tuple(map(shown_call, calls)))
    messages = [replace(shown, note="cut off at the length limit" if step.truncated else "")]
    if step.unread is not None:
        messages.append(Shown("tool", step.unread, is_error=True, note="the call cannot be read"))
    for call in step.calls:
        if call.result or call.error or call.fault:
            content = call.result or call.error or ""
            messages.append(Shown("tool", content, (), call.name, call.error is not None, _note(call)))
    return messages


def _note(call: CallRecord) -> str:
    """What a result does not say: the kind of an error, or that a fault was injected."""
    if call.injected:
        return "injected error"
    return f"injected fault: {call.fault}" if call.fault else str(call.kind or "").replace("_", " ")
