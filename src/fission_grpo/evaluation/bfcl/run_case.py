"""Run BFCL's multi-turn cases with the loop of the official runner (`bfcl_eval.model_handler.base_handler`).

A user turn ends with the first reply in which no call is decoded; the 21st reply with calls in one turn ends the case,
as officially. A call that cannot be decoded counts as no call (mode "strict", as officially), or is answered with
`{"error": ...}` and the turn goes on (mode "feedback", to be reported separately). Verdicts are official in both.
"""

from __future__ import annotations

import ast
import re
import time
from collections.abc import Generator, Mapping, Sequence
from functools import cache, partial
from typing import Any

from fission_grpo.core.chat import read_result
from fission_grpo.core.errors import ExitAttempt, TimeLimitExceeded
from fission_grpo.core.timing import contained
from fission_grpo.core.tool_schema import classify_call
from fission_grpo.core.types import ToolCall, ToolResult
from fission_grpo.envs.bfcl.functions import class_docs, official_schema
from fission_grpo.envs.bfcl.judge import judge_turn
from fission_grpo.envs.bfcl.official import MultiTurnCase
from fission_grpo.envs.bfcl.state import BfclState, new_state
from fission_grpo.envs.wrapper import ToolLimits
from fission_grpo.evaluation.bfcl.decoding import OfficialCall, clean, parse_expression
from fission_grpo.evaluation.bfcl.formats import Conversation, Unrenderable, new_conversation
from fission_grpo.evaluation.records import CallRecord, CaseRecord, StepRecord, TurnRecord, request_text
from fission_grpo.evaluation.runner import RunningCase
from fission_grpo.inference.base import Reply, Request

MODEL = "Qwen_Qwen3_8B"  # part of the executor's variable names, as when Qwen3-8B is evaluated officially
MODES = ("strict", "feedback")

# Official `error_type`s of a case that ended before its last turn, and of one on which the handler failed.
FORCED, INFERENCE_ERROR = "multi_turn:force_terminated", "multi_turn:inference_error"
TIMEOUT = "tool_timeout"  # our verdict on a case that ended with a call beyond the time limit [ours]

_REFUSED = ("kill", "exit", "quit", "remove", "unlink", "popen", "Popen", "run")
_NAME_BEFORE_BRACKET = re.compile(r"\b([a-zA-Z_]\w*)\s*(?=\()")


def executor_variables(state: BfclState, case_id: str) -> Mapping[str, str]:
    """The official executor's variable for each documented function of a state.

    Example: "ls" has "Qwen_Qwen3_8B_multi_turn_base_0_GorillaFileSystem_instance" in "multi_turn_base_0".
    """
    return {
        name: re.sub(r"[-./:]", "_", f"{MODEL}_{case_id}_{class_name}_instance")
        for class_name in state.instances
        for name in class_docs(class_name)
    }


def execute(state: BfclState, source: str, variables: Mapping[str, str]) -> str:
    """Execute the source of one call, such as "cd(folder='a')", with the variables of `executor_variables`.

    Returns the official result text, and sets `state.error` as `BfclState.call` does.
    """

    def with_variable(match: re.Match[str]) -> str:
        return f"{variables[match[1]]}.{match[1]}" if match[1] in variables else match[1]

    state.error = None
    try:
        rewritten = _NAME_BEFORE_BRACKET.sub(with_variable, source)
        name = rewritten.split("(")[0]
        name = name.split(".")[1] if "." in name else name
        if name in _REFUSED:
            raise ValueError(f"Function call {name} is not allowed.")
        node = parse_expression(rewritten.lstrip(" \t"))
        if isinstance(node, ast.Call):
            return state.call(_evaluate_call(state, node, variables))
        raise ValueError(f"not a call: {source}")
    except Exception as error:  # noqa: BLE001 - as in the official executor, every error is the call's result
        state.error = error
        return f"Error during execution: {error}"


def _evaluate_call(state: BfclState, node: ast.Call, variables: Mapping[str, str]) -> ToolCall:
    """The call with its arguments evaluated. Raises NameError for anything but a documented function, as `eval`."""
    function = node.func
    name = function.attr if isinstance(function, ast.Attribute) else ""
    if name not in variables or ast.unparse(function) != f"{variables[name]}.{name}":
        while isinstance(function, ast.Attribute | ast.Call):
            function = function.value if isinstance(function, ast.Attribute) else function.func
        raise NameError(f"name '{ast.unparse(function)}' is not defined")
    if node.args:
        raise TypeError(f"{name}() takes keyword arguments here")
    arguments = {str(keyword.arg): _evaluate(state, keyword.value, variables) for keyword in node.keywords}
    return ToolCall(name, arguments)


def _evaluate(state: BfclState, node: ast.expr, variables: Mapping[str, str]) -> Any:
    match node:
        case ast.Call():
            return state.value(_evaluate_call(state, node, variables))
        case ast.Name():
            raise NameError(f"name '{node.id}' is not defined")
        case ast.List():
            return [_evaluate(state, item, variables) for item in node.elts]
        case ast.Tuple():
            return tuple(_evaluate(state, item, variables) for item in node.elts)
        case ast.Dict():
            evaluated = {}
            for key, value in zip(node.keys, node.values, strict=True):
                if key is not None:
                    evaluated[_evaluate(state, key, variables)] = _evaluate(state, value, variables)
            return evaluated
    return ast.literal_eval(node)


