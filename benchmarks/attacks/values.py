"""Values, texts and changes that attack readers: the material of all edges. Everything follows from one `Random`."""

from __future__ import annotations

import copy
import json
import re
import string
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any, TypeVar

Result = TypeVar("Result")

TOKENS = (
    *('"', "'", "\\", "\n", "\r\n", "\t", " ", "{", "}", "[", "]", "(", ")", "<", ">", ",", ":", ";", "=", "-", "*"),
    *("<tool_call>", "</tool_call>", "<tools>", "</tools>", "<think>", "</think>", "<tool_response>", "<user>"),
    *("<obs>", "</obs>", "<response>", "<|im_start|>", "<|im_end|>", "assistant\n", "```", "```json\n", "~~~", "---"),
    *("**Dialogue Records History**", "# Tools", "[f(", "f(x=1)", "a=", "null", "None", "NaN", "Infinity", "true"),
    *('{"name": "f", "arguments": {', '{"error": "', "{'error': '", "Error: ", "error", "\x1b[2J", "\u202e", "\x00"),
    *("\ud800", "é", "𝔘", "\u2028", "9" * 30, "1e", "0x", "2024-01-02", "https://me:pw@host/", "\\u0000", "%2f"),
    *("data: ", "[DONE]", "x", "word ", "_", "/", "a.b", "$", "^", "|", "&amp;", "<script>", "![](http://e/x)"),
)
STRANGE = (
    *(None, True, False, 0, -1, 1, 0.5, -0.0, 1e308, 10**30, 10**4000, -(10**4000), 2**63, float("inf"), float("nan")),
    *("", " ", "x", "null", "1", "{}", "\x00", "\ud800", "../../etc/passwd", "/dev/zero", "-", "9" * 5000, "${x}"),
    *([], [[]], [None], {}, {"": {}}, {"a": {"$ref": "#"}}, {"__class__": "x"}, ["a", 1, None, {}], {"type": []}),
)


def text(rng: Random, most: int = 200_000) -> str:
    """A text of up to `most` characters: a few tokens repeated, which is what slow readers are slow at."""
    size = int(most ** rng.random()) + 1
    parts = []
    while sum(map(len, parts)) < size:
        unit = "".join(rng.choice(TOKENS) for _ in range(rng.randint(1, 4)))
        parts.append(unit * rng.choice((1, 1, 2, 7, size // len(unit) + 1)))
    return "".join(parts)[:size]


def word(rng: Random) -> str:
    return rng.choice((rng.choice(TOKENS), "".join(rng.choices(string.ascii_letters, k=rng.randint(1, 6)))))


def value(rng: Random, depth: int = 4) -> Any:
    """A JSON value, or one that Python's JSON has beyond the standard (NaN, lone surrogates)."""
    kind = rng.randrange(10 if depth else 7)
    if kind < 3:
        return strange(rng)
    if kind < 5:
        return text(rng, 300)
    if kind < 7:
        return rng.choice((rng.randint(-1000, 1000), rng.random(), word(rng)))
    if kind == 7:
        return nested(rng)
    size = rng.choice((0, 1, 2, 3, 3000 if depth == 4 else 5))
    if kind == 8:
        return [value(rng, depth - 1 if size < 10 else 0) for _ in range(size)]
    return {word(rng): value(rng, depth - 1 if size < 10 else 0) for _ in range(size)}


def strange(rng: Random) -> Any:
    return copy.deepcopy(rng.choice(STRANGE))


def nested(rng: Random) -> str:
    """What `dumps` writes as a value inside many lists or objects; as a value it could not be copied."""
    return f"@{rng.choice(('[]', '{}'))}{rng.choice((5, 5, 50, 50, 200, 400, 900))}@"


def changed(value_given: Any, rng: Random, times: int = 1) -> Any:
    """A copy of a JSON value with some places changed: another value, a key less, a part twice, JSON as text."""
    whole = copy.deepcopy(value_given)
    for _ in range(times):
        if len(json.dumps(whole)) > 10**6:  # each change may double it
            break
        places = [(whole, key) for key in _keys(whole)]
        for holder, key in places:  # grows as it goes
            if len(places) > 3000:
                break
            places += [(holder[key], inner) for inner in _keys(holder[key])]
        if not places:
            return value(rng)
        holder, key = rng.choice(places)
        _change(holder, key, places, rng)
    return whole


def _change(holder: Any, key: Any, places: list[tuple[Any, Any]], rng: Random) -> None:
    match rng.randrange(8):
        case 0:
            del holder[key]
        case 1:
            other, at = rng.choice(places)
            if at in _keys(other):
                holder[key] = copy.deepcopy(other[at])
        case 2 if len(written := json.dumps(holder[key])) < 10**6:  # escapes double with each time
            holder[key] = written
        case 3:
            holder[key] = text(rng)
        case 4 if isinstance(holder, dict):
            holder[word(rng)] = holder.pop(key)
        case 5 if isinstance(holder, list):
            size = len(json.dumps(holder[key]))
            holder.extend([holder[key]] * min(rng.choice((1, 5, 500)), 10**6 // size))
        case 6:
            holder[key] = value(rng)
        case _:
            holder[key] = strange(rng)


def _keys(value_given: Any) -> list[Any]:
    if isinstance(value_given, dict):
        return list(value_given)
    return list(range(len(value_given))) if isinstance(value_given, list) else []


def damaged(data: bytes, rng: Random) -> bytes:
    """Bytes with some of them changed, removed, repeated or inserted."""
    for _ in range(rng.choice((1, 1, 2, 10))):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(5):
            case 0:
                data = data[:at]
            case 1:
                data = data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
            case 2:
                data = data[:at] + rng.choice(TOKENS).encode("utf-8", "surrogatepass") + data[at:]
            case 3:
                data = data[:at] + data[at + rng.randrange(1, 50) :]
            case _:
                data = data[:at] + data[at : at + 30] * rng.choice((2, 100)) + data[at:]
    return data


def dumps(given: Any) -> str:
    """JSON as a careless writer makes it: NaN and lone surrogates stand; and deep where `nested` says so."""
    return _NESTED.sub(_deep, json.dumps(given, ensure_ascii=False))


_NESTED = re.compile(r'"@(\[\]|\{\})(\d+)@"')


def _deep(found: re.Match[str]) -> str:
    depth = int(found[2])
    return "[" * depth + "]" * depth if found[1] == "[]" else '{"a": ' * depth + "{}" + "}" * depth


def refused(error: Exception) -> str:
    """The outcome of input that was refused with a message. Raises AssertionError for one that says nothing."""
    assert str(error).strip(), "an empty message"
    return "refused"


def in_thread(work: Callable[[], Result]) -> Result:
    """The result of a call in another thread than the main one, where no signal interrupts it."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()
