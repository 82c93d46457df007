"""BFCL cases as plays, with the loop of the official runner (`bfcl_eval.model_handler.base_handler`).

A user turn ends with the first reply in which no call is read; the 21st reply with calls in one turn ends the case
(`MAXIMUM_STEP_LIMIT` is 20, and officially the limit is noticed one step late). Modes:

- "strict": as officially. A call that cannot be read is as good as no call.
- "told": a call that cannot be read is answered with `{"error": ...}`, and the turn goes on. To be reported apart.

Verdicts are official in both, and for the files that `results.write_result_files` makes of the records.
"""

from __future__ import annotations

import ast
import re
import time
import warnings
from collections.abc import Generator, Mapping, Sequence
from functools import cache
from typing import Any

from fission_grpo.core.chat import read_result
from fission_grpo.core.tool_schema import check_call
from fission_grpo.core.types import ErrorKind, ToolCall
from fission_grpo.envs.bfcl.functions import class_docs, official_schema
from fission_grpo.envs.bfcl.judge import judge_turn
from fission_grpo.envs.bfcl.official import MultiTurnCase, SingleTurnCase
from fission_grpo.envs.bfcl.state import World, new_world
from fission_grpo.evaluation.bfcl.decoding import OfficialCall, Undecodable, clean
from fission_grpo.evaluation.bfcl.formats import Dialogue, Unrenderable, new_dialogue
from fission_grpo.evaluation.bfcl.single_turn import judge_single
from fission_grpo.evaluation.records import (
    CallRecord,
    CaseRecord,
    StepRecord,
    TurnRecord,
)
from fission_grpo.evaluation.runner import Play
from fission_grpo.inference.base import Reply, Request

MODEL = "Qwen_Qwen3_8B"
"""Part of the hidden variables' names, as when Qwen3-8B is evaluated officially."""


_REFUSED = ("kill", "exit", "quit", "remove", "unlink", "popen", "Popen", "run")


_NAME_BEFORE_BRACKET = re.compile(r"\b([a-zA-Z_]\w*)\s*(?=\()")


def hidden_names(world: World, case_id: str) -> Mapping[str, str]:
    """The official executor's variable for each documented function of a world.

    Example:
        "ls" has "Qwen_Qwen3_8B_multi_turn_base_0_GorillaFileSystem_instance" in "multi_turn_base_0".
    """
    return {
        name: re.sub(r"[-./:]", "_", f"{MODEL}_{case_id}_{class_name}_instance")
        for class_name in world.instances
        for name in class_docs(class_name)
    }


def execute(world: World, source: str, hidden: Mapping[str, str]) -> str:
    """Make one call; returns the official result text, and sets `world.error` as `World.call` does.

    Args:
        world: changed by the call.
        source: as decoded from a reply, such as "cd(folder='a')".
        hidden: of `hidden_names`.
    """
    world.error = None
    try:
        rewritten = _NAME_BEFORE_BRACKET.sub(lambda found: _prefixed(found[1], hidden), source)
        _refuse(rewritten)
        node = _parsed(rewritten)
        if isinstance(node, ast.Call):
            return world.call(_call(world, node, hidden))
        raise ValueError(f"not a call: {source}")
    except Exception as error:  # noqa: BLE001 - as in the official executor, every error is the call's answer
        world.error = error
        return f"Error during execution: {error}"


def _prefixed(name: str, hidden: Mapping[str, str]) -> str:
    return f"{hidden[name]}.{name}" if name in hidden else name


def _refuse(source: str) -> None:
    name = source.split("(")[0]
    name = name.split(".")[1] if "." in name else name
    if name in _REFUSED:
        raise ValueError(f"Function call {name} is not allowed.")


def _parsed(source: str) -> ast.expr:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in the text are not our code's
        return ast.parse(source.lstrip(" \t"), "<string>", "eval").body


