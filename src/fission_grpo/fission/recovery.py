"""The corrective instance x_corr = [x; failed rollout; feedback] (paper, stage 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fission_grpo.core.chat import turn_messages
from fission_grpo.core.serialization import recovery_id, task_from_json, task_to_json
from fission_grpo.core.special_tokens import SpecialTokenFilter
from fission_grpo.core.tool_schema import tool_names
from fission_grpo.core.types import (
    FOLLOWING,
    PARSE_ERROR,
    ErrorKind,
    Failure,
    Message,
    Task,
    ToolCall,
    ToolResult,
    Turn,
)
from fission_grpo.feedback.leak_guard import is_message
from fission_grpo.feedback.request import Feedback

CONTINUED = "continued"  # source of an instance that goes on after a right recovery
AS_TOOL_RESULT = frozenset(
    {ErrorKind.UNPARSED, ErrorKind.UNKNOWN_TOOL, ErrorKind.BAD_ARGUMENTS, ErrorKind.RAISED, ErrorKind.WRONG_CALL}
)
"""Kinds whose feedback is a tool result, as a runtime would return it; for the others, and where no call was made, the
user says it. [ours]"""


@dataclass(frozen=True)
class CorrectiveInstance:
    """A recovery task with its provenance, as the buffer keeps it."""

    task: Task  # its id is a hash of the failed task and the rollout's text: equal ids mean the same failure
    step: int  # optimizer step of the failure
    kind: ErrorKind  # of the failure
    source: str  # name of the source that gave the feedback
    feedback: str  # its text
    failed: str  # text of the failing turn
    reward: float  # of the failed rollout
    leaked: bool = False  # whether a source gave the reference away; that text was not used
    fallback: str | None = None  # why the first source's text was not used, None if it was
    zero_std: bool = False  # whether all rewards of the failed rollout's group were equal (no gradient there)

    def to_json(self) -> dict[str, Any]:
        """Return the instance as JSON values; the inverse of `from_json`."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in ("task", "kind")}
        return {**fields, "kind": str(self.kind), "task": task_to_json(self.task)}

    @staticmethod
    def from_json(state: Mapping[str, Any]) -> CorrectiveInstance:
        """Build the instance that `to_json` wrote."""
        return CorrectiveInstance(**{**state, "kind": ErrorKind(state["kind"]), "task": task_from_json(state["task"])})


def corrective_instance(
    failure: Failure,
    feedback: Feedback,
    step: int,
    zero_std: bool,
    special_tokens: SpecialTokenFilter | None = None,
) -> CorrectiveInstance:
    """Build the corrective instance of a failure; for the arguments see `CorrectiveInstance` and `recovery_task`."""
    return CorrectiveInstance(
        task=recovery_task(failure, feedback.text, special_tokens, source=feedback.source),
        step=step,
        kind=failure.kind,
        source=feedback.source,
        feedback=feedback.text,
        failed=failure.turns[-1].text,
        reward=failure.reward or 0.0,
        leaked=feedback.leaked,
        fallback=feedback.fallback,
        zero_std=zero_std,
    )


def continued_task(
    task: Task, turn: Turn, results: Sequence[ToolResult], special_tokens: SpecialTokenFilter | None = None
) -> Task | None:
    """Build the task of the turn after a right recovery: the same dialogue, with the error in its history. [ours]

    Args:
        task: a recovery task of a step task; its column `following` has the calls of the turns after this one.
        turn: the right corrective turn.
        results: of its calls, in the task's environment.

    Returns:
        Task: of the same depth and root, with the first of `following` as reference; None if nothing follows.
    """
    following = task.columns.get(FOLLOWING)
    if not following:
        return None
    messages = turn_messages(replace(turn, results=tuple(results)))
    return Task(
        id=recovery_id(Failure(task, (turn,), ErrorKind.LOW_REWARD)),
        prompt=(*task.prompt, *(special_tokens or SpecialTokenFilter()).sanitize_messages(messages)),  # pyright: ignore
        tools=task.tools,
        reference=tuple(ToolCall(call["name"], call["arguments"]) for call in following[0]),
        columns={**task.columns, FOLLOWING: following[1:]},
        history=task.history + tuple(results),
        root=task.root,
        parent=task.id,
        depth=task.depth,
    )


def recovery_task(
    failure: Failure, feedback: str, special_tokens: SpecialTokenFilter | None = None, source: str = ""
) -> Task:
    """Build the recovery task of a failure: a task like those of the data set, one level deeper.

    The prompt continues the failed task's prompt with what the policy wrote, the tool results, and
    the feedback: as the failing call's result if there was a call, else as a user message. A prompt
    that is one string continues as text: prompt, rollout, feedback, separated by blank lines. The
    task's `history` gains every call made so far, so that an environment can be restored to this point.

    Args:
        failure: the failed rollout, cut after the turn to recover from.
        feedback: text of the feedback.
        special_tokens: filter of the policy's tokenizer. It breaks up special tokens that tool
            results, feedback or the policy's own text spell, so that none of them forges a turn.
            Messages of the data set stay as they are.
        source: name of the feedback's source. The environment's own message is in the dialogue
            already and is not repeated.

    Returns:
        Task: of depth `failure.task.depth + 1`, with the same root, tools, reference and columns.
    """
    task, special_tokens = failure.task, special_tokens or SpecialTokenFilter()
    if isinstance(task.prompt, str):
        written = special_tokens.sanitize_assistant(failure.turns[-1].text)
        said = special_tokens.sanitize(_failing_turn_messages(failure, feedback, source)[-1]["content"])
        prompt: str | tuple[Message, ...] = "\n\n".join((task.prompt + written, said, ""))
    else:
        messages = [message for turn in failure.turns[:-1] for message in turn_messages(turn)]
        messages += _failing_turn_messages(failure, feedback, source)
        prompt = (*task.prompt, *special_tokens.sanitize_messages(messages))
    return Task(
        id=recovery_id(failure),
        prompt=prompt,
        tools=task.tools,
        reference=task.reference,
        columns=task.columns,
        failed=task.failed + ((failure.calls,) if failure.calls else ()),
        history=task.history + tuple(result for turn in failure.turns for result in turn.results),
        root=task.root,
        parent=task.id,
        depth=task.depth + 1,
    )


def _failing_turn_messages(failure: Failure, feedback: str, source: str) -> list[Message]:
    """Return the failing turn with its tool results and the feedback."""
    turn, index = failure.turns[-1], failure.call_index
    if turn.error is not None and not turn.results:
        # in a live episode the first tool answers an unreadable call, in these words
        name = next(iter(tool_names(failure.tools)), "error")
        call = ToolCall(name, {PARSE_ERROR: turn.error})
        turn = replace(turn, results=(ToolResult(call, str({"error": turn.error}), turn.error),))
    messages = turn_messages(turn)
    if failure.kind is ErrorKind.WRONG_CALL and turn.results and index is None:
        index = len(turn.results) - 1  # the calls were made without an error; the policy reads what they returned
    if turn.results and (index is not None or turn.error is not None):
        index = index or 0
        result = turn.results[index]
        # `rules` quotes the environment's message where it has nothing clearer to say
        if feedback and source != "environment" and not is_message(feedback.removeprefix("error: "), result):
            content = f"{result.content}\n{feedback}"
            messages[1 + index] = {**messages[1 + index], "content": content}
    elif failure.kind in AS_TOOL_RESULT and turn.calls:
        messages.append({"role": "tool", "name": turn.calls[index or 0].name, "content": feedback})
    else:
        messages.append({"role": "user", "content": feedback})
    return messages
