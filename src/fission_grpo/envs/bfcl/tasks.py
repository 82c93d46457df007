"""Cases with user turns and reference calls: as JSONL files, as TRL rows (one per user turn), and as step tasks.

docs/tasks.md shows a line of a case file. The prompt of a row or step contains the earlier turns with the reference's
calls and their real results; the environment makes these calls again.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from fission_grpo.core.chat import dialogue_results
from fission_grpo.core.errors import RowError, TaskFileError
from fission_grpo.core.files import read_task_rows
from fission_grpo.core.json_io import quoted
from fission_grpo.core.serialization import call_fields
from fission_grpo.core.tool_schema import check_call
from fission_grpo.core.types import Task, ToolCall, ToolResult
from fission_grpo.envs.bfcl.env import TaskError, environment_name, environment_of
from fission_grpo.envs.bfcl.functions import FILES, class_docs, official_schema
from fission_grpo.envs.bfcl.judge import judge_case
from fission_grpo.envs.bfcl.official import MultiTurnCase, multi_turn_cases
from fission_grpo.envs.bfcl.state import BfclState, new_state

SYSTEM = "Do what the user asks with the tools."
DONE, NEED_MORE, NO_TOOL = "Done.", "I need more details for that.", "I have no tool for that."  # [ours] end a turn
VARIANTS = ("base", "miss_func", "miss_param")


@dataclass(frozen=True)
class UserTurn:
    """A user's request and the calls that fulfil it."""

    request: str
    reference: tuple[ToolCall, ...]  # empty if no call is expected
    without: tuple[str, ...] = ()  # functions held back


@dataclass(frozen=True)
class GeneratedCase:
    """A scenario and its user turns."""

    id: str
    classes: tuple[str, ...]
    config: Mapping[str, Any]  # BFCL's `initial_config`
    turns: tuple[UserTurn, ...]
    variant: str = "base"
    long_context: bool = False  # the scenarios are loaded with BFCL's long contents

    def to_json(self) -> str:
        """The line of a case file."""
        fields = asdict(self)
        if not fields["long_context"]:
            del fields["long_context"]
        fields["turns"] = fields.pop("turns")  # the last field of a line
        return json.dumps(fields, ensure_ascii=False)


def all_rows(cases: Sequence[GeneratedCase]) -> list[dict[str, Any]]:
    """TRL rows, one per user turn: `id` ("train-00012#0"), `environment`, `prompt`, `scenario`. Raises TaskError."""
    return [row for case in cases for row in _rows_of_case(case)]


def _rows_of_case(case: GeneratedCase) -> Iterator[dict[str, Any]]:
    calls = [[call_fields(call) for call in turn.reference] for turn in case.turns]
    for number, index, _, messages in _positions(case):
        if index == 0:
            yield {
                "id": f"{case.id}#{number}",
                "environment": environment_name(case.classes, case.turns[number].without),
                "prompt": messages,
                "scenario": _scenario(case, calls[:number], calls[number]),
            }


def _scenario(case: GeneratedCase, history: Sequence[Any] = (), reference: Sequence[Any] = ()) -> str:
    fields = {"config": case.config, "history": history, "reference": reference}
    return json.dumps(fields | {"long_context": True} if case.long_context else fields, ensure_ascii=False)


@dataclass(frozen=True)
class Step:
    """A step task and the state of its environment."""

    task: Task  # its reference is one call, or none where the user turn needs none; its root is the case
    state: BfclState  # before the call, not shared with other steps
    ahead: tuple[ToolCall, ...] = ()  # later calls of the user turn; making one of them early is no clear failure

    def answers(self, calls: Sequence[ToolCall]) -> tuple[ToolResult, ...]:
        """The results of calls made here, one after another. The step's state is not changed."""
        state = self.state.copy()
        return tuple(state.answer(call) for call in calls)


def steps_of_case(case: GeneratedCase) -> Iterator[Step]:
    """One step per reference call, and one per user turn that needs no call, with ids "<case>#<turn>.<call>".

    The prompt is that of `all_rows`, with the earlier calls of the turn and their results. Raises TaskError.
    """
    for number, index, state, messages in _positions(case):
        turn = case.turns[number]
        tools, reference = case_tools(case.classes, turn.without), turn.reference[index : index + 1]
        task = Task(f"{case.id}#{number}.{index}", tuple(messages), tools, reference, root=case.id)
        yield Step(task, state.copy(), turn.reference[index + 1 :])


