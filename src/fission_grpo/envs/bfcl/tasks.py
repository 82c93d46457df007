"""Cases: scenarios with user turns and reference calls, as JSONL files and as TRL rows.

A line of a case file:

    {"id": "train-00012", "classes": ["TicketAPI"], "config": {"TicketAPI": {...}}, "variant": "base",
     "turns": [{"request": "Close ticket 7.", "reference": [{"name": "close_ticket", "arguments": {"ticket_id": 7}}],
                "without": []}]}

`config` is BFCL's `initial_config`, `without` names functions held back in that turn, an empty reference means that
nothing is to be called. One user turn becomes one row; the turns before it are told in the prompt with the reference's
calls and their real results, and made again in the environment.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fission_grpo.core.errors import RowError, TaskFileError
from fission_grpo.core.files import read_task_rows
from fission_grpo.core.json_io import quoted
from fission_grpo.core.serialization import call_fields
from fission_grpo.core.types import ToolCall
from fission_grpo.envs.bfcl.env import (
    BfclEnvironment,
    TaskError,
    environment_name,
    environment_of,
)
from fission_grpo.envs.bfcl.functions import FILES, class_docs
from fission_grpo.envs.bfcl.judge import judge_case
from fission_grpo.envs.bfcl.state import World, new_world

SYSTEM = "Do what the user asks with the tools."


DONE, NEED_MORE, NO_TOOL = "Done.", "I need more details for that.", "I have no tool for that."
"""What the assistant says at the end of earlier turns. [ours]"""


VARIANTS = ("base", "miss_func", "miss_param")


@dataclass(frozen=True)
class UserTurn:
    """One thing the user says, and the calls that do it; `without` names functions held back."""

    request: str
    reference: tuple[ToolCall, ...]
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class Case:
    """A scenario and its user turns."""

    id: str
    classes: tuple[str, ...]
    config: Mapping[str, Any]
    turns: tuple[UserTurn, ...]
    variant: str = "base"

    def to_json(self) -> str:
        """The line of a case file."""
        turns = [
            {"request": t.request, "reference": [call_fields(c) for c in t.reference], "without": list(t.without)}
            for t in self.turns
        ]
        fields = {"id": self.id, "classes": list(self.classes), "config": self.config, "variant": self.variant}
        return json.dumps({**fields, "turns": turns}, ensure_ascii=False)


def rows_of_case(case: Case) -> list[dict[str, Any]]:
    """One TRL row per user turn: `id` ("train-00012#0"), `environment`, `prompt` (chat messages) and `scenario`.

    Raises:
        TaskError: a call of the reference fails in its own environment.
    """
    world = new_world(case.classes, case.config)
    messages: list[dict[str, Any]] = [{"role": "system", "content": SYSTEM}]
    history: list[list[dict[str, Any]]] = []
    rows = []
    for number, turn in enumerate(case.turns):
        messages.append({"role": "user", "content": turn.request})
        reference = [call_fields(call) for call in turn.reference]
        scenario = {"config": case.config, "history": history, "reference": reference}
        rows.append(
            {
                "id": f"{case.id}#{number}",
                "environment": environment_name(case.classes, turn.without),
                "prompt": [dict(message) for message in messages],
                "scenario": json.dumps(scenario, ensure_ascii=False),
            }
        )
        for call in turn.reference:
            messages += reference_messages(world, call, f"case {case.id!r}, turns[{number}]")
        messages.append(last_message(turn))
        history = [*history, reference]
    return rows


def reference_messages(world: World, call: ToolCall, where: str) -> list[dict[str, Any]]:
    """Make a reference call; it and its result as messages. Raises TaskError, beginning with `where`, if it fails."""
    result = world.call(call)
    if world.error is not None:
        raise TaskError(f"{where}: {call.name} fails: {result}")
    function = {"type": "function", "function": call_fields(call)}
    return [
        {"role": "assistant", "content": "", "tool_calls": [function]},
        {"role": "tool", "name": call.name, "content": result},
    ]


def last_message(turn: UserTurn) -> dict[str, Any]:
    """What the assistant says at the end of a turn that is over."""
    said = DONE if turn.reference else NO_TOOL if turn.without else NEED_MORE
    return {"role": "assistant", "content": said}


def load_cases(path: str | Path) -> list[Case]:
    """Read a case file (the format is at the top of this module).

    Raises:
        TaskFileError: the first mistake, with file, row (line, from 1), field and how to mend it.
    """
    path = Path(path)
    cases = read_task_rows(path, "case file", _case)
    if not cases:
        raise TaskFileError(f"{path}: no cases in it; make some with `fission-grpo tasks generate`")
    return cases


def check_cases(path: str | Path) -> str:
    """Load a case file and put every reference through its own environment and the official checker.

    Raises:
        TaskFileError: the first case that cannot be read, fails, or is judged wrong.
    """
    cases = load_cases(path)
    for case in cases:
        try:
            check_case(case)
        except TaskError as error:
            raise TaskFileError(f"{path}, case {case.id!r}: {error}; correct its reference or config") from None
    turns = [turn for case in cases for turn in case.turns]
    calls = Counter(len(turn.reference) for turn in turns)
    spread = ", ".join(f"{n} call{'s' * (n != 1)}: {count}" for n, count in sorted(calls.items()))
    return f"{path}: ok, {len(cases)} cases, {len(turns)} user turns ({spread}); all pass the official checker"


def check_case(case: Case) -> None:
    """Raise TaskError unless the reference passes, turn by turn in our environments and as a whole officially."""
    for row, turn in zip(rows_of_case(case), case.turns, strict=True):
        world: BfclEnvironment = environment_of(row["environment"])()
        world.reset(**row)
        for call in turn.reference:
            if not hasattr(world, call.name):
                raise TaskError(f"{row['id']}: {call.name} is held back in the turn that needs it")
            getattr(world, call.name)(**call.arguments)
        if world._reward() != 1.0 or world._progress() != 1.0:
            raise TaskError(f"{row['id']}: the reference does not earn the reward")
    entry = {"id": "multi_turn_base_0", "initial_config": case.config, "involved_classes": list(case.classes)}
    reference = [list(turn.reference) for turn in case.turns]
    verdict = judge_case(entry, [[[call] for call in turn] for turn in reference], reference)
    if not verdict.valid:
        raise TaskError(f"turns[{verdict.turn}]: judged {verdict.error}")


def _case(row: Mapping[str, Any], name: str) -> tuple[str, Case]:
    for field, kind in (("id", str), ("classes", list), ("config", dict), ("turns", list)):
        if not isinstance(row.get(field), kind) or (not row[field] and field != "config"):
            raise RowError(field, f"must be a non-empty {kind.__name__}, got {quoted(row.get(field))}")
    for i, name in enumerate(row["classes"]):
        if name not in FILES:
            raise RowError(f"classes[{i}]", f"must be one of {', '.join(FILES)}, got {quoted(name)}")
    variant = row.get("variant", "base")
    if variant not in VARIANTS:
        raise RowError("variant", f"must be one of {', '.join(VARIANTS)}, got {quoted(variant)}")
    functions = {name for class_name in row["classes"] for name in class_docs(class_name)}
    turns = tuple(_turn(turn, f"turns[{i}]", functions) for i, turn in enumerate(row["turns"]))
    return row["id"], Case(row["id"], tuple(row["classes"]), row["config"], turns, variant)


def _turn(turn: Any, at: str, functions: set[str]) -> UserTurn:
    if not isinstance(turn, dict) or not isinstance(turn.get("request"), str) or not turn["request"].strip():
        raise RowError(f"{at}.request", f"must be a non-empty string, got {quoted(turn)}")
    if not isinstance(turn.get("reference"), list):
        raise RowError(f"{at}.reference", f"must be a list of calls, got {quoted(turn.get('reference'))}")
    calls = []
    for i, call in enumerate(turn["reference"]):
        if not isinstance(call, dict) or not isinstance(call.get("arguments"), dict):
            raise RowError(
                f"{at}.reference[{i}]", f'must be {{"name": "...", "arguments": {{...}}}}, got {quoted(call)}'
            )
        _known(call.get("name"), f"{at}.reference[{i}].name", functions)
        calls.append(ToolCall(call["name"], call["arguments"]))
    without = turn.get("without", [])
    if not isinstance(without, list):
        raise RowError(f"{at}.without", f"must be a list of function names, got {quoted(without)}")
    for i, name in enumerate(without):
        _known(name, f"{at}.without[{i}]", functions)
    return UserTurn(turn["request"], tuple(calls), tuple(without))


def _known(name: Any, at: str, functions: set[str]) -> None:
    if name not in functions:
        raise RowError(at, f"{quoted(name)} is no function of the case's classes; correct it or add its class")


def all_rows(cases: Sequence[Case]) -> list[dict[str, Any]]:
    """The rows of all cases, in order."""
    return [row for case in cases for row in rows_of_case(case)]
