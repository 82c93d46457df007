"""Feedback of a model behind an OpenAI-compatible endpoint (vLLM, Ollama, OpenRouter, OpenAI, ...).

No fault of the endpoint stops training: every failure gets a text, or a reason that is counted. Requests, time limits,
retries and the key are `EndpointPolicy`'s; this module adds prompts, cache, budget, circuit breaker and metrics.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from fission_grpo.core.terminal import get_logger
from fission_grpo.core.types import Failure
from fission_grpo.feedback.dataset import load_examples
from fission_grpo.feedback.endpoint_state import RequestLimits, ResponseCache
from fission_grpo.feedback.postprocess import usable_text
from fission_grpo.feedback.prompt import CHARACTERS, LEFT_TO_RULES, SYSTEM, failure_text, messages_about
from fission_grpo.feedback.request import LATE
from fission_grpo.feedback.sources import Diagnosis, completed
from fission_grpo.inference.base import Reply, Request
from fission_grpo.inference.endpoint import EndpointOptions, EndpointPolicy

METRICS = "feedback/model/"
CLOSED = "closed"

CHARACTERS_PER_TOKEN = 4
"""For estimates of tokens where an endpoint does not count them. [ours]"""

_log = get_logger(__name__)


@dataclass(frozen=True)
class FeedbackModelOptions(EndpointOptions):
    """Options of `EndpointFeedback`: those of the requests (see `EndpointOptions`), and the following.

    All defaults are [ours]. At temperature 0 a resumed run gets the same feedback again. A thinking model needs
    `max_tokens` of 1,000 or more. The budget is of this process; beyond it the reason is "budget".
    """

    max_tokens: int | None = 200
    concurrency: int = 32
    timeout: float = 30.0
    patience: float = 90.0
    max_retries: int = 2
    cache: str | None = None  # folder on disk, shared by all processes and later runs; None: in memory only
    max_requests: int | None = None  # budget in tries
    max_tokens_total: int | None = None  # budget in tokens, read and written; requests in flight still count
    prompt_price: float = 0.0  # of a million tokens read, in any currency
    completion_price: float = 0.0  # of a million tokens written
    circuit_after: int = 8  # requests lost in a row after which no more are sent for a while ("circuit open")
    circuit_seconds: float = 30.0  # the length of this pause, after which one request tests the endpoint
    characters: int = CHARACTERS  # longest text about one failure, see `prompt.failure_text`
    system: str = SYSTEM  # a model trained by `simulator train` needs the one it was trained with
    shots: str | None = None  # file of labelled examples (`simulator data`), whose first rows are shown
    shots_used: int = 3  # number of these rows

    LEAST: ClassVar[Mapping[str, float]] = {
        **EndpointOptions.LEAST,
        "circuit_after": 1,
        "circuit_seconds": 0.001,
        "characters": 1,
        "shots_used": 1,
    }

    def __post_init__(self):
        super().__post_init__()
        if self.raw:
            raise self._error("raw", "must be false: feedback uses chat completions")


@dataclass(eq=False)
class _Pending:
    """A request in flight, the prompt about its failure, and the futures that wait for it."""

    key: str
    prompt: str
    reply: Future[Reply]
    waiting: list[Future[Diagnosis]] = field(default_factory=list)
    start: float = field(default_factory=time.monotonic)


class EndpointFeedback(AbstractContextManager["EndpointFeedback"]):
    """Feedback of a model behind an endpoint; a `FeedbackSource`.

    Call `check()` before a run and `close()` after it, or use it in a `with` statement.

    A failure that had feedback before, here or in an earlier process with the same cache folder, is answered from the
    cache. Of equal failures in flight only one is sent. Reasons for missing feedback: "timeout", "connection",
    "HTTP 429" (and so on), "not JSON", "no choices", "malformed", "too long" (the prompt), "tool calls instead of
    text", those of `usable_text`, "budget", "circuit open", "late" (given up by the caller), "closed".

    Model and URL are as for `EndpointPolicy`. Raises ValueError for an invalid key, URL or file of examples, or if the
    `openai` package is missing.
    """

    name = "endpoint"
    asynchronous = True

    def __init__(self, model: str, url: str | None = None, options: FeedbackModelOptions | None = None):
        self.model, self.options = model, options or FeedbackModelOptions()
        given = self.options
        shots = load_examples(Path(given.shots))[: given.shots_used] if given.shots else []
        self._shots = [(failure_text(shot.failure, given.characters), shot.diagnosis) for shot in shots]
        self._limits = RequestLimits(
            given.max_requests, given.max_tokens_total, given.circuit_after, given.circuit_seconds
        )
        # the key does not depend on the URL, as a server may move
        settings = [model, given.temperature, given.max_tokens, given.seed, dict(given.extra_body)]
        common = json.dumps([*settings, given.system, self._shots], sort_keys=True)
        self._key_prefix = hashlib.sha256(common.encode() + b"\0")
        self._lock = threading.RLock()
        self._is_closed = False
        self._pending: dict[str, _Pending] = {}
        self._usage: Counter[str] = Counter()
        self._reported: Mapping[str, float] = {}
        try:
            self._policy = EndpointPolicy(model, url, given, gate=self._limits)
        except ModuleNotFoundError as error:
            raise ValueError(str(error)) from error
        self._cache = ResponseCache(Path(given.cache) if given.cache else None)

    def __repr__(self) -> str:
        return f"EndpointFeedback({self.model!r}, {self._policy.url!r})"

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, failures: Sequence[Failure]) -> list[Future[Diagnosis]]:
        """Start work on failures; see `FeedbackSource`. A request is cancelled when all its futures are."""
        return [self._start(failure) for failure in failures]

    def check(self) -> None:
        """Request a short reply, which is not counted. Raises EndpointError if there is none."""
        self._policy.check()

    def totals(self) -> dict[str, float]:
        """Return what this process has done, as metrics; zeros are left out.

        The names are "feedback/model/" and: requested (failures), answers, cache_hits, shared (with an equal request
        in flight), requests (tries), retries, lost (requests), prompt_tokens, completion_tokens, estimated_tokens
        (tokens the endpoint did not count), cost, seconds (summed over requests, waiting for a slot included),
        circuit_opened, cache_failed, cache_skipped; no/REASON for failures without feedback, retries/REASON.
        """
        with self._lock:
            totals: Any = Counter(self._usage)
        for name, number in self._policy.counts.items():
            kind = name.partition("/")[0]
            if kind in ("requests", "prompt_tokens", "completion_tokens", "retries", "lost"):
                totals[kind] += number
            if name.startswith("retries/"):
                totals[name] = number
        prompt_cost = totals["prompt_tokens"] * self.options.prompt_price
        totals["cost"] = (prompt_cost + totals["completion_tokens"] * self.options.completion_price) / 1e6
        totals["circuit_opened"] = self._limits.opened
        totals["cache_failed"], totals["cache_skipped"] = self._cache.failed, self._cache.skipped
        return {METRICS + name.replace(" ", "_"): value for name, value in totals.items() if value}

    def counts(self) -> Mapping[str, float]:
        """Return what was added to the totals since the last call; zeros are left out."""
        before, self._reported = self._reported, self.totals()
        added = {name: value - before.get(name, 0) for name, value in self._reported.items()}
        return {name: value for name, value in added.items() if value}

    def state(self) -> dict[str, Any]:
        """Return the cached texts, unless they are kept in a folder."""
        return {"texts": {} if self.options.cache else self._cache.texts()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        for key, text in state["texts"].items():
            self._cache.put(key, text)

    def report(self) -> str:
        """Return the totals in one line, for the end of a run."""
        totals = sorted((name.removeprefix(METRICS), value) for name, value in self.totals().items())
        return f"{self!r}: {', '.join(f'{name} {value:,.6g}' for name, value in totals)}"

    def close(self) -> None:
        """Cancel requests in flight ("closed") and end the thread. Only the cache answers from then on."""
        with self._lock:
            self._is_closed = True
        self._policy.close()

    def _start(self, failure: Failure) -> Future[Diagnosis]:
        if failure.kind in LEFT_TO_RULES:
            return completed(Diagnosis(None))
        self._count("requested")
        try:
            prompt = failure_text(failure, self.options.characters)
        except Exception as error:  # noqa: BLE001 - a task's tools or messages may raise anything; logged and counted
            _log.warning("the prompt for task %s could not be made", failure.task.id, exc_info=True)
            return completed(self._counted(Diagnosis(None, f"raised {type(error).__name__}")))
        hashed = self._key_prefix.copy()
        hashed.update(prompt.encode("utf-8", "surrogatepass"))
        key = hashed.hexdigest()
        if (text := self._cache.get(key)) is not None:
            self._count("cache_hits")
            return completed(self._counted(Diagnosis(text)))
        future: Future[Diagnosis] = Future()
        with self._lock:
            if self._is_closed:
                return completed(self._counted(Diagnosis(None, CLOSED)))
            pending = self._pending.get(key)
            if pending is not None:
                self._count("shared")
                pending.waiting.append(future)
            else:
                messages = messages_about(prompt, self.options.system, self._shots)
                pending = _Pending(key, prompt, self._policy.submit(Request(messages)), [future])
                self._pending[key] = pending
                pending.reply.add_done_callback(partial(self._on_reply, pending))
        future.add_done_callback(partial(self._on_done, pending))
        return future

    def _on_reply(self, pending: _Pending, reply: Future[Reply]) -> None:
        """Read a reply. Runs in the policy's thread, and must not raise."""
        try:
            answer = Diagnosis(None, CLOSED) if reply.cancelled() else self._read(pending, reply.result())
        except Exception as error:  # noqa: BLE001 - our own fault costs one answer; logged and counted
            _log.warning("a feedback model's reply could not be read", exc_info=True)
            answer = Diagnosis(None, f"raised {type(error).__name__}")
        if answer.text:
            self._cache.put(pending.key, answer.text)
        self._remove(pending)
        for future in pending.waiting:
            if future.set_running_or_notify_cancel():
                future.set_result(self._counted(answer))

    def _read(self, pending: _Pending, reply: Reply) -> Diagnosis:
        self._count("seconds", time.monotonic() - pending.start)
        if reply.reason is not None:
            return Diagnosis(None, reply.reason)
        if reply.prompt_tokens is None:
            shown = [pending.prompt, self.options.system, *(text for shot in self._shots for text in shot)]
            read = sum(map(len, shown)) // CHARACTERS_PER_TOKEN
            written = len(reply.text) // CHARACTERS_PER_TOKEN
            self._limits.tokens += read + written
            self._count("prompt_tokens", read)
            self._count("completion_tokens", written)
            self._count("estimated_tokens", read + written)
        if reply.tool_calls:
            return Diagnosis(None, "tool calls instead of text")
        return usable_text(reply.text, reply.truncated, pending.prompt)

    def _remove(self, pending: _Pending) -> None:
        """Take a request out of those in flight, so that no more futures wait for it."""
        with self._lock:
            if self._pending.get(pending.key) is pending:
                del self._pending[pending.key]

    def _on_done(self, pending: _Pending, future: Future[Diagnosis]) -> None:
        """Cancel a request when the last future that waits for it was cancelled."""
        if not future.cancelled():
            return
        self._counted(Diagnosis(None, LATE))
        with self._lock:
            if not all(other.cancelled() for other in pending.waiting):
                return
            self._remove(pending)
        pending.reply.cancel()

    def _counted(self, answer: Diagnosis) -> Diagnosis:
        self._count("answers" if answer.text else f"no/{answer.reason or 'no diagnosis'}")
        return answer

    def _count(self, name: str, number: float = 1) -> None:
        with self._lock:
            self._usage[name] += number  # pyright: ignore[reportArgumentType] - seconds are fractions
