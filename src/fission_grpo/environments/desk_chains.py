"""Longer tasks at the desk: several requests in one message, all of which must be done.

A chain of k requests is k tasks of `desk_tasks` in one scenario. Files' words, events' titles and dates are distinct
between them, so that each request means and needs what it would alone, and errors alone decide how hard it is: the
reward is 1 only if every request was done, and an error in any of them is enough to lose it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from typing import Any

from fission_grpo.environments.desk_tasks import MIX, DeskTask, Draw, check_rows_wanted, draw_task, make_rows, row_of
from fission_grpo.trajectory import ToolCall

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
