"""In which form a diagnosis gives the answer away: verbatim, in other words for a number or date, in pieces, ..."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fission_grpo.core.json_io import quoted
from fission_grpo.core.types import Failure, ToolCall
from fission_grpo.feedback.leak_guard import (
    WINDOW,
    dates_of,
    leak_in,
    leaks,
    number,
    numbers_in,
    says_date,
    says_split,
    says_time,
    squashed,
    time_of,
)

FORMS = ("JSON path", "exact", "normalised", "numeric", "date", "split across words", "substring", "disguised")
"""Forms of leaks, by which a text that tells several values is counted under the first."""


_NOBODY = "\0"  # a tool's name that no text can say


@dataclass(frozen=True)
class _Secret:
    """A leaf of the reference's arguments, or a tool's name where `path` is empty. The path holds keys and indices."""

    path: tuple[str | int, ...]
    value: Any

    @property
    def parameter(self) -> str:
        return str(self.path[0])


def how_leaked(text: str, failure: Failure) -> str | None:
    """The form in which a text gives the reference away, one of `FORMS`; None where `leak_in` finds no leak.

    "JSON path": a value within a nested argument, told together with its path or the key it stands under ("set
    `filter.max` to 10"). "exact": as the reference writes it. "normalised": but for case, spacing, quotes. "numeric":
    the number in another notation or in words. "date": another way to write a date or time. "split across words":
    in pieces that whole words make up. "substring": within a longer word or `WINDOW` characters of a long value.
    "disguised": whatever else the guard sees through (base64, escapes, rot13, backwards, yes for true).

    Example:
        Of the value "Rome": "use 'Rome'" is exact, "use ROME" normalised, "ro-me" split across words, "Um9tZQ=="
        disguised.
    """
    if leak_in(text, failure) is None:
        return None
    told = [secret for secret in _secrets(failure.reference or (), failure.calls) if _tells(text, secret, failure)]
    forms = [_form(text, secret) for secret in told]
    return min(forms, key=FORMS.index, default="disguised")


def paths_told(text: str, failure: Failure) -> list[str]:
    """Nested fields of the reference that a text names and the failed calls do not have, as dotted paths.

    They are no leak to the guard, which protects values and tools' names, but part of the answer all the same.

    Example:
        Of the reference `{"filter": {"max": 10}}` and a call with `{"filter": {}}`, "`filter.max` is missing" tells
        "filter.max". A key that is a plain word counts only with what it stands under ("filter.max", "max in
        filter") or in backticks or quotes.
    """
    written = {path for call in failure.calls for path in _keys(call.arguments)}
    secret = {path for call in failure.reference or () for path in _keys(call.arguments)} - written
    return sorted(".".join(path) for path in secret if len(path) > 1 and _names_path(text, path))


def _secrets(reference: Sequence[ToolCall], failed: Sequence[ToolCall]) -> Iterator[_Secret]:
    called = {call.name for call in failed}
    for call in reference:
        if call.name not in called:
            yield _Secret((), call.name)
        yield from (_Secret(path, value) for path, value in _leaves(call.arguments))


def _tells(text: str, secret: _Secret, failure: Failure) -> bool:
    """Whether the guard objects to this value alone, or to this tool's name alone."""
    if not secret.path:
        alone = ToolCall(secret.value)
        return leaks(text, [alone], failure.calls, failure.task.tools) is not None
    alone, calls = ToolCall(_NOBODY, {secret.parameter: secret.value}), (*failure.calls, ToolCall(_NOBODY))
    return leaks(text, [alone], calls, failure.task.tools) is not None


def _form(text: str, secret: _Secret) -> str:
    value = secret.value
    if len(secret.path) > 1 and _names_path(text, tuple(part for part in secret.path if isinstance(part, str))):
        return "JSON path"
    written = value if isinstance(value, str) else quoted(value)
    if _word(re.escape(written), text):
        return "exact"
    folded, plain = _folded(text), _folded(written)
    if plain and _word("[ _-]*".join(map(re.escape, re.split(r"[\s_-]+", plain))), folded):
        return "normalised"
    if (spelled := number(value)) is not None and spelled in numbers_in(folded):
        return "numeric"
    time = time_of(plain)
    if any(says_date(folded, *date) for date in dates_of(plain)) or (time is not None and says_time(folded, *time)):
        return "date"
    core, flat = squashed(plain), squashed(folded)
    if core and says_split(folded, core, frozenset()):
        return "split across words"
    windows = range(max(1, len(core) - WINDOW + 1))
    if core and any(core[at : at + WINDOW] in flat for at in windows):
        return "substring"
    return "disguised"


def _leaves(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    items = (
        value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    )
    for key, inner in items:
        if isinstance(inner, Mapping | list | tuple):
            yield from _leaves(inner, (*path, key))
        else:
            yield (*path, key), inner


def _keys(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every path of keys in an argument object; places in arrays are left out."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield (*path, key)
            yield from _keys(inner, (*path, key))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _keys(inner, path)


def _names_path(text: str, path: tuple[str, ...]) -> bool:
    """Whether a text names a nested key: by the end of its path, or in quotes or beside its parent."""
    if len(path) < 2:
        return False
    parent, key = map(re.escape, path[-2:])
    between = r"(?:\[\d*\])?[.\[/]['\"]?(?:\d+[.\]/])?['\"]?"
    beside = rf"\b{key}\b\W{{1,3}}(?:in|of|within|inside|under)\W{{1,3}}(?:the\W)?{parent}\b"
    marked = rf"[`'\"]{key}[`'\"]"
    return re.search(rf"(?<!\w){parent}{between}{key}(?!\w)|{beside}|{marked}", text) is not None


def _word(pattern: str, text: str) -> bool:
    return re.search(rf"(?<!\w){pattern}(?!\w)", text) is not None


def _folded(text: str) -> str:
    """Text without differences in case, width, kinds of quotes and spacing, roughly as the guard sees it."""
    plain = unicodedata.normalize("NFKC", text).casefold().translate(dict.fromkeys(map(ord, '“”„«»´‘’"`'), "'"))
    return " ".join(plain.split())
