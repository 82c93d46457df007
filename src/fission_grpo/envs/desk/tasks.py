"""Tasks for the desk: a user's requests, the scenario they are made in, and the calls that fulfil them.

Kinds of requests: `plain` states everything; `formats` gives dates and times in words; `names` and `ids` leave out the
file's full name or the event's id, which only an error message gives; in `locked` the file must be unlocked first; in
`conflicts` the time is taken and the next free one is accepted.
"""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fission_grpo.core.types import ToolCall
from fission_grpo.envs.desk.env import CONTACTS, FOLDERS, SLOT, Desk, format_time

SPLITS = ("train", "held_out")
HELD_OUT_MODULUS = 5  # [ours] one in five (word, number) or (title, day) combinations belongs to the held-out split
MOST_REQUESTS = 4  # [ours] more requests per task would use up the words and titles

MIX = ("plain", "names", "formats", "ids", "plain", "locked", "formats", "conflicts")
"""The kinds of consecutive rows: half of the tasks can be done without meeting an error. [ours]"""

WORDS = (
    *("agenda", "budget", "contract", "diary", "essay", "forecast", "guide", "handbook", "invoice", "journal"),
    *("letter", "memo", "notes", "offer", "plan", "quote", "report", "recipe", "script", "survey"),
    *("ticket", "thesis", "update", "voucher"),
)
ENDINGS = ("txt", "pdf", "csv", "md")
TITLES = (
    *("breakfast", "call", "class", "concert", "demo", "dentist", "dinner", "exam", "gym", "interview"),
    *("lesson", "lunch", "match", "meeting", "party", "review", "seminar", "standup", "training", "walk"),
)
MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)


def make_rows(count: int, seed: int, split: str, requests: int = 1) -> list[dict[str, Any]]:
    """Data set rows `{"id", "prompt", "scenario", "kind"}`.

    A row's `kind` joins the kinds of its requests by "+", as in "plain+names". The first kinds follow the order of
    MIX, the others are drawn from it. The splits share no combination of word and number (files) or of title and day
    (events), which a scenario lists as `combinations`. Raises ValueError for an invalid argument.

    Args:
        seed: the same seed gives the same rows, and the first rows do not depend on `count`.
        split: "train" or "held_out".
        requests: number of requests in each row's user message, 1 to MOST_REQUESTS.
    """
    if not 1 <= requests <= MOST_REQUESTS:
        raise ValueError(f"requests must be from 1 to {MOST_REQUESTS}, got {requests}")
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if count < 0:
        raise ValueError(f"count must not be negative, got {count}")
    return [_make_row(number, seed, split, requests) for number in range(count)]


def solution(row: Mapping[str, Any]) -> tuple[ToolCall, ...]:
    """The calls that solve the row's task, at most two for each request."""
    return tuple(call for _, calls in solutions_by_request(row) for call in calls)


def solutions_by_request(row: Mapping[str, Any]) -> list[tuple[ToolCall, tuple[ToolCall, ...]]]:
    """For each request of the row, the call that its text suggests and the calls that fulfil it."""
    scenario = json.loads(row["scenario"])
    return [
        (ToolCall(*request["first"]), tuple(ToolCall(*call) for call in request["solution"]))
        for request in scenario.get("requests", [scenario])
    ]


def requests_of(tasks: str) -> int | None:
    """Number of requests per task for a name of tasks: 1 for "desk", 2 for "desk:2", None if it is not the desk's."""
    name, colon, number = tasks.partition(":")
    if name != "desk":
        return None
    if not colon:
        return 1
    if number not in map(str, range(1, MOST_REQUESTS + 1)):
        wanted = f"how many requests a task has, 1 to {MOST_REQUESTS}, such as 'desk:2'"
        raise ValueError(f"{tasks!r} is no desk; after 'desk:' write {wanted}")
    return int(number)


def turns_for(requests: int) -> int:
    """Assistant turns that suffice for this number of requests and the final answer: 4 for one, 7 for two."""
    return 3 * requests + 1  # a request needs one call that meets an error, and a solution of two


def spoken_time(time: str) -> str:
    """A time as people say it: "14:30" is "2:30 pm", "12:00" is "12 pm"."""
    hour, minute = int(time[:2]), time[3:]
    return f"{(hour - 1) % 12 + 1}{'' if minute == '00' else ':' + minute} {'am' if hour < 12 else 'pm'}"


@dataclass(frozen=True)
class DeskRequest:
    """One request of the user."""

    kind: str
    text: str
    first: ToolCall  # the call that the text suggests
    solution: tuple[ToolCall, ...]  # the calls that fulfil it


