"""A simulator behind an OpenAI-compatible endpoint (vLLM, Ollama, OpenRouter, OpenAI, ...) as a source of diagnoses.

Nothing that the endpoint does stops training: every failure gets an answer, or a reason which is counted. Requests,
time limits, retries and the key are `EndpointPolicy`'s; cache, budget and circuit breaker are added here.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from fission_grpo.diagnose import Answer, answered
from fission_grpo.evaluation.endpoint import EndpointPolicy
from fission_grpo.evaluation.endpoint_reply import Answer as Written
from fission_grpo.evaluation.endpoint_reply import Fault
from fission_grpo.evaluation.play import Request
from fission_grpo.feedback import LATE
from fission_grpo.simulator.answers import usable_text
from fission_grpo.simulator.cache import DiagnosisCache
from fission_grpo.simulator.endpoint_options import SimulatorOptions
from fission_grpo.simulator.instances import load_instances
from fission_grpo.simulator.ledger import Ledger, report
from fission_grpo.simulator.limits import Limits
from fission_grpo.simulator.prompt import failure_parts, failure_text, messages_about
from fission_grpo.simulator.settings import LEFT_TO_RULES
from fission_grpo.trajectory import Failure

__all__ = ["EndpointSource", "SimulatorOptions"]

CHARACTERS_PER_TOKEN = 4
"""By which tokens are estimated where an endpoint does not count them. [ours]"""

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Flight:
    """A request under way and those who wait for it. `text` is what is said of the failure."""

    key: str
    text: str
    waiting: list[Future[Answer]]
    asked: Future[tuple[Written | Fault, int]] | None = None
    began: float = field(default_factory=time.monotonic)


class EndpointSource:
    """Diagnoses of a model behind an endpoint; see `diagnose.Source`.

    Call `check()` before a run and `close()` after it, or use it in a `with` statement.

    A failure that was diagnosed before, here or by an earlier process with the same cache folder, is answered from the
    cache; of equal failures under way at a time only one is sent. Reasons why there is no diagnosis: "timeout",
    "connection", "HTTP 429" (and so on), "not JSON", "no choices", "malformed", "too long" (the prompt), "tool calls
    instead of text", those of `usable_text`, "budget", "circuit open", "late" (nobody waited for it), "closed".

    Args:
        model: name of the model there.
        url: of the endpoint, such as "http://localhost:8000/v1"; None: OPENAI_BASE_URL, else OpenAI's own.
        options: of requests, cache, budget, circuit breaker.

    Raises:
        ValueError: the key, the URL or the file of examples is no good, or the `openai` package is not installed.
    """

    name = "endpoint"
    later = True

    def __init__(self, model: str, url: str | None = None, options: SimulatorOptions | None = None):
        self.model, self.options = model, options or SimulatorOptions()
        given, asked = self.options, self.options.request_options()
        shots = load_instances(Path(given.shots))[: given.shots_used] if given.shots else []
        self._shots = [(failure_text(one.failure, given.characters), one.diagnosis) for one in shots]
        self._limits = Limits(given.max_requests, given.max_tokens_total, given.circuit_after, given.circuit_seconds)
        self._ledger = Ledger(given.prompt_price, given.completion_price)
        settings = [model, asked.temperature, asked.max_tokens, asked.seed, dict(asked.extra_body)]
        same = json.dumps([*settings, given.system, self._shots], sort_keys=True)
        self._hash = hashlib.sha256(same.encode() + b"\0")  # what all keys have in common
        self._lock, self._closed = threading.Lock(), False
        self._flights: dict[str, _Flight] = {}
        try:
            self._policy = EndpointPolicy(model, url, asked, gate=self._limits)
        except ModuleNotFoundError as error:
            if error.name != "openai":
                raise
            raise ValueError("diagnoses of an endpoint need openai: pip install 'fission-grpo[endpoint]'") from error
        self._cache = DiagnosisCache(Path(given.cache) if given.cache else None)

    def __repr__(self) -> str:
        return f"EndpointSource({self.model!r}, {self._policy.url!r})"

    def __enter__(self) -> EndpointSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, failures: Sequence[Failure]) -> list[Future[Answer]]:
        """Begin to diagnose; see `diagnose.Source`. A request that nobody waits for any more is given up."""
        return [self._start(failure) for failure in failures]

    def check(self) -> None:
        """Ask for a short reply, counted nowhere.

        Raises:
            EndpointError: there is none; the message names URL and model, and what to mend.
        """
        self._policy.check()

    def totals(self) -> Mapping[str, float]:
        """What this process has done so far, as metrics; see `Ledger.totals`."""
        return self._ledger.totals(
            self._policy.counts,
            circuit_opened=self._limits.opened,
            cache_failed=self._cache.failed,
            cache_skipped=self._cache.skipped,
        )

    def counts(self) -> Mapping[str, float]:
        """What was added to the totals since the last call of this; zeros are left out."""
        return self._ledger.since_last(self.totals())

    def state(self) -> dict[str, Any]:
        """The diagnoses given so far, where no folder keeps them."""
        return {"texts": {} if self.options.cache else self._cache.texts()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        for key, text in state["texts"].items():
            self._cache.put(key, text)

    def report(self) -> str:
        """The totals in a few lines, for the end of a run."""
        return report(repr(self), self.totals())

    def close(self) -> None:
        """Give up what is under way ("closed") and end the thread. Only the cache answers from then on."""
        with self._lock:
            self._closed = True
        self._policy.close()
        self._cache.close()

    def _start(self, failure: Failure) -> Future[Answer]:
        if failure.kind in LEFT_TO_RULES:
            return answered(Answer(None))
        try:
            tools, rest = failure_parts(failure, self.options.characters)
            key = self._key(tools, rest)
        except Exception as error:  # noqa: BLE001 - whatever a task's tools or messages raise costs one diagnosis, counted
            _log.warning("the prompt for task %s could not be made", failure.task.id, exc_info=True)
            return self._at_once(Answer(None, f"raised {type(error).__name__}"), asked=1)
        if (text := self._cache.get(key)) is not None:
            return self._at_once(Answer(text), asked=1, cache_hits=1)
        future: Future[Answer] = Future()
        with self._lock:
            flight = self._flights.get(key)
            first, closed = flight is None, self._closed
            if flight is None:
                flight = _Flight(key, f"{tools}\n{rest}", [])
                if not closed:
                    self._flights[key] = flight
            flight.waiting.append(future)
        if closed:
            return self._at_once(Answer(None, "closed"), asked=1)
        self._ledger.add(asked=1, shared=0 if first else 1)
        future.add_done_callback(partial(self._dropped, flight))
        if first:
            self._send(flight)
        return future

    def _at_once(self, answer: Answer, **numbers: float) -> Future[Answer]:
        self._ledger.add(**numbers)
        self._ledger.ended(answer)
        return answered(answer)

    def _key(self, tools: str, rest: str) -> str:
        """What is sent, as a hash; the URL is not in it, a server may come back elsewhere."""
        key = self._hash.copy()
        key.update(_digest(tools))
        key.update(rest.encode("utf-8", "surrogatepass"))
        return key.hexdigest()

    def _send(self, flight: _Flight) -> None:
        request = Request(messages_about(flight.text, self.options.system, self._shots))
        try:
            flight.asked = self._policy.ask(request)
        except RuntimeError:  # the thread ended since we looked
            self._landed(flight, Answer(None, "closed"))
            return
        flight.asked.add_done_callback(partial(self._told, flight))

    def _told(self, flight: _Flight, asked: Future[tuple[Written | Fault, int]]) -> None:
        """A request has ended. Runs in the policy's thread, and must not raise."""
        if asked.cancelled():
            self._landed(flight, Answer(None, "closed"))
            return
        try:
            answer = self._read(flight, asked.result()[0])
        except Exception as error:  # noqa: BLE001 - a fault of ours costs one diagnosis, counted
            _log.warning("a simulator's answer could not be read", exc_info=True)
            answer = Answer(None, f"raised {type(error).__name__}")
        if answer.text:
            self._cache.put(flight.key, answer.text)
        self._landed(flight, answer)

    def _read(self, flight: _Flight, outcome: Written | Fault) -> Answer:
        """The diagnosis in what came, once it is paid for."""
        seconds = time.monotonic() - flight.began
        if isinstance(outcome, Fault):
            self._ledger.add(seconds=seconds)
            return Answer(None, outcome.reason)
        reply, read, written, estimated = outcome.reply, outcome.prompt_tokens, outcome.reply.tokens, 0
        if not outcome.counted:
            shown = len(flight.text) + len(self.options.system) + sum(map(len, sum(self._shots, ())))
            read, written = shown // CHARACTERS_PER_TOKEN, len(reply.text) // CHARACTERS_PER_TOKEN
            estimated = read + written
            self._limits.paid(estimated)
        self._ledger.add(seconds=seconds, prompt_tokens=read, completion_tokens=written, estimated_tokens=estimated)
        if reply.tool_calls:
            return Answer(None, "tool calls instead of text")
        if outcome.empty:
            return Answer(None, "empty")
        return usable_text(reply.text, reply.truncated, flight.text)

    def _landed(self, flight: _Flight, answer: Answer) -> None:
        with self._lock:
            if self._flights.get(flight.key) is flight:
                del self._flights[flight.key]
            waiting, flight.waiting = flight.waiting, []
        for future in waiting:
            if future.set_running_or_notify_cancel():
                self._ledger.ended(answer)
                future.set_result(answer)

    def _dropped(self, flight: _Flight, future: Future[Answer]) -> None:
        """A future is done; if nobody wants it any more and nobody else waits, its request is given up."""
        if not future.cancelled():
            return
        self._ledger.ended(Answer(None, LATE))
        with self._lock:
            if future in flight.waiting:
                flight.waiting.remove(future)
            if flight.waiting:
                return
            if self._flights.get(flight.key) is flight:
                del self._flights[flight.key]
        if flight.asked is not None:
            flight.asked.cancel()


@lru_cache(maxsize=256)
def _digest(tools: str) -> bytes:
    return hashlib.sha256(tools.encode("utf-8", "surrogatepass")).digest()
