"""Run cases with a policy: several at a time, their requests answered together."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

from fission_grpo.evaluation.records import CaseRecord
from fission_grpo.inference.base import AsynchronousPolicy, Policy, Reply, Request

Play = Generator[Request, Reply, CaseRecord]


def play_all(
    policy: Policy | AsynchronousPolicy,
    plays: Iterator[Callable[[], Play]],
    in_flight: int = 16,
    done: Callable[[CaseRecord], None] = lambda record: None,
) -> None:
    """Play cases, at most `in_flight` at a time; when one ends the next begins.

    Args:
        policy: writes the replies; all open requests in one batch, or each for itself if it has `submit`.
        plays: begin the cases, taken lazily, so memory does not grow with their number.
        in_flight: cases played side by side, at least 1.
        done: is given every record as soon as its case has ended.
    """
    if in_flight < 1:
        raise ValueError(f"in_flight must be at least 1, got {in_flight}")
    if isinstance(policy, AsynchronousPolicy):
        _play_one_by_one(policy, plays, in_flight, done)
    else:
        _play_in_batches(policy, plays, in_flight, done)


def _play_in_batches(policy: Policy, plays: Iterator[Callable[[], Play]], in_flight: int, done: Any) -> None:
    going: list[tuple[Play, Request]] = []
    while True:
        while len(going) < in_flight and (begin := next(plays, None)) is not None:
            play = begin()
            going += _open(play, None, done)
        if not going:
            return
        replies = policy.reply([request for _, request in going])
        going = [one for (play, _), reply in zip(going, replies, strict=True) for one in _open(play, reply, done)]


def _play_one_by_one(
    policy: AsynchronousPolicy, plays: Iterator[Callable[[], Play]], in_flight: int, done: Any
) -> None:
    going: dict[Future[Reply], Play] = {}
    try:
        while True:
            while len(going) < in_flight and (begin := next(plays, None)) is not None:
                play = begin()
                going |= {policy.submit(request): play for play, request in _open(play, None, done)}
            if not going:
                return
            for future in wait(going, return_when=FIRST_COMPLETED).done:
                play = going.pop(future)
                going |= {policy.submit(request): play for play, request in _open(play, future.result(), done)}
    finally:
        for future in going:
            future.cancel()


def _open(play: Play, reply: Reply | None, done: Callable[[CaseRecord], None]) -> list[tuple[Play, Request]]:
    """Go on with a play: itself and its next request, or nothing once it has ended."""
    try:
        return [(play, play.send(reply))]  # pyright: ignore[reportArgumentType] - None starts a generator
    except StopIteration as end:
        done(end.value)
        return []
