"""Changes to JSON within a text that leave it JSON: bytes changed at random seldom get past a JSON parser."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

STRANGE = (
    None,
    True,
    0,
    -1.5,
    10**30,
    "",
    "x",
    "{",
    '{"a": 1}',
    "book",
    "function",
    [],
    [[]],
    [None],
    {},
    {"": {}},
    {"type": 1},
)


def bent(data: bytes, rng: random.Random) -> bytes:
    """The data with one JSON object in it changed at one place: a value of another kind, a key less, a part twice."""
    text = data.decode("utf-8", "replace")
    starts = [at for at, letter in enumerate(text[:4096]) if letter == "{"]
    if not starts:
        return data
    start = rng.choice(starts)
    try:
        value, end = json.JSONDecoder().raw_decode(text, start)
    except (ValueError, RecursionError):
        return data
    try:
        _change(value, rng)
        return (text[:start] + json.dumps(value) + text[end:]).encode("utf-8", "replace")
    except RecursionError:
        return data


def _change(value: Any, rng: random.Random) -> None:
    places = [(value, key) for key in value]
    for holder, key in places:  # grows as it goes
        inner = holder[key]
        if isinstance(inner, dict | list) and len(places) < 500:
            places += [(inner, at) for at in (inner if isinstance(inner, dict) else range(len(inner)))]
    if not places:
        return
    holder, key = rng.choice(places)
    match rng.randrange(5):
        case 0:
            del holder[key]
        case 1:
            holder[key] = json.dumps(holder[key])
        case 2:
            other, at = rng.choice(places)
            holder[key] = copy.deepcopy(other[at])
        case 3 if isinstance(holder, dict):
            holder[str(rng.choice(STRANGE))] = holder[key]
        case _:
            holder[key] = copy.deepcopy(rng.choice(STRANGE))
