"""Tasks for the desk: what a user asks for, the scenario it is asked in, and the calls that do it.

Kinds of task: `plain` says everything; `formats` gives dates and times in words; `names`, `ids` leave out the file's
full name or the event's id, which only an error message tells; in `locked` the file must be unlocked first; in
`conflicts` the time is taken and the next free one will do.
"""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fission_grpo.core.types import ToolCall
from fission_grpo.envs.desk.env import CONTACTS, FOLDERS, Desk

KINDS = ("plain", "formats", "names", "ids", "locked", "conflicts")


SPLITS = ("train", "held_out")


MIX = ("plain", "names", "formats", "ids", "plain", "locked", "formats", "conflicts")
"""The kinds in the order in which rows take them: half of the tasks can be done without meeting an error. [ours]"""


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


HELD_OUT_SHARE = 5
"""One (word, number) or (title, day) combination in so many belongs to the held-out split. [ours]"""


@dataclass(frozen=True)
class DeskTask:
    """A request in a scenario.

    `first` is the call that the request alone suggests, `solution` the calls that reach the goal: where the request
    says everything, they are the same. `combinations` are the word and number pairs it is made of.
    """

    kind: str
    request: str
    files: Mapping[str, Any]
    events: Mapping[str, Any]
    first: ToolCall
    solution: tuple[ToolCall, ...]
    combinations: tuple[str, ...] = field(default=())


def make_rows(count: int, seed: int, split: str) -> list[dict[str, Any]]:
    """Data set rows `{"id", "prompt", "scenario", "kind"}`, the kinds in the order of MIX.

    The splits share no combination of word and number (files) or title and day (events); see `combinations`.

    Args:
        count: number of rows.
        seed: the same seed gives the same rows, and the first rows do not depend on `count`.
        split: "train" or "held_out".

    Raises:
        ValueError: unknown split or negative count.
    """
    check_rows_wanted(count, split)
    draws = (Draw(split, random.Random(f"desk {seed} {split} {i}")) for i in range(count))
    return [row_of([draw_task(MIX[i % len(MIX)], draw)], f"{split}-{seed}-{i}") for i, draw in enumerate(draws)]


def check_rows_wanted(count: int, split: str) -> None:
    """Raise ValueError for an unknown split or a negative count."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if count < 0:
        raise ValueError(f"count must not be negative, got {count}")


def draw_task(kind: str, draw: Draw) -> DeskTask:
    """One task of one of KINDS; its files and events are added to those `draw` has."""
    makers = (_plain, _formats, _names, _ids, _locked, _conflicts)
    return makers[KINDS.index(kind)](draw)


def first_call(row: Mapping[str, Any]) -> ToolCall:
    """The call that the (first) request alone suggests."""
    return _call(json.loads(row["scenario"])["first"])


def solution(row: Mapping[str, Any]) -> tuple[ToolCall, ...]:
    """The reference policy: the calls that solve the row's task, at most two for each request."""
    return tuple(_call(call) for call in json.loads(row["scenario"])["solution"])


def combinations(row: Mapping[str, Any]) -> set[str]:
    """The word and number pairs a row is made of, as "budget 7" or "lunch 12"."""
    return set(json.loads(row["scenario"])["combinations"])


def row_of(tasks: Sequence[DeskTask], row_id: str) -> dict[str, Any]:
    """The row of a task, or of several drawn after another from one `Draw`, each a request of the user's message."""
    scenario = {"files": tasks[-1].files, "events": tasks[-1].events, "goal": {"files": {}, "events": {}}}
    desk = Desk()
    desk.reset(scenario=json.dumps(scenario))
    calls = [call for task in tasks for call in task.solution]
    for call in calls:
        getattr(desk, call.name)(**call.arguments)
    state = desk._snapshot()
    scenario |= {"goal": {"files": state["files"], "events": state["events"]}, **_reference(tasks[0].first, calls)}
    scenario["combinations"] = list(tasks[-1].combinations)
    if len(tasks) > 1:
        scenario["requests"] = [_reference(task.first, task.solution) for task in tasks]
    prompt = [{"role": "user", "content": " ".join(task.request for task in tasks)}]
    return {
        "id": row_id,
        "prompt": prompt,
        "scenario": json.dumps(scenario),
        "kind": "+".join(task.kind for task in tasks),
    }


