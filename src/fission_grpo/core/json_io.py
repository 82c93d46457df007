"""Strict JSON in, short quotations of JSON values out. Both are safe on anything a model may write."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from typing import Any


def encodable(text: str) -> str:
    """The text with "?" for unpaired surrogates, which a tool may echo and no tokenizer or UTF-8 file takes."""
    return text.encode("utf-8", "replace").decode("utf-8")


MAX_DEPTH = 64
"""Deepest nesting that counts as valid, in levels of arrays and objects. [ours] Beyond any real tool's arguments, and
far enough below Python's recursion limit that everything downstream may recurse over a value."""


QUOTE_LENGTH = 60
"""Longest quotation of a value in a message, in characters. [ours]"""


class NotJson(ValueError):
    """The text is not JSON. The message is short, deterministic, and made for the model to read.

    `open_ended` is set if the decoder stopped for a fault of syntax, which more text might have mended.
    """

    def __init__(self, message: str, open_ended: bool = False):
        super().__init__(message)
        self.open_ended = open_ended


def read_json(text: str, at: int = 0, start: int = 0) -> tuple[Any, int]:
    """Read the JSON value that begins at `at`; return it and where the text goes on after it.

    Strict where Python's `json` is lenient or left to chance: duplicate keys, NaN and Infinity, numbers that overflow
    a double, unpaired surrogates and nesting beyond `MAX_DEPTH` are errors. Positions in messages count characters
    from 1 at `start`.

    Raises:
        NotJson: and nothing else, whatever the text.

    Example:
        `read_json('{"a": 1} x')` is `({"a": 1}, 8)`; `read_json('{"a": }')` raises "expecting value at character 7".
    """
    try:
        value, end = _DECODER.raw_decode(text, at)
    except json.JSONDecodeError as error:
        what = error.msg[:1].lower() + error.msg[1:]
        raise NotJson(f"{what} at character {error.pos - start + 1}", open_ended=True) from None
    except RecursionError:
        raise NotJson(_TOO_DEEP) from None
    for problem in _problems(value):
        raise NotJson(problem)
    return value, end


def quoted(value: Any) -> str:
    """A value as a message quotes it: strings in single quotes, the rest as JSON, cut to `QUOTE_LENGTH`, printable.

    Example:
        `quoted("kelvin")` is "'kelvin'", `quoted(True)` is "true", `quoted("x" * 99)` ends in "...".
    """
    if isinstance(value, str):
        text = repr(value[: QUOTE_LENGTH + 1])
    else:
        try:
            text = json.dumps(value)
        except (TypeError, ValueError, RecursionError):
            text = f"a {type(value).__name__}"
    return text if len(text) <= QUOTE_LENGTH else text[:QUOTE_LENGTH] + "..."


def problem_in(value: Any) -> str | None:
    """Why a value that some other reader made of a text is none that `read_json` gives; None if it is.

    Example:
        `problem_in([1.5, "x"])` is None, `problem_in({"a": math.nan})` is "NaN is not a JSON value".
    """
    return next(_problems(value), None)


def _problems(value: Any) -> Iterator[str]:
    """What Python's decoder lets pass. Iterative, so that depth cannot hurt it."""
    waiting = [(value, 1)]
    while waiting:
        item, depth = waiting.pop()
        if isinstance(item, str):
            try:
                item.encode()
            except UnicodeEncodeError:
                yield "unpaired surrogate in a string"
        elif isinstance(item, float) and not math.isfinite(item):
            yield f"{json.dumps(item)} is not a JSON value"
        elif isinstance(item, int) and abs(item) > sys.float_info.max:
            yield _TOO_LARGE
        elif isinstance(item, dict | list):
            if depth > MAX_DEPTH:
                yield _TOO_DEEP
            parts = [*item, *item.values()] if isinstance(item, dict) else item
            waiting += [(part, depth + 1) for part in parts]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise NotJson(f"duplicate key {quoted(key)}")
        found[key] = value
    return found


def _integer(text: str) -> int:
    _finite(text)  # first: int() refuses texts beyond sys.get_int_max_str_digits()
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise NotJson(_TOO_LARGE)
    return value


def _no_constant(text: str) -> Any:
    raise NotJson(f"{text} is not a JSON value")


_TOO_LARGE = "a number is too large"


_TOO_DEEP = f"nested deeper than {MAX_DEPTH} levels"


_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique, parse_float=_finite, parse_int=_integer, parse_constant=_no_constant
)
