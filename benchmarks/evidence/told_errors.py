"""Episodes in which failing calls are answered as a failed rollout is in a recover cycle of Fission. [ours]

The environment stays as it is; what changes is the text of the failing call's result, in the dialogue and the record.
Fission's own `find_failures` finds the failing call and its own `recovery_task` writes the diagnosis behind the
environment's message (or leaves the message alone, if it says the same): the policy reads a recovery prompt's text.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from fission_grpo.core.chat import parse, read_result
from fission_grpo.core.types import (
    ErrorKind,
    Failure,
    Message,
    Task,
    ToolCall,
    ToolResult,
    Trajectory,
    Turn,
    Verdict,
)
from fission_grpo.evaluation.records import CaseRecord
from fission_grpo.evaluation.runner import RunningCase
from fission_grpo.feedback.request import feedback_for
from fission_grpo.feedback.spec import make_chain
from fission_grpo.fission.failures import find_failures
from fission_grpo.fission.recovery import recovery_task
from fission_grpo.inference.base import Request

Say = Callable[[Failure], str]
Place = tuple[int, int]
"""Number of a step in its episode, and of a tool message in that step."""


def diagnosed(play: RunningCase, name: str, say: Say) -> RunningCase:
    """The play, with every failing call answered by its environment's message and what `say` makes of the failure.

    As in a recover cycle one call of a turn is diagnosed, the first that fails. The record says what was shown.

    Args:
        play: an episode (`play_environment`).
        name: of its task.
        say: the feedback, "" for none.
    """
    shown: dict[Place, str] = {}
    request = next(play)
    begins = len(request.messages)
    while True:
        failure = _failure(request, begins, name)
        if failure is not None:
            shown |= _answers(failure, say(failure))
        messages = [
            message if place not in shown else {**message, "content": shown[place]}
            for message, place in _places(request.messages, begins)
        ]
        reply = yield replace(request, messages=tuple(messages))
        try:
            request = play.send(reply)
        except StopIteration as end:
            return _as_shown(end.value, shown)


def by_rules(failure: Failure) -> str:
    """What Fission's default chain says of a failure in a live episode: parser, schema and the environment's message.

    Environments without `_reference()`, as the desk is, tell Fission nothing more. Through the leak guard.
    """
    return feedback_for(failure, make_chain("rules")).text


def by_reference(solution: Sequence[ToolCall]) -> Say:
    """What `rules` say of a wrong call, for failing calls too: which argument is off, or that another call is needed.

    Fission itself does this in step tasks only. The calls of the solution that are not done yet are the secret
    reference: no value of theirs passes the leak guard.
    """

    def say(failure: Failure) -> str:
        if failure.kind is ErrorKind.UNPARSED:
            return by_rules(failure)
        done = [result.call for turn in failure.turns for result in turn.results if result.error is None]
        left = tuple(call for call in solution if call not in done)
        return by_rules(replace(failure, kind=ErrorKind.WRONG_CALL, expected=left))

    return say


def _failure(request: Request, begins: int, name: str) -> Failure | None:
    """The failure of the dialogue's last turn, None if nothing of it failed."""
    turns = tuple(_turns(request.messages[begins:]))
    if not turns or not (turns[-1].error or any(result.error is not None for result in turns[-1].results)):
        return None
    trajectory = Trajectory(Task(name, tuple(request.messages[:begins])), turns)
    return find_failures(trajectory, Verdict(0.0, failed=True), tuple(request.tools), "last")[0]


def _turns(dialogue: Sequence[Message]) -> Iterator[Turn]:
    """The turns of a dialogue that begins with an assistant message, as `rollouts.read_turns` reads them."""
    starts = [at for at, message in enumerate(dialogue) if message["role"] == "assistant"]
    for start, end in itertools.pairwise([*starts, len(dialogue)]):
        turn, told = parse(dialogue[start]["content"]), dialogue[start + 1 : end]
        if turn.error is not None:
            results = tuple(ToolResult(ToolCall(one["name"]), one["content"], turn.error) for one in told)
            yield replace(turn, calls=(), results=results)
        else:
            read = (read_result(call, one["content"]) for call, one in zip(turn.calls, told, strict=True))
            yield replace(turn, results=tuple(read))


def _answers(failure: Failure, feedback: str) -> dict[Place, str]:
    """What the results of the failing turn are in the recovery prompt."""
    prompt = recovery_task(failure, feedback).prompt
    step, count = len(failure.turns) - 1, len(failure.turns[-1].results)
    return {(step, number): message["content"] for number, message in enumerate(prompt[-count:])}  # pyright: ignore


def _places(messages: Sequence[Message], begins: int) -> Iterator[tuple[Message, Place | None]]:
    """Every message with its place; None for all but tool messages of the episode."""
    step, number = -1, 0
    for at, message in enumerate(messages):
        if at < begins or message["role"] != "tool":
            step, number = step + (at >= begins and message["role"] == "assistant"), 0
            yield message, None
        else:
            yield message, (step, number)
            number += 1


def _as_shown(record: CaseRecord, shown: dict[Place, str]) -> CaseRecord:
    """The record of an episode (one turn) with the results as the policy read them."""
    (turn,) = record.turns
    steps = tuple(
        replace(
            step,
            calls=tuple(
                replace(call, result=shown.get((at, number), call.result)) for number, call in enumerate(step.calls)
            ),
        )
        for at, step in enumerate(turn.steps)
    )
    return replace(record, turns=(replace(turn, steps=steps),))
