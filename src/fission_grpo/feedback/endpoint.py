"""A simulator behind an OpenAI-compatible endpoint (vLLM, Ollama, OpenRouter, OpenAI, ...) as a source of diagnoses.

Nothing that the endpoint does stops training: every failure gets an answer, or a reason which is counted. Requests,
time limits, retries and the key are `EndpointPolicy`'s; cache, budget and circuit breaker are added here.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import secrets
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import lru_cache, partial
from io import FileIO
from pathlib import Path
from typing import Any, Final

from fission_grpo.core.json_io import quoted
from fission_grpo.core.types import Failure
from fission_grpo.feedback.dataset import load_examples
from fission_grpo.feedback.postprocess import usable_text
from fission_grpo.feedback.prompt import CHARACTERS, LEFT_TO_RULES, SYSTEM, failure_parts, failure_text, messages_about
from fission_grpo.feedback.request import LATE
from fission_grpo.feedback.rules import MAX_LENGTH
from fission_grpo.feedback.sources import Diagnosis, completed
from fission_grpo.inference.base import Request
from fission_grpo.inference.endpoint import ChatResponse, EndpointCounts, EndpointOptions, EndpointPolicy, RequestFault

_log = logging.getLogger(__name__)


class ResponseCache:
    """A mapping from keys to diagnoses, in memory and, with a folder, on disk. Any thread may use it.

    Whatever is wrong with the folder stops nothing: lines that cannot be read are skipped, texts that cannot be
    written stay in memory; both are counted, and logged once.

    Args:
        folder: made if need be; all its `*.jsonl` files are read now, later ones of other processes are not.

    Attributes:
        path: this process's file, None without a folder. It is made with the first text.
        skipped: lines that were no entries (torn by a crash, or alien), and files that could not be read.
        failed: texts that could not be written.
    """

    def __init__(self, folder: Path | None):
        self.path = folder / f"diagnoses-{os.getpid()}-{secrets.token_hex(4)}.jsonl" if folder else None
        self.skipped = self.failed = 0
        self._texts: dict[str, str] = {}
        self._file: FileIO | None = None
        self._torn = False
        self._lock = threading.Lock()
        if folder is not None:
            self._read(folder)

    def __len__(self) -> int:
        return len(self._texts)

    def get(self, key: str) -> str | None:
        """The diagnosis kept under a key, None if there is none."""
        return self._texts.get(key)

    def texts(self) -> dict[str, str]:
        """All diagnoses by key, a copy."""
        with self._lock:
            return dict(self._texts)

    def put(self, key: str, text: str) -> None:
        """Keep a diagnosis; what is there already stays. Never raises for what is the disk's fault."""
        with self._lock:
            if key in self._texts:
                return
            self._texts[key] = text
            if self.path is None:
                return
            try:
                self._write(self.path, json.dumps({"key": key, "text": text}).encode() + b"\n")
            except OSError as error:
                self.failed += 1
                if self.failed == 1:
                    _log.warning("diagnoses are kept in memory only, %s cannot be written: %s", self.path, error)

    def close(self) -> None:
        """Close the file. Texts put in later open it again."""
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None

    def _write(self, path: Path, line: bytes) -> None:
        if self._file is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = FileIO(path, "a")
        whole = b"\n" + line if self._torn else line  # what a full disk has cut must not spoil the next line
        self._torn = True
        if self._file.write(whole) != len(whole):
            raise OSError("the disk is full")
        self._torn = False

    def _read(self, folder: Path) -> None:
        try:
            paths = sorted(path for path in folder.glob("*.jsonl") if path.is_file())
        except OSError as error:
            paths = []
            self._skip(f"{folder}: {error}")
        for path in paths:
            try:
                with path.open("rb") as lines:
                    for number, line in enumerate(lines, 1):
                        if line.strip() and not self._add(line):
                            self._skip(f"{path}, line {number}: no entry of this cache")
            except OSError as error:
                self._skip(f"{path}: {error}")

    def _add(self, line: bytes) -> bool:
        """Whether a line is an entry; it is taken then."""
        try:
            entry: Any = json.loads(line)
        except (ValueError, RecursionError):
            return False
        key, text = (entry.get("key"), entry.get("text")) if isinstance(entry, dict) else (None, None)
        if not (isinstance(key, str) and len(key) == 64 and isinstance(text, str) and 0 < len(text) <= MAX_LENGTH):
            return False
        self._texts.setdefault(key, text)
        return True

    def _skip(self, what: str) -> None:
        self.skipped += 1
        if self.skipped == 1:
            _log.warning("skipped in the cache of diagnoses, as everything like it: %s", what)


