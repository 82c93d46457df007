"""Failures out of step tasks: by corrupting the reference call, and by sampling a policy."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fission_grpo.chat import parse
from fission_grpo.evaluation.play import Play, Reply, Request, play_all
from fission_grpo.evaluation.records import CaseRecord
from fission_grpo.failure import find_failure
from fission_grpo.schema import tool_names
from fission_grpo.simulator.corruptions import CORRUPTIONS, corrupted
from fission_grpo.simulator.ground import ground_of
from fission_grpo.simulator.instances import Instance, instance
from fission_grpo.trajectory import Failure, Task, ToolCall, ToolResult, Trajectory, Turn, Verdict
from fission_grpo.verify import step_verdict

Answers = Callable[[Sequence[ToolCall]], Sequence[ToolResult]]


@dataclass(frozen=True)
class Situation:
    """A step task in which a policy can fail.

    Args:
        task: with a reference.
        answers: what its environment answers to calls made there; None where nothing can be executed.
        ahead: calls needed later in the same user turn; a turn that only makes these early is not taken for a failure.
    """

    task: Task
    answers: Answers | None = None
    ahead: tuple[ToolCall, ...] = ()


@dataclass(frozen=True)
class Found:
    """An instance, and the name of what it descends from (a case, a task, a transcript), for the split."""

    instance: Instance
    root: str


@dataclass(frozen=True)
class Sampled:
    """What a policy's replies came to.

    Args:
        found: its failures.
        attempts: replies that could be judged.
        lost: replies that could not: the endpoint gave none, or the prompt was longer than the model's context.
    """

    found: tuple[Found, ...]
    attempts: int
    lost: int


def failure_in(situation: Situation, text: str, truncated: bool = False) -> Failure | None:
    """The failure of a turn written in a situation, None if it is right.

    Judged as `step_verdict` does. Where the environment can be asked and all tools exist, the calls are made: an
    error of theirs is the failure, in the environment's words (kind `raised`, or `bad_arguments` where the schema
    says so too). Otherwise the schema decides, then the reference.
    """
    task, turn = situation.task, parse(text, truncated)
    if not step_verdict(task, turn, length=0).failed:
        return None
    wanted = [*(task.reference or ()), *situation.ahead]
    if turn.calls and all(call in wanted for call in turn.calls):
        return None
    known = set(tool_names(task.tools))
    if situation.answers is not None and turn.calls and all(call.name in known for call in turn.calls):
        results = tuple(situation.answers(turn.calls))
        if any(result.error is not None for result in results):
            turn = Turn(text, turn.content, turn.calls, turn.error, results, truncated)
    return find_failure(Trajectory(task, (turn,)), Verdict(0.0, True))


def api_of(failure: Failure) -> str:
    """What the split goes by: the BFCL class of the reference's first tool (else the called one), else its name.

    Example:
        A failed `close_ticket` belongs to "TicketAPI", a failure without calls and reference to "none".
    """
    calls = [*(failure.reference or ()), *failure.calls]
    if not calls:
        return _class_of(tool_names(failure.task.tools)[0]) if failure.task.tools else "none"
    known = [call.name for call in calls if call.name in tool_names(failure.task.tools)]
    return _class_of(known[0] if known else calls[0].name)


def _class_of(name: str) -> str:
    from fission_grpo.bfcl.docs import class_of

    try:
        return class_of(name)
    except (ValueError, ModuleNotFoundError):
        return name


def corrupted_failures(situations: Sequence[Situation], each: int, seed: int, unused: Counter[str]) -> Iterator[Found]:
    """Failures made by corrupting references, at most `each` per situation, of different types.

    Types that have been used least so far come first, so that rare ones get their share. Deterministic.

    Args:
        situations: of which the reference is one call or none.
        each: most corruptions of one reference.
        seed: of all choices.
        unused: counts, by reason, what gave nothing.
    """
    used: Counter[str] = Counter()
    for situation in situations:
        task, made = situation.task, 0
        if len(task.reference or ()) > 1:
            unused["step task: a reference of several calls is not corrupted"] += 1
            continue
        ground, rng = ground_of(task), random.Random(f"{seed} {task.id}")
        names = sorted(CORRUPTIONS, key=lambda name: (used[name], rng.random()))
        for name in names:
            text = corrupted(name, ground, rng) if made < each else None
            failure = failure_in(situation, text) if text is not None else None
            if failure is None:
                continue
            made += 1
            used[name] += 1
            yield Found(instance(failure, api_of(failure), f"corruption:{name}"), task.root)


def sampled_failures(
    situations: Sequence[Situation], policy: Any, name: str, samples: int = 1, in_flight: int = 64
) -> Sampled:
    """The failures among a policy's replies.

    Args:
        situations: to reply in.
        policy: a `Policy` or `AsynchronousPolicy` (see `evaluation.players`).
        name: of the policy, for `Instance.origin`.
        samples: replies per situation.
        in_flight: requests open at a time.
    """
    replies: list[tuple[Situation, Reply]] = []

    def play(situation: Situation) -> Play:
        assert not isinstance(situation.task.prompt, str)
        reply = yield Request(situation.task.prompt, situation.task.tools)
        replies.append((situation, reply))
        return CaseRecord(situation.task.id)

    plays = (lambda one=one: play(one) for one in situations for _ in range(samples))
    play_all(policy, plays, in_flight)
    found, attempts, lost = [], 0, 0
    for situation, reply in replies:
        if reply.lost is not None or (reply.truncated and not reply.text):
            lost += 1
            continue
        attempts += 1
        failure = failure_in(situation, reply.text, reply.truncated)
        if failure is not None:
            found.append(Found(instance(failure, api_of(failure), f"sampled:{name}"), situation.task.root))
    return Sampled(tuple(found), attempts, lost)