def step_tasks(case: GeneratedCase) -> Iterator[Task]:
    """The tasks of `steps_of_case` with the columns of a step-task file, so that their calls can be made.

    The dialogue's calls bring the environment to the turn. It has all functions of the classes; those held back are
    not among the task's tools. Raises TaskError.
    """
    scenario = _scenario(case)
    for step in steps_of_case(case):
        columns: dict[str, Any] = {"environment": "bfcl", "classes": list(case.classes), "scenario": scenario}
        if step.task.reference:
            columns["following"] = _following(step)
        messages: Any = step.task.prompt
        yield replace(step.task, columns=columns, history=dialogue_results(messages), root=step.task.id)


def _following(step: Step) -> list[list[dict[str, Any]]]:
    """The calls of the user turn after a step, one by one, then none: then the assistant ends."""
    turns: list[list[dict[str, Any]]] = []
    for call in step.ahead:
        if check_call(call, step.task.tools) is not None:  # some of BFCL's own call what is held back
            return turns
        turns.append([call_fields(call)])
    return [*turns, []]


def official_cases(category: str) -> Iterator[GeneratedCase]:
    """BFCL's own cases of a multi-turn category. They are its test: train on none of them."""
    return map(official_case, multi_turn_cases(category))


@cache
def case_tools(classes: tuple[str, ...], without: tuple[str, ...]) -> tuple[Mapping[str, Any], ...]:
    """The schemas of the classes' documented functions, except `without`; steps with the same tools share them."""
    names = [name for class_name in classes for name in class_docs(class_name)]
    return tuple(official_schema(name) for name in names if name not in without)


def official_case(case: MultiTurnCase) -> GeneratedCase:
    """One of BFCL's own multi-turn cases as a GeneratedCase."""
    held_out = {str(doc["name"]) for docs in case.added.values() for doc in docs}
    turns = []
    for number, (messages, reference) in enumerate(zip(case.turns, case.reference, strict=True)):
        held_out -= {str(doc["name"]) for doc in case.added.get(number, ())}
        request = "\n".join(str(message["content"]) for message in messages) or "The missing tools are there now."
        turns.append(UserTurn(request, tuple(reference), tuple(sorted(held_out))))
    return GeneratedCase(case.id, case.classes, case.config, tuple(turns), long_context=case.long_context)


def _positions(case: GeneratedCase) -> Iterator[tuple[int, int, BfclState, list[dict[str, Any]]]]:
    """Make the reference calls of a case one by one; before each, and once for a turn without calls, yield:

    the number of the turn, the number of the call in it, the state, and a copy of the chat messages so far.
    """
    state = new_state(case.classes, case.config, case.long_context)
    messages: list[dict[str, Any]] = [{"role": "system", "content": SYSTEM}]
    for number, turn in enumerate(case.turns):
        messages.append({"role": "user", "content": turn.request})
        if not turn.reference:
            yield number, 0, state, list(messages)
        for index, call in enumerate(turn.reference):
            yield number, index, state, list(messages)
            result = state.call(call)
            if state.error is not None:
                raise TaskError(f"case {case.id!r}, turns[{number}]: {call.name} fails: {result}")
            function = {"type": "function", "function": call_fields(call)}
            messages.append({"role": "assistant", "content": "", "tool_calls": [function]})
            messages.append({"role": "tool", "name": call.name, "content": result})
        last_message = DONE if turn.reference else NO_TOOL if turn.without else NEED_MORE
        messages.append({"role": "assistant", "content": last_message})


def load_cases(path: str | Path) -> list[GeneratedCase]:
    """Read a case file (see docs/tasks.md). TaskFileError names the first mistake."""
    path = Path(path)
    cases = read_task_rows(path, "case file", _read_case)
    if not cases:
        raise TaskFileError(f"{path}: no cases in it; make some with `fission-grpo tasks generate`")
    return cases


