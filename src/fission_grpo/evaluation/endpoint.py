"""Any OpenAI-compatible endpoint as a policy: chat completions with tools, or raw completions of prompts we render.

One thread with an event loop holds all requests, so that every time limit is exact and whatever is given up can be
cancelled. The key is read from the environment and stands in no message, record or `repr`.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import threading
import time
from collections import Counter
from concurrent.futures import Future
from typing import Any

from fission_grpo.evaluation.endpoint_options import (
    EndpointCounts,
    EndpointError,
    EndpointOptions,
    Gate,
    check_url,
    without_secrets,
)
from fission_grpo.evaluation.endpoint_reply import Answer, Fault, Unreadable, read_answer, retry_after
from fission_grpo.evaluation.local import encodable, prompt_text
from fission_grpo.evaluation.messages import to_openai, tools_to_openai
from fission_grpo.evaluation.play import Reply, Request
from fission_grpo.evaluation.secrets import Secrets, parts_of

__all__ = ["EndpointCounts", "EndpointError", "EndpointOptions", "EndpointPolicy", "Fault", "Gate"]

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
