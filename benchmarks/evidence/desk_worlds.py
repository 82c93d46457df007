"""The desk in other clothes: tools under other names, and errors in other words or in none that help.

World, judge and tasks stay those of `fission_grpo.envs.desk.env`. [ours]
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

from fission_grpo.core.errors import InfrastructureError
from fission_grpo.core.types import ToolCall
from fission_grpo.envs.desk.env import Desk, ToolError
from fission_grpo.envs.wrapper import tool_methods

POOR_TEXT = "the call failed"

OTHER_TOOLS = {"delete_file": "remove_file", "cancel_event": "drop_event"}
OTHER_PARAMETERS = {"share_file": {"person": "contact"}}


class UnfamiliarDesk(Desk):
    """The desk with two of its eight tools, and a parameter of a third, under names no policy was trained on.

    Not more: the starter policy knows its tools by heart and fails in every task if all of them have other names.
    """

    delete_file = cancel_event = None  # pyright: ignore - no function, so no tool

    def remove_file(self, name: str) -> str:
        """Remove a file.

        Args:
            name: Full name of the file, with its ending.

        Returns:
            A confirmation.
        """
        return Desk.delete_file(self, name)

    def drop_event(self, event_id: str) -> str:
        """Drop an event from the calendar.

        Args:
            event_id: Id of the event.

        Returns:
            A confirmation.
        """
        return Desk.cancel_event(self, event_id)

    def share_file(self, name: str, contact: str) -> str:  # pyright: ignore - the other name is the point
        """Share a file with a contact.

        Args:
            name: Full name of the file, with its ending.
            contact: First name of the contact.

        Returns:
            A confirmation.
        """
        return Desk.share_file(self, name, contact)


def unfamiliar(call: ToolCall) -> ToolCall:
    """The call of `UnfamiliarDesk` that does what a call of `Desk` does.

    Example:
        `share_file(name, person)` is `share_file(name, contact)`; `delete_file(name)` is `remove_file(name)`.
    """
    parameters = OTHER_PARAMETERS.get(call.name, {})
    arguments = {parameters.get(name, name): value for name, value in call.arguments.items()}
    return ToolCall(OTHER_TOOLS.get(call.name, call.name), arguments)


def retold(words: Callable[[str], str]) -> type[Desk]:
    """A desk whose tools say `words(message)` where `Desk` raises `message` (its own, or Python's of the arguments).

    What never reaches a tool is told as ever: unknown tools, and calls that cannot be read.
    """

    def other(tool: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(tool)
        def call(self: Any, /, *args: Any, **kwargs: Any) -> Any:
            try:
                return tool(self, *args, **kwargs)
            except (ToolError, TypeError) as error:
                raise ToolError(words(str(error))) from error

        return call

    return type("Desk", (Desk,), {name: other(getattr(Desk, name)) for name in tool_methods(Desk())})


def other_words(message: str) -> str:
    """The same information, worded otherwise; every message of the desk has one other wording.

    Raises:
        InfrastructureError: a message that the desk did not have when this was written. The episode then counts as
            missing instead of being told in the old words.

    Example:
        "no file 'budget.txt'; similar: budget_7.txt" is "cannot find 'budget.txt'; did you mean budget_7.txt?"
    """
    for pattern, words in WORDINGS.items():
        if found := re.fullmatch(pattern, message, re.DOTALL):
            return words(*found.groups())
    raise InfrastructureError(f"desk_worlds.WORDINGS has no other wording for {message!r}")


def _suggested(said: str, similar: str) -> str:
    return f"cannot find {said}; " + ("nothing is called like it" if similar == "none" else f"did you mean {similar}?")


def _listed(said: str, known: str) -> str:
    if known == "the calendar is empty":
        return f"cannot find {said}: nothing is in the calendar"
    entries = re.findall(r"(.*?) is (E[0-9]{1,6})(?:, |$)", known, re.DOTALL)
    return f"cannot find {said} among " + ", ".join(f"{event_id} ({title})" for title, event_id in entries)


_FILE, _TIME = r"(\S+)", r"([0-9]{2}:[0-9]{2})"

WORDINGS: dict[str, Callable[..., str]] = {
    r"no file (.*); similar: (.*)": _suggested,
    rf"{_FILE} is locked; call unlock_file first": "{} cannot be changed before unlock_file".format,
    r"no folder (.*); folders: (.*)": "{} is none of the folders {}".format,
    rf"{_FILE} is in (\S+) already": lambda name, folder: f"nothing to move: {folder} holds {name}",
    r"new_name must be a full name such as (\S+), got (.*)": (
        lambda model, got: f"{got} cannot be the new_name; give it in full, like {model}"
    ),
    rf"{_FILE} exists already": "another file is called {}".format,
    r"no contact (.*); contacts: (.*)": "{} is nobody you know; you know {}".format,
    rf"{_FILE} is shared with (\S+) already": lambda name, person: f"{person} can open {name} as it is",
    rf"{_FILE} is not locked": "{} needs no unlocking".format,
    r"title must be a short text, got (.*)": "{} cannot be the title; give a few words".format,
    r"date must be YYYY-MM-DD, got (.*)": "cannot read {} as a date; write it as YYYY-MM-DD".format,
    r"time must be 24h HH:MM, got (.*)": "cannot read {} as a time; write it as HH:MM of 24h".format,
    r"no event (.*?); (the calendar is empty|.* is E[0-9]{1,6})": _listed,
    rf"{_TIME} is taken; no later time is free on (.*)": "there is no room at {} or later on {}".format,
    rf"{_TIME} is taken; next free {_TIME}": "there is no room at {}, but at {} there is".format,
    r"(?:Desk\.)?(\w+)\(\) missing [0-9]+ required positional arguments?: (.*)": "the call of {} leaves out {}".format,
    r"(?:Desk\.)?(\w+)\(\) got an unexpected keyword argument (.*)": "{} does not take {}".format,
    r"(?:Desk\.)?(\w+)\(\) got multiple values for argument (.*)": "{} does not take {} from you".format,
}
"""Patterns of the desk's messages, and of Python's own on wrong arguments, with the other wording."""