class ScenarioSampler:
    """Draws the files and events of a scenario from one split, and records the combinations it used."""

    def __init__(self, split: str, rng: random.Random):
        self.split, self.rng = split, rng
        self.combinations: list[str] = []
        self.files: dict[str, dict[str, Any]] = {}
        self.events: dict[str, dict[str, str]] = {}

    def add_file(self, word: str | None = None, locked: bool = False, owner: str = "") -> str:
        """Add a file; by default no other file has its word. Returns its name."""
        rng = self.rng
        while True:
            chosen = word or rng.choice(WORDS)
            number = rng.randint(1, 40)
            name = f"{chosen}_{owner.lower() + '_' if owner else ''}{number}.{rng.choice(ENDINGS)}"
            is_new = word or not any(other.startswith(chosen) for other in self.files)
            if is_new and name not in self.files and self._use(f"{chosen} {number}"):
                self.files[name] = {"folder": rng.choice(FOLDERS[:3]), "locked": locked, "shared": []}
                return name

    def add_event(self, date: str = "", time: str = "") -> str:
        """Add an event; returns its id."""
        title, drawn_date = self.draw_meeting()
        event_id = f"E{self.rng.randint(10, 99)}"
        while event_id in self.events:
            event_id = f"E{self.rng.randint(10, 99)}"
        self.events[event_id] = {"title": title, "date": date or drawn_date, "time": time or self.draw_time()}
        return event_id

    def draw_meeting(self) -> tuple[str, str]:
        """A title that no event has yet and a date for it, as (title, YYYY-MM-DD)."""
        rng = self.rng
        while True:
            title, day = rng.choice(TITLES), rng.randint(1, 28)
            is_new = all(event["title"] != title for event in self.events.values())
            if is_new and self._use(f"{title} {day}"):
                return title, f"2026-{rng.randint(1, 12):02d}-{day:02d}"

    def draw_add_event(self) -> ToolCall:
        """A call that adds a meeting."""
        title, date = self.draw_meeting()
        return ToolCall("add_event", {"title": title, "date": date, "time": self.draw_time()})

    def draw_time(self) -> str:
        """A time of day on the half hour."""
        return f"{self.rng.randint(8, 18):02d}:{self.rng.choice(('00', '30'))}"

    def _use(self, combination: str) -> bool:
        """Record a combination, unless it belongs to the other split."""
        is_held_out = zlib.crc32(combination.encode()) % HELD_OUT_MODULUS == 0
        if is_held_out != (self.split == "held_out"):
            return False
        self.combinations.append(combination)
        return True


def _make_row(number: int, seed: int, split: str, requests: int) -> dict[str, Any]:
    rng = random.Random(f"desk {f'{requests} ' if requests > 1 else ''}{seed} {split} {number}")
    kinds = [MIX[number % len(MIX)], *rng.choices(MIX, k=requests - 1)]
    sampler = ScenarioSampler(split, rng)
    while (drawn := _draw_requests(kinds, sampler)) is None:
        sampler = ScenarioSampler(split, rng)
    return {
        "id": f"{split}-{f'{requests}x-' if requests > 1 else ''}{seed}-{number}",
        "prompt": [{"role": "user", "content": " ".join(request.text for request in drawn)}],
        "scenario": json.dumps(_make_scenario(drawn, sampler)),
        "kind": "+".join(request.kind for request in drawn),
    }


def _draw_requests(kinds: Sequence[str], sampler: ScenarioSampler) -> list[DeskRequest] | None:
    """Requests of these kinds in one scenario; None if two of them mention the same word, title or date."""
    drawn: list[DeskRequest] = []
    mentioned: set[str] = set()
    for kind in kinds:
        files, events = set(sampler.files), set(sampler.events)
        request = _DRAW_REQUEST[kind](sampler)
        new = _mentions_of(request, sampler, files, events)
        if new & mentioned:
            return None
        mentioned |= new
        drawn.append(request)
    return drawn


def _mentions_of(request: DeskRequest, sampler: ScenarioSampler, files: set[str], events: set[str]) -> set[str]:
    """First words of files, titles and dates that a request added to the given files and events."""
    arguments = [call.arguments for call in (request.first, *request.solution)]
    names = [name for name in sampler.files if name not in files]
    names += [values["new_name"] for values in arguments if "new_name" in values]
    meetings = [event for event_id, event in sampler.events.items() if event_id not in events]
    meetings += [values for values in arguments if "date" in values]
    words = {name.split("_")[0] for name in names}
    return words | {meeting[key] for meeting in meetings for key in ("title", "date")}


def _make_scenario(drawn: Sequence[DeskRequest], sampler: ScenarioSampler) -> dict[str, Any]:
    """The scenario that `Desk.reset` reads; its goal is the state after the reference calls."""
    scenario = {"files": sampler.files, "events": sampler.events, "goal": {"files": {}, "events": {}}}
    desk = Desk()
    desk.reset(scenario=json.dumps(scenario))
    calls = [call for request in drawn for call in request.solution]
    for call in calls:
        getattr(desk, call.name)(**call.arguments)
    state = desk._snapshot()
    scenario["goal"] = {"files": state["files"], "events": state["events"]}
    scenario |= _reference(drawn[0].first, calls)
    scenario["combinations"] = list(dict.fromkeys(sampler.combinations))
    if len(drawn) > 1:
        scenario["requests"] = [_reference(request.first, request.solution) for request in drawn]
    return scenario


