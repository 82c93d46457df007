"""Fission itself: a failed rollout and a feedback text become a task (paper, stage 2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fission_grpo.core.chat import turn_messages
from fission_grpo.core.serialization import recovery_id, task_from_json, task_to_json
from fission_grpo.core.special_tokens import SpecialTokenFilter
from fission_grpo.core.types import (
    ErrorKind,
    Failure,
    Message,
    Task,
)
from fission_grpo.feedback.request import Feedback


@dataclass(frozen=True)
class CorrectiveInstance:
    """x_corr = [x; failed rollout; feedback] (paper, stage 2) with where it came from.

    `task.id` is derived from the task and the failed rollout's text, so equal ids mean the same failure.
    `zero_std` tells whether all rewards of the group it came from were equal (no gradient there),
    `group_success` which share of that group's rollouts succeeded.
    """

    task: Task
    step: int
    kind: ErrorKind
    source: str
    feedback: str
    failed: str
    reward: float
    leaked: bool = False
    fallback: str | None = None
    zero_std: bool = False
    group_success: float = 0.0

    def to_json(self) -> dict[str, Any]:
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in ("task", "kind")}
        return {**fields, "kind": str(self.kind), "task": task_to_json(self.task)}

    @staticmethod
    def from_json(state: dict[str, Any]) -> CorrectiveInstance:
        return CorrectiveInstance(**{**state, "kind": ErrorKind(state["kind"]), "task": task_from_json(state["task"])})


AS_TOOL_RESULT = frozenset(
    {ErrorKind.UNPARSED, ErrorKind.UNKNOWN_TOOL, ErrorKind.BAD_ARGUMENTS, ErrorKind.RAISED, ErrorKind.WRONG_CALL}
)
"""Kinds whose feedback is what a runtime would answer to the call; the others are told by the user."""


def recovery_task(failure: Failure, feedback: str, control: SpecialTokenFilter | None = None) -> Task:
    """x_corr = [x; failed rollout; feedback]: the same type the data set yields, one deeper.

    The prompt continues the failed task's with exactly what the policy wrote, its tool results, and the feedback:
    as the failing call's result if there was a call, else as a user message. A plain-string prompt continues as
    text: prompt, rollout, feedback, separated by blank lines. `history` gains every call made so far, so that an
    environment can be brought back to this point.

    Args:
        failure: the failed rollout.
        feedback: what it is told.
        control: of the policy's tokenizer. Control tokens that tool results, feedback or the policy's own text spell
            are broken up, so that none of them forges a turn; the data's own messages stay as they are.
    """
    task, control = failure.task, control or SpecialTokenFilter()
    if isinstance(task.prompt, str):
        written, told = control.sanitize_assistant(failure.turns[-1].text), control.sanitize(feedback)
        prompt: str | tuple[Message, ...] = "\n\n".join((task.prompt + written, told, ""))
    else:
        own = [message for turn in failure.turns[:-1] for message in turn_messages(turn)]
        own += _failing_turn_messages(failure, feedback)
        prompt = (*task.prompt, *control.sanitize_messages(own))
    return Task(
        id=recovery_id(failure),
        prompt=prompt,
        tools=task.tools,
        reference=task.reference,
        columns=task.columns,
        history=task.history + tuple(result for turn in failure.turns for result in turn.results),
        root=task.root,
        parent=task.id,
        depth=task.depth + 1,
    )


def corrective_instance(
    failure: Failure,
    feedback: Feedback,
    step: int,
    zero_std: bool,
    group_success: float = 0.0,
    control: SpecialTokenFilter | None = None,
) -> CorrectiveInstance:
    """The recovery task with its provenance, as the buffer keeps it. `step` is the optimizer step of the failure."""
    return CorrectiveInstance(
        task=recovery_task(failure, feedback.text, control),
        step=step,
        kind=failure.kind,
        source=feedback.source,
        feedback=feedback.text,
        failed=failure.turns[-1].text,
        reward=failure.reward or 0.0,
        leaked=feedback.leaked,
        fallback=feedback.fallback,
        zero_std=zero_std,
        group_success=group_success,
    )


def _failing_turn_messages(failure: Failure, feedback: str) -> list[Message]:
    turn, index = failure.turns[-1], failure.call_index
    messages = turn_messages(turn)
    if turn.results and (index is not None or turn.error is not None):
        index = index or 0
        told = turn.results[index].content
        if feedback not in told:  # the environment's own message stays as it is
            messages[1 + index] = {**messages[1 + index], "content": f"{told}\n{feedback}"}
    elif failure.kind in AS_TOOL_RESULT:
        name = turn.calls[index or 0].name if turn.calls else "error"
        messages.append({"role": "tool", "name": name, "content": feedback})
    else:
        messages.append({"role": "user", "content": feedback})
    return messages


def select(
    failures: Iterable[Sequence[Failure]], max_depth: int, known: Callable[[str], bool]
) -> tuple[list[Failure], int]:
    """One rollout's failures per root task, the first new ones not too deep; also how many were already known.

    Args:
        failures: this cycle's, per failed rollout, in order (see `failure.find_failures`).
        max_depth: deepest recovery task allowed; a failed task of this depth is not fissioned again.
        known: tells whether a `recovery_id` is in the buffer already.
    """
    chosen: dict[str, list[Failure]] = {}
    duplicates = 0
    for found in failures:
        if not found or found[0].task.depth >= max_depth or found[0].task.root in chosen:
            continue
        new = [failure for failure in found if not known(recovery_id(failure))]
        duplicates += len(found) - len(new)
        if new:
            chosen[found[0].task.root] = new
    return [failure for some in chosen.values() for failure in some], duplicates
