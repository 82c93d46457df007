"""Calls that wait for their results, in transcripts and messages from elsewhere."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable
from typing import Any


class CallQueue:
    """Calls that wait for their results. Each is found in constant time, as a model writes how many there are."""

    def __init__(self, calls: Iterable[Any], taken: set[int] | None = None):
        self._calls = list(calls)  # held, so that their ids stay their own
        self._taken = set() if taken is None else taken
        self._queues: dict[tuple[str, ...], deque[Any]] = defaultdict(deque)
        for call in self._calls:
            for key in ((), ("name", call.name), ("id", "" if call.id is None else str(call.id))):
                self._queues[key].append(call)

    def take(self, call_id: str, name: str | None) -> Any:
        """The first call that waits with this id, else with this name, else at all; None without any."""
        return self.take_id(call_id) or self._first("name", name or "") or self._first()

    def take_id(self, call_id: str) -> Any:
        """The first call that waits with this id; None without any."""
        return self._first("id", call_id) if call_id else None

    def _first(self, *key: str) -> Any:
        queue = self._queues.get(key)
        while queue:
            call = queue.popleft()
            if id(call) not in self._taken:
                self._taken.add(id(call))
                return call
        return None