def _reference(first: ToolCall, calls: Sequence[ToolCall]) -> dict[str, Any]:
    """Reference calls as fields of a scenario."""
    solution = [[call.name, dict(call.arguments)] for call in calls]
    return {"first": [first.name, dict(first.arguments)], "solution": solution}


def _draw_plain(sampler: ScenarioSampler) -> DeskRequest:
    if sampler.rng.random() < 0.6:
        name = sampler.add_file()
        sampler.add_file()
        text, call = _draw_file_request(sampler, name, name)
    else:
        call = sampler.draw_add_event()
        text = "Add {title} on {date} at {time}.".format(**call.arguments)
    return DeskRequest("plain", text, call, (call,))


def _draw_formats(sampler: ScenarioSampler) -> DeskRequest:
    call = sampler.draw_add_event()
    title, date, time = call.arguments.values()
    if sampler.rng.random() < 0.5:
        date = f"{int(date[8:])} {MONTHS[int(date[5:7]) - 1]} {date[:4]}"
    return DeskRequest("formats", f"Add {title} on {date} at {spoken_time(time)}.", call, (call,))


def _draw_names(sampler: ScenarioSampler) -> DeskRequest:
    if sampler.rng.random() < 0.7:
        name = sampler.add_file()
        word = name.split("_")[0]
        phrase, guess = f"the {word}", f"{word}.txt"
    else:
        word = sampler.rng.choice(WORDS)
        owner, other = sampler.rng.sample(CONTACTS, 2)
        names = {person: sampler.add_file(word, owner=person) for person in sorted((owner, other))}
        name = names[owner]
        phrase, guess = f"the {word} of {owner}", f"{word}_{owner.lower()}.txt"
    sampler.add_file()
    text, call = _draw_file_request(sampler, name, phrase)
    return DeskRequest("names", text, ToolCall(call.name, {**call.arguments, "name": guess}), (call,))


def _draw_ids(sampler: ScenarioSampler) -> DeskRequest:
    event_id = sampler.add_event()
    sampler.add_event()
    event = sampler.events[event_id]
    title = event["title"]
    if sampler.rng.random() < 0.5:
        text, call = f"Cancel the {title}.", ToolCall("cancel_event", {"event_id": event_id})
    else:
        taken = {other["time"] for other in sampler.events.values() if other["date"] == event["date"]}
        time = sampler.draw_time()
        while time in taken:
            time = sampler.draw_time()
        text = f"Move the {title} to {time}."
        call = ToolCall("move_event", {"event_id": event_id, "time": time})
    return DeskRequest("ids", text, ToolCall(call.name, {**call.arguments, "event_id": title}), (call,))


def _draw_locked(sampler: ScenarioSampler) -> DeskRequest:
    name = sampler.add_file(locked=True)
    sampler.add_file()
    text, call = _draw_file_request(sampler, name, name)
    return DeskRequest("locked", text, call, (ToolCall("unlock_file", {"name": name}), call))


def _draw_conflicts(sampler: ScenarioSampler) -> DeskRequest:
    title, date = sampler.draw_meeting()
    start = 60 * sampler.rng.randint(8, 16) + sampler.rng.choice((0, 30))
    time, *taken, free = (format_time(start + SLOT * i) for i in range(sampler.rng.randint(1, 3) + 1))
    for other in (time, *taken):
        sampler.add_event(date, other)
    first = ToolCall("add_event", {"title": title, "date": date, "time": time})
    call = ToolCall("add_event", {**first.arguments, "time": free})
    return DeskRequest("conflicts", f"Add {title} on {date} at {time} or the next free time.", first, (call,))


_DRAW_REQUEST = {
    "plain": _draw_plain,
    "formats": _draw_formats,
    "names": _draw_names,
    "ids": _draw_ids,
    "locked": _draw_locked,
    "conflicts": _draw_conflicts,
}
KINDS = tuple(_DRAW_REQUEST)


def _draw_file_request(sampler: ScenarioSampler, name: str, phrase: str) -> tuple[str, ToolCall]:
    """Something to do with a file, as a sentence that calls it `phrase` and as a call."""
    rng = sampler.rng
    action = rng.choice(("move", "delete", "share", "rename"))
    if action == "move":
        folder = rng.choice([folder for folder in FOLDERS if folder != sampler.files[name]["folder"]])
        return f"Move {phrase} to {folder}.", ToolCall("move_file", {"name": name, "folder": folder})
    if action == "delete":
        return f"Delete {phrase}.", ToolCall("delete_file", {"name": name})
    if action == "share":
        person = rng.choice(CONTACTS)
        return f"Share {phrase} with {person}.", ToolCall("share_file", {"name": name, "person": person})
    new_name = f"{rng.choice(WORDS)}_{rng.randint(41, 60)}.{rng.choice(ENDINGS)}"
    return f"Rename {phrase} to {new_name}.", ToolCall("rename_file", {"name": name, "new_name": new_name})
