"""Run cases with a policy, several at a time, so that their requests are answered together."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait

from fission_grpo.evaluation.records import CaseRecord
from fission_grpo.inference.base import AsynchronousPolicy, Policy, Reply, Request

# A case under way yields requests, is sent the policy's replies, and returns its record.
RunningCase = Generator[Request, Reply, CaseRecord]
StartCase = Callable[[], RunningCase]


def run_cases(
    policy: Policy | AsynchronousPolicy,
    cases: Iterator[StartCase],
    in_flight: int = 16,
    done: Callable[[CaseRecord], None] = lambda record: None,
) -> None:
    """Run cases, at most `in_flight` at a time; when one ends the next one starts.

    Args:
        policy: writes the replies: all open requests in one batch, or each separately if it has `submit`.
        cases: functions that start a case. Taken lazily, so that memory does not grow with their number.
        in_flight: number of cases run at the same time, at least 1.
        done: called with every record as soon as its case has ended.
    """
    if in_flight < 1:
        raise ValueError(f"in_flight must be at least 1, got {in_flight}")
    if isinstance(policy, AsynchronousPolicy):
        _run_asynchronously(policy, cases, in_flight, done)
    else:
        _run_in_batches(policy, cases, in_flight, done)


def _run_in_batches(
    policy: Policy, cases: Iterator[StartCase], in_flight: int, done: Callable[[CaseRecord], None]
) -> None:
    running: list[tuple[RunningCase, Request]] = []
    while True:
        while len(running) < in_flight and (start := next(cases, None)) is not None:
            running += _advance(start(), None, done)
        if not running:
            return
        replies = policy.reply([request for _, request in running])
        answered = zip(running, replies, strict=True)
        running = [entry for (case, _), reply in answered for entry in _advance(case, reply, done)]


def _run_asynchronously(
    policy: AsynchronousPolicy, cases: Iterator[StartCase], in_flight: int, done: Callable[[CaseRecord], None]
) -> None:
    running: dict[Future[Reply], RunningCase] = {}

    def advance(case: RunningCase, reply: Reply | None) -> None:
        running.update({policy.submit(request): case for case, request in _advance(case, reply, done)})

    try:
        while True:
            while len(running) < in_flight and (start := next(cases, None)) is not None:
                advance(start(), None)
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                advance(running.pop(future), future.result())
    finally:
        for future in running:
            future.cancel()


def _advance(
    case: RunningCase, reply: Reply | None, done: Callable[[CaseRecord], None]
) -> list[tuple[RunningCase, Request]]:
    """Continue a case with a reply: the case and its next request, or nothing once it has ended."""
    try:
        return [(case, case.send(reply))]  # pyright: ignore[reportArgumentType] - None starts a generator
    except StopIteration as end:
        done(end.value)
        return []
