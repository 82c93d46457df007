"""An OpenAI-compatible endpoint as a policy: chat completions with tools, or raw completions of rendered prompts.

The `openai` client makes the requests, with its own retries and backoff. This module adds limits on the total time of
a try and of a request, checks that a response holds a completion, and counts every fault by its reason. All requests
run on an event loop in one thread, so that they can be cancelled.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit

from fission_grpo.core.json_io import encodable
from fission_grpo.inference.base import Reply, Request
from fission_grpo.inference.endpoint_options import EndpointOptions
from fission_grpo.inference.local import prompt_text
from fission_grpo.inference.messages import (
    MAX_CHARACTERS,
    UnreadableResponse,
    read_completion,
    to_openai,
    tools_to_openai,
)
from fission_grpo.inference.secrets import Secrets, public_url, split_url

CHECK_TRIES = 3
"""Most tries of `check`, the first included. [ours] A user waits for it, and the usual cause is a wrong URL."""

_NO_KEY = "none"  # the client requires a key even where the server does not
_TOO_LONG = re.compile(r"context.{0,20}(length|window|size)|maximum.{0,20}(context|model) length", re.IGNORECASE)


class EndpointError(ValueError):
    """The endpoint cannot be used as configured. The message names URL, model and the fix."""


class RequestGate(Protocol):
    """Admits tries and is informed of results, such as a budget or a circuit breaker. Runs in the policy's thread."""

    def admit(self, is_retry: bool) -> str | None:
        """Return why a try may not be made, which ends its request with this reason; None to admit it."""
        ...

    def record(self, reason: str | None, tokens: int, seconds: float) -> None:
        """Record a finished request: None and its tokens if answered, else the fault's reason or "cancelled"."""
        ...


class _Fault(NamedTuple):
    reason: str
    detail: str = ""


@dataclass
class _Exchange:
    """One request with its tries, each of which is examined before the `openai` client sees the response."""

    httpx: Any
    timeout: float
    deadline: float
    gate: RequestGate | None
    count: Callable[[str], None]
    tries: int = 0
    fault: _Fault | None = None
    reply: Reply | None = None

    async def attempt(self, send: Callable[[], Awaitable[Any]], request: Any) -> Any:
        """Make one try. The status or exception tells the client whether to retry; `fault` keeps the reason."""
        if self.gate is not None and (refusal := self.gate.admit(self.tries > 0)) is not None:
            self.fault = _Fault(refusal)
            return self.httpx.Response(400, request=request)  # a status that is not retried
        self.count("requests")
        if self.fault is not None:
            self.count(f"retries/{self.fault.reason}")
        self.tries += 1
        limit = min(self.timeout, self.deadline - time.monotonic())
        self.fault = _Fault("timeout", f"no complete answer within {limit:.3g} s")
        try:
            async with asyncio.timeout(limit):
                response = await send()
        except TimeoutError as error:
            raise self.httpx.ReadTimeout(self.fault.detail, request=request) from error
        except self.httpx.TimeoutException:
            raise
        except (self.httpx.RequestError, OSError) as error:
            self.fault = _Fault("connection", str(error))
            raise
        if response.is_error:
            self.fault = _status_fault(response)
        else:
            try:
                self.reply = read_completion(response.content, response.headers.get("content-type", ""))
            except UnreadableResponse as error:
                self.fault = _Fault(error.reason, str(error))
                raise self.httpx.DecodingError(error.reason, request=request) from error
            self.fault = None
        if time.monotonic() + _retry_after(response) >= self.deadline:
            response.headers["x-should-retry"] = "false"
        return response


_EXCHANGE: ContextVar[_Exchange | None] = ContextVar("exchange", default=None)


def _status_fault(response: Any) -> _Fault:
    status, text = response.status_code, response.text
    return _Fault("too long" if status in (400, 413, 422) and _TOO_LONG.search(text) else f"HTTP {status}", text)


def _retry_after(response: Any) -> float:
    """Seconds that a Retry-After header asks to wait, 0 if it is missing or a date."""
    try:
        return float(response.headers.get("retry-after", 0))
    except ValueError:
        return 0.0


def _http_client(openai: Any) -> tuple[Any, Any]:
    """The HTTP library of the installed `openai` (httpx or httpx2), and a client that passes tries to `_Exchange`."""
    default = openai.DefaultAsyncHttpxClient
    httpx = importlib.import_module(default.__mro__[1].__module__.partition(".")[0])

    class ObservedClient(default):
        async def send(self, request: Any, **kwargs: Any) -> Any:
            exchange = _EXCHANGE.get()
            if exchange is None:
                return await super().send(request, **kwargs)
            send = super().send
            return await exchange.attempt(lambda: send(request, **kwargs), request)

    return httpx, ObservedClient()