def _call(world: World, node: ast.Call, hidden: Mapping[str, str]) -> ToolCall:
    """The call with its arguments evaluated. Raises NameError for anything but a documented function, as `eval`."""
    function = node.func
    match function:
        case ast.Attribute(value=ast.Name(id=variable), attr=name) if hidden.get(name) == variable:
            pass
        case _:
            while isinstance(function, ast.Attribute | ast.Call):
                function = function.value if isinstance(function, ast.Attribute) else function.func
            raise NameError(f"name '{ast.unparse(function)}' is not defined")
    if node.args:
        raise TypeError(f"{name}() takes keyword arguments here")
    return ToolCall(name, {str(one.arg): _value(world, one.value, hidden) for one in node.keywords})


def _value(world: World, node: ast.expr, hidden: Mapping[str, str]) -> Any:
    match node:
        case ast.Constant():
            return node.value
        case ast.Call():
            return world.value(_call(world, node, hidden))
        case ast.Name():
            raise NameError(f"name '{node.id}' is not defined")
        case ast.List():
            return [_value(world, item, hidden) for item in node.elts]
        case ast.Tuple():
            return tuple(_value(world, item, hidden) for item in node.elts)
        case ast.Dict():
            pairs = zip(node.keys, node.values, strict=True)
            return {_value(world, key, hidden): _value(world, value, hidden) for key, value in pairs if key}
    return ast.literal_eval(node)


FORCED = "multi_turn:force_terminated"


INFERENCE_ERROR = "multi_turn:inference_error"
"""Official `error_type`s of cases that are not judged: not every turn was played, or the handler itself failed."""


class Trial:
    """One case being played, in a world of its own beside the reference's.

    Attributes:
        verdict: the official `error_type` of the first turn that was wrong, None so far.
    """

    def __init__(self, case: MultiTurnCase):
        self._case = case
        self._world, self._truth = (new_world(case.classes, case.config, case.long_context) for _ in range(2))
        self._hidden = hidden_names(self._world, case.id)
        self._results: list[str] = []
        self._turn, self._called = 0, False
        self.verdict: str | None = None

    def make(self, calls: Sequence[OfficialCall]) -> tuple[CallRecord, ...]:
        """Make the calls of one step, in order. What the policy is shown stands in each record's `result`."""
        self._called = self._called or bool(calls)
        return tuple(self._make(call) for call in calls)

    def end_turn(self) -> bool:
        """End the user turn: whether everything up to here is right. A turn beyond the reference's never is."""
        if self._turn >= len(self._case.reference):
            self.verdict = self.verdict or FORCED
        if self.verdict is None:
            wanted = [self._truth.call(call) for call in self._case.reference[self._turn]]
            verdict = judge_turn(self._world, self._truth, self._results, wanted, self._called, self._turn)
            self.verdict = verdict.error
        self._turn, self._called = self._turn + 1, False
        return self.verdict is None

    def _make(self, call: OfficialCall) -> CallRecord:
        result = execute(self._world, call.source, self._hidden)
        self._results.append(result)
        made = ToolCall(call.name, call.arguments)
        if self._world.error is not None:
            error = str(self._world.error) or type(self._world.error).__name__
        else:
            error = read_result(made, result).error if '"error"' in result else None
        if error is None:
            return CallRecord(call.name, call.arguments, clean(result))
        return CallRecord(call.name, call.arguments, clean(result), clean(error), _kind(made, self._world))


def _kind(call: ToolCall, world: World) -> ErrorKind:
    problem = check_call(call, _schemas(tuple(world.instances)))
    return ErrorKind.RAISED if problem is None else problem.kind


@cache
def _schemas(classes: tuple[str, ...]) -> tuple[dict[str, Any], ...]:
    return tuple(official_schema(name) for class_name in classes for name in class_docs(class_name))


MODES = ("strict", "told")


class _Lost(Exception):
    """There is no reply; the message says why."""


class _ForcedToQuit(Exception):
    """The turn reached the limit of steps."""