_NAME = re.compile(r"[A-Z_][A-Z0-9_]*")


_OURS = ("messages", "model", "stream", "n", "tools")


@dataclass(frozen=True)
class FeedbackModelOptions:
    """Options of `EndpointFeedback`. Times are in seconds; all defaults are [ours].

    Args:
        temperature: of the sampling; None: the endpoint's default. 0 makes a resumed run say the same again.
        max_tokens: of one diagnosis; None: the endpoint's default. A model that thinks needs 1,000 or more.
        seed: of the sampling, for endpoints that know seeds.
        extra_body: further fields of the request's body, such as {"max_completion_tokens": 2000}.
        concurrency: requests under way at a time.
        timeout: of one try, from sending it to the last byte.
        tries: of one request, the first included.
        patience: of one request with all its tries and waits. How long a step waits for all of them is the trainer's
            setting.
        backoff: the n-th wait is drawn from 0 to backoff * 2^n, at most `max_wait`.
        max_wait: see `backoff`.
        key_variable: name of the environment variable that holds the key; it is the only place a key is read from.
        cache: folder of the cache on disk, which all processes and later runs may share; None: in memory only.
        max_requests: budget of this process, every try counted; None: no limit. Then the reason is "budget".
        max_tokens_total: budget in tokens, read and written. What is under way when it is reached is still paid for.
        prompt_price: of a million tokens read, in whatever currency the report is to be in.
        completion_price: of a million tokens written.
        circuit_after: requests lost in a row after which the endpoint is left alone ("circuit open").
        circuit_seconds: how long, until one request is let through to see whether it answers again.
        characters: longest text about one failure, see `prompt.simulator_messages`.
        system: the system prompt; a model trained by `simulator train` wants the one it was trained with.
        shots: file of instances (`simulator data`) whose first rows are shown as examples; None: no examples.
        shots_used: how many of them.

    Raises:
        ValueError: a value that cannot be; the message names it.
    """

    temperature: float | None = 0.0
    max_tokens: int | None = 200
    seed: int | None = None
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    concurrency: int = 32
    timeout: float = 30.0
    tries: int = 3
    patience: float = 90.0
    backoff: float = 0.5
    max_wait: float = 8.0
    key_variable: str = "OPENAI_API_KEY"
    cache: str | None = None
    max_requests: int | None = None
    max_tokens_total: int | None = None
    prompt_price: float = 0.0
    completion_price: float = 0.0
    circuit_after: int = 8
    circuit_seconds: float = 30.0
    characters: int = CHARACTERS
    system: str = SYSTEM
    shots: str | None = None
    shots_used: int = 3

    def __post_init__(self):
        for name in ("concurrency", "tries", "circuit_after", "characters", "shots_used"):
            self._number(name, int, least=1)
        for name in ("timeout", "patience", "circuit_seconds"):
            self._number(name, float, least=0.001)
        for name in ("backoff", "max_wait", "prompt_price", "completion_price"):
            self._number(name, float, least=0)
        for name, kind, least in (
            ("max_tokens", int, 1),
            ("max_requests", int, 0),
            ("max_tokens_total", int, 0),
            ("temperature", float, 0),
            ("seed", int, -math.inf),
        ):
            if getattr(self, name) is not None:
                self._number(name, kind, least)
        if not (isinstance(self.key_variable, str) and _NAME.fullmatch(self.key_variable)):  # it may be the key itself
            raise ValueError(
                "SimulatorOptions.key_variable must be the name of an environment variable, in capitals, such as "
                "OPENAI_API_KEY; put the key itself into that variable (what was given is not shown here)"
            )
        self._check_body()

    def request_options(self) -> EndpointOptions:
        """Those of the requests themselves."""
        return EndpointOptions(
            temperature=self.temperature,
            max_tokens=self.max_tokens,
            seed=self.seed,
            extra_body=self.extra_body,
            concurrency=self.concurrency,
            timeout=self.timeout,
            patience=self.patience,
            tries=self.tries,
            backoff=self.backoff,
            max_wait=self.max_wait,
            key_variable=self.key_variable,
        )

    def _number(self, name: str, kind: type, least: float) -> None:
        value = getattr(self, name)
        good = isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool)
        if not good or not math.isfinite(value) or value < least:
            what = "a whole number" if kind is int else "a number"
            raise ValueError(f"SimulatorOptions.{name} must be {what} of at least {least}, got {quoted(value)}")

    def _check_body(self) -> None:
        if not isinstance(self.extra_body, Mapping):
            raise ValueError(f"SimulatorOptions.extra_body must be a mapping, got {quoted(self.extra_body)}")
        if ours := [name for name in _OURS if name in self.extra_body]:
            raise ValueError(f"SimulatorOptions.extra_body must not hold {', '.join(ours)}: that is set here")
        try:
            json.dumps(dict(self.extra_body))
        except (TypeError, ValueError) as error:
            raise ValueError(f"SimulatorOptions.extra_body must hold JSON values: {error}") from error


