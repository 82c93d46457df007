"""Environments for the verdict: good ones, and every kind of bad one we could think of."""

import random
import sys
import time


class Till:
    """Takes money; a good environment."""

    def __init__(self):
        self.coins = []

    def reset(self, **row):
        self.coins = []

    def get_reward(self) -> float:
        return float(sum(self.coins) == 7)

    def put(self, amount: int) -> str:
        """Put a coin in.

        Args:
            amount: Its value, 1 to 50.
        """
        if not isinstance(amount, int) or not 0 < amount <= 50:
            raise ValueError("no such coin")
        self.coins.append(amount)
        return f"{sum(self.coins)} in the till"

    def total(self) -> int:
        """Say how much there is."""
        return sum(self.coins)

    def _snapshot(self):
        return list(self.coins)

    def _restore(self, state):
        self.coins = list(state)


SHARED = []


class SharedList(Till):
    coins = SHARED

    def __init__(self): ...

    def reset(self, **row):
        del self.coins[:]


class ForgetsToReset(Till):
    def reset(self, **row): ...


class Dice(Till):
    def total(self) -> int:
        """Say how much there is."""
        return random.randint(0, 10**6)


class Clock(Till):
    def total(self) -> int:
        """Say how much there is."""
        return time.perf_counter_ns()


class ByReference(Till):
    def _snapshot(self):
        return self.coins


class ForgetsAField(Till):
    def __init__(self):
        super().__init__()
        self.count = 0

    def put(self, amount: int) -> str:
        """Put a coin in.

        Args:
            amount: Its value.
        """
        super().put(amount)
        self.count += 1
        return f"coin number {self.count}"

    def reset(self, **row):
        super().reset()
        self.count = 0


class Exits(Till):
    def total(self) -> int:
        """Say how much there is."""
        sys.exit(3)


class Hangs(Till):
    def total(self) -> int:
        """Say how much there is."""
        while True:
            pass


class Things(Till):
    def total(self) -> int:
        """Say how much there is."""
        return object()


class Megabytes(Till):
    def total(self) -> int:
        """Say how much there is."""
        return "x" * 10_000_000


class Mutates(Till):
    def keep(self, items: list) -> str:
        """Keep items.

        Args:
            items: What to keep.
        """
        items.append("more") if isinstance(items, list) else None
        return "kept"


class NotAnError(BaseException): ...


class RaisesOddly(Till):
    def total(self) -> int:
        """Say how much there is."""
        raise NotAnError("odd")


class Undocumented(Till):
    def total(self, how):
        return 1


class NoReward(Till):
    def get_reward(self):
        return None


class ChangingReward(Till):
    def get_reward(self) -> float:
        self.coins.append(1)
        return float(sum(self.coins))


class Slotted:
    __slots__ = ("coins",)

    def reset(self, **row): ...

    def total(self) -> int:
        """Say how much there is."""
        return 1


class NeedsArguments(Till):
    def __init__(self, size):
        super().__init__()


class NeedsColumns(Till):
    def reset(self, coins, **row):
        self.coins = list(coins)


class NoTools:
    def reset(self, **row): ...


class NoReset:
    def total(self) -> int:
        """Say how much there is."""
        return 1


class Async(Till):
    async def wait(self, minutes: int) -> str:
        """Wait.

        Args:
            minutes: How long.
        """
        return f"waited {minutes}"


class Door:
    """Tells little: only a row with a locked door shows that its snapshots are wrong."""

    def reset(self, locked: bool = False):
        self.locked = locked

    def open_door(self) -> str:
        """Open the door."""
        if self.locked:
            raise ValueError("locked")
        return "open"

    def unlock_door(self) -> str:
        """Unlock the door."""
        self.locked = False
        return "ok"

    def _snapshot(self):
        return None

    def _restore(self, state):
        pass


class Library:
    """Books of titles of several words, of which the tools take whole ones."""

    def reset(self, title="Moby Dick", **_):
        self.title, self.holder = title, None

    def get_reward(self) -> float:
        return float(self.holder is not None)

    def shelf(self) -> str:
        """List the free books."""
        return self.title if self.holder is None else "empty"

    def lend(self, title: str, days: int) -> str:
        """Lend a book.

        Args:
            title: Exact title.
            days: For how long.
        """
        if title != self.title:
            raise ValueError("no such book")
        self.holder = days
        return "lent"


class WordyLibrary(Library):
    def lend(self, title: str, days: int) -> str:
        """Lend a book.

        Args:
            title: Exact title.
            days: For how long.
        """
        return f"Error: no book {title}"
