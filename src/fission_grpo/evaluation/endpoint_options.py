"""How an endpoint is asked, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlsplit


class EndpointError(ValueError):
    """The endpoint cannot be evaluated as it is set up. The message names URL and model, and what to mend."""


@dataclass(frozen=True)
class EndpointOptions:
    """How requests are made. Times are in seconds; their defaults are [ours].

    Args:
        raw: `/v1/completions` with a prompt rendered here, instead of chat completions with tools.
        temperature: of the sampling; None: the endpoint's default.
        max_tokens: of one turn; None: the endpoint's default.
        seed: of the sampling, for endpoints that know seeds.
        extra_body: further fields of the request's body; they replace ours of the same name, and
            `max_completion_tokens` replaces `max_tokens`, which OpenAI's reasoning models refuse.
        concurrency: requests under way at a time.
        timeout: of one try, from sending it to the last byte.
        patience: of one request with all its tries and waits.
        tries: of one request.
        backoff: the n-th wait is drawn from 0 to backoff * 2^n, at most `max_wait` (exponential, full jitter); what a
            Retry-After header asks for comes on top.
        max_wait: see `backoff`.
        key_variable: environment variable that holds the key. It is sent to whatever endpoint is given.
    """

    raw: bool = False
    temperature: float | None = 0.0
    max_tokens: int | None = 1024
    seed: int | None = None
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    concurrency: int = 16
    timeout: float = 120.0
    patience: float = 600.0
    tries: int = 8
    backoff: float = 0.5
    max_wait: float = 30.0
    key_variable: str = "OPENAI_API_KEY"

    def __post_init__(self):
        for name in ("concurrency", "timeout", "patience", "tries"):
            if getattr(self, name) <= 0:
                raise ValueError(f"EndpointOptions.{name} must be positive, got {getattr(self, name)}")


class Gate(Protocol):
    """Decides before each try whether it may be made, such as a budget or a circuit breaker."""

    def enter(self) -> str | None:
        """Why the try may not be made, which ends its request for this reason; None if it may."""
        ...

    def leave(self, reason: str | None, seconds: float) -> None:
        """What became of a try that was let in: None if it was answered, else the fault's reason or "cancelled"."""
        ...

    def ended(self, reason: str | None, tokens: int) -> None:
        """What became of a request with all its tries: None and its tokens, else why there is no reply."""
        ...


@dataclass(frozen=True)
class EndpointCounts:
    """What the requests came to.

    Args:
        requests: tries sent.
        retries: tries that had to be made again, by reason ("HTTP 429", "timeout", "connection", "not JSON", ...).
        lost: replies given up, by the last reason.
        prompt_tokens: read by the model, as the endpoint counts them.
        completion_tokens: written by it.
        uncounted: replies without token counts, which are 0 in both.
        empty: replies in which nothing was written.
        cut: replies of more than `endpoint_reply.MAX_CHARACTERS`.
        too_long: prompts that the model's context did not take: empty, truncated replies, as of a local model.
    """

    requests: int = 0
    retries: Mapping[str, int] = field(default_factory=dict)
    lost: Mapping[str, int] = field(default_factory=dict)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    uncounted: int = 0
    empty: int = 0
    cut: int = 0
    too_long: int = 0


def check_url(url: str | None) -> None:
    """Raises EndpointError for a base URL to which nothing could be sent. None is OpenAI's own."""
    if url is None:
        return
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets or port
        good = False
    if not good:
        raise EndpointError(
            "the base URL is no address of an HTTP server; write it like http://localhost:8000/v1, with a number as "
            "the port (it comes from --endpoint, or from the environment variable OPENAI_BASE_URL)"
        )


def without_secrets(url: str) -> str:
    """The URL without user, password and query.

    Example:
        `without_secrets("http://me:pw@host:80/v1/?a=b")` is "http://host:80/v1"
    """
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}".rstrip("/")