def play_case(case: MultiTurnCase, format: str = "qwen-fc", mode: str = "strict") -> Play:
    """Play a multi-turn case to its end and judge it.

    Args:
        case: of `cases.multi_turn_cases`.
        format: of `formats.FORMATS`.
        mode: "strict" or "told".

    Raises:
        ValueError: no such format or mode (when the play begins).
    """
    if mode not in MODES:
        raise ValueError(f"no mode {mode!r}; there are {', '.join(MODES)}")
    began = time.monotonic()
    dialogue, trial = new_dialogue(format, case.functions), Trial(case)
    turns: list[TurnRecord] = []
    verdict = missing = None
    for number, messages in enumerate(case.turns):
        dialogue.say(messages, case.added.get(number, ()))
        steps: list[StepRecord] = []
        try:
            yield from _turn(dialogue, trial, told=mode == "told", steps=steps)
        except _Lost as lost:
            missing = str(lost)
        except Unrenderable:
            verdict = INFERENCE_ERROR
        except _ForcedToQuit:
            verdict = FORCED if number < len(case.turns) - 1 else None
        else:
            turns.append(TurnRecord(tuple(steps), trial.end_turn()))
            continue
        turns.append(TurnRecord(tuple(steps), None if missing else trial.end_turn()))
        if verdict or missing:
            break
    verdict = verdict or trial.verdict
    seconds = time.monotonic() - began
    if missing is not None:
        return CaseRecord(case.id, case.category, tuple(turns), missing=missing, seconds=seconds)
    return CaseRecord(case.id, case.category, tuple(turns), verdict is None, verdict, seconds=seconds)


def play_single(case: SingleTurnCase, format: str = "qwen-fc") -> Play:
    """Ask a single-turn case and judge the one reply. Its calls are not executed, so they have no results."""
    began = time.monotonic()
    dialogue = new_dialogue(format, case.functions)
    dialogue.say(case.messages)
    try:
        reply = yield from _ask(dialogue)
    except _Lost as lost:
        return CaseRecord(case.id, case.category, missing=str(lost), seconds=time.monotonic() - began)
    unread = dialogue.hear(reply).unread
    try:
        calls = dialogue.single(reply)
        verdict = judge_single(case, calls)
    except Undecodable:
        calls, verdict = [], judge_single(case, None)
    made = tuple(CallRecord(clean(str(name)), clean(arguments)) for call in calls for name, arguments in call.items())
    step = StepRecord(reply.text, made, unread, reply.tokens, reply.truncated)
    turn = TurnRecord((step,), verdict is None)
    return CaseRecord(case.id, case.category, (turn,), verdict is None, verdict, seconds=time.monotonic() - began)


def scripted_calls(calls: tuple[ToolCall, ...]) -> str:
    """A reply in the format "qwen-fc" that makes these calls: what a policy that knows the answer writes."""
    from fission_grpo.core.chat import render_call

    return "\n".join(render_call(call) for call in calls)


def _turn(dialogue: Dialogue, trial: Trial, told: bool, steps: list[StepRecord]) -> Generator[Request, Reply, None]:
    """Play one user turn, adding to `steps`.

    Raises:
        _Lost: there was no reply.
        _ForcedToQuit: too many steps.
        Unrenderable: as `Dialogue.request`.
    """
    from bfcl_eval.constants.default_prompts import MAXIMUM_STEP_LIMIT

    for _ in range(MAXIMUM_STEP_LIMIT + 1):
        reply = yield from _ask(dialogue)
        decoded = dialogue.hear(reply)
        made = trial.make(decoded.calls)
        steps.append(StepRecord(reply.text, made, decoded.unread, reply.tokens, reply.truncated))
        tell = decoded.unread if told else None
        if not made and tell is None:
            return
        if made:
            dialogue.answer(decoded, [call.result for call in made])
        if tell is not None:
            dialogue.tell(tell)
    raise _ForcedToQuit


def _ask(dialogue: Dialogue) -> Generator[Request, Reply, Reply]:
    reply = yield dialogue.request()
    if reply.lost is not None:
        raise _Lost(reply.lost)
    return reply
