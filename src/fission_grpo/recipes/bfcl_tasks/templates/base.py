"""What all templates use: the sandbox in which a template makes its calls, and word lists."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fission_grpo.core.chat import read_result
from fission_grpo.core.types import ToolCall
from fission_grpo.envs.bfcl.state import BfclState

# fmt: off
NAMES = [
    "Amara", "Bjorn", "Celia", "Dario", "Elif", "Farid", "Greta", "Hiro", "Ines", "Jonas", "Kira", "Liam",
    "Mona", "Nils", "Odile", "Pavel", "Quinn", "Rosa", "Sven", "Talia", "Umar", "Vera", "Wim", "Xenia",
    "Yara", "Zeno",
]
SURNAMES = [
    "Adler", "Brandt", "Castel", "Dovic", "Egede", "Ferrol", "Galan", "Holm", "Iversen", "Jurek", "Kallas",
    "Lindt", "Moro", "Nygaard", "Orsini", "Prado",
]
NOUNS = [
    "budget", "invoice", "roster", "menu", "agenda", "survey", "manual", "draft", "ledger", "brochure",
    "forecast", "contract", "catalog", "timetable",
]
ADJECTIVES = [
    "amber", "brisk", "coral", "dusty", "early", "frozen", "gentle", "hollow", "ivory", "jolly", "kindled",
    "lunar", "mellow", "narrow", "opal", "plain",
]
# fmt: on


class Rejected(Exception):
    """A call failed, or the state has no object that a template needs. The generator tries another template."""


@dataclass(frozen=True)
class UserRequest:
    """What the user writes.

    Args:
        text: the request with all values.
        vague: the request without one of them; empty if it needs all.
        detail: the message in which the user then gives the value.
    """

    text: str
    vague: str = ""
    detail: str = ""


@dataclass
class Sandbox:
    """A copy of the environment's state in which one user turn is generated.

    Args:
        state: changed by the calls.
        rng: source of all random choices.
        calls: the turn's calls, all of which succeeded.
        arguments: of this request's calls, by parameter name.
    """

    state: BfclState
    rng: random.Random
    calls: list[ToolCall] = field(default_factory=list)
    arguments: dict[str, Any] = field(default_factory=dict)

    def do(self, name: str, /, **arguments: Any) -> Any:
        """Make a call, add it to the turn and return its result.

        Raises:
            Rejected: the call failed, or its result reports a failure.
        """
        call = ToolCall(name, arguments)
        text = self.state.call(call)
        if self.state.error is not None or read_result(call, text).error is not None:
            raise Rejected(text)
        try:
            result = json.loads(text)
        except ValueError:
            result = text
        # some functions report a failure as a value
        values = result.values() if isinstance(result, dict) else ()
        if any(value is False for value in values) or text.startswith(("[{'error'", "['Error")):
            raise Rejected(text)
        self.calls.append(call)
        self.arguments.update(arguments)
        return result

    def ask(self, *phrases: str, vague: str = "", detail: str = "", **values: Any) -> UserRequest:
        """Return a request in one of several phrasings, filled in with the calls' arguments and `values`."""
        values = self.arguments | values
        phrase = self.rng.choice(phrases)
        return UserRequest(phrase.format(**values), vague.format(**values), detail.format(**values))

    def pick(self, options: Sequence[Any]) -> Any:
        """Return one of the options. Raises Rejected if there are none."""
        if not options:
            raise Rejected("nothing to choose from")
        return self.rng.choice(list(options))

    def require(self, condition: bool) -> None:
        """Raise Rejected if the template does not apply in this state."""
        if not condition:
            raise Rejected("the template does not apply")

    def instance(self, class_name: str) -> Any:
        """Return the state's instance of a BFCL class, to read from."""
        return self.state.instances[class_name]


Template = Callable[[Sandbox], UserRequest]
"""Makes the calls of one request in the sandbox and returns the request. Raises Rejected where it does not apply."""


def one_call(function: str, /, *phrases: str, vague: str = "", detail: str = "", **arguments: Any) -> Template:
    """Return the template of a request that needs one call.

    Args:
        function: name of the BFCL function.
        phrases: see `Sandbox.ask`.
        vague, detail: see `UserRequest`.
        arguments: of the call; a value, or a function that chooses one in the sandbox. Chosen in this order.
    """

    def template(t: Sandbox) -> UserRequest:
        t.do(function, **{name: value(t) if callable(value) else value for name, value in arguments.items()})
        return t.ask(*phrases, vague=vague, detail=detail)

    return template


def choice(options: Sequence[Any]) -> Callable[[Sandbox], Any]:
    """Choose one of the options."""
    return lambda t: t.pick(options)


def number(low: int, high: int, unit: float = 1) -> Callable[[Sandbox], Any]:
    """Choose a multiple of `unit` from `low` to `high` units; a float unit gives floats."""
    return lambda t: t.rng.randint(low, high) * unit
