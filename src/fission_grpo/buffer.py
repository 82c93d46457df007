"""FissionBuffer: corrective instances waiting for their recover cycle, each failed rollout once."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from fission_grpo.buffer_orders import ORDERS, Score
from fission_grpo.corrective_instance import CorrectiveInstance


class FissionBuffer:
    """A bounded, deduplicated store with age limit. No operation takes longer the more instances wait.

    Args:
        capacity: most instances held; the oldest is dropped for a new one. At least 1.
        max_age: optimizer steps after which an instance is dropped; 0 means no limit.
        order: which are popped first: "lifo" (newest, the paper's), "variance" (highest score, see `pop`), "fifo" or
            "random" (for ablation).
        seed: of the "random" order.

    >>> buffer = FissionBuffer(capacity=2)
    """

    def __init__(self, capacity: int, max_age: int = 0, order: str = "lifo", seed: int = 0):
        if capacity < 1:
            raise ValueError(f"buffer_capacity must be at least 1, got {capacity}")
        if order not in ORDERS:
            raise ValueError(f"buffer_order must be one of {', '.join(ORDERS)}, got {order!r}")
        self.capacity, self.max_age, self.order = capacity, max_age, order
        self._seed = seed
        self._clear()

    def _clear(self) -> None:
        self._items: OrderedDict[str, CorrectiveInstance] = OrderedDict()  # oldest first
        self._order = ORDERS[self.order](self._seed)

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, task_id: object) -> bool:
        return task_id in self._items

    def __iter__(self):
        """Oldest first."""
        return iter(self._items.values())

    def push(self, instance: CorrectiveInstance) -> list[CorrectiveInstance]:
        """Add an instance that is not held yet; returns what had to be dropped for it (at most one)."""
        if instance.task.id in self._items:
            raise ValueError(f"instance {instance.task.id} is in the buffer already; check `in` before pushing")
        self._items[instance.task.id] = instance
        self._order.add(instance)
        return [self._take(next(iter(self._items)))] if len(self._items) > self.capacity else []

    def _take(self, task_id: str) -> CorrectiveInstance:
        item = self._items.pop(task_id)
        self._order.remove(item)
        return item

    def expire(self, step: int) -> list[CorrectiveInstance]:
        """Drop and return all instances older than `max_age` at optimizer step `step`."""
        expired = []
        while self.max_age and self._items:
            oldest = next(iter(self._items.values()))
            if step - oldest.step <= self.max_age:
                break
            expired.append(self._take(oldest.task.id))
        return expired

    def pop(self, count: int, score: Score = lambda _: 0.0) -> list[CorrectiveInstance]:
        """Take `count` instances in the buffer's order.

        Args:
            count: how many.
            score: for "variance", which takes the highest first and the newest of equal ones. It may depend on an
                instance's `kind` and `group_success` only.

        Raises:
            ValueError: it holds fewer.
        """
        if count > len(self._items):
            raise ValueError(f"asked for {count} instances, the buffer holds {len(self._items)}")
        return [self._take(self._order.next(score)) for _ in range(count)]

    def state(self) -> dict[str, Any]:
        """JSON-able state: all instances, oldest first, and what the order remembers."""
        order = {"name": self.order, **self._order.state()}
        return {"items": [item.to_json() for item in self], "order": order}

    def load_state(self, state: dict[str, Any]) -> None:
        """Replace the contents by those of `state()`; what another order remembered is of no use and left."""
        self._clear()
        for fields in state["items"]:
            item = CorrectiveInstance.from_json(fields)
            self._items[item.task.id] = item
            self._order.add(item)
        if state["order"]["name"] == self.order:
            self._order.load_state(state["order"])