class EndpointPolicy:
    """Replies of a model behind an OpenAI-compatible endpoint; an `AsynchronousPolicy`.

    Call `check()` before an evaluation and `close()` after it, or use it in a `with` statement.

    Args:
        model: name of the model on the server.
        base_url: such as "http://localhost:8000/v1"; None for OPENAI_BASE_URL, else OpenAI's own.
        options: how requests are made.
        tokenizer: renders dialogues for raw completions; not needed for requests with a `prompt`.
        gate: asked before each try.

    Raises:
        EndpointError: OpenAI's own endpoint without a key in the environment; an invalid key or URL.
        ModuleNotFoundError: the `openai` package is not installed.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        options: EndpointOptions | None = None,
        tokenizer: Any = None,
        gate: RequestGate | None = None,
    ):
        self._openai = _import_openai()
        self.model, self.options, self.tokenizer, self._gate = model, options or EndpointOptions(), tokenizer, gate
        base_url = base_url or os.environ.get("OPENAI_BASE_URL") or None
        key = _read_key(self.options.key_variable, model, base_url)
        url, query, secrets = split_url(base_url)
        self._secrets = Secrets((*secrets, "" if key == _NO_KEY else key)).hide_in_logs()
        self._httpx, http_client = _http_client(self._openai)
        self._client = self._openai.AsyncOpenAI(
            base_url=url,
            default_query=query,
            api_key=key,
            max_retries=self.options.max_retries,
            timeout=self.options.timeout,
            http_client=http_client,
        )
        self.url = public_url(str(self._client.base_url))
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._slots = asyncio.Semaphore(self.options.concurrency)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="endpoint", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"EndpointPolicy({self.model!r}, {self.url!r})"

    def __enter__(self) -> EndpointPolicy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, request: Request) -> Future[Reply]:
        """Start a reply.

        Raises:
            ValueError: the request cannot be sent: it has a `prompt`, which chat completions do not take, or there is
                no tokenizer (or chat template) to render it with.
        """
        return asyncio.run_coroutine_threadsafe(self._reply(self._body(request)), self._loop)

    def check(self) -> None:
        """Request a short reply, which is not counted.

        Raises:
            EndpointError: there is none: no server answers, or it refuses the key, URL, model or a field.
        """
        hello = "Say hello."
        content = {"prompt": hello} if self.options.raw else {"messages": [{"role": "user", "content": hello}]}
        body = self._with_settings(content)
        if "max_tokens" in body:
            body["max_tokens"] = min(16, body["max_tokens"])
        exchange = self._exchange(None, lambda name: None)
        retries = min(self.options.max_retries, CHECK_TRIES - 1)
        asyncio.run_coroutine_threadsafe(self._send(body, exchange, retries), self._loop).result()
        if exchange.fault is not None:
            models = asyncio.run_coroutine_threadsafe(self._list_models(), self._loop).result()
            raise EndpointError(self._explain(exchange.fault, exchange.tries) + models)

    @property
    def counts(self) -> Counter[str]:
        """Totals so far.

        Returns:
            Counter: "requests" (tries sent), "retries/REASON" (tries that were repeated), "lost/REASON" (requests
            without a reply, by the last reason), "prompt_tokens", "completion_tokens", "uncounted" (replies without
            token counts), "empty" (replies without text), "cut" (replies longer than `MAX_CHARACTERS`) and "too_long"
            (prompts longer than the model's context, which give empty, truncated replies as of a local model).
        """
        with self._lock:
            return Counter(self._counts)

    def close(self) -> None:
        """Cancel requests in flight and end the thread."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._secrets.show_in_logs()

    async def _end(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._client.close()

    def _body(self, request: Request) -> dict[str, Any]:
        if self.options.raw:
            if request.prompt is None and self.tokenizer is None:
                raise ValueError(f"{self}: raw completions of dialogues need the model's tokenizer to render them")
            return self._with_settings({"prompt": encodable(prompt_text(self.tokenizer, request))})
        if request.prompt is not None:
            raise ValueError(f"{self}: the case brings its own prompt text, which only raw completions take")
        tools = tools_to_openai(request.tools)
        return self._with_settings({"messages": to_openai(request.messages)} | ({"tools": tools} if tools else {}))

    def _with_settings(self, content: dict[str, Any]) -> dict[str, Any]:
        options = self.options
        settings = {"temperature": options.temperature, "max_tokens": options.max_tokens, "seed": options.seed}
        if "max_completion_tokens" in options.extra_body:
            settings["max_tokens"] = None
        return {**content, **{name: value for name, value in settings.items() if value is not None}}

    def _exchange(self, gate: RequestGate | None, count: Callable[[str], None]) -> _Exchange:
        deadline = time.monotonic() + self.options.patience
        return _Exchange(self._httpx, self.options.timeout, deadline, gate, count)

    async def _reply(self, body: dict[str, Any]) -> Reply:
        async with self._slots:
            start, reason, tokens = time.monotonic(), "cancelled", 0
            exchange = self._exchange(self._gate, self._count)
            try:
                await self._send(body, exchange, self.options.max_retries)
                reply = self._result(exchange)
                reason, tokens = reply.reason, (reply.prompt_tokens or 0) + reply.tokens
            finally:
                if self._gate is not None:
                    self._gate.record(reason, tokens, time.monotonic() - start)
        return reply

    async def _send(self, body: dict[str, Any], exchange: _Exchange, max_retries: int) -> None:
        """Send one request with its retries. The exchange keeps the reply or the last fault."""
        _EXCHANGE.set(exchange)
        client = self._client.with_options(max_retries=max_retries)
        create: Any = (client.completions if self.options.raw else client.chat.completions).with_raw_response.create
        # fields go into `extra_body`, because openai walks through all others: an eighth of a request's time
        required = {"prompt": ""} if self.options.raw else {"messages": []}
        try:
            async with asyncio.timeout(exchange.deadline - time.monotonic()):
                await create(model=self.model, **required, extra_body={**body, **self.options.extra_body})
        except (TimeoutError, self._openai.OpenAIError):
            exchange.fault = exchange.fault or _Fault("timeout")
        except Exception as error:  # noqa: BLE001 - any fault of the client costs one reply, which is counted
            exchange.fault = _Fault("client", f"{type(error).__name__}: {error}")

    def _result(self, exchange: _Exchange) -> Reply:
        """The reply, or what stands for the last fault; counted."""
        fault, reply = exchange.fault, exchange.reply
        if fault is None and reply is not None:
            self._count("prompt_tokens", reply.prompt_tokens or 0)
            self._count("completion_tokens", reply.tokens)
            self._count("uncounted", reply.prompt_tokens is None)
            self._count("empty", not reply.text)
            self._count("cut", reply.truncated and len(reply.text) == MAX_CHARACTERS)
            return reply
        fault = fault or _Fault("client", "no completion")
        if fault.reason == "too long":
            self._count("too_long")
            return Reply("", truncated=True, reason=fault.reason)
        self._count(f"lost/{fault.reason}")
        why = f"{fault.reason} after {exchange.tries} {'try' if exchange.tries == 1 else 'tries'}"
        detail = self._clean(fault.detail)
        return Reply("", lost=f"{why}: {detail}" if detail else why, reason=fault.reason)

    async def _list_models(self) -> str:
        """The models that the server lists, for the message about a fault at the start; "" if it lists none."""
        try:
            models = self._client.with_options(max_retries=0).models
            listing = await asyncio.wait_for(models.with_raw_response.list(), 5.0)
            names = [str(entry["id"]) for entry in json.loads(listing.content)["data"]]
        except (TimeoutError, self._openai.OpenAIError, ValueError, KeyError, TypeError):
            return ""
        listed = self._clean(", ".join(names[:10])) + (", ..." if len(names) > 10 else "")
        return f" (it serves: {listed})" if names else ""

    def _explain(self, fault: _Fault, tries: int) -> str:
        """The message for a fault at the start, with its usual fix."""
        hints = {
            "HTTP 401": f"set the right key in the environment variable {self.options.key_variable}",
            "HTTP 403": f"the key in {self.options.key_variable} may not use this model",
            "HTTP 404": "there is no such model or no such address; base URLs mostly end in /v1"
            + (", and only some servers have raw completions" if self.options.raw else ""),
            "timeout": "it is too slow or stuck; raise the timeout",
            "connection": "nobody answers there; is the server up, and the URL right?",
            "not JSON": "what answers there does not speak the OpenAI API; base URLs mostly end in /v1",
        }
        otherwise = "correct the request as it says" if fault.reason.startswith("HTTP 4") else "try again later"
        times = f" (tried {tries} times)" if tries > 1 else ""
        detail = self._clean(fault.detail)
        problem = f"{fault.reason}{times}{': ' + detail if detail else ''}"
        return f"endpoint {self.url}, model {self.model!r}: {problem}; {hints.get(fault.reason, otherwise)}"

    def _clean(self, text: str) -> str:
        """One short line without secrets."""
        return self._secrets.clean(" ".join(text.split()))[:300]

    def _count(self, name: str, number: int = 1) -> None:
        if number:
            with self._lock:
                self._counts[name] += number


def _import_openai() -> Any:
    try:
        return importlib.import_module("openai")
    except ModuleNotFoundError as error:
        if error.name != "openai":
            raise
        message = "an endpoint needs the openai package: pip install 'fission-grpo[endpoint]'"
        raise ModuleNotFoundError(message, name="openai") from error


def _read_key(variable: str, model: str, url: str | None) -> str:
    """The key from the environment. Raises EndpointError for an impossible key or URL, and if a key is missing."""
    key = os.environ.get(variable, "").strip() or _NO_KEY
    if not (key.isascii() and key.isprintable()):
        raise EndpointError(f"the environment variable {variable} holds characters no key has")
    if url is None and key == _NO_KEY:
        raise EndpointError(
            f"model {model!r}: no base URL is given and the environment variable {variable} is not set; give the "
            "server's URL, or set the key for OpenAI's own"
        )
    try:
        parts = urlsplit(url or "http://localhost")
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets or port
        is_address = False
    if not is_address:
        raise EndpointError(
            "the base URL is no address of an HTTP server; write it like http://localhost:8000/v1, with a number as "
            "the port (it comes from --endpoint, or from the environment variable OPENAI_BASE_URL)"
        )
    return key
