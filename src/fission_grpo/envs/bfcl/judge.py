"""The official judge of BFCL's multi-turn categories, applied to `BfclState`: state and responses, turn by turn.

`state_checker` and `response_checker` are bfcl-eval's own and are called in the order of its `multi_turn_checker`.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fission_grpo.core.types import ToolCall
from fission_grpo.envs.bfcl.functions import function_doc
from fission_grpo.envs.bfcl.state import BfclState, new_state

Transcript = Sequence[Sequence[Sequence[ToolCall]]]  # calls by user turn and step (assistant turn)


@dataclass(frozen=True)
class CaseVerdict:
    """Whether a transcript is valid; if not, the first invalid turn and the official `error_type`."""

    valid: bool
    turn: int | None = None
    error: str | None = None


def judge_turn(
    state: BfclState, expected_state: BfclState, results: Sequence[str], expected_results: Sequence[str], called: bool
) -> str | None:
    """Judge one user turn after its calls; returns the official `error_type`, None if the turn is right.

    Args:
        state, expected_state: after the calls of the policy, and after those of the reference.
        results: of all the policy's calls, earlier turns included.
        expected_results: of this turn's reference. If empty, nothing is checked, as officially.
        called: whether the policy made any call in this turn.
    """
    from bfcl_eval.eval_checker.multi_turn_eval.multi_turn_checker import response_checker, state_checker

    if not expected_results:
        return None
    if not called:
        return "multi_turn:empty_turn_model_response"
    verdict = state_checker(state.instances, expected_state.instances)
    if verdict["valid"]:
        verdict = response_checker(list(results), list(expected_results), 0)
    return None if verdict["valid"] else str(verdict["error_type"])


def judge_case(entry: dict[str, Any], transcript: Transcript, reference: Sequence[Sequence[ToolCall]]) -> CaseVerdict:
    """Judge the transcript of a case (`entry`, as in BFCL's data) against the ground truth's calls by turn."""
    long_context = any(word in entry["id"].rsplit("_", 1)[0] for word in ("long_context", "composite"))
    classes, config = entry["involved_classes"], entry["initial_config"]
    state, expected_state = (new_state(classes, config, long_context) for _ in range(2))
    results: list[str] = []
    for turn, expected in enumerate(reference):
        steps = transcript[turn]
        results += [state.call(call) for step in steps for call in step]
        expected_results = [expected_state.call(call) for call in expected]
        called = bool(steps) and not (len(steps) == 1 and not steps[0])
        error = judge_turn(state, expected_state, results, expected_results, called)
        if error is not None:
            return CaseVerdict(False, turn, error)
    return CaseVerdict(True)


def read_call(text: str) -> ToolCall:
    """Parse a call of the official ground truth, such as "cd(folder='document')", without running it.

    Positional arguments get their names from the docs. Raises ValueError unless it is a call of a documented function
    with literal arguments.
    """
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"not a call: {text!r} ({error.msg})") from None
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        raise ValueError(f"not a call: {text!r}")
    names = list(function_doc(node.func.id)["parameters"]["properties"])
    if len(node.args) > len(names) or any(keyword.arg is None for keyword in node.keywords):
        raise ValueError(f"too many or unnamed arguments: {text!r}")
    arguments = dict(zip(names, node.args, strict=False))
    arguments |= {str(keyword.arg): keyword.value for keyword in node.keywords}
    try:
        return ToolCall(node.func.id, {name: ast.literal_eval(value) for name, value in arguments.items()})
    except (ValueError, TypeError):
        raise ValueError(f"arguments are no literals: {text!r}") from None


def write_call(call: ToolCall) -> str:
    """The call as the official checker reads it: Python source, such as "cd(folder='a')"."""
    return f"{call.name}({', '.join(f'{name}={value!r}' for name, value in call.arguments.items())})"
