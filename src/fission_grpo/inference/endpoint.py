"""Any OpenAI-compatible endpoint as a policy: chat completions with tools, or raw completions of prompts we render.

One thread with an event loop holds all requests, so that every time limit is exact and whatever is given up can be
cancelled. The key is read from the environment and stands in no message, record or `repr`.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, Protocol
from urllib.parse import urlsplit

from fission_grpo.core.json_io import encodable
from fission_grpo.inference.base import Reply, Request
from fission_grpo.inference.local import prompt_text
from fission_grpo.inference.messages import hermes_text, to_openai, tools_to_openai, without_last_end
from fission_grpo.inference.secrets import Secrets, parts_of


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


MAX_CHARACTERS = 200_000
"""Longest reply that is kept, in characters. [ours] A hundred times any turn that was wanted; harmless in memory."""


class Unreadable(Exception):
    """The answer is no reply. `reason` is one of "not JSON", "no choices", "malformed"; the message says more."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True)
class Answer:
    """A reply and what it cost.

    Args:
        reply: what was written.
        prompt_tokens: as the endpoint counted them, 0 without a count.
        counted: the endpoint gave token counts.
        empty: it wrote nothing at all (null or empty content, no calls).
        cut: it was longer than `MAX_CHARACTERS`; what is kept is marked truncated, its structured calls are dropped.
    """

    reply: Reply
    prompt_tokens: int = 0
    counted: bool = False
    empty: bool = False
    cut: bool = False


@dataclass(frozen=True)
class Fault:
    """Why a try brought no reply ("timeout", "HTTP 429", ...); `wait` is what the endpoint asks for, in seconds."""

    reason: str
    detail: str = ""
    again: bool = True
    wait: float = 0.0


