"""Environments for static tasks, good ones and bad ones; rows name them as "step_environments:Name"."""

import time

from fission_grpo.core.errors import InfrastructureError


class Locker:
    """Boxes that open with their code."""

    def reset(self, codes: dict, **_):
        self.codes, self.open = codes, []

    def open_box(self, name: str, code: str) -> str:
        """Open a box.

        Args:
            name: Its name.
            code: Its code.
        """
        if name not in self.codes:
            raise ValueError(f"no box {name!r}; there is {', '.join(self.codes)}")
        if code != self.codes[name]:
            raise ValueError(f"{name} needs another code; ask the guard")
        self.open.append(name)
        return "open: " + ", ".join(self.open)

    async def ask(self, name: str) -> str:
        """Ask the guard for a code.

        Args:
            name: Of the box.
        """
        return self.codes[name]

    def odd(self, how: str) -> str:
        """Answer in an odd way.

        Args:
            how: The way.
        """
        if how == "hang":
            time.sleep(30)
        if how == "silent":
            raise ValueError(("", None))
        if how == "empty":
            raise AssertionError
        if how == "exit":
            raise SystemExit(3)
        if how == "down":
            raise InfrastructureError("the service is down")
        return "x" * 10_000_000


class Restorable(Locker):
    def _snapshot(self):
        return {"codes": self.codes, "open": self.open}

    def _restore(self, state):
        self.codes, self.open = state["codes"], state["open"]


class CannotBeMade(Locker):
    def __init__(self):
        raise OSError("no licence")


class NeedsArguments(Locker):
    def __init__(self, path):
        self.path = path


class NoReset:
    def open_box(self) -> str:
        """Open it."""
        return ""


class ResetRaises(Locker):
    def reset(self, **_):
        raise KeyError("shelf")


class ResetTakesNothing(Locker):
    def reset(self):
        self.codes, self.open = {}, []


class ResetHangs(Locker):
    def reset(self, **_):
        time.sleep(30)


class ResetExits(Locker):
    def reset(self, **_):
        raise SystemExit(4)