PREFIX = "feedback/model/"


class UsageCounter:
    """Counts of one process. Any thread may write.

    Args:
        prompt_price: of a million tokens read.
        completion_price: of a million tokens written.
    """

    def __init__(self, prompt_price: float = 0.0, completion_price: float = 0.0):
        self._prices = prompt_price, completion_price
        self._lock = threading.Lock()
        self._numbers: Counter[str] = Counter()
        self._none: Counter[str] = Counter()
        self._taken: Mapping[str, float] = {}

    def add(self, **numbers: float) -> None:
        """Count."""
        with self._lock:
            for name, number in numbers.items():
                self._numbers[name] += number  # pyright: ignore[reportArgumentType] - seconds are no whole number

    def ended(self, answer: Diagnosis) -> None:
        """A failure has got its answer, or there is none."""
        with self._lock:
            if answer.text:
                self._numbers["answers"] += 1
            else:
                self._none[answer.reason or "no diagnosis"] += 1

    def totals(self, asked: EndpointCounts, **more: float) -> dict[str, float]:
        """All counts so far that are not zero, named as metrics.

        Args:
            asked: the policy's own counts: tries, and why they were made again or lost.
            more: further counts.

        Returns:
            dict: "feedback/model/" and: asked (failures), answers, cache_hits, shared (with an equal request under way),
                requests (tries), retries, lost (requests), prompt_tokens, completion_tokens, estimated_tokens (those
                of them that the endpoint did not count), cost, seconds (summed over requests, waiting for a place
                included); no/REASON for failures without a diagnosis, retries/REASON for tries made again; `more`.
        """
        with self._lock:
            numbers, none = dict(self._numbers), dict(self._none)
        read, written = numbers.get("prompt_tokens", 0), numbers.get("completion_tokens", 0)
        found: dict[str, float] = {
            **numbers,
            "requests": asked.requests,
            "retries": sum(asked.retries.values()),
            "lost": sum(asked.lost.values()),
            "cost": (read * self._prices[0] + written * self._prices[1]) / 1e6,
            **more,
            **{f"no/{_word(reason)}": number for reason, number in none.items()},
            **{f"retries/{_word(reason)}": number for reason, number in asked.retries.items()},
        }
        return {PREFIX + name: value for name, value in found.items() if value}

    def since_last(self, totals: Mapping[str, float]) -> dict[str, float]:
        """What has been added to the totals since the last call of this; zeros are left out."""
        with self._lock:
            before, self._taken = self._taken, totals
        added = {name: value - before.get(name, 0) for name, value in totals.items()}
        return {name: value for name, value in added.items() if value}


def report(title: str, totals: Mapping[str, float]) -> str:
    """Totals in a few lines for the end of a run.

    Example:
        The second line is "not diagnosed: HTTP_429 3, timeout 1" or "not diagnosed: none".
    """
    found = {name.removeprefix(PREFIX): value for name, value in totals.items()}

    def number(name: str) -> str:
        return f"{found.get(name, 0):,.0f}"

    def listed(kind: str) -> str:
        these = [f"{name.removeprefix(kind)} {number(name)}" for name in sorted(found) if name.startswith(kind)]
        return ", ".join(these) or "none"

    cost = f", cost {found['cost']:.4g}" if "cost" in found else ""
    return "\n".join(
        [
            f"{title}: {number('asked')} failures, {number('answers')} diagnosed "
            f"({number('cache_hits')} from the cache, {number('shared')} asked together with an equal one)",
            f"not diagnosed: {listed('no/')}",
            f"requests: {number('requests')}; made again: {listed('retries/')}",
            f"tokens: {number('prompt_tokens')} read, {number('completion_tokens')} written, "
            f"{number('estimated_tokens')} of them estimated{cost}",
            f"circuit opened: {number('circuit_opened')} times; cache: {number('cache_failed')} writes failed, "
            f"{number('cache_skipped')} lines skipped",
        ]
    )