class Draw:
    """Draws names and events of one split, and remembers which combinations it used."""

    def __init__(self, split: str, rng: random.Random):
        self.split, self.rng = split, rng
        self.combinations: list[str] = []
        self.files: dict[str, dict[str, Any]] = {}
        self.events: dict[str, dict[str, str]] = {}

    def file(self, word: str | None = None, locked: bool = False, owner: str = "") -> str:
        """Add a file whose word no other file has (unless given); its name."""
        rng = self.rng
        while True:
            chosen = word or rng.choice(WORDS)
            number = rng.randint(1, 40)
            name = f"{chosen}_{owner.lower() + '_' if owner else ''}{number}.{rng.choice(ENDINGS)}"
            fresh = word or not any(other.startswith(chosen) for other in self.files)
            if fresh and name not in self.files and self._belongs(f"{chosen} {number}"):
                self.files[name] = {"folder": rng.choice(FOLDERS[:3]), "locked": locked, "shared": []}
                return name

    def meeting(self) -> tuple[str, str]:
        """A title no event has yet and a day for it, as (title, YYYY-MM-DD)."""
        rng = self.rng
        while True:
            title, day = rng.choice(TITLES), rng.randint(1, 28)
            known = any(event["title"] == title for event in self.events.values())
            if not known and self._belongs(f"{title} {day}"):
                return title, f"2026-{rng.randint(1, 12):02d}-{day:02d}"

    def event(self, date: str = "", time: str = "") -> str:
        """Add an event; its id."""
        title, day = self.meeting()
        event_id = f"E{self.rng.randint(10, 99)}"
        while event_id in self.events:
            event_id = f"E{self.rng.randint(10, 99)}"
        self.events[event_id] = {"title": title, "date": date or day, "time": time or self.time()}
        return event_id

    def time(self) -> str:
        return f"{self.rng.randint(8, 18):02d}:{self.rng.choice(('00', '30'))}"

    def task(self, kind: str, request: str, first: ToolCall, calls: tuple[ToolCall, ...] | None = None) -> DeskTask:
        return DeskTask(
            kind, request, self.files, self.events, first, calls or (first,), tuple(dict.fromkeys(self.combinations))
        )

    def _belongs(self, combination: str) -> bool:
        held_out = zlib.crc32(combination.encode()) % HELD_OUT_SHARE == 0
        if held_out != (self.split == "held_out"):
            return False
        self.combinations.append(combination)
        return True


def _plain(draw: Draw) -> DeskTask:
    if draw.rng.random() < 0.6:
        name = draw.file()
        draw.file()
        request, call = _file_request(draw, name, name)
    else:
        title, date = draw.meeting()
        time = draw.time()
        request = f"Add {title} on {date} at {time}."
        call = ToolCall("add_event", {"title": title, "date": date, "time": time})
    return draw.task("plain", request, call)


def _formats(draw: Draw) -> DeskTask:
    title, date = draw.meeting()
    time = draw.time()
    said_date = _spoken_date(date) if draw.rng.random() < 0.5 else date
    request = f"Add {title} on {said_date} at {spoken_time(time)}."
    return draw.task("formats", request, ToolCall("add_event", {"title": title, "date": date, "time": time}))


def _names(draw: Draw) -> DeskTask:
    if draw.rng.random() < 0.7:
        name = draw.file()
        said, guess = f"the {name.split('_')[0]}", f"{name.split('_')[0]}.txt"
    else:
        word = draw.rng.choice(WORDS)
        owner, other = draw.rng.sample(CONTACTS, 2)
        names = {person: draw.file(word, owner=person) for person in sorted((owner, other))}
        name = names[owner]
        said, guess = f"the {word} of {owner}", f"{word}_{owner.lower()}.txt"
    draw.file()
    request, call = _file_request(draw, name, said)
    return draw.task("names", request, ToolCall(call.name, {**call.arguments, "name": guess}), (call,))


