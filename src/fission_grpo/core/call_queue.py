"""Calls that wait for their results, in transcripts and messages from elsewhere."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any


class CallQueue:
    """Calls that wait for their results. Each is found in constant time, as a model writes how many there are."""

    def __init__(self, calls: Iterable[Any], taken: set[int] | None = None):
        self._all = deque(calls)
        self._taken = set() if taken is None else taken
        self._by_id: dict[str, deque[Any]] = {}
        self._by_name: dict[str, deque[Any]] = {}
        self._held = list(self._all)  # so that their ids stay their own
        for call in self._held:
            self._by_name.setdefault(call.name, deque()).append(call)
            if call.id is not None:
                self._by_id.setdefault(str(call.id), deque()).append(call)

    def take(self, call_id: str, name: str | None) -> Any:
        """The first call that waits with this id, else with this name, else at all; None without any."""
        queues = (self._by_name.get(name or ""), self._all)
        return self.take_id(call_id) or self._first(queues[0]) or self._first(queues[1])

    def take_id(self, call_id: str) -> Any:
        """The first call that waits with this id; None without any."""
        return self._first(self._by_id.get(call_id))

    def _first(self, queue: deque[Any] | None) -> Any:
        while queue:
            call = queue.popleft()
            if id(call) not in self._taken:
                self._taken.add(id(call))
                return call
        return None
