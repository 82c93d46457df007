"""FissionBuffer: corrective instances waiting for their recover cycle, each failed rollout once."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Protocol

from fission_grpo.core.serialization import generator_state, set_generator
from fission_grpo.fission.recovery import CorrectiveInstance

Score = Callable[[CorrectiveInstance], float]


class Order(Protocol):
    """Knows the ids that wait, and which of them is next."""

    def add(self, item: CorrectiveInstance) -> None:
        """`item` waits from now on; it is the newest."""
        ...

    def remove(self, item: CorrectiveInstance) -> None:
        """`item`, which was added, waits no longer."""
        ...

    def next(self, score: Score) -> str:
        """The id to take next, which still waits until it is removed. At least one must wait."""
        ...

    def state(self) -> dict[str, Any]:
        """JSON-able: all that does not follow from adding the waiting items again, oldest first."""
        ...

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from `state()`; the same items wait already."""
        ...


class ByAge:
    """The newest first ("lifo", the paper's) or the oldest first ("fifo")."""

    def __init__(self, newest_first: bool):
        self._newest_first = newest_first
        self._ids: OrderedDict[str, None] = OrderedDict()

    def add(self, item: CorrectiveInstance) -> None:
        self._ids[item.task.id] = None

    def remove(self, item: CorrectiveInstance) -> None:
        del self._ids[item.task.id]

    def next(self, score: Score) -> str:
        return next(reversed(self._ids) if self._newest_first else iter(self._ids))

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        pass


class ByChance:
    """Any, with equal chances."""

    def __init__(self, seed: int):
        self._random = random.Random(seed)
        self._ids: list[str] = []
        self._at: dict[str, int] = {}

    def add(self, item: CorrectiveInstance) -> None:
        self._at[item.task.id] = len(self._ids)
        self._ids.append(item.task.id)

    def remove(self, item: CorrectiveInstance) -> None:
        """The last id takes the place of the one that leaves."""
        at, last = self._at.pop(item.task.id), self._ids.pop()
        if last != item.task.id:
            self._ids[at], self._at[last] = last, at

    def next(self, score: Score) -> str:
        return self._ids[self._random.randrange(len(self._ids))]

    def state(self) -> dict[str, Any]:
        return {"random": generator_state(self._random), "ids": list(self._ids)}

    def load_state(self, state: dict[str, Any]) -> None:
        set_generator(self._random, state["random"])
        self._ids = list(state["ids"])
        self._at = {name: at for at, name in enumerate(self._ids)}


class ByScore:
    """The highest score first, the newest of equal ones.

    A score may depend on an instance's `kind` and `group_success` only (as `RecoveryOdds.variance` does), so that one
    score per such class is computed, of which there are few: kinds of failure times G + 1.
    """

    def __init__(self):
        self._classes: dict[tuple[str, float], OrderedDict[str, tuple[int, CorrectiveInstance]]] = {}
        self._added = 0

    def add(self, item: CorrectiveInstance) -> None:
        self._added += 1
        self._classes.setdefault(_class_of(item), OrderedDict())[item.task.id] = self._added, item

    def remove(self, item: CorrectiveInstance) -> None:
        members = self._classes[_class_of(item)]
        del members[item.task.id]
        if not members:
            del self._classes[_class_of(item)]

    def next(self, score: Score) -> str:
        newest = (next(reversed(members.values())) for members in self._classes.values())
        return max(newest, key=lambda one: (score(one[1]), one[0]))[1].task.id

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        pass


def _class_of(item: CorrectiveInstance) -> tuple[str, float]:
    return str(item.kind), item.group_success


ORDERS: dict[str, Callable[[int], Order]] = {
    "lifo": lambda seed: ByAge(newest_first=True),
    "variance": lambda seed: ByScore(),
    "fifo": lambda seed: ByAge(newest_first=False),
    "random": ByChance,
}
"""By name; made from a seed."""


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
