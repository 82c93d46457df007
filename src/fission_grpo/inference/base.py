"""Playing cases: a case asks for replies one after another, a policy writes them, many cases side by side.

A *play* is a generator that yields a `Request`, is sent the policy's `Reply`, and returns the case's record. It runs
tools and judges in the caller's thread, so plays need no locks; only policies may use threads of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from fission_grpo.core.types import Message


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
