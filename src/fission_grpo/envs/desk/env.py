"""A desk with files and a calendar: a small environment in TRL's convention, deterministic and without side effects.

Its error messages say how to correct a call.
"""

from __future__ import annotations

import copy
import datetime
import json
import re
from collections import Counter
from typing import Any

FOLDERS = ("inbox", "archive", "drafts", "work", "home", "shared")
CONTACTS = ("Ana", "Ben", "Eva", "Leo", "Mia", "Tom")

OPENING, CLOSING, SLOT = 8 * 60, 20 * 60, 30  # [ours] minutes: the calendar's day, distance of suggested free times

_TIME = re.compile(r"([01][0-9]|2[0-3]):[0-5][0-9]")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_FILE_NAME = re.compile(r"[a-z0-9]+(_[a-z0-9]+)*\.[a-z]{2,4}")
_EVENT_ID = re.compile(r"E[1-9][0-9]{0,5}")
_LONGEST_ECHO = 40


class ToolError(ValueError):
    """A tool refused a call. The policy reads the message."""


class Desk:
    """Files in folders and events in a calendar, changed by eight tools.

    A scenario is JSON text `{"files": {name: {"folder", "locked", "shared": [person]}}, "events": {id: {"title",
    "date", "time"}}, "goal": {"files", "events"}}`. A call either succeeds completely, or raises ToolError (TypeError
    where Python itself refuses the arguments) and changes nothing.
    """

    def __init__(self):
        self._files: dict[str, dict[str, Any]] = {}
        self._events: dict[str, dict[str, str]] = {}
        self._goal: dict[str, Any] = {"files": {}, "events": {}}

    def reset(self, **row: Any) -> None:
        """Start the episode of a data set row, of whose columns only `scenario` is read."""
        try:
            scenario = json.loads(row["scenario"])
            files, events, goal = scenario["files"], scenario["events"], scenario["goal"]
            _facts(files, events)
            _facts(goal["files"], goal["events"])
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(
                f"row {row.get('id', '?')!r}: column 'scenario' is no desk scenario ({error!r}). It must be the JSON "
                "text of an object with 'files', 'events' and 'goal', as desk.tasks.make_rows writes it."
            ) from error
        self._files, self._events, self._goal = files, events, goal

    def get_reward(self) -> float:
        """1.0 if files and events are exactly those of the goal (event ids do not matter), else 0.0."""
        return float(_facts(self._files, self._events) == _facts(self._goal["files"], self._goal["events"]))

    def move_file(self, name: str, folder: str) -> str:
        """Move a file to another folder.

        Args:
            name: Full name of the file, with its ending.
            folder: Folder to move it to.

        Returns:
            A confirmation.
        """
        file = self._unlocked(name)
        if not isinstance(folder, str) or folder not in FOLDERS:
            raise ToolError(f"no folder {_echo(folder)}; folders: {', '.join(FOLDERS)}")
        if file["folder"] == folder:
            raise ToolError(f"{name} is in {folder} already")
        file["folder"] = folder
        return "ok"

    def rename_file(self, name: str, new_name: str) -> str:
        """Give a file another name.

        Args:
            name: Full name of the file, with its ending.
            new_name: Its new full name.

        Returns:
            A confirmation.
        """
        self._unlocked(name)
        if not isinstance(new_name, str) or len(new_name) > 60 or not _FILE_NAME.fullmatch(new_name):
            raise ToolError(f"new_name must be a full name such as notes_3.txt, got {_echo(new_name)}")
        if new_name in self._files:
            raise ToolError(f"{new_name} exists already")
        self._files = {(new_name if other == name else other): value for other, value in self._files.items()}
        return "ok"

    def delete_file(self, name: str) -> str:
        """Delete a file.

        Args:
            name: Full name of the file, with its ending.

        Returns:
            A confirmation.
        """
        self._unlocked(name)
        del self._files[name]
        return "ok"

    def share_file(self, name: str, person: str) -> str:
        """Share a file with a contact.

        Args:
            name: Full name of the file, with its ending.
            person: First name of the contact.

        Returns:
            A confirmation.
        """
        file = self._unlocked(name)
        if not isinstance(person, str) or person not in CONTACTS:
            raise ToolError(f"no contact {_echo(person)}; contacts: {', '.join(CONTACTS)}")
        if person in file["shared"]:
            raise ToolError(f"{name} is shared with {person} already")
        file["shared"] = sorted([*file["shared"], person])
        return "ok"

    def unlock_file(self, name: str) -> str:
        """Unlock a locked file.

        Args:
            name: Full name of the file, with its ending.

        Returns:
            A confirmation.
        """
        file = self._file(name)
        if not file["locked"]:
            raise ToolError(f"{name} is not locked")
        file["locked"] = False
        return "ok"

    def add_event(self, title: str, date: str, time: str) -> str:
        """Put an event into the calendar.

        Args:
            title: What the event is.
            date: Day, as YYYY-MM-DD.
            time: Start, 24h HH:MM.

        Returns:
            A confirmation with the event's id.
        """
        if not isinstance(title, str) or not title.strip() or len(title) > 60:
            raise ToolError(f"title must be a short text, got {_echo(title)}")
        _check_date(date)
        _check_time(time)
        self._check_free(date, time, but="")
        event_id = f"E{max((int(known[1:]) for known in self._events), default=0) + 1}"
        self._events[event_id] = {"title": title, "date": date, "time": time}
        return f"ok {event_id}"

    def move_event(self, event_id: str, time: str) -> str:
        """Move an event to another time of its day.

        Args:
            event_id: Id of the event.
            time: New start, 24h HH:MM.

        Returns:
            A confirmation.
        """
        event = self._event(event_id)
        _check_time(time)
        self._check_free(event["date"], time, but=event_id)
        event["time"] = time
        return "ok"

    def cancel_event(self, event_id: str) -> str:
        """Take an event out of the calendar.

        Args:
            event_id: Id of the event.

        Returns:
            A confirmation.
        """
        self._event(event_id)
        del self._events[event_id]
        return "ok"

    def _progress(self) -> float:
        """Jaccard similarity of the current state and the goal, as multisets of facts."""
        current, goal = _facts(self._files, self._events), _facts(self._goal["files"], self._goal["events"])
        return (current & goal).total() / max(1, (current | goal).total())

    def _snapshot(self) -> dict[str, Any]:
        """A copy of the state."""
        return copy.deepcopy({"files": self._files, "events": self._events, "goal": self._goal})

    def _restore(self, state: dict[str, Any]) -> None:
        """Return to a state from `_snapshot`; the same snapshot can be restored any number of times."""
        self._files, self._events, self._goal = (copy.deepcopy(state[key]) for key in ("files", "events", "goal"))

    def _file(self, name: Any) -> dict[str, Any]:
        if not isinstance(name, str) or name not in self._files:
            word = re.split(r"[^a-z0-9]", name.lower())[0] if isinstance(name, str) else ""
            similar = [known for known in self._files if word and known.startswith(word)]
            raise ToolError(f"no file {_echo(name)}; similar: {', '.join(similar) or 'none'}")
        return self._files[name]

    def _unlocked(self, name: Any) -> dict[str, Any]:
        file = self._file(name)
        if file["locked"]:
            raise ToolError(f"{name} is locked; call unlock_file first")
        return file

    def _event(self, event_id: Any) -> dict[str, str]:
        if isinstance(event_id, str) and event_id in self._events:
            return self._events[event_id]
        same_title = [known for known, event in self._events.items() if event["title"] == event_id]
        known = ", ".join(f"{self._events[each]['title']} is {each}" for each in same_title or self._events)
        raise ToolError(f"no event {_echo(event_id)}; {known or 'the calendar is empty'}")

    def _check_free(self, date: str, time: str, but: str) -> None:
        others = [event for event_id, event in self._events.items() if event_id != but]
        taken = {_minutes(event["time"]) for event in others if event["date"] == date}
        if _minutes(time) not in taken:
            return
        later = range(max(_minutes(time) - _minutes(time) % SLOT + SLOT, OPENING), CLOSING, SLOT)
        free = next((minutes for minutes in later if minutes not in taken), None)
        if free is None:
            raise ToolError(f"{time} is taken; no later time is free on {date}")
        raise ToolError(f"{time} is taken; next free {format_time(free)}")


