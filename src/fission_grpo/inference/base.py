"""The interface between cases and policies: a request for one assistant turn, and the reply.

A case runs as a generator that yields a `Request`, is sent the policy's `Reply`, and returns the case's record. Tools
run in the caller's thread, so cases need no locks; only policies use threads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from fission_grpo.core.types import Message


@dataclass(frozen=True)
class Request:
    """A dialogue that a policy continues with one assistant turn.

    Args:
        messages: the dialogue. An assistant message holds `content`, exactly the text that the policy wrote, and, if
            that reply had structured calls, `tool_calls` as the endpoint sent them. A tool message holds `name`,
            `content` and, after structured calls, `tool_call_id`.
        tools: JSON schemas `{"name", "description", "parameters"}`.
        prompt: the exact text to continue, where the case is rendered by us (BFCL's official formats). A policy that
            takes only messages cannot run such cases.
        seed: of the sampling of this turn, so that it does not depend on which other requests are made; None: none of
            its own.
    """

    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] = ()
    prompt: str | None = None
    seed: int | None = None


@dataclass(frozen=True)
class Reply:
    """One assistant turn as written.

    Structured calls of a chat endpoint are written into the text in Hermes format with their arguments verbatim, so
    that `chat.parse` reads every reply in the same way.
    """

    text: str  # without special tokens
    tokens: int = 0  # generated
    truncated: bool = False  # whether the length limit was reached
    tool_calls: tuple[Mapping[str, Any], ...] = ()  # as a chat endpoint sent them, to be sent back with the dialogue
    lost: str | None = None  # why there is no reply after all retries; the case is then missing, not wrong
    # of `lost`, in one or two words ("timeout", "HTTP 429"); "too long" where the prompt was
    reason: str | None = field(default=None, compare=False)
    prompt_tokens: int | None = field(default=None, compare=False)  # None where none were counted


class Policy(Protocol):
    """Writes the next assistant turn of a batch of requests."""

    def reply(self, requests: Sequence[Request]) -> list[Reply]:
        """Return one reply per request, in order."""
        ...


@runtime_checkable
class AsynchronousPolicy(Protocol):
    """A policy whose replies arrive independently of each other, such as an endpoint."""

    def submit(self, request: Request) -> Future[Reply]:
        """Start a reply. The future does not raise for faults of the endpoint; the reply is then `lost`."""
        ...
