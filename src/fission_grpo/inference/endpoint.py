"""An OpenAI-compatible endpoint as a policy: chat completions with tools, or raw completions of rendered prompts.

The `openai` client makes the requests, with its own retries, backoff and timeouts. This module limits their total time
and counts every fault by its reason. All requests run on an event loop in one thread, so that they can be cancelled.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import math
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from fission_grpo.core.chat import parse
from fission_grpo.core.install import install_line
from fission_grpo.core.json_io import encodable, quoted
from fission_grpo.core.terminal import printable
from fission_grpo.inference.base import Reply, Request
from fission_grpo.inference.http_client import TRIES, RequestGate, Tries, http_library, recording_client
from fission_grpo.inference.local import prompt_text
from fission_grpo.inference.messages import (
    MAX_CHARACTERS,
    STREAM,
    TOOL_FLAGS,
    call_as_text,
    refuses_tools,
    to_openai,
    tools_to_openai,
    wants_stream,
)
from fission_grpo.inference.secrets import NO_ADDRESS, NO_KEY, EndpointError, Secrets, public_url, read_key, split_url

CHECK_TRIES = 3
"""Most tries of `check`, the first included. [ours] A user waits for it, and the usual cause is a wrong URL."""

MAX_NUMBER = 1e12
"""Largest number that an option takes. [ours] No product of two overflows, and no run needs more seconds or tokens."""
MAX_SEED = 2.0**64  # likewise, of a seed and of its negative [ours]

_VARIABLE_NAME = re.compile(r"[A-Z_][A-Z0-9_]*")
_KINDS = {"str": "text; in YAML, quote it", "bool": "true or false", "int": "a whole number", "float": "a number"}
_RESERVED_FIELDS = ("messages", "model", "stream", "n", "tools")


@dataclass(frozen=True)
class EndpointOptions:
    """How requests are made. Times are in seconds; defaults are [ours].

    Fields of `extra_body` are added to the request's body and replace those of the same name; `max_completion_tokens`
    replaces `max_tokens`, which OpenAI's reasoning models refuse. The waits between retries grow exponentially, or are
    as long as a Retry-After header says. A value out of range raises ValueError, naming the field.
    """

    raw: bool = False  # use `/v1/completions` with a prompt rendered here, instead of chat completions with tools
    temperature: float | None = 0.0  # None for the endpoint's default
    max_tokens: int | None = 1024  # of one turn; None for the endpoint's default
    seed: int | None = None  # of the sampling, for endpoints that support it
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    concurrency: int = 16  # most requests in flight
    timeout: float = 120.0  # limit of one try, from sending it to the last byte
    patience: float = 600.0  # limit of one request, including retries and the waits between them
    max_retries: int = 7  # of one request
    key_variable: str = "OPENAI_API_KEY"  # name of the environment variable that holds the key

    LEAST: ClassVar[Mapping[str, float]] = {  # least values of numbers, if not 0
        "concurrency": 1,
        "timeout": 0.001,
        "patience": 0.001,
        "max_tokens": 1,
        "seed": -MAX_SEED,
    }

    def __post_init__(self):
        if not (isinstance(self.key_variable, str) and _VARIABLE_NAME.fullmatch(self.key_variable)):
            raise self._error(
                "key_variable",
                "must be the name of an environment variable, in capitals, such as OPENAI_API_KEY; put the key itself "
                "into that variable (the value given is not shown here)",
            )
        for entry in fields(self):
            self._check_type(entry.name, str(entry.type))
        if not isinstance(self.extra_body, Mapping):
            raise self._error("extra_body", f"must be a mapping, got {quoted(self.extra_body)}")
        if reserved := [name for name in _RESERVED_FIELDS if name in self.extra_body]:
            raise self._error("extra_body", f"must not hold {', '.join(reserved)}: that is set here")
        try:
            json.dumps(dict(self.extra_body))
        except (TypeError, ValueError) as error:
            raise self._error("extra_body", f"must hold JSON values: {error}") from error

    def _check_type(self, name: str, annotation: str) -> None:
        value, kind, least = getattr(self, name), annotation.split(" ")[0], self.LEAST.get(name, 0)
        if value is None and annotation.endswith("None"):
            return
        if kind in ("str", "bool") and type(value).__name__ != kind:
            raise self._error(name, f"must be {_KINDS[kind]}; got {quoted(value)}")
        if kind not in ("int", "float"):
            return
        if type(value).__name__ not in (kind, "int") or not least <= value < math.inf:  # pyright: ignore
            raise self._error(name, f"must be {_KINDS[kind]} of at least {least}, got {quoted(value)}")
        assert value is not None
        if value > (most := MAX_SEED if name == "seed" else MAX_NUMBER):
            raise self._error(name, f"must be at most {most:.0e}, got {quoted(value)}")

    def _error(self, name: str, problem: str) -> ValueError:
        return ValueError(f"{type(self).__name__}.{name} {problem}")


class EndpointPolicy(AbstractContextManager["EndpointPolicy"]):
    """Replies of a model behind an OpenAI-compatible endpoint; an `AsynchronousPolicy`.

    Call `check()` before an evaluation and `close()` after it, or use it in a `with` statement.

    Args:
        model: name of the model on the server.
        base_url: such as "http://localhost:8000/v1"; None for OPENAI_BASE_URL, else OpenAI's own.
        options: how requests are made.
        tokenizer: renders dialogues for raw completions; not needed for requests with a `prompt`.

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
        if importlib.util.find_spec("openai") is None:
            raise ModuleNotFoundError(f"an endpoint needs openai: {install_line('openai')}", name="openai")
        self._openai: Any = importlib.import_module("openai")
        self.model, self.options, self.tokenizer, self._gate = model, options or EndpointOptions(), tokenizer, gate
        base_url = base_url or os.environ.get("OPENAI_BASE_URL") or None
        key = read_key(self.options.key_variable, model, base_url)
        try:
            url, query, secrets = split_url(base_url)
            self._secrets = Secrets((*secrets, "" if key == NO_KEY else key))
            self._client = self._openai.AsyncOpenAI(
                base_url=url,
                default_query=query,
                api_key=key,
                max_retries=self.options.max_retries,
                timeout=self._openai.Timeout(self.options.timeout),
                http_client=recording_client(self._openai),
            )
        except (ValueError, http_library(self._openai).InvalidURL):  # its message may quote a password
            raise EndpointError(NO_ADDRESS) from None
        self._secrets.hide_in_logs()
        self.url = public_url(str(self._client.base_url))
        self._counts: Counter[str] = Counter()
        self._stream: Mapping[str, Any] = {}  # fields of a request to a server that only streams
        self._slots = asyncio.Semaphore(self.options.concurrency)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="endpoint", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"EndpointPolicy({self.model!r}, {self.url!r})"

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, request: Request) -> Future[Reply]:
        """Start a reply. Raises ValueError for a request that this endpoint cannot take, see `EndpointOptions.raw`."""
        return asyncio.run_coroutine_threadsafe(self._reply(self._body(request)), self._loop)

    def check(self) -> None:
        """Request a short reply, which is not counted. Raises EndpointError with the fix if there is none."""
        hello = "Say hello."
        body = self._body(Request([{"role": "user", "content": hello}], prompt=hello if self.options.raw else None))
        if "max_tokens" in body:
            body["max_tokens"] = min(16, body["max_tokens"])
        client = self._client.with_options(max_retries=min(self.options.max_retries, CHECK_TRIES - 1))
        tries = asyncio.run_coroutine_threadsafe(self._request(client, body, Counter()), self._loop).result()
        if tries.reply is not None:
            return
        hints = {
            "HTTP 401": f"set the right key in the environment variable {self.options.key_variable}",
            "HTTP 403": f"the key in {self.options.key_variable} may not use this model",
            "HTTP 404": "there is no such model or no such address; base URLs mostly end in /v1"
            + (", and only some servers have raw completions" if self.options.raw else ""),
            "connection": "nobody answers there; is the server up, and the URL right?",
            "too large": "what answers there sends no completion, or one without an end; set max_tokens",
            "encoded": "the server, or a proxy before it, must send answers as they are",
            "not JSON": "what answers there does not speak the OpenAI API; base URLs mostly end in /v1",
        }
        otherwise = {
            "HTTP 3": "if you trust that server, give its URL",
            "HTTP 4": "correct the request as it says",
        }.get(tries.reason[:6], "try again later")
        problem = self._describe(tries, f" (tried {tries.number} times)" if tries.number > 1 else "")
        problem += "" if tries.reason == "timeout" else f"; {hints.get(tries.reason, otherwise)}"
        models = asyncio.run_coroutine_threadsafe(self._models(), self._loop).result()
        raise EndpointError(f"endpoint {self.url}, model {self.model!r}: {problem}{models}")

    def probe_tools(self) -> str:
        """Request a call of a tool, which is not counted, and say how the server answers. Nothing is refused.

        Example: "the server answers tools: as text ('{"name": ...}'); start vLLM with ..., or evaluate with --raw ..."
        """
        weather = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
        tool = {"name": "get_weather", "description": "The weather in a city now.", "parameters": weather}
        question = [{"role": "user", "content": "What is the weather in Oslo? Call get_weather."}]
        client = self._client.with_options(max_retries=0)
        body = self._body(Request(question, (tool,)))
        tries = asyncio.run_coroutine_threadsafe(self._request(client, body, Counter()), self._loop).result()
        begin = "the server answers tools:"
        if tries.reply is None:
            fix = "" if refuses_tools(tries.detail) else f"; {TOOL_FLAGS}"
            return f"{begin} no ({self._describe(tries, '')}{fix})"
        if tries.reply.tool_calls:
            return f"{begin} yes"
        text = self._clean(tries.reply.text)
        if parse(tries.reply.text).calls:
            return f"{begin} as text in Hermes format, which is read ({text!r}); better, {TOOL_FLAGS}"
        how = "as text" if call_as_text(tries.reply.text) else "no call of one that was to be called"
        return f"{begin} {how} ({text!r}); {TOOL_FLAGS}"

    @property
    def counts(self) -> Counter[str]:
        """Totals so far, without zeros.

        "requests" (tries sent), "retries/REASON" (tries that were repeated), "lost/REASON" (requests without a reply,
        by the last reason), "prompt_tokens", "completion_tokens", "uncounted" (replies without token counts), "empty"
        (replies without text), "cut" (replies longer than `MAX_CHARACTERS`) and "too_long" (prompts longer than the
        model's context, which give empty, truncated replies as of a local model).
        """
        return +Counter(dict(self._counts))  # only the policy's thread writes, and dict() copies in one step

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
        options = self.options
        body: dict[str, Any] = {}
        if options.raw:
            if request.prompt is None and self.tokenizer is None:
                raise ValueError(f"{self}: raw completions of dialogues need the model's tokenizer to render them")
            body["prompt"] = encodable(prompt_text(self.tokenizer, request))
        elif request.prompt is not None:
            raise ValueError(f"{self}: the case brings its own prompt text, which only raw completions take")
        else:
            body["messages"] = to_openai(request.messages)
            if request.tools:
                body["tools"] = tools_to_openai(request.tools)
        settings = {
            "temperature": options.temperature,
            "max_tokens": options.max_tokens,
            "seed": request.seed or options.seed,
        }
        if "max_completion_tokens" in options.extra_body:
            del settings["max_tokens"]
        return body | {name: value for name, value in settings.items() if value is not None}

    async def _reply(self, body: dict[str, Any]) -> Reply:
        async with self._slots:
            start, reason, tokens = time.monotonic(), "cancelled", 0
            try:
                reply = self._counted(await self._request(self._client, body, self._counts, self._gate))
                reason, tokens = reply.reason, (reply.prompt_tokens or 0) + reply.tokens
            finally:
                if self._gate is not None:
                    self._gate.record(reason, tokens, time.monotonic() - start)
        return reply

    async def _request(self, client: Any, body: Any, counts: Counter[str], gate: RequestGate | None = None) -> Tries:
        """Send a request with its retries. Returns the tries with the reply or the last fault."""
        deadline = time.monotonic() + self.options.patience
        tries = Tries(self.options.timeout, deadline, counts, gate, body.get("tools", ()))
        TRIES.set(tries)
        completions = client.completions if self.options.raw else client.chat.completions
        # fields go into `extra_body`, because openai walks through all others: an eighth of a request's time
        arguments = {"model": self.model, "extra_body": {**body, **self.options.extra_body, **self._stream}}
        arguments["prompt" if self.options.raw else "messages"] = []
        try:
            async with asyncio.timeout(self.options.patience):
                with suppress(self._openai.APIStatusError):
                    await completions.with_raw_response.create(**arguments)
                if tries.reply is None and wants_stream(tries.detail) and "stream" not in arguments["extra_body"]:
                    self._stream = STREAM  # of all later requests, too
                    arguments["extra_body"] |= STREAM
                    await completions.with_raw_response.create(**arguments)
        except (TimeoutError, self._openai.APIError):
            pass  # its reason is in `tries`
        except Exception as error:  # noqa: BLE001 - any fault of the client costs one reply, which is counted
            tries.reason, tries.detail = "client", f"{type(error).__name__}: {error}"
        return tries

    def _counted(self, tries: Tries) -> Reply:
        """The reply, or what stands for the fault; counted."""
        if (reply := tries.reply) is not None:
            self._counts["prompt_tokens"] += reply.prompt_tokens or 0
            self._counts["completion_tokens"] += reply.tokens
            self._counts["uncounted"] += reply.prompt_tokens is None
            self._counts["empty"] += not reply.text
            self._counts["cut"] += reply.truncated and len(reply.text) == MAX_CHARACTERS
            return reply
        if tries.reason == "too long":
            self._counts["too_long"] += 1
            return Reply("", truncated=True, reason=tries.reason)
        self._counts[f"lost/{tries.reason}"] += 1
        times = f" after {tries.number} {'try' if tries.number == 1 else 'tries'}"
        return Reply("", lost=self._describe(tries, times), reason=tries.reason)

    def _describe(self, tries: Tries, times: str) -> str:
        described = f"{tries.reason}{times}" + (f": {self._clean(tries.detail)}" if tries.detail.strip() else "")
        if tries.reason == "timeout":
            return f"{described}; it is too slow or stuck: raise --timeout (now {self.options.timeout:g})"
        return f"{described}; {TOOL_FLAGS}" if refuses_tools(tries.detail) else described

    async def _models(self) -> str:
        """The models that the server lists, for the message of `check`; "" if it lists none."""
        try:
            async with asyncio.timeout(5.0):
                listing = await self._client.with_options(max_retries=0).models.with_raw_response.list()
            names = [str(entry["id"]) for entry in json.loads(listing.content)["data"]]
        except (TimeoutError, self._openai.OpenAIError, ValueError, KeyError, TypeError, RecursionError):
            return ""
        listed = self._clean(", ".join(names[:10])) + (", ..." if len(names) > 10 else "")
        return f" (it serves: {listed})" if names else ""

    def _clean(self, text: str) -> str:
        """One short line without secrets."""
        return printable(self._secrets.clean(" ".join(text.split()))[:300])[:300]
