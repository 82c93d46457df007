"""Environments that no time limit stops and that crash, to be put into processes of their own."""

import asyncio
import hashlib
import os
import signal
import sqlite3
import subprocess
import sys
import time

from fission_grpo.core.errors import InfrastructureError


class Shop:
    """Counts, hangs, crashes."""

    def reset(self, **row):
        self.kept, self.name = [], row.get("name", "shop")
        self.database = sqlite3.connect(":memory:")
        if self.name == "crash":
            os._exit(3)
        if self.name == "hang":
            time.sleep(60)
        return f"Welcome to {self.name}."

    def get_reward(self) -> float:
        return float(len(self.kept))

    def _progress(self) -> float:
        return min(1.0, len(self.kept) / 4)

    def _snapshot(self):
        return list(self.kept)

    def _restore(self, state):
        self.kept = list(state)

    def add(self, item: str) -> str:
        """Add an item.

        Args:
            item: What to add.
        """
        self.kept.append(item)
        return f"{len(self.kept)} kept"

    async def add_later(self, item: str) -> str:
        """Add an item.

        Args:
            item: What to add.
        """
        await asyncio.sleep(0.01)
        return self.add(item)

    def pid(self) -> str:
        """Say which process it is."""
        return str(os.getpid())

    def fails(self) -> str:
        """Fail."""
        raise KeyError("gone")

    def offline(self) -> str:
        """Be offline."""
        raise InfrastructureError("service down")

    def hashes(self) -> str:
        """Compute for long in C code."""
        return hashlib.pbkdf2_hmac("sha512", b"x", b"y", 10**9).hex()

    def holds_the_lock(self) -> str:
        """Compute for long in C code that lets no other thread run."""
        return str(sum(range(10**12)))

    async def blocks(self) -> str:
        """Block the event loop."""
        time.sleep(60)
        return "late"

    def dies(self) -> str:
        """End the process."""
        os._exit(0)

    async def dies_async(self) -> str:
        """End the process."""
        os._exit(0)

    def segfaults(self) -> str:
        """Crash as C code does."""
        os.kill(os.getpid(), signal.SIGSEGV)
        time.sleep(5)
        return "late"

    def exits(self) -> str:
        """Exit."""
        sys.exit(0)

    def starts(self) -> str:
        """Start a program and wait for it."""
        program = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        self.program = program.pid
        with open("program.pid", "w") as file:
            file.write(str(program.pid))
        program.wait()
        return "late"

    def thing(self) -> object:
        """Return what cannot be sent."""
        return [lambda: None]


class Unsendable(Shop):
    """Its snapshots hold a connection."""

    def _snapshot(self):
        return self.database


class Broken(Shop):
    def __init__(self):
        raise RuntimeError("no licence")


class Unscored(Shop):
    get_reward = None