def _word(reason: str) -> str:
    return reason.replace(" ", "_")


BUDGET, CIRCUIT_OPEN = "budget", "circuit open"


_ABOUT_THE_REQUEST: Final = frozenset({"HTTP 400", "HTTP 413", "HTTP 422", "too long"})
"""Refusals of one request, which say nothing of the next one's."""


HUNG = 1.0
"""Seconds for which a cancelled try must have waited to say anything about the endpoint. [ours]"""


class RequestBudget:
    """The gate of `EndpointPolicy`: asked before each try, told of its outcome. Used in the policy's thread only.

    The circuit opens when `circuit_after` requests in a row were lost; cancelled ones count if nothing was answered
    while they hung. After `circuit_seconds` one try is let through: if it is answered the circuit closes, else it
    stays open as long again.

    Args:
        max_requests: tries that are made; None: no limit.
        max_tokens: read and written; None: no limit.
        circuit_after: see above.
        circuit_seconds: see above.
    """

    def __init__(self, max_requests: int | None, max_tokens: int | None, circuit_after: int, circuit_seconds: float):
        self._max_requests, self._max_tokens = max_requests, max_tokens
        self._after, self._seconds = circuit_after, circuit_seconds
        self.requests = self.tokens = self.opened = 0
        self._lost_in_a_row, self._open, self._probing, self._until, self._answered = 0, False, False, 0.0, 0.0

    def enter(self) -> str | None:
        """Why a try may not be made now, None if it may."""
        spent = self._max_requests is not None and self.requests >= self._max_requests
        if spent or (self._max_tokens is not None and self.tokens >= self._max_tokens):
            return BUDGET
        if self._open:
            if self._probing or time.monotonic() < self._until:
                return CIRCUIT_OPEN
            self._probing = True
        self.requests += 1
        return None

    def leave(self, reason: str | None, seconds: float) -> None:
        """A try has ended: None if it was answered, else why not ("cancelled": nobody waits for it)."""
        now = time.monotonic()
        if reason is None or reason in _ABOUT_THE_REQUEST:
            if self._open:
                _log.warning("the simulator's endpoint answers again")
            self._lost_in_a_row, self._open, self._probing, self._answered = 0, False, False, now
            return
        hung = seconds >= HUNG and self._answered < now - seconds
        if self._open:
            self._probing = False
            if hung or reason != "cancelled":
                self._until = now + self._seconds
        elif hung and reason == "cancelled":
            self._lost(reason)

    def ended(self, reason: str | None, tokens: int) -> None:
        """A request was answered (None), or given up after all its tries."""
        self.tokens += tokens
        if reason is not None:
            self._lost(reason)

    def paid(self, tokens: int) -> None:
        """Tokens that the endpoint did not count."""
        self.tokens += tokens

    def _lost(self, reason: str) -> None:
        if self._open or reason in _ABOUT_THE_REQUEST or reason in (BUDGET, CIRCUIT_OPEN):
            return
        self._lost_in_a_row += 1
        if self._lost_in_a_row >= self._after:
            self._open, self._probing, self.opened = True, False, self.opened + 1
            self._until = time.monotonic() + self._seconds
            _log.warning(
                "the simulator's endpoint has lost %d requests in a row, the last: %s; it is asked again in %.3g s",
                self._lost_in_a_row,
                reason,
                self._seconds,
            )


CHARACTERS_PER_TOKEN = 4
"""By which tokens are estimated where an endpoint does not count them. [ours]"""


@dataclass(eq=False)
class _Flight:
    """A request under way and those who wait for it. `text` is what is said of the failure."""

    key: str
    text: str
    waiting: list[Future[Diagnosis]]
    asked: Future[tuple[ChatResponse | RequestFault, int]] | None = None
    began: float = field(default_factory=time.monotonic)


