"""The HTTP side of an endpoint: one try of a request, with limits on its time and on the size of its answer.

No answer is believed to be small: a body is read in parts, and no more than `MAX_BODY_BYTES` of it, decoded, are kept.
Redirects are not followed, because the prompt would go to a server that nobody named.
"""

from __future__ import annotations

import asyncio
import importlib
import re
import time
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol
from urllib.parse import urljoin

from fission_grpo.inference.base import Reply
from fission_grpo.inference.messages import UnreadableResponse, read_completion, refuses_tools
from fission_grpo.inference.secrets import public_url

MAX_BODY_BYTES = 8 * 2**20
"""Longest body of an answer that is read, in decoded bytes. [ours] Twenty times the longest reply that is kept, as a
stream takes about 250 bytes for a token. A longer answer is lost ("too large") and not requested again."""

INLINE_BYTES = 64 * 2**10
"""Longest body that is parsed in the event loop, in bytes. [ours] A longer one could delay other requests' limits, so
that it is parsed in another thread."""

TOO_LARGE, ENCODED = "too large", "encoded"  # reasons
_TOO_LONG = re.compile(r"context.{0,20}(length|window|size)|maximum.{0,20}(context|model) length", re.IGNORECASE)
_METHOD = re.compile(r"(?:/chat)?/completions/?$")  # what the client adds to a base URL
SLOW_TRIES = 2
"""Most tries of a request that do not end in time. [ours] It is as slow again, and each adds load to a busy server."""
_RETRY_HEADERS = ("retry-after", "retry-after-ms", "x-should-retry")  # which the `openai` client reads


class RequestGate(Protocol):
    """Admits tries and is informed of results, such as a budget or a circuit breaker. Runs in the policy's thread."""

    def admit(self, is_retry: bool) -> str | None:
        """Return why a try may not be made, which ends its request with this reason; None to admit it."""

    def record(self, reason: str | None, tokens: int, seconds: float) -> None:
        """Record a finished request: None and its tokens if answered, else the fault's reason or "cancelled"."""


@dataclass
class Tries:
    """The tries of one request, recorded by the HTTP client as the `openai` client makes them."""

    timeout: float  # limit of one try in seconds
    deadline: float  # of the request, on the clock of time.monotonic
    counts: Counter[str]
    gate: RequestGate | None = None
    tools: Sequence[Mapping[str, Any]] = ()  # of the request
    number: int = 0
    timeouts: int = 0  # tries that did not end in time
    reason: str = "timeout"  # of the last fault
    detail: str = ""
    reply: Reply | None = None

    def start(self) -> float | None:
        """Count a try and return its limit in seconds; None if the gate refuses it."""
        if self.gate is not None and (refusal := self.gate.admit(self.number > 0)) is not None:
            self.reason, self.detail = refusal, ""
            return None
        self.counts["requests"] += 1
        if self.number > 0:
            self.counts[f"retries/{self.reason}"] += 1
        self.number += 1
        limit = min(self.timeout, self.deadline - time.monotonic())
        self.reason, self.detail = "timeout", f"no complete answer within {limit:.3g} s"
        return limit

    async def read(self, response: Any) -> dict[str, str]:
        """Keep the reply or the fault of a response; return its headers that decide on another try.

        Raises UnreadableResponse.
        """
        headers = {name: response.headers[name] for name in _RETRY_HEADERS if name in response.headers}
        if response.is_success:
            body, kind = await read_body(response), response.headers.get("content-type", "")
            if len(body) <= INLINE_BYTES:
                self.reply = read_completion(body, kind, self.tools)
            else:
                self.reply = await asyncio.to_thread(read_completion, body, kind, self.tools)
            return headers
        reason = f"HTTP {response.status_code}"
        if 300 <= response.status_code < 400:
            self.reason, self.detail = reason, _redirection(response)
            return {"x-should-retry": "false"}
        try:
            text = (await read_body(response)).decode("utf-8", "replace")
        except UnreadableResponse as error:
            text = str(error)
        self.reason, self.detail = reason, text
        if response.status_code in (400, 413, 422) and _TOO_LONG.search(text):
            self.reason = "too long"
        if refuses_tools(text):
            headers["x-should-retry"] = "false"  # llama.cpp says it with a status that is retried
        wait = headers.get("retry-after", "")
        if wait.isdecimal() and time.monotonic() + float(wait) >= self.deadline:
            headers["x-should-retry"] = "false"  # there would be no time for another try
        return headers


