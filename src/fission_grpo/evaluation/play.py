"""Playing cases: a case asks for replies one after another, a policy writes them, many cases side by side.

A *play* is a generator that yields a `Request`, is sent the policy's `Reply`, and returns the case's record. It runs
tools and judges in the caller's thread, so plays need no locks; only policies may use threads of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from fission_grpo.evaluation.records import CaseRecord
from fission_grpo.trajectory import Message


@dataclass(frozen=True)
class Request:
    """What a policy is asked to continue with one assistant turn.

    Args:
        messages: the dialogue. An assistant message holds `content`, exactly what the policy wrote, and, if that reply
            came as structured calls, `tool_calls` as the endpoint sent them; a tool message holds `name`, `content`
            and, after structured calls, `tool_call_id`.
        tools: JSON schemas `{"name", "description", "parameters"}`.
        prompt: the exact text to continue, where the case is rendered by us (BFCL's official formats); a policy that
            only takes messages cannot play such cases.
    """

    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] = ()
    prompt: str | None = None


@dataclass(frozen=True)
class Reply:
    """One assistant turn as written.

    Args:
        text: what was generated, special tokens left out. Structured calls of a chat endpoint are written into it in
            Hermes format, arguments verbatim, so that `chat.parse` reads every reply alike, broken arguments included.
        tokens: generated.
        truncated: it hit its length limit.
        tool_calls: as a chat endpoint sent them, to be sent back with the dialogue; empty otherwise.
        lost: why there is no reply (endpoint down after all retries): the case is missing, not wrong.
    """

    text: str
    tokens: int = 0
    truncated: bool = False
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    lost: str | None = None


Play = Generator[Request, Reply, CaseRecord]


class Policy(Protocol):
    """Writes the next assistant turn of every request, in order."""

    def reply(self, requests: Sequence[Request]) -> list[Reply]:
        """One reply per request. Sampled in batches where that is faster."""
        ...


@runtime_checkable
class AsynchronousPolicy(Protocol):
    """A policy whose replies come one by one, whenever they are ready (an endpoint)."""

    def submit(self, request: Request) -> Future[Reply]:
        """Begin a reply. The future never raises for what is the endpoint's fault: the reply is then `lost`."""
        ...


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
