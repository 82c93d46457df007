"""What all templates use: the sandbox in which they make calls and ways to draw arguments."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fission_grpo.core.chat import read_result
from fission_grpo.core.types import ToolCall
from fission_grpo.envs.bfcl.state import BfclState


class Rejected(Exception):
    """A call failed, or the state has no object that a template needs. The generator tries another template."""


@dataclass(frozen=True)
class UserRequest:
    """What the user writes."""

    text: str  # the request with all values
    vague: str = ""  # the request without one of them; empty if it needs all
    detail: str = ""  # the message in which the user then gives the value


@dataclass
class Sandbox:
    """A copy of the environment's state in which one user turn is generated."""

    state: BfclState  # changed by the calls
    rng: random.Random
    calls: list[ToolCall] = field(default_factory=list)  # of the turn; all succeeded
    arguments: dict[str, Any] = field(default_factory=dict)  # of this request's calls, by parameter name

    def do(self, name: str, /, **arguments: Any) -> Any:
        """Make a call and return its result. Raises Rejected if it fails, or its result reports a failure."""
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
        self.arguments |= arguments
        return result

    def request(self, *phrases: str, vague: str = "", detail: str = "", **values: Any) -> UserRequest:
        """Return a request in one of several phrasings, filled in with the calls' arguments and `values`."""
        values = {
            name: ", ".join(map(str, value)) if isinstance(value, list) else value
            for name, value in (self.arguments | values).items()
        }
        phrase = self.rng.choice(phrases)
        return UserRequest(phrase.format(**values), vague.format(**values), detail.format(**values))

    def pick(self, options: Sequence[Any]) -> Any:
        """Return one of the options. Raises Rejected if there are none."""
        self.require(bool(options))
        return self.rng.choice(options)

    def require(self, condition: bool) -> None:
        """Raise Rejected if the template does not apply in this state."""
        if not condition:
            raise Rejected("the template does not apply")

    def instance(self, class_name: str) -> Any:
        """Return the state's instance of a BFCL class, to read from."""
        return self.state.instances[class_name]


Template = Callable[[Sandbox], UserRequest]  # makes the calls of one request; raises Rejected where it does not apply
Drawer = Callable[[Sandbox], Any]  # chooses the value of an argument


def one_call(
    function: str, /, *phrases: str, vague: str = "", detail: str = "", when: Drawer | None = None, **arguments: Any
) -> Template:
    """Return the template of a request that needs one call of a BFCL function.

    Args:
        phrases, vague, detail: see `Sandbox.request` and `UserRequest`.
        when: whether the template applies; always by default.
        arguments: of the call; a value, or a drawer. Drawn in this order.
    """

    def template(t: Sandbox) -> UserRequest:
        values = {name: value(t) if callable(value) else value for name, value in arguments.items()}
        t.require(when is None or when(t))
        t.do(function, **values)
        return t.request(*phrases, vague=vague, detail=detail)

    return template


def any_call(phrases: Mapping[str, Sequence[str]], /, **arguments: Drawer) -> Template:
    """As `one_call`, for one of several functions with the same arguments: name of a function -> its phrases."""

    def template(t: Sandbox) -> UserRequest:
        values = {name: draw(t) for name, draw in arguments.items()}
        function = t.pick(list(phrases))
        t.do(function, **values)
        return t.request(*phrases[function])

    return template


def choice(options: Sequence[Any]) -> Drawer:
    """Draw one of the options."""
    return lambda t: t.pick(options)


def number(low: int, high: int, unit: float = 1) -> Drawer:
    """Draw a multiple of `unit` from `low` to `high` units; a float unit gives floats."""
    return lambda t: t.rng.randint(low, high) * unit


def choice_from(class_name: str, options: Callable[[Any], Sequence[Any]]) -> Drawer:
    """Draw one of the options that `options` finds in the instance of a BFCL class."""
    return lambda t: t.pick(options(t.instance(class_name)))