def _facts(files: dict[str, dict[str, Any]], events: dict[str, dict[str, str]]) -> Counter[tuple[Any, ...]]:
    """A state as facts: each file's folder, lock and contacts, each event's title, date and time, but not its id."""
    facts: Counter[tuple[Any, ...]] = Counter()
    for event_id, event in events.items():
        if not _EVENT_ID.fullmatch(event_id):
            raise ValueError(f"event id {event_id!r} does not look like E17")
        facts[event["title"], event["date"], event["time"]] += 1
    for name, file in files.items():
        facts.update([(name, "folder", file["folder"]), (name, "locked", bool(file["locked"]))])
        facts.update((name, "shared", person) for person in file["shared"])
    return facts


def _check_date(date: Any) -> None:
    try:
        if isinstance(date, str) and _DATE.fullmatch(date) and datetime.date.fromisoformat(date):
            return
    except ValueError:  # the form is right, but the calendar has no such day
        pass
    raise ToolError(f"date must be YYYY-MM-DD, got {_echo(date)}")


def _check_time(time: Any) -> None:
    if not isinstance(time, str) or not _TIME.fullmatch(time):
        raise ToolError(f"time must be 24h HH:MM, got {_echo(time)}")


def _minutes(time: str) -> int:
    return int(time[:2]) * 60 + int(time[3:])


def format_time(minutes: int) -> str:
    """Minutes after midnight as HH:MM."""
    return f"{minutes // 60:02d}:{minutes % 60:02d}"


def _echo(value: Any) -> str:
    """A value that the policy passed, in a form that error messages can quote: short, for any JSON value."""
    if isinstance(value, str):
        return repr(value if len(value) <= _LONGEST_ECHO else value[:_LONGEST_ECHO] + "...")
    small = isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 10**15)
    return repr(value) if small else f"a {type(value).__name__}"
