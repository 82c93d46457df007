"""State of an endpoint as a feedback source: cached responses, budget and circuit breaker."""

from __future__ import annotations

import json
import os
import secrets
import threading
import time
from math import inf
from pathlib import Path

from fission_grpo.core.files import parse_json_lines
from fission_grpo.core.terminal import get_logger
from fission_grpo.feedback.rules import MAX_LENGTH

BUDGET, CIRCUIT_OPEN = "budget", "circuit open"

HUNG_SECONDS = 1.0  # a cancelled request counts as lost if it waited this long without an answer [ours]
_REQUEST_FAULTS = frozenset({"HTTP 400", "HTTP 413", "HTTP 422", "too long"})  # do not concern other requests
_log = get_logger(__name__)


class ResponseCache:
    """A thread-safe mapping from keys to texts, in memory and, with a folder, on disk.

    All `*.jsonl` files of the folder are read at the start; this process writes one more. Faults of the disk do not
    raise; they are counted, and the first is logged.
    """

    def __init__(self, folder: Path | None):
        self.path = folder / f"diagnoses-{os.getpid()}-{secrets.token_hex(4)}.jsonl" if folder else None
        self.skipped = 0  # lines that are no entries, and unreadable files
        self.failed = 0  # texts that could not be written
        self._texts: dict[str, str] = {}
        self._lock = threading.Lock()
        try:
            for path in sorted(folder.glob("*.jsonl")) if folder else []:
                if path.is_file():  # neither a folder nor a device
                    self._read(path)
        except OSError as error:
            self._skip(f"{folder}: {error}")

    def get(self, key: str) -> str | None:
        return self._texts.get(key)

    def texts(self) -> dict[str, str]:
        with self._lock:
            return dict(self._texts)

    def put(self, key: str, text: str) -> None:
        """Add a text; an existing one stays."""
        with self._lock:
            if key in self._texts:
                return
            self._texts[key] = text
            if self.path is None:
                return
            # the newline before the entry keeps it apart from one that a full disk or a crash has cut off
            line = b"\n" + json.dumps({"key": key, "text": text}).encode() + b"\n"
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("ab", buffering=0) as file:
                    if file.write(line) != len(line):
                        raise OSError("the disk is full")
            except OSError as error:
                self.failed += 1
                if self.failed == 1:
                    _log.warning("feedback is cached in memory only, %s cannot be written: %s", self.path, error)

    def _read(self, path: Path) -> None:
        try:
            content = path.read_bytes()
        except OSError as error:
            self._skip(f"{path}: {error}")
            return
        for number, entry in parse_json_lines(content):
            key, text = (entry.get("key"), entry.get("text")) if isinstance(entry, dict) else (None, None)
            if isinstance(key, str) and len(key) == 64 and isinstance(text, str) and 0 < len(text) <= MAX_LENGTH:
                self._texts.setdefault(key, text)
            else:
                self._skip(f"{path}, line {number}: no entry of this cache")

    def _skip(self, problem: str) -> None:
        self.skipped += 1
        if self.skipped == 1:
            _log.warning("skipped in the cache of feedback (further lines are only counted): %s", problem)


class RequestLimits:
    """The budget and the circuit breaker of an endpoint; a `RequestGate`, used in the policy's thread only.

    The circuit opens when `circuit_after` requests in a row are lost. After `circuit_seconds` one request is admitted:
    if it is answered the circuit closes, else it stays open as long again. The other limits are the budget, in tries
    and in tokens read and written.
    """

    def __init__(self, max_requests: int | None, max_tokens: int | None, circuit_after: int, circuit_seconds: float):
        self._max_requests = inf if max_requests is None else max_requests
        self._max_tokens = inf if max_tokens is None else max_tokens
        self._circuit_after, self._circuit_seconds = circuit_after, circuit_seconds
        self.tokens = self.opened = 0
        self._requests = self._lost_in_a_row = 0
        self._open_until: float | None = None
        self._is_probing = False
        self._last_answer = 0.0

    def admit(self, is_retry: bool) -> str | None:
        if self._requests >= self._max_requests or self.tokens >= self._max_tokens:
            return BUDGET
        if self._open_until is not None and not is_retry:
            if self._is_probing or time.monotonic() < self._open_until:
                return CIRCUIT_OPEN
            self._is_probing = True
        self._requests += 1
        return None

    def record(self, reason: str | None, tokens: int, seconds: float) -> None:
        self.tokens += tokens
        if reason in (BUDGET, CIRCUIT_OPEN):
            return
        now = time.monotonic()
        is_open = self._open_until is not None
        self._is_probing = False
        if reason is None or reason in _REQUEST_FAULTS:
            if is_open:
                _log.warning("the feedback endpoint answers again")
            self._lost_in_a_row, self._open_until, self._last_answer = 0, None, now
            return
        if reason == "cancelled" and (seconds < HUNG_SECONDS or self._last_answer >= now - seconds):
            return
        self._lost_in_a_row += 1
        if is_open or self._lost_in_a_row >= self._circuit_after:
            self._open_until = now + self._circuit_seconds
        if not is_open and self._open_until is not None:
            self.opened += 1
            problem = f"lost {self._lost_in_a_row} requests in a row, the last: {reason}"
            _log.warning("the feedback endpoint %s; the next is sent in %.3g s", problem, self._circuit_seconds)
