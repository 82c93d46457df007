"""A world in which an intent tries out its calls, and the words in which a user asks for it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fission_grpo.core.chat import read_result
from fission_grpo.core.types import ToolCall
from fission_grpo.envs.bfcl.state import World

NAMES = [
    "Amara",
    "Bjorn",
    "Celia",
    "Dario",
    "Elif",
    "Farid",
    "Greta",
    "Hiro",
    "Ines",
    "Jonas",
    "Kira",
    "Liam",
    "Mona",
    "Nils",
    "Odile",
    "Pavel",
    "Quinn",
    "Rosa",
    "Sven",
    "Talia",
    "Umar",
    "Vera",
    "Wim",
    "Xenia",
    "Yara",
    "Zeno",
]


SURNAMES = [
    "Adler",
    "Brandt",
    "Castel",
    "Dovic",
    "Egede",
    "Ferrol",
    "Galan",
    "Holm",
    "Iversen",
    "Jurek",
    "Kallas",
    "Lindt",
    "Moro",
    "Nygaard",
    "Orsini",
    "Prado",
]


NOUNS = [
    "budget",
    "invoice",
    "roster",
    "menu",
    "agenda",
    "survey",
    "manual",
    "draft",
    "ledger",
    "brochure",
    "forecast",
    "contract",
    "catalog",
    "timetable",
]


ADJECTIVES = [
    "amber",
    "brisk",
    "coral",
    "dusty",
    "early",
    "frozen",
    "gentle",
    "hollow",
    "ivory",
    "jolly",
    "kindled",
    "lunar",
    "mellow",
    "narrow",
    "opal",
    "plain",
]


class Rejected(Exception):
    """A call failed, or the world has nothing an intent could be about: another intent is tried."""


@dataclass(frozen=True)
class Request:
    """What the user says.

    Args:
        text: everything that is needed.
        vague: the same with one value left out, "" if none can be.
        detail: the user's answer that gives the value.
    """

    text: str
    vague: str = ""
    detail: str = ""


@dataclass
class Trial:
    """One turn being made up.

    Args:
        world: changed by the calls.
        rng: of this case.
        calls: that worked so far, in order.
    """

    world: World
    rng: random.Random
    calls: list[ToolCall] = field(default_factory=list)

    def do(self, name: str, /, **arguments: Any) -> Any:
        """Make a call and keep it; returns the result, JSON read. Raises Rejected if it fails, softly or not."""
        call = ToolCall(name, arguments)
        text = self.world.call(call)
        if self.world.error is not None or read_result(call, text).error is not None:
            raise Rejected(text)
        try:
            result = json.loads(text)
        except ValueError:
            result = text
        soft = result.values() if isinstance(result, dict) else ()
        if any(value is False for value in soft) or text.startswith(("[{'error'", "['Error")):  # failures in disguise
            raise Rejected(text)
        self.calls.append(call)
        return result

    def ask(self, *templates: str, vague: str = "", detail: str = "", **values: Any) -> Request:
        """A request in one of several phrasings."""
        chosen = self.rng.choice(templates)
        return Request(chosen.format(**values), vague.format(**values), detail.format(**values))

    def pick(self, options: Sequence[Any]) -> Any:
        """One of the options; Rejected if there are none."""
        if not options:
            raise Rejected("nothing to choose from")
        return self.rng.choice(list(options))

    def state(self, class_name: str) -> Any:
        """The simulator of a class, to look at."""
        return self.world.instances[class_name]

    def phrase(self) -> str:
        """Two or three plain words."""
        return f"{self.rng.choice(ADJECTIVES)} {self.rng.choice(NOUNS)}"


Intent = Callable[[Trial], Request]
"""Makes its calls in the trial and returns how a user asks for them. Raises Rejected where it does not fit."""
