"""Recognize numbers, dates, times of day and booleans in the forms that people write them in.

The texts are normalized by `leak_guard.normalize`: lower case, plain quotes and dashes, single spaces.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_NUMBER_START = r"(?<!\w)(?<!\d[-/:.,])"
_NUMBER_END = r"(?!\d|[-/:.,]\d)"
_NUMBER = re.compile(rf"{_NUMBER_START}-?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?{_NUMBER_END}")
_SMALL = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen".split()  # noqa: SIM905
_SMALL += ["sixteen", "seventeen", "eighteen", "nineteen"]
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()  # noqa: SIM905
_NUMBER_WORD = "|".join([*_SMALL, *_TENS, "hundred", "thousand"])
_COUNTED = (  # a number word before one of these only counts, as in "two arguments"
    "more|other|different|wrong|missing|further|of|less|fewer|too|things?|calls?|tools?|errors?|arguments?|"
    "parameters?|fields?|problems?|mistakes?|values?|options?|attempts?|digits?|characters?"
)
_STATED = re.compile(r"(?:\b(?:be|to|use|try|equals?|value)|[=:']) ?'?$")

_MONTHS = "january february march april may june july august september october november december".split()  # noqa: SIM905
_MONTH_NAME = re.compile(rf"\b({'|'.join(f'{name}|{name[:4]}|{name[:3]}' for name in _MONTHS)})(?!\w)")
_DATE = re.compile(r"(\d{1,4})[-/.](\d{1,2})[-/.](\d{1,4})(?!\d)")
_TIME = re.compile(r"(?<![\d:])(\d{1,2}):(\d{2})(?::\d{2}(?:\.\d+)?)?(?: ?([ap])\.?m\b)?(?![\d:])")

_SET = r"(?:\b(?:be|to|try|use|set|turn(?:ed)? it|switch(?:ed)? it)|[=:]) '?"
_NOT_A_PLACE = r"(?! (?:the|an?|it|you|which|what|this|that|your|its|one|behalf)\b)"
_YES = rf"{_SET}(?:yes|enabled?|checked|on{_NOT_A_PLACE})(?!\w)|'(?:yes|on|enabled)'"
_NO = rf"{_SET}(?:no(?=['.,;!?]|$)|disabled?|unchecked|off{_NOT_A_PLACE})(?!\w)|'(?:no|off|disabled)'"


def number_of(value: Any) -> float | None:
    """The number that a value is or spells in digits ("1,250"), None for any other value, such as True."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value.replace(",", "") if isinstance(value, str) else value)
    except (ValueError, OverflowError):
        return None


def states_boolean(text: str, value: bool) -> bool:
    """Whether a text says to switch something on (True), as "turn it on" but not "it is on you", or off (False)."""
    return re.search(_YES if value else _NO, text) is not None


def states_number(text: str, number: float) -> bool:
    """Whether a text states a number, as "1,250.00", "1 250", "1.25e3" or "one thousand two hundred and fifty".

    Words for 0 and 1 count only where a value is stated ("to one"), other single words unless they count what
    diagnoses count ("two arguments").
    """
    if any(number == number_of(digits) for digits in _NUMBER.findall(text)):
        return True
    if not abs(number) < 1e15:  # also NaN
        return False
    sign, (whole, _, cents) = "-" if number < 0 else "(?<!-)", f"{abs(number):,.6f}".rstrip("0").partition(".")
    grouped = whole.replace(",", "[ ,._']?") + (f"[.,]{cents}0*" if cents else r"(?:[.,]0{1,2})?")
    if re.search(_NUMBER_START + sign + grouped + _NUMBER_END, text):
        return True
    if cents or abs(number) >= 1_000_000:
        return False
    words = ("minus " if number < 0 else "") + _spelled(int(abs(number)))
    end = rf"(?!\w)(?![ -](?:and )?(?:{_NUMBER_WORD})(?!\w))(?! (?:or )?(?:{_COUNTED})(?!\w))"
    found = re.finditer(rf"(?<!\w)((?:{_NUMBER_WORD})[ -](?:and )?)?{words}{end}", text)
    return any(not match[1] and (abs(number) > 1 or _STATED.search(text[: match.start()])) for match in found)


def states_date(text: str, value: str) -> bool:
    """Whether a text states ("5.1.24", "Jan. 5") the date that a value begins with, or that a short value names."""
    return any(re.search(pattern, text) for date in _dates(value) for pattern in _date_patterns(*date))


def states_time(text: str, value: str) -> bool:
    """Whether a text states the time of day in a short value: 14:30 as "14.30" or "2:30 pm", but not "2:30"."""
    match = _TIME.search(value) if len(value) <= 32 else None
    if match is None:
        return False
    hour, minute = int(match[1]), match[2]
    if match[3]:
        hour = hour % 12 + (12 if match[3] == "p" else 0)
    optional = "?" if minute == "00" else ""
    short = rf"0?{hour % 12 or 12}(?: ?[:.] ?{minute}){optional} ?{'p' if hour > 11 else 'a'}\.? ?m"
    return re.search(rf"(?<![\w:.])(?:0?{hour} ?[:.h] ?{minute}(?: ?h)?|{short})(?!\w)", text) is not None


def _spelled(number: int) -> str:
    """A pattern of a number in words. Example: 42 is "forty[ -]two"."""
    if number < 20:
        return _SMALL[number]
    if number < 100:
        return _TENS[number // 10 - 2] + (f"[ -]{_SMALL[number % 10]}" if number % 10 else "")
    size, name = (1000, "thousand") if number >= 1000 else (100, "hundred")
    rest = f"(?: and)? {_spelled(number % size)}" if number % size else ""
    return f"{_spelled(number // size)} {name}{rest}"


def _dates(value: str) -> list[tuple[int, int, int]]:
    """The (year, month, day) that a value may mean; both orders of "05/01/2024"."""
    dates: list[tuple[int, int, int]] = []
    if match := _DATE.match(value):
        a, b, c = map(int, match.groups())
        dates = [(a, b, c)] if len(match[1]) == 4 else [(c, b, a), (c, a, b)]
    elif len(value) < 30 and (named := _MONTH_NAME.search(value)):
        day, year = re.search(r"(?<!\d)\d{1,2}(?!\d)", value), re.search(r"\d{4}", value)
        month = next(at for at, name in enumerate(_MONTHS, 1) if name.startswith(named[1][:3]))
        dates = [(int(year[0]), month, int(day[0]))] if day and year else []
    return [date for date in dates if 1 <= date[1] <= 12 and 1 <= date[2] <= 31]


def _date_patterns(year: int, month: int, day: int) -> Iterator[str]:
    """Patterns of a date with digits in any usual order, and with the month's name."""
    short = year % 100
    orders = ((year, month, day), (day, month, year), (month, day, year), (day, month, short), (month, day, short))
    digits = "|".join(r"\s?[-/. ]\s?".join(f"0*{part}" for part in order) for order in orders)
    yield rf"(?<!\d)(?:{digits}|{year}{month:02}{day:02})(?!\d)"
    name = _MONTHS[month - 1]
    words, number = rf"(?:{name}|{name[:4]}|{name[:3]})\.?", rf"0?{day}(?:st|nd|rd|th)?"
    yield rf"(?<!\w)(?:{words},? (?:the )?{number}|{number}\.?(?: of)? {words})(?!\w)"
