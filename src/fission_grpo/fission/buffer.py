"""FissionBuffer: corrective instances that wait for a recover cycle."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import Any

from fission_grpo.core.serialization import generator_state, set_generator
from fission_grpo.fission.recovery import CorrectiveInstance

ORDERS = ("lifo", "random")
"""What `FissionBuffer.sample` can take first: "lifo" is the paper's, "random" is [ours]."""


class FissionBuffer:
    """A bounded store that holds each corrective instance once, oldest first.

    Args:
        capacity: largest number of instances. The oldest leaves when a new one does not fit.
        max_age: optimizer steps after which an instance expires; 0 for never.
        order: what `sample` takes first: the newest ("lifo", as in the paper), or any ("random", with `seed`).

    Raises:
        ValueError: capacity below 1, or an unknown order.
    """

    def __init__(self, capacity: int, max_age: int = 0, order: str = "lifo", seed: int = 0):
        if capacity < 1:
            raise ValueError(f"buffer_capacity must be at least 1, got {capacity}")
        if order not in ORDERS:
            raise ValueError(f"buffer_order must be one of {', '.join(ORDERS)}, got {order!r}")
        self.capacity, self.max_age, self.order = capacity, max_age, order
        self._random = random.Random(seed)
        self._items: dict[str, CorrectiveInstance] = {}

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, task_id: object) -> bool:
        return task_id in self._items

    def __iter__(self) -> Iterator[CorrectiveInstance]:
        """Iterate over the instances, oldest first."""
        return iter(self._items.values())

    def push(self, instance: CorrectiveInstance) -> CorrectiveInstance | None:
        """Add an instance; return the one that left to make room, if any. Raises ValueError for a duplicate."""
        if instance.task.id in self._items:
            raise ValueError(f"instance {instance.task.id} is in the buffer already; check `in` before pushing")
        self._items[instance.task.id] = instance
        if len(self._items) <= self.capacity:
            return None
        return self._items.pop(next(iter(self._items)))

    def expire(self, step: int) -> list[CorrectiveInstance]:
        """Remove and return the instances older than `max_age` at this optimizer step."""
        if not self.max_age:
            return []
        expired = [item for item in self if step - item.step > self.max_age]
        return [self._items.pop(item.task.id) for item in expired]

    def sample(self, count: int) -> list[CorrectiveInstance]:
        """Remove and return `count` instances in the buffer's order.

        Raises:
            ValueError: the buffer holds fewer than `count`.
        """
        if count > len(self):
            raise ValueError(f"asked for {count} instances, the buffer holds {len(self)}")
        items = list(self)[::-1]
        if self.order == "random":
            self._random.shuffle(items)
        return [self._items.pop(item.task.id) for item in items[:count]]

    def state(self) -> dict[str, Any]:
        """Return the instances, oldest first, and the random generator's state, as JSON values."""
        return {"items": [item.to_json() for item in self], "random": generator_state(self._random)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Replace the contents by those of `state()`."""
        items = [CorrectiveInstance.from_json(fields) for fields in state["items"]]
        self._items = {item.task.id: item for item in items}
        set_generator(self._random, state["random"])
