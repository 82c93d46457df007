"""Run cases with a policy, several at a time, so that their requests are answered together."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import replace
from itertools import count

from fission_grpo.evaluation.records import CaseRecord
from fission_grpo.inference.base import AsynchronousPolicy, Policy, Reply, Request

# A case under way yields requests, is sent the policy's replies, and returns its record.
RunningCase = Generator[Request, Reply, CaseRecord]
StartCase = Callable[[], RunningCase]


def with_seeds(start: StartCase, seed: int, case_id: str) -> StartCase:
    """The case with a seed for each request, from `seed`, its id and the turn, so that a rerun samples the same."""

    def run() -> RunningCase:
        case, reply = start(), None
        for turn in count():
            try:
                request = case.send(reply)  # pyright: ignore[reportArgumentType] - None starts a generator
            except StopIteration as end:
                return end.value
            digest = hashlib.sha256(f"{seed} {turn} {case_id}".encode("utf-8", "surrogatepass")).digest()
            reply = yield replace(
                request, seed=1 + int.from_bytes(digest[:4], "big") // 4
            )  # endpoints may take 31 bits
        raise AssertionError("count() does not end")

    return run


def repeated(cases: Mapping[str, StartCase], samples: int) -> dict[str, StartCase]:
    """Each case `samples` times. The first keeps its id, and so its replies; the others are "ID (2)", "ID (3)", ..."""

    def sample(start: StartCase, case_id: str, task: str) -> StartCase:
        def run() -> RunningCase:
            record = yield from start()
            return replace(record, id=case_id, task=task)

        return run

    if clash := next((name for name in cases if any(f"{name} ({k})" in cases for k in range(2, samples + 1))), None):
        raise ValueError(f"the id {clash!r} and a number in brackets is another row's id; rename that")
    ids = {(name, k): name if k == 1 else f"{name} ({k})" for k in range(1, samples + 1) for name in cases}
    return {case_id: sample(cases[name], case_id, name) for (name, _), case_id in ids.items()}


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
    running: dict[Future[Reply], RunningCase] = {}
    batch: list[tuple[Request, Future[Reply]]] = []  # requests to a policy that answers many at once

    def advance(case: RunningCase, reply: Reply | None) -> None:
        try:
            request = case.send(reply)  # pyright: ignore[reportArgumentType] - None starts a generator
        except StopIteration as end:
            done(end.value)
            return
        if isinstance(policy, AsynchronousPolicy):
            future = policy.submit(request)
        else:
            future = Future()
            batch.append((request, future))
        running[future] = case

    try:
        while True:
            while len(running) < in_flight and (start := next(cases, None)) is not None:
                advance(start(), None)
            if not running:
                return
            if not isinstance(policy, AsynchronousPolicy):
                replies = policy.reply([request for request, _ in batch])
                for (_, future), reply in zip(batch, replies, strict=True):
                    future.set_result(reply)
                batch.clear()
            wait(running, return_when=FIRST_COMPLETED)
            for future in [future for future in running if future.done()]:  # in the order of their requests
                advance(running.pop(future), future.result())
    finally:
        for future in running:
            future.cancel()