TRIES: ContextVar[Tries | None] = ContextVar("tries", default=None)


def http_library(openai: Any) -> Any:
    """The package that `openai` makes requests with: httpx or httpx2."""
    return importlib.import_module(openai.DefaultAsyncHttpxClient.__base__.__module__.partition(".")[0])


def recording_client(openai: Any) -> Any:
    """An HTTP client for `openai` that records each try in `TRIES`. Its exceptions and statuses decide on retries."""
    httpx = http_library(openai)

    class RecordingClient(openai.DefaultAsyncHttpxClient):
        async def send(self, request: Any, **kwargs: Any) -> Any:
            request.headers["accept-encoding"] = "identity"
            start = partial(super().send, request, **kwargs | {"stream": True, "follow_redirects": False})
            if (tries := TRIES.get()) is None:
                return await self._whole(request, await start())
            if (limit := tries.start()) is None:
                return httpx.Response(400, request=request)  # a status that is not retried
            try:
                async with asyncio.timeout(limit):  # the client's own timeout starts again with each byte
                    response = await start()
                    try:
                        headers = await tries.read(response)
                    finally:
                        await response.aclose()
            except (TimeoutError, httpx.TimeoutException) as error:
                tries.timeouts += 1
                if tries.timeouts == SLOW_TRIES:
                    return httpx.Response(400, request=request)  # a status that is not retried
                raise httpx.ReadTimeout(tries.detail, request=request) from error
            except UnreadableResponse as error:
                tries.reason, tries.detail = error.reason, str(error)
                if error.reason == TOO_LARGE:
                    return httpx.Response(400, request=request)
                raise httpx.DecodingError(error.reason, request=request) from error
            except Exception as error:
                tries.reason, tries.detail = "connection", str(error)
                raise
            # what it said is in `tries`: no part of it is read a second time
            return httpx.Response(response.status_code, headers=headers, request=request)

        async def _whole(self, request: Any, response: Any) -> Any:
            """The response with its body, for requests that are no tries."""
            try:
                body = await read_body(response)
            except UnreadableResponse as error:
                raise httpx.DecodingError(str(error), request=request) from error
            finally:
                await response.aclose()
            return httpx.Response(response.status_code, content=body, request=request)

    return RecordingClient()


async def read_body(response: Any) -> bytes:
    """The decoded body of an open response. Raises UnreadableResponse beyond `MAX_BODY_BYTES`."""
    encoding = response.headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity", "gzip", "x-gzip", "deflate"):
        raise UnreadableResponse(ENCODED, f"the body has the encoding {encoding!r}, though none was accepted")
    # its own limit, as a library may decode a whole part at once; 47 is for both headers, of gzip and of zlib
    decoder = zlib.decompressobj(47) if encoding not in ("", "identity") else None
    body, received = bytearray(), 0
    async for part in response.aiter_raw():
        received += len(part)  # a compressed body may be endless and decode to nothing
        try:
            body += part if decoder is None else decoder.decompress(part, MAX_BODY_BYTES + 1 - len(body))
        except zlib.error as error:
            raise UnreadableResponse(ENCODED, f"the body is not in its encoding {encoding!r}: {error}") from None
        if max(len(body), received) > MAX_BODY_BYTES:
            raise UnreadableResponse(TOO_LARGE, f"the answer has more than {MAX_BODY_BYTES:,} bytes")
    return bytes(body)


def _redirection(response: Any) -> str:
    """Where a redirect leads, for the user, who decides whether to go there."""
    location, asked = response.headers.get("location", ""), str(response.request.url)
    try:
        target = public_url(urljoin(asked, location))
    except ValueError:
        target = location
    if not location:
        return "it redirects to no address"
    base = _METHOD.sub("", target)
    if base != _METHOD.sub("", public_url(asked)):
        target = base  # which a user gives
    return f"it redirects to {target[:200]}, which is not followed: the prompt would go there"
