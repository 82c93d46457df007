"""FissionBuffer: corrective instances waiting for their recover cycle. Newest first, each failed rollout once."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fission_grpo.run_state import generator_state, set_generator
from fission_grpo.tasks import task_from_json, task_to_json
from fission_grpo.trajectory import ErrorKind, Task

ORDERS = ("lifo", "variance", "fifo", "random")


@dataclass(frozen=True)
class CorrectiveInstance:
    """x_corr = [x; failed rollout; feedback] (paper, stage 2) with where it came from.

    `task.id` is derived from the task and the failed rollout's text, so equal ids mean the same failure.
    `zero_variance` tells whether all rewards of the group it came from were equal (no gradient there),
    `group_success` which share of that group's rollouts succeeded.
    """

    task: Task
    step: int
    kind: ErrorKind
    source: str
    feedback: str
    failed: str
    reward: float
    leaked: bool = False
    fallback: str | None = None
    zero_variance: bool = False
    group_success: float = 0.0

    def to_json(self) -> dict[str, Any]:
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in ("task", "kind")}
        return {**fields, "kind": str(self.kind), "task": task_to_json(self.task)}

    @staticmethod
    def from_json(state: dict[str, Any]) -> CorrectiveInstance:
        return CorrectiveInstance(**{**state, "kind": ErrorKind(state["kind"]), "task": task_from_json(state["task"])})


class FissionBuffer:
    """A bounded, deduplicated store with age limit.

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
        self._random = random.Random(seed)
        self._items: OrderedDict[str, CorrectiveInstance] = OrderedDict()  # oldest first

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
        return [self._items.popitem(last=False)[1]] if len(self._items) > self.capacity else []

    def expire(self, step: int) -> list[CorrectiveInstance]:
        """Drop and return all instances older than `max_age` at optimizer step `step`."""
        expired = []
        while self.max_age and self._items:
            oldest = next(iter(self._items.values()))
            if step - oldest.step <= self.max_age:
                break
            expired.append(self._items.popitem(last=False)[1])
        return expired

    def pop(
        self, count: int, score: Callable[[CorrectiveInstance], float] = lambda _: 0.0
    ) -> list[CorrectiveInstance]:
        """Take `count` instances in the buffer's order, for "variance" those of highest `score`, newest first.

        Raises:
            ValueError: it holds fewer.
        """
        if count > len(self._items):
            raise ValueError(f"asked for {count} instances, the buffer holds {len(self._items)}")
        if self.order == "random":
            return [self._items.pop(key) for key in self._random.sample(list(self._items), count)]
        if self.order == "variance":
            newest_first = list(reversed(self._items.values()))
            best = sorted(newest_first, key=lambda item: -score(item))[:count]
            return [self._items.pop(item.task.id) for item in best]
        return [self._items.popitem(last=self.order == "lifo")[1] for _ in range(count)]

    def state(self) -> dict[str, Any]:
        """JSON-able state: all instances, oldest first, and the random generator."""
        return {"items": [item.to_json() for item in self], "random": generator_state(self._random)}

    def load_state(self, state: dict[str, Any]) -> None:
        """Replace the contents by those of `state()`."""
        items = [CorrectiveInstance.from_json(item) for item in state["items"]]
        set_generator(self._random, state["random"])
        self._items = OrderedDict((item.task.id, item) for item in items)
