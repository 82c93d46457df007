"""The official judge of BFCL's multi-turn categories on our own worlds: state and responses, turn by turn.

`state_checker` and `response_checker` are bfcl-eval's own; the order in which they are asked is that of its
`multi_turn_checker`.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fission_grpo.core.types import ToolCall
from fission_grpo.envs.bfcl.functions import class_docs, class_of
from fission_grpo.envs.bfcl.state import World, new_world

Transcript = Sequence[Sequence[Sequence[ToolCall]]]
"""Calls by user turn and step (assistant turn)."""


@dataclass(frozen=True)
class CaseVerdict:
    """Whether a transcript is valid; if not, the first turn that is not, and the official `error_type`."""

    valid: bool
    turn: int | None = None
    error: str | None = None


def judge_turn(
    ours: World, truth: World, results_so_far: Sequence[str], truth_results: Sequence[str], called: bool, turn: int
) -> CaseVerdict:
    """Judge one user turn after its calls.

    Args:
        ours: the world after the policy's calls.
        truth: the world after the reference's.
        results_so_far: results of all the policy's calls, earlier turns included.
        truth_results: results of this turn's reference; empty: nothing is checked now, as officially.
        called: whether the policy made any call in this turn.
        turn: number of the turn, for the verdict.
    """
    from bfcl_eval.eval_checker.multi_turn_eval.multi_turn_checker import response_checker, state_checker

    if not truth_results:
        return CaseVerdict(True)
    if not called:
        return CaseVerdict(False, turn, "multi_turn:empty_turn_model_response")
    for check in (
        lambda: state_checker(ours.instances, truth.instances),
        lambda: response_checker(list(results_so_far), list(truth_results), turn),
    ):
        verdict = check()
        if not verdict["valid"]:
            return CaseVerdict(False, turn, str(verdict["error_type"]))
    return CaseVerdict(True)


def judge_case(entry: dict[str, Any], transcript: Transcript, reference: Sequence[Sequence[ToolCall]]) -> CaseVerdict:
    """Judge a whole transcript of an official case.

    Args:
        entry: the case as in BFCL's data (`id`, `initial_config`, `involved_classes`).
        transcript: what the policy called.
        reference: the ground truth's calls, by turn.
    """
    long_context = any(word in entry["id"].rsplit("_", 1)[0] for word in ("long_context", "composite"))
    ours, truth = (new_world(entry["involved_classes"], entry["initial_config"], long_context) for _ in range(2))
    results: list[str] = []
    for turn, expected in enumerate(reference):
        steps = transcript[turn]
        results += [ours.call(call) for step in steps for call in step]
        called = bool(steps) and not (len(steps) == 1 and not steps[0])
        verdict = judge_turn(ours, truth, results, [truth.call(call) for call in expected], called, turn)
        if not verdict.valid:
            return verdict
    return CaseVerdict(True)


def read_call(text: str) -> ToolCall:
    """A call of the official ground truth, such as "cd(folder='document')", without running it.

    Positional arguments get the docs' names in the docs' order.

    Raises:
        ValueError: it is no call of a documented function with literal arguments.
    """
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"not a call: {text!r} ({error.msg})") from None
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        raise ValueError(f"not a call: {text!r}")
    names = list(class_docs(class_of(node.func.id))[node.func.id]["parameters"]["properties"])
    if len(node.args) > len(names) or any(keyword.arg is None for keyword in node.keywords):
        raise ValueError(f"too many or unnamed arguments: {text!r}")
    given = [*zip(names, node.args, strict=False), *((str(keyword.arg), keyword.value) for keyword in node.keywords)]
    try:
        return ToolCall(node.func.id, {name: ast.literal_eval(value) for name, value in given})
    except (ValueError, TypeError):
        raise ValueError(f"arguments are no literals: {text!r}") from None


def write_call(call: ToolCall) -> str:
    """The call as the official checker reads it: Python source.

    Example:
        `write_call(ToolCall("cd", {"folder": "a"}))` is "cd(folder='a')"
    """
    return f"{call.name}({', '.join(f'{name}={value!r}' for name, value in call.arguments.items())})"