def check_cases(path: str | Path) -> str:
    """Load a case file and run every reference through its environment and the official checker.

    Returns a summary of the file. TaskFileError names the first case that cannot be read, fails, or is judged wrong.
    """
    cases = load_cases(path)
    for case in cases:
        try:
            check_case(case)
        except TaskError as error:
            raise TaskFileError(f"{path}, case {case.id!r}: {error}; correct its reference or config") from None
    calls = Counter(len(turn.reference) for case in cases for turn in case.turns)
    spread = ", ".join(f"{n} call{'s' * (n != 1)}: {count}" for n, count in sorted(calls.items()))
    return f"{path}: ok, {len(cases)} cases, {calls.total()} user turns ({spread}); all pass the official checker"


def check_case(case: GeneratedCase) -> None:
    """Raise TaskError unless the reference passes, by turn in our environments and as a case officially."""
    for row, turn in zip(all_rows([case]), case.turns, strict=True):
        environment = environment_of(row["environment"])()
        environment.reset(**row)
        for call in turn.reference:
            if not hasattr(environment, call.name):
                raise TaskError(f"{row['id']}: {call.name} is held back in the turn that needs it")
            getattr(environment, call.name)(**call.arguments)
        if environment._reward() != 1.0 or environment._progress() != 1.0:
            raise TaskError(f"{row['id']}: the reference does not earn the reward")
    category = "multi_turn_long_context" if case.long_context else "multi_turn_base"
    entry = {"id": f"{category}_0", "initial_config": case.config, "involved_classes": list(case.classes)}
    reference = [turn.reference for turn in case.turns]
    verdict = judge_case(entry, [[[call] for call in turn] for turn in reference], reference)
    if not verdict.valid:
        raise TaskError(f"turns[{verdict.turn}]: judged {verdict.error}")


def _read_case(row: Mapping[str, Any], name: str) -> tuple[str, GeneratedCase]:
    for field, kind in (("id", str), ("classes", list), ("config", dict), ("turns", list)):
        is_valid = isinstance(row.get(field), kind) and (row[field] or field == "config")
        _require(is_valid, field, f"a non-empty {kind.__name__}", row.get(field))
    for i, class_name in enumerate(row["classes"]):
        _require(class_name in FILES, f"classes[{i}]", f"one of {', '.join(FILES)}", class_name)
    variant = row.get("variant", "base")
    _require(variant in VARIANTS, "variant", f"one of {', '.join(VARIANTS)}", variant)
    functions = {name for class_name in row["classes"] for name in class_docs(class_name)}
    turns = tuple(_read_turn(turn, f"turns[{i}]", functions) for i, turn in enumerate(row["turns"]))
    long_context = row.get("long_context", False)
    _require(isinstance(long_context, bool), "long_context", "true or false", long_context)
    return row["id"], GeneratedCase(row["id"], tuple(row["classes"]), row["config"], turns, variant, long_context)


def _read_turn(turn: Any, at: str, functions: set[str]) -> UserTurn:
    has_request = isinstance(turn, dict) and isinstance(turn.get("request"), str) and turn["request"].strip()
    _require(has_request, f"{at}.request", "a non-empty string", turn)
    reference: Any = turn.get("reference")
    _require(isinstance(reference, list), f"{at}.reference", "a list of calls", reference)
    for i, call in enumerate(reference):
        is_call = isinstance(call, dict) and isinstance(call.get("arguments"), dict)
        _require(is_call, f"{at}.reference[{i}]", '{"name": "...", "arguments": {...}}', call)
        _check_function(call.get("name"), f"{at}.reference[{i}].name", functions)
    without = turn.get("without", [])
    _require(isinstance(without, list), f"{at}.without", "a list of function names", without)
    for i, name in enumerate(without):
        _check_function(name, f"{at}.without[{i}]", functions)
    calls = tuple(ToolCall(call["name"], call["arguments"]) for call in reference)
    return UserTurn(turn["request"], calls, tuple(without))


def _require(is_valid: Any, field: str, what: str, value: Any) -> None:
    if not is_valid:
        raise RowError(field, f"must be {what}, got {quoted(value)}")


def _check_function(name: Any, at: str, functions: set[str]) -> None:
    if name not in functions:
        raise RowError(at, f"{quoted(name)} is no function of the case's classes; correct it or add its class")