def read_answer(body: bytes, content_type: str = "") -> Answer:
    """Read the body of a chat completion or of a raw completion.

    Null content without calls is a turn in which the policy wrote nothing. A refusal is read as content. Thoughts that
    a server has split off (`reasoning_content`) are left out. A call that the length limit cut is written as a local
    model would have left it, unclosed; such a reply has no structured calls.

    Raises:
        Unreadable: it is neither.
    """
    try:
        given = json.loads(body)
    except (ValueError, RecursionError) as error:
        kind = content_type.partition(";")[0].strip() or "no content type"
        raise Unreadable("not JSON", f"{kind}: {error}") from None
    choices = given.get("choices") if isinstance(given, dict) else None
    if not isinstance(choices, list) or not choices:
        raise Unreadable("no choices", json.dumps(given))
    choice = choices[0]
    if not isinstance(choice, dict):
        raise Unreadable("malformed", "the first choice is no object")
    content, calls = _message(choice["message"]) if "message" in choice else (_text(choice.get("text")), ())
    usage = given.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    text, stopped = encodable(hermes_text(content, calls)), choice.get("finish_reason") == "length"
    if stopped and (unclosed := without_last_end(text, calls)):
        text, calls = unclosed, ()
    cut = len(text) > MAX_CHARACTERS
    reply = Reply(
        text=text[:MAX_CHARACTERS],
        tokens=_count(usage.get("completion_tokens")),
        truncated=stopped or cut,
        tool_calls=() if cut else calls,
    )
    return Answer(reply, _count(usage.get("prompt_tokens")), "completion_tokens" in usage, not text, cut)


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that a Retry-After header asks to wait (a number or a date), 0 without a readable one."""
    given = headers.get("retry-after") or ""
    try:
        seconds = float(given)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(given).timestamp() - time.time()
        except (TypeError, ValueError):
            return 0.0
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0


def _message(message: Any) -> tuple[str, tuple[Mapping[str, Any], ...]]:
    if not isinstance(message, dict):
        raise Unreadable("malformed", "the message is no object")
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise Unreadable("malformed", "tool_calls is no list of objects")
    content = message.get("content")
    if content is None and isinstance(message.get("refusal"), str):
        content = message["refusal"]
    return _text(content), tuple(calls)


def _text(content: Any) -> str:
    if content is None:
        return ""
    if isinstance(content, list):  # parts, of which only texts are ours
        content = "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    if not isinstance(content, str):
        raise Unreadable("malformed", f"the content is {type(content).__name__}, not text")
    return content


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0


CHECK_TRIES = 3
"""Tries of `check`. [ours] Somebody waits for it, and has mostly got the URL wrong."""


_NO_KEY = "none"


_TOO_LONG = re.compile(r"context.{0,20}(length|window|size)|maximum.{0,20}(context|model) length", re.IGNORECASE)


class EndpointPolicy:
    """Replies of a model behind an OpenAI-compatible endpoint; see `play.AsynchronousPolicy`.

    Call `check()` before an evaluation and `close()` after it, or use it in a `with` statement.

    Args:
        model: name of the model there.
        base_url: of the endpoint, such as "http://localhost:8000/v1"; None: OPENAI_BASE_URL, else OpenAI's own.
        options: of the requests.
        tokenizer: renders dialogues for raw completions; not needed for requests with a `prompt`.
        gate: asked before each try.

    Raises:
        EndpointError: OpenAI's own endpoint, and no key in the environment; a key or a URL that cannot be one.
        ModuleNotFoundError: the `openai` package is not installed.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        options: EndpointOptions | None = None,
        tokenizer: Any = None,
        gate: Gate | None = None,
    ):
        import openai

        self.model, self.options, self.tokenizer, self._gate = model, options or EndpointOptions(), tokenizer, gate
        self._key = os.environ.get(self.options.key_variable, "").strip() or _NO_KEY
        if not (self._key.isascii() and self._key.isprintable()):
            raise EndpointError(f"the environment variable {self.options.key_variable} holds characters no key has")
        base_url = base_url or os.environ.get("OPENAI_BASE_URL") or None
        check_url(base_url)
        if self._key == _NO_KEY and not base_url:
            raise EndpointError(
                f"model {model!r}: no base URL is given and the environment variable {self.options.key_variable} is "
                "not set; give the server's URL, or set the key for OpenAI's own"
            )
        self._openai = openai
        url, query, secrets = parts_of(base_url)
        self._secrets = Secrets((*secrets, "" if self._key == _NO_KEY else self._key)).hide_in_logs()
        self._client = openai.AsyncOpenAI(
            base_url=url, default_query=query, api_key=self._key, max_retries=0, timeout=self.options.timeout
        )
        self.url = without_secrets(str(self._client.base_url))
        self._lock, self._random = threading.Lock(), random.Random()
        self._numbers: Counter[str] = Counter()
        self._reasons: Counter[tuple[str, str]] = Counter()
        self._places = asyncio.Semaphore(self.options.concurrency)
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
        """Begin a reply.

        Raises:
            ValueError: the request cannot be sent at all: it has a `prompt`, which chat completions do not take, or
                there is no tokenizer (or chat template) to render it with.
        """
        return asyncio.run_coroutine_threadsafe(self._reply(self._body(request)), self._loop)

    def ask(self, request: Request) -> Future[tuple[Answer | Fault, int]]:
        """Begin a reply, told with its cost, or with why there is none; and the number of tries. See `submit`."""
        return asyncio.run_coroutine_threadsafe(self._asked(self._body(request)), self._loop)

    def check(self) -> None:
        """Ask for a short reply, which is counted nowhere.

        Raises:
            EndpointError: there is none: nobody answers, or the key, URL, model or a field of the request is refused.
        """
        hello = "Say hello."
        body = self._with_settings({"prompt": hello} if self.options.raw else {"messages": [_user(hello)]})
        if "max_tokens" in body:
            body["max_tokens"] = min(16, body["max_tokens"])
        outcome, tries = asyncio.run_coroutine_threadsafe(self._outcome(body, CHECK_TRIES), self._loop).result()
        with self._lock:
            self._numbers.clear()
            self._reasons.clear()
        if isinstance(outcome, Fault):
            served = asyncio.run_coroutine_threadsafe(self._served(), self._loop).result()
            raise EndpointError(self._explained(outcome, tries) + served)

    @property
    def counts(self) -> EndpointCounts:
        """What has happened so far."""
        with self._lock:
            numbers, reasons = dict(self._numbers), dict(self._reasons)
        retries, lost = (
            {reason: n for (kind, reason), n in reasons.items() if kind == wanted} for wanted in ("retries", "lost")
        )
        return EndpointCounts(retries=retries, lost=lost, **numbers)

    def close(self) -> None:
        """Give up what is under way and end the thread."""
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

    def _with_settings(self, body: dict[str, Any]) -> dict[str, Any]:
        options = self.options
        given = {"temperature": options.temperature, "max_tokens": options.max_tokens, "seed": options.seed}
        if "max_completion_tokens" in options.extra_body:
            given["max_tokens"] = None
        return {**body, "model": self.model, **{name: value for name, value in given.items() if value is not None}}

    async def _asked(self, body: dict[str, Any]) -> tuple[Answer | Fault, int]:
        async with self._places:
            outcome, tries = await self._outcome(body, self.options.tries, self._gate)
            if self._gate is not None:
                tokens = 0 if isinstance(outcome, Fault) else outcome.prompt_tokens + outcome.reply.tokens
                self._gate.ended(outcome.reason if isinstance(outcome, Fault) else None, tokens)
        if isinstance(outcome, Answer):
            self._count(
                prompt_tokens=outcome.prompt_tokens,
                completion_tokens=outcome.reply.tokens,
                uncounted=not outcome.counted,
                empty=outcome.empty,
                cut=outcome.cut,
            )
        elif outcome.reason == "too long":
            self._count(too_long=1)
        else:
            self._count_reason("lost", outcome.reason)
        return outcome, tries

    async def _reply(self, body: dict[str, Any]) -> Reply:
        outcome, tries = await self._asked(body)
        if isinstance(outcome, Answer):
            return outcome.reply
        if outcome.reason == "too long":
            return Reply("", truncated=True)
        why = f"{outcome.reason} after {tries} {'try' if tries == 1 else 'tries'}"
        return Reply("", lost=f"{why}: {outcome.detail}" if outcome.detail else why)

    async def _outcome(self, body: dict[str, Any], most: int, gate: Gate | None = None) -> tuple[Answer | Fault, int]:
        """The answer, or why there is none after at most `most` tries; and the number of tries."""
        options, end = self.options, time.monotonic() + self.options.patience
        tries = 0
        while True:
            if gate is not None and (closed := gate.enter()) is not None:
                return Fault(closed, again=False), tries
            self._count(requests=1)
            outcome, began = Fault("cancelled"), time.monotonic()
            try:
                outcome = await self._try(body, min(options.timeout, end - began))
            finally:
                if gate is not None:
                    gate.leave(None if isinstance(outcome, Answer) else outcome.reason, time.monotonic() - began)
            tries += 1
            if isinstance(outcome, Answer) or not outcome.again or tries >= min(most, options.tries):
                return outcome, tries
            wait = outcome.wait + self._random.uniform(0, min(options.max_wait, options.backoff * 2 ** (tries - 1)))
            if time.monotonic() + wait >= end:
                return outcome, tries
            self._count_reason("retries", outcome.reason)
            await asyncio.sleep(wait)

    async def _try(self, body: dict[str, Any], seconds: float) -> Answer | Fault:
        options, openai = self.options, self._openai
        make = self._client.completions if options.raw else self._client.chat.completions
        try:
            # within `extra_body`, as openai walks through all other fields: an eighth of a request's time
            first = {"prompt": ""} if options.raw else {"messages": []}
            whole = {**body, **options.extra_body}
            sent = make.with_raw_response.create(model=self.model, **first, extra_body=whole)  # pyright: ignore
            response = await asyncio.wait_for(sent, seconds)
            return read_answer(response.content, response.headers.get("content-type", ""))
        except (TimeoutError, openai.APITimeoutError):
            return Fault("timeout", f"no whole answer within {seconds:.3g} s")
        except openai.APIStatusError as error:
            return self._refusal(error.status_code, error.response)
        except openai.APIConnectionError as error:
            return Fault("connection", self._clean(error.__cause__ or error))
        except Unreadable as error:
            return Fault(error.reason, self._clean(error))
        except Exception as error:  # noqa: BLE001 - whatever an answer makes the client raise costs one reply, counted
            return Fault("client", self._clean(f"{type(error).__name__}: {error}"))

    async def _served(self) -> str:
        """The models the endpoint says it has, for the message about a fault at the start; "" if it does not say."""
        try:
            listed = await asyncio.wait_for(self._client.models.with_raw_response.list(), 5.0)
            names = [str(one["id"]) for one in json.loads(listed.content)["data"]]
        except (TimeoutError, self._openai.OpenAIError, ValueError, KeyError, TypeError):
            return ""
        listed = self._clean(", ".join(names[:10])) + (", ..." if len(names) > 10 else "")
        return f" (it serves: {listed})" if names else ""

    def _refusal(self, status: int, response: Any) -> Fault:
        """A status of 4xx or 5xx as a fault: 408, 409, 429 and 5xx may pass."""
        detail = self._clean(response.text)
        if status in (400, 413, 422) and _TOO_LONG.search(detail):
            return Fault("too long", detail, again=False)
        again = status in (408, 409, 429) or status >= 500
        return Fault(f"HTTP {status}", detail, again, retry_after(response.headers))

    def _explained(self, fault: Fault, tries: int) -> str:
        """What to do about a fault at the start."""
        hints = {
            "HTTP 401": f"set the right key in the environment variable {self.options.key_variable}",
            "HTTP 403": f"the key in {self.options.key_variable} may not use this model",
            "HTTP 404": "there is no such model or no such address; base URLs mostly end in /v1"
            + (", and only some servers have raw completions" if self.options.raw else ""),
            "timeout": "it is too slow or stuck; raise the timeout",
            "connection": "nobody answers there; is the server up, and the URL right?",
            "not JSON": "what answers there does not speak the OpenAI API; base URLs mostly end in /v1",
        }
        otherwise = "mend what it says" if fault.reason.startswith("HTTP 4") else "try again later"
        times = f" (tried {tries} times)" if tries > 1 else ""
        what = f"{fault.reason}{times}{': ' + fault.detail if fault.detail else ''}"
        return f"endpoint {self.url}, model {self.model!r}: {what}; {hints.get(fault.reason, otherwise)}"

    def _clean(self, said: object) -> str:
        """What somebody said in one short line, without the key and whatever looks like one."""
        return self._secrets.clean(" ".join(str(said).split()))[:300]

    def _count(self, **what: int) -> None:
        with self._lock:
            self._numbers.update(what)

    def _count_reason(self, kind: str, reason: str) -> None:
        with self._lock:
            self._reasons[kind, reason] += 1


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}
