"""Step tasks as plays: one reply, judged against the reference; nothing is executed."""

from __future__ import annotations

import time

from fission_grpo.chat import parse
from fission_grpo.evaluation.play import Play, Request
from fission_grpo.evaluation.records import CallRecord, CaseRecord, StepRecord, TurnRecord
from fission_grpo.schema import check_call
from fission_grpo.trajectory import Task, ToolCall
from fission_grpo.verify import RewardConfig, step_verdict


def play_step(task: Task, config: RewardConfig | None = None) -> Play:
    """Ask a step task. It succeeds as a rollout does in training: R_fmt = 1 and R_corr >= `correctness_threshold`.

    A call of an unknown tool, or with arguments its schema rejects, is an error of the policy. As nothing follows it,
    no step task recovers: error recovery needs episodes.

    Args:
        task: with messages as prompt, tools and a reference.
        config: of the reward.

    Raises:
        ValueError: the task has no reference.
    """
    if task.reference is None or isinstance(task.prompt, str):
        raise ValueError(f"task {task.id!r} is no step task: it needs messages as prompt and a reference")
    began = time.perf_counter()
    reply = yield Request(task.prompt, task.tools)
    if reply.lost is not None:
        return CaseRecord(task.id, "step", missing=reply.lost, seconds=time.perf_counter() - began)
    turn = parse(reply.text, truncated=reply.truncated)
    verdict = step_verdict(task, turn, reply.tokens, config=config)
    calls = tuple(_judged(call, task) for call in turn.calls)
    step = StepRecord(reply.text, calls, turn.error, reply.tokens, reply.truncated)
    why = f"R_fmt {verdict.parts['format']:g}, R_corr {verdict.parts['correctness']:g}" if verdict.failed else None
    seconds = time.perf_counter() - began
    return CaseRecord(task.id, "step", (TurnRecord((step,), why is None),), why is None, why, seconds=seconds)


def _judged(call: ToolCall, task: Task) -> CallRecord:
    problem = check_call(call, task.tools)
    if problem is None:
        return CallRecord(call.name, call.arguments)
    return CallRecord(call.name, call.arguments, error=problem.message, kind=problem.kind)