class CaseState:
    """The states of a case under way: after the policy's calls and, separately, after the reference's."""

    def __init__(self, case: MultiTurnCase, tool_timeout: float = ToolLimits.timeout):
        self._case, self._tool_timeout = case, tool_timeout
        self._state, self._truth = (new_state(case.classes, case.config, case.long_context) for _ in range(2))
        self._variables = executor_variables(self._state, case.id)
        self._results: list[str] = []
        self._turn, self._has_called = 0, False
        self.verdict: str | None = None  # the official `error_type` of the first turn that was wrong, or TIMEOUT

    def execute(self, calls: Sequence[OfficialCall]) -> tuple[CallRecord, ...]:
        """Execute the calls of one step, in order, up to one that exceeds the time limit, after which nothing is run.

        Each record's `result` is what the policy is shown.
        """
        self._has_called = self._has_called or bool(calls)
        records: list[CallRecord] = []
        for call in calls if self.verdict != TIMEOUT else ():
            records.append(self._execute(call))
            if self.verdict == TIMEOUT:
                break
        return tuple(records)

    def end_turn(self) -> bool:
        """End the user turn; returns whether all is right so far. A turn beyond the reference's never is."""
        if self._turn >= len(self._case.reference):
            self.verdict = self.verdict or FORCED
        if self.verdict is None:
            expected = [self._truth.call(call) for call in self._case.reference[self._turn]]
            self.verdict = judge_turn(self._state, self._truth, self._results, expected, self._has_called)
        self._turn, self._has_called = self._turn + 1, False
        return self.verdict is None

    def _execute(self, call: OfficialCall) -> CallRecord:
        try:
            make = partial(execute, self._state, call.source, self._variables)
            text = contained(make, call.name, self._tool_timeout, "It is C code of the simulator.")
        except (TimeLimitExceeded, ExitAttempt) as error:
            self._state.error, text = error, f"Error during execution: {error}"
            if isinstance(error, TimeLimitExceeded):
                self.verdict = TIMEOUT
        self._results.append(text)
        executed = ToolCall(call.name, call.arguments)
        if self._state.error is not None:
            error = str(self._state.error) or type(self._state.error).__name__
        else:
            error = read_result(executed, text).error if '"error"' in text else None
        problem = classify_call(executed, ToolResult(executed, text, error), _schemas(tuple(self._state.instances)))
        error, kind = (clean(problem.message), problem.kind) if problem else (None, None)
        return CallRecord(call.name, call.arguments, clean(text), error, kind)


@cache
def _schemas(classes: tuple[str, ...]) -> tuple[dict[str, Any], ...]:
    return tuple(official_schema(name) for class_name in classes for name in class_docs(class_name))


def run_case(
    case: MultiTurnCase, format: str = "qwen-fc", mode: str = "strict", tool_timeout: float = ToolLimits.timeout
) -> RunningCase:
    """Run a case of `official.multi_turn_cases` in a format of `formats.FORMATS`, and judge it.

    A call that runs longer than `tool_timeout` seconds (0: no limit) ends the case, which has failed. Raises
    ValueError if there is no such format or mode (when the case starts).
    """
    if mode not in MODES:
        raise ValueError(f"no mode {mode!r}; there are {', '.join(MODES)}")
    started = time.monotonic()
    conversation, state = new_conversation(format, case.functions), CaseState(case, tool_timeout)
    turns: list[TurnRecord] = []
    verdict = missing = None
    for number, messages in enumerate(case.turns):
        conversation.add_user_turn(messages, case.added.get(number, ()))
        steps: list[StepRecord] = []
        try:
            missing, verdict = yield from _run_turn(conversation, state, mode, steps)
        except Unrenderable:
            verdict = INFERENCE_ERROR
        if verdict == FORCED and number == len(case.turns) - 1:
            verdict = None  # it ended where the case ends
        turns.append(TurnRecord(tuple(steps), None if missing else state.end_turn(), request_text(messages)))
        if verdict or missing:
            break
    verdict = None if missing is not None else verdict or state.verdict
    success = None if missing is not None else verdict is None
    return CaseRecord(case.id, case.category, tuple(turns), success, verdict, missing, time.monotonic() - started)


def _run_turn(
    conversation: Conversation, state: CaseState, mode: str, steps: list[StepRecord]
) -> Generator[Request, Reply, tuple[str | None, str | None]]:
    """Run one user turn, adding to `steps`; returns why a reply is missing, and FORCED at the limit of steps."""
    from bfcl_eval.constants.default_prompts import MAXIMUM_STEP_LIMIT

    for _ in range(MAXIMUM_STEP_LIMIT + 1):
        reply = yield conversation.request()
        if reply.lost is not None:
            return reply.lost, None
        decoded = conversation.add_reply(reply)
        calls = state.execute(decoded.calls)
        steps.append(StepRecord(reply.text, calls, decoded.unread, reply.tokens, reply.truncated))
        error = decoded.unread if mode == "feedback" else None
        if not calls and error is None:
            return None, None
        if state.verdict == TIMEOUT:
            return None, TIMEOUT
        if calls:
            conversation.add_results(decoded, [call.result for call in calls])
        if error is not None:
            conversation.add_error(error)
    return None, FORCED