class EndpointFeedback:
    """Diagnoses of a model behind an endpoint; see `FeedbackSource`.

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

    def __init__(self, model: str, url: str | None = None, options: FeedbackModelOptions | None = None):
        self.model, self.options = model, options or FeedbackModelOptions()
        given, asked = self.options, self.options.request_options()
        shots = load_examples(Path(given.shots))[: given.shots_used] if given.shots else []
        self._shots = [(failure_text(one.failure, given.characters), one.diagnosis) for one in shots]
        self._limits = RequestBudget(
            given.max_requests, given.max_tokens_total, given.circuit_after, given.circuit_seconds
        )
        self._ledger = UsageCounter(given.prompt_price, given.completion_price)
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
        self._cache = ResponseCache(Path(given.cache) if given.cache else None)

    def __repr__(self) -> str:
        return f"EndpointSource({self.model!r}, {self._policy.url!r})"

    def __enter__(self) -> EndpointFeedback:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, failures: Sequence[Failure]) -> list[Future[Diagnosis]]:
        """Begin to diagnose; see `FeedbackSource`. A request that nobody waits for any more is given up."""
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

    def _start(self, failure: Failure) -> Future[Diagnosis]:
        if failure.kind in LEFT_TO_RULES:
            return completed(Diagnosis(None))
        try:
            tools, rest = failure_parts(failure, self.options.characters)
            key = self._key(tools, rest)
        except Exception as error:  # noqa: BLE001 - whatever a task's tools or messages raise costs one diagnosis, counted
            _log.warning("the prompt for task %s could not be made", failure.task.id, exc_info=True)
            return self._at_once(Diagnosis(None, f"raised {type(error).__name__}"), asked=1)
        if (text := self._cache.get(key)) is not None:
            return self._at_once(Diagnosis(text), asked=1, cache_hits=1)
        future: Future[Diagnosis] = Future()
        with self._lock:
            flight = self._flights.get(key)
            first, closed = flight is None, self._closed
            if flight is None:
                flight = _Flight(key, f"{tools}\n{rest}", [])
                if not closed:
                    self._flights[key] = flight
            flight.waiting.append(future)
        if closed:
            return self._at_once(Diagnosis(None, "closed"), asked=1)
        self._ledger.add(asked=1, shared=0 if first else 1)
        future.add_done_callback(partial(self._dropped, flight))
        if first:
            self._send(flight)
        return future

    def _at_once(self, answer: Diagnosis, **numbers: float) -> Future[Diagnosis]:
        self._ledger.add(**numbers)
        self._ledger.ended(answer)
        return completed(answer)

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
            self._landed(flight, Diagnosis(None, "closed"))
            return
        flight.asked.add_done_callback(partial(self._told, flight))

    def _told(self, flight: _Flight, asked: Future[tuple[ChatResponse | RequestFault, int]]) -> None:
        """A request has ended. Runs in the policy's thread, and must not raise."""
        if asked.cancelled():
            self._landed(flight, Diagnosis(None, "closed"))
            return
        try:
            answer = self._read(flight, asked.result()[0])
        except Exception as error:  # noqa: BLE001 - a fault of ours costs one diagnosis, counted
            _log.warning("a simulator's answer could not be read", exc_info=True)
            answer = Diagnosis(None, f"raised {type(error).__name__}")
        if answer.text:
            self._cache.put(flight.key, answer.text)
        self._landed(flight, answer)

    def _read(self, flight: _Flight, outcome: ChatResponse | RequestFault) -> Diagnosis:
        """The diagnosis in what came, once it is paid for."""
        seconds = time.monotonic() - flight.began
        if isinstance(outcome, RequestFault):
            self._ledger.add(seconds=seconds)
            return Diagnosis(None, outcome.reason)
        reply, read, written, estimated = outcome.reply, outcome.prompt_tokens, outcome.reply.tokens, 0
        if not outcome.counted:
            shown = len(flight.text) + len(self.options.system) + sum(map(len, sum(self._shots, ())))
            read, written = shown // CHARACTERS_PER_TOKEN, len(reply.text) // CHARACTERS_PER_TOKEN
            estimated = read + written
            self._limits.paid(estimated)
        self._ledger.add(seconds=seconds, prompt_tokens=read, completion_tokens=written, estimated_tokens=estimated)
        if reply.tool_calls:
            return Diagnosis(None, "tool calls instead of text")
        if outcome.empty:
            return Diagnosis(None, "empty")
        return usable_text(reply.text, reply.truncated, flight.text)

    def _landed(self, flight: _Flight, answer: Diagnosis) -> None:
        with self._lock:
            if self._flights.get(flight.key) is flight:
                del self._flights[flight.key]
            waiting, flight.waiting = flight.waiting, []
        for future in waiting:
            if future.set_running_or_notify_cancel():
                self._ledger.ended(answer)
                future.set_result(answer)

    def _dropped(self, flight: _Flight, future: Future[Diagnosis]) -> None:
        """A future is done; if nobody wants it any more and nobody else waits, its request is given up."""
        if not future.cancelled():
            return
        self._ledger.ended(Diagnosis(None, LATE))
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