def _ids(draw: Draw) -> DeskTask:
    event_id, _ = draw.event(), draw.event()
    title = draw.events[event_id]["title"]
    if draw.rng.random() < 0.5:
        request, call = f"Cancel the {title}.", ToolCall("cancel_event", {"event_id": event_id})
    else:
        time = draw.time()
        while time == draw.events[event_id]["time"] or _taken(draw, draw.events[event_id]["date"], time):
            time = draw.time()
        request = f"Move the {title} to {time}."
        call = ToolCall("move_event", {"event_id": event_id, "time": time})
    return draw.task("ids", request, ToolCall(call.name, {**call.arguments, "event_id": title}), (call,))


def _locked(draw: Draw) -> DeskTask:
    name = draw.file(locked=True)
    draw.file()
    request, call = _file_request(draw, name, name)
    return draw.task("locked", request, call, (ToolCall("unlock_file", {"name": name}), call))


def _conflicts(draw: Draw) -> DeskTask:
    title, date = draw.meeting()
    time = f"{draw.rng.randint(8, 16):02d}:{draw.rng.choice(('00', '30'))}"
    taken = [time]
    for _ in range(draw.rng.randint(1, 3)):
        draw.event(date, taken[-1])
        taken.append(_half_an_hour_later(taken[-1]))
    wanted = {"title": title, "date": date, "time": time}
    request = f"Add {title} on {date} at {time} or the next free time."
    return draw.task(
        "conflicts", request, ToolCall("add_event", wanted), (ToolCall("add_event", {**wanted, "time": taken[-1]}),)
    )


def _file_request(draw: Draw, name: str, said: str) -> tuple[str, ToolCall]:
    """Something to do with a file, as the user says it and as a call."""
    action = draw.rng.choice(("move", "delete", "share", "rename"))
    if action == "move":
        folder = draw.rng.choice([folder for folder in FOLDERS if folder != draw.files[name]["folder"]])
        return f"Move {said} to {folder}.", ToolCall("move_file", {"name": name, "folder": folder})
    if action == "delete":
        return f"Delete {said}.", ToolCall("delete_file", {"name": name})
    if action == "share":
        person = draw.rng.choice(CONTACTS)
        return f"Share {said} with {person}.", ToolCall("share_file", {"name": name, "person": person})
    new_name = f"{draw.rng.choice(WORDS)}_{draw.rng.randint(41, 60)}.{draw.rng.choice(ENDINGS)}"
    return f"Rename {said} to {new_name}.", ToolCall("rename_file", {"name": name, "new_name": new_name})


def spoken_time(time: str) -> str:
    """A time as people say it: "14:30" is "2:30 pm", "12:00" is "12 pm"."""
    hour, minute = int(time[:2]), time[3:]
    return f"{(hour - 1) % 12 + 1}{'' if minute == '00' else ':' + minute} {'am' if hour < 12 else 'pm'}"


def _spoken_date(date: str) -> str:
    return f"{int(date[8:])} {MONTHS[int(date[5:7]) - 1]} {date[:4]}"


def _taken(draw: Draw, date: str, time: str) -> bool:
    return any(event["date"] == date and event["time"] == time for event in draw.events.values())


def _half_an_hour_later(time: str) -> str:
    minutes = int(time[:2]) * 60 + int(time[3:]) + 30
    return f"{minutes // 60:02d}:{minutes % 60:02d}"


def _call(value: list[Any]) -> ToolCall:
    return ToolCall(value[0], value[1])


def _reference(first: ToolCall, calls: Iterable[ToolCall]) -> dict[str, Any]:
    return {"first": _plain_call(first), "solution": [_plain_call(call) for call in calls]}


def _plain_call(call: ToolCall) -> list[Any]:
    return [call.name, dict(call.arguments)]


