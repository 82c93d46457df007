"""Strict reading, traversal and short quotation of JSON values. Safe on any text that a model may write."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping
from typing import Any

MAX_DEPTH = 64  # levels of nesting [ours]; far below Python's recursion limit, as code may recurse over a value
QUOTE_LENGTH = 60  # longest quotation of a value in a message, in characters [ours]
JsonPath = tuple[str | int, ...]  # keys and array indices that lead from a JSON value to one inside it

_TOO_LARGE = "a number is too large"
NESTED_TOO_DEEPLY = f"nested deeper than {MAX_DEPTH} levels"


class NotJson(ValueError):
    """A text is not valid JSON. The message is short and deterministic, as the policy may read it.

    `open_ended` marks a syntax error that a longer text might not have.
    """

    def __init__(self, message: str, open_ended: bool = False):
        super().__init__(message)
        self.open_ended = open_ended


def read_json(text: str, at: int = 0, start: int = 0) -> tuple[Any, int]:
    """Read the JSON value that begins at index `at`; return it and the index after it.

    Stricter than Python's `json`: duplicate keys, NaN, Infinity, numbers that overflow a double, unpaired surrogates
    and nesting beyond `MAX_DEPTH` raise NotJson, as all invalid text does. Positions in messages count from `start`.

    Example:
        `read_json('{"a": 1} x')` is `({"a": 1}, 8)`; `read_json('{"a": }')` raises "expecting value at character 7".
    """
    try:
        value, end = _DECODER.raw_decode(text, at)
    except json.JSONDecodeError as error:
        what = error.msg[:1].lower() + error.msg[1:]
        raise NotJson(f"{what} at character {error.pos - start + 1}", open_ended=True) from None
    except RecursionError:
        raise NotJson(NESTED_TOO_DEEPLY) from None
    if problem := problem_in(value):
        raise NotJson(problem)
    return value, end


def problem_in(value: Any) -> str | None:
    """Why `read_json` would not return this value of another decoder ("a number is too large"); None if it would."""
    waiting = [(value, 1)]  # a stack instead of recursion, as the value may be nested deeply
    while waiting:
        item, depth = waiting.pop()
        if isinstance(item, str):
            try:
                item.encode()
            except UnicodeEncodeError:
                return "unpaired surrogate in a string"
        elif isinstance(item, float) and not math.isfinite(item):
            return f"{json.dumps(item)} is not a JSON value"
        elif isinstance(item, int) and abs(item) > sys.float_info.max:
            return _TOO_LARGE
        elif isinstance(item, dict | list):
            if depth > MAX_DEPTH:
                return NESTED_TOO_DEEPLY
            parts = [*item, *item.values()] if isinstance(item, dict) else item
            waiting += [(part, depth + 1) for part in parts]
    return None


def walk_json(value: Any, arrays: bool = True) -> Iterator[tuple[JsonPath, Any]]:
    """Yield every value inside a JSON value, itself included, with its path; inside of lists only with `arrays`.

    A container comes before its items, and later items before earlier ones. What is nested deeper than `MAX_DEPTH`
    levels is left out, as its paths would take memory that grows with the square of the text.

    Example: of `{"a": [1, 2]}` the paths are `()`, `("a",)`, `("a", 1)`, `("a", 0)`.
    """
    waiting: list[tuple[JsonPath, Any]] = [((), value)]
    while waiting:
        path, item = waiting.pop()
        yield path, item
        if len(path) >= MAX_DEPTH:
            continue
        if isinstance(item, Mapping):
            waiting += [((*path, key), inner) for key, inner in item.items()]
        elif arrays and isinstance(item, list | tuple):
            waiting += [((*path, index), inner) for index, inner in enumerate(item)]


def quoted(value: Any) -> str:
    """A value as messages quote it: a string in single quotes, else JSON; printable, cut to `QUOTE_LENGTH`."""
    if isinstance(value, str):
        text = repr(value[: QUOTE_LENGTH + 1])
    else:
        try:
            text = json.dumps(value)
        except (TypeError, ValueError, RecursionError):
            text = f"a {type(value).__name__}"
    return text if len(text) <= QUOTE_LENGTH else text[:QUOTE_LENGTH] + "..."


def encodable(text: str) -> str:
    """The text with "?" for unpaired surrogates, which neither tokenizers nor UTF-8 files can hold."""
    return text.encode("utf-8", "replace").decode("utf-8")


def well_formed(text: str) -> str:
    """The text with U+FFFD for unpaired surrogates, which UTF-8 cannot encode. Pairs become their character."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise NotJson(f"duplicate key {quoted(key)}")
        result[key] = value
    return result


def _integer(text: str) -> int:
    _finite(text)  # first, as int() refuses texts beyond sys.get_int_max_str_digits()
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise NotJson(_TOO_LARGE)
    return value


def _no_constant(text: str) -> Any:
    raise NotJson(f"{text} is not a JSON value")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique, parse_float=_finite, parse_int=_integer, parse_constant=_no_constant
)
