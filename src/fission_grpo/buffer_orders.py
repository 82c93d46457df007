"""Which waiting instances are recovered first. No order adds, removes or takes more slowly the more instances wait."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Protocol

from fission_grpo.corrective_instance import CorrectiveInstance
from fission_grpo.run_state import generator_state, set_generator

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