MOST_REQUESTS = 4
"""More would use up the words and titles there are. [ours]"""


CALLS = 3
"""What a request needs at most where its first call meets an error: that call, and a solution of two."""


def requests_of(tasks: str) -> int | None:
    """How many requests the tasks of a name have: 1 for "desk", 2 for "desk:2", None where it names no desk.

    Raises:
        ValueError: the part after "desk:" is no number from 1 to MOST_REQUESTS.
    """
    name, colon, number = tasks.partition(":")
    if name != "desk":
        return None
    if not colon:
        return 1
    if number not in map(str, range(1, MOST_REQUESTS + 1)):
        raise ValueError(
            f"{tasks!r} is no desk; after 'desk:' write how many requests a task has, 1 to {MOST_REQUESTS}, such as "
            "'desk:2'"
        )
    return int(number)


def turns_for(requests: int) -> int:
    """Assistant turns in which so many requests can be done and the episode ended: 4 for one, 7 for two."""
    return CALLS * requests + 1


def desk_rows(count: int, seed: int, split: str, requests: int = 1) -> list[dict[str, Any]]:
    """Data set rows as `desk_tasks.make_rows` makes them, of tasks with several requests.

    A row's `kind` is the requests' kinds joined by "+", such as "plain+names": the first in the order of MIX, the
    others drawn from it. The columns of a row are those of one request; its scenario also has `requests`, which
    `parts` reads.

    Args:
        count: number of rows.
        seed: the same seed gives the same rows, and the first rows do not depend on `count`.
        split: "train" or "held_out", which share no combination of word and number, or of title and day.
        requests: of each task; with 1 these are the rows of `make_rows`.

    Raises:
        ValueError: unknown split, negative count, or `requests` not from 1 to MOST_REQUESTS.
    """
    if not 1 <= requests <= MOST_REQUESTS:
        raise ValueError(f"requests must be from 1 to {MOST_REQUESTS}, got {requests}")
    if requests == 1:
        return make_rows(count, seed, split)
    check_rows_wanted(count, split)
    return [_row(i, seed, split, requests) for i in range(count)]


def parts(row: Mapping[str, Any]) -> list[tuple[ToolCall, tuple[ToolCall, ...]]]:
    """Of each request in turn, also of a single one, the call that it alone suggests and the calls that do it."""
    scenario = json.loads(row["scenario"])
    return [
        (ToolCall(*each["first"]), tuple(ToolCall(*call) for call in each["solution"]))
        for each in scenario.get("requests", [scenario])
    ]


def _row(number: int, seed: int, split: str, requests: int) -> dict[str, Any]:
    rng = random.Random(f"desk {requests} {seed} {split} {number}")
    kinds = [MIX[number % len(MIX)], *rng.choices(MIX, k=requests - 1)]
    while (tasks := _draw_chain(kinds, split, rng)) is None:
        pass
    return row_of(tasks, f"{split}-{requests}x-{seed}-{number}")


def _draw_chain(kinds: list[str], split: str, rng: random.Random) -> list[DeskTask] | None:
    """Tasks of these kinds in one scenario, or None where one speaks of what another does."""
    draw = Draw(split, rng)
    tasks: list[DeskTask] = []
    said: set[str] = set()
    for kind in kinds:
        files, events = set(draw.files), set(draw.events)
        task = draw_task(kind, draw)
        here = _spoken_of(task, files, events)
        if here & said:
            return None
        said |= here
        tasks.append(task)
    return tasks


def _spoken_of(task: DeskTask, files: set[str], events: set[str]) -> set[str]:
    """First words of files, titles and dates that a task brought in, given the files and events there were before."""
    arguments = [call.arguments for call in (task.first, *task.solution)]
    names = [name for name in task.files if name not in files]
    names += [each["new_name"] for each in arguments if "new_name" in each]
    things = [event for event_id, event in task.events.items() if event_id not in events]
    things += [each for each in arguments if "date" in each]
    return {name.split("_")[0] for name in names} | {each[key] for each in things for key in ("title", "date")}
