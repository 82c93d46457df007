"""Failures in step tasks: from corrupted reference calls, and from a policy's replies."""

from __future__ import annotations

import random
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fission_grpo.core.chat import parse
from fission_grpo.core.rewards import step_verdict
from fission_grpo.core.tool_schema import tool_names
from fission_grpo.core.types import Failure, Task, ToolCall, ToolResult, Trajectory, Verdict
from fission_grpo.evaluation.records import CaseRecord
from fission_grpo.evaluation.runner import RunningCase, run_cases
from fission_grpo.feedback.dataset import FeedbackExample, make_example
from fission_grpo.fission.failures import find_failure
from fission_grpo.inference.base import Reply, Request
from fission_grpo.recipes.error_simulator.corruptions import CORRUPTIONS, corrupt
from fission_grpo.recipes.error_simulator.values import call_context

if TYPE_CHECKING:
    from fission_grpo.evaluation.policies import LoadedPolicy


@dataclass(frozen=True)
class StepContext:
    """A step task in which a policy can fail.

    Args:
        task: with a reference.
        execute: makes calls in the task's environment and returns their results; None where it cannot be executed.
        later_calls: calls needed later in the same user turn; a turn that only makes these early is no failure.
    """

    task: Task
    execute: Callable[[Sequence[ToolCall]], Sequence[ToolResult]] | None = None
    later_calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True)
class LabelledFailure:
    """A failure with its feedback text, once it has one, and its root: the case, task or transcript it is from."""

    example: FeedbackExample
    root: str


def judge_reply(context: StepContext, text: str, truncated: bool = False) -> Failure | None:
    """The failure in a policy's reply, None if the reply is right by `step_verdict`.

    If all called tools exist, the calls are executed where possible, and an error they return is the failure.
    Otherwise the schemas decide, then the reference.
    """
    task, turn = context.task, parse(text, truncated)
    if not step_verdict(task, turn, length=0).failed:
        return None
    needed = [*(task.reference or ()), *context.later_calls]
    if turn.calls and all(call in needed for call in turn.calls):
        return None
    known = tool_names(task.tools)
    if context.execute is not None and turn.calls and all(call.name in known for call in turn.calls):
        results = tuple(context.execute(turn.calls))
        if any(result.error is not None for result in results):
            turn = replace(turn, results=results)
    return find_failure(Trajectory(task, (turn,)), Verdict(0.0, True))


def api_of(failure: Failure) -> str:
    """The API by which data is split: the BFCL class of the reference's (else the called) tool, else its name.

    Example:
        A failed `close_ticket` belongs to "TicketAPI"; without calls, reference and tools the API is "none".
    """
    names = tool_names(failure.task.tools)
    called = [call.name for call in (*(failure.reference or ()), *failure.calls)]
    known = [name for name in called if name in names]
    candidates = known or called or names
    return _bfcl_class(candidates[0]) if candidates else "none"


def _bfcl_class(tool: str) -> str:
    from fission_grpo.envs.bfcl.functions import class_of

    try:
        return class_of(tool)
    except (ValueError, ModuleNotFoundError):
        return tool


def unlabelled(failure: Failure, origin: str, root: str) -> LabelledFailure:
    """A failure that has no feedback text yet, with its API."""
    return LabelledFailure(make_example(failure, api_of(failure), origin), root)


def corrupt_references(
    contexts: Sequence[StepContext], each: int, seed: int, unused: Counter[str]
) -> Iterator[LabelledFailure]:
    """Corrupt the reference calls; the corruptions used least so far come first. Deterministic.

    Args:
        contexts: step tasks.
        each: most corruptions of one reference.
        seed: of all choices.
        unused: counts, by reason, the tasks that cannot be used.
    """
    used: Counter[str] = Counter()
    for context in contexts:
        task, count = context.task, 0
        if len(task.reference or ()) > 1:
            unused["step task: a reference of several calls is not corrupted"] += 1
            continue
        call, rng = call_context(task), random.Random(f"{seed} {task.id}")
        for name in sorted(CORRUPTIONS, key=lambda name: (used[name], rng.random())):
            text = corrupt(name, call, rng) if count < each else None
            failure = judge_reply(context, text) if text is not None else None
            if failure is not None:
                count += 1
                used[name] += 1
                yield unlabelled(failure, f"corruption:{name}", task.root)


@dataclass(frozen=True)
class SampledFailures:
    """A policy's failures; `attempts` counts its replies, `lost` those that an endpoint or the context limit cost."""

    failures: tuple[LabelledFailure, ...]
    attempts: int
    lost: int


def sample_failures(
    contexts: Sequence[StepContext], policy: Any, name: str, samples: int = 1, in_flight: int = 64
) -> SampledFailures:
    """Sample a policy's replies and keep its failures.

    Args:
        contexts: step tasks to reply to.
        policy: a `Policy` or `AsynchronousPolicy`.
        name: of the policy, for the failures' origin.
        samples: replies per task.
        in_flight: requests open at a time.
    """
    replies: list[tuple[StepContext, Reply]] = []

    def run_context(context: StepContext) -> RunningCase:
        assert not isinstance(context.task.prompt, str)
        replies.append((context, (yield Request(context.task.prompt, context.task.tools))))
        return CaseRecord(context.task.id)

    cases = (lambda context=context: run_context(context) for context in contexts for _ in range(samples))
    run_cases(policy, cases, in_flight)
    failures, lost = [], 0
    for context, reply in replies:
        if reply.lost is not None or (reply.truncated and not reply.text):
            lost += 1
        elif failure := judge_reply(context, reply.text, reply.truncated):
            failures.append(unlabelled(failure, f"sampled:{name}", context.task.root))
    return SampledFailures(tuple(failures), len(replies) - lost, lost)


@contextmanager
def open_policy(arguments: Namespace) -> Iterator[LoadedPolicy]:
    """The policy of `--policy`, behind `--policy_url` or in this process, with the command's sampling options.

    Raises:
        ValueError: there is no such model, or the endpoint does not answer.
        ModuleNotFoundError: a package is missing.
    """
    from fission_grpo.evaluation.policies import Sampling, connect_endpoint, load_local_policy
    from fission_grpo.inference.endpoint import EndpointOptions

    if arguments.policy_url:
        options = EndpointOptions(temperature=arguments.temperature, max_tokens=arguments.max_new_tokens)
        with connect_endpoint(arguments.policy, arguments.policy_url, options) as loaded:
            yield loaded
    else:
        sampling = Sampling(arguments.temperature, arguments.max_new_tokens, arguments.seed)
        yield load_local_policy(arguments.policy, sampling, arguments.batch_size)
