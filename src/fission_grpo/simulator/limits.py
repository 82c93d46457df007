"""When an endpoint is not asked: its budget is spent, or it has not answered for a while (a circuit breaker)."""

from __future__ import annotations

import logging
import time
from typing import Final

BUDGET, CIRCUIT_OPEN = "budget", "circuit open"

_ABOUT_THE_REQUEST: Final = frozenset({"HTTP 400", "HTTP 413", "HTTP 422", "too long"})
"""Refusals of one request, which say nothing of the next one's."""

HUNG = 1.0
"""Seconds for which a cancelled try must have waited to say anything about the endpoint. [ours]"""

_log = logging.getLogger(__name__)


class Limits:
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
