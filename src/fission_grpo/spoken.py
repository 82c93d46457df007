"""Numbers, dates, times and truth values as people say them: what a text says of them, for `leaks`.

Texts are normalised by `leaks` first (lower case, plain quotes and dashes, single spaces).
"""

from __future__ import annotations

import re
from functools import lru_cache

MONTHS = ("january", "february", "march", "april", "may", "june", "july", "august", "september", "october")
MONTHS += ("november", "december")
_ONES = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen".split()  # noqa: SIM905
_ONES += ["sixteen", "seventeen", "eighteen", "nineteen"]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_SMALL = {word: at for at, word in enumerate(_ONES)} | {word: 20 + 10 * at for at, word in enumerate(_TENS)}
_LARGE = {"hundred": 100, "thousand": 1_000, "million": 1_000_000, "billion": 1_000_000_000}
_ORDINAL_ONES = "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth".split()  # noqa: SIM905
_ORDINAL_ONES += [f"{word}th" for word in _ONES[13:]]
_ORDINALS = [*_ORDINAL_ONES, "twentieth", *(f"twenty[ -]{word}" for word in _ORDINAL_ONES[:9]), "thirtieth"]
_ORDINALS.append("thirty[ -]first")
_NUMBER = re.compile(r"(?<!\w)(?<!\d[-/:.,])-?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?(?!\d|[-/:.,]\d)")
_COMMA = re.compile(r"(?<!\w)(?<!\d[-/:.,])-?\d+,(?!\d{3}(?!\d))\d+(?!\d|[-/:.,]\d)")
_GROUPED = re.compile(r"(?<!\w)(?<!\d[-/:.,])-?\d{1,3}(?:([ ._'])\d{3})(?:\1\d{3})*(?:[.,]\d{1,2})?(?![\d]|[-/:.,]\d)")
_APART = re.compile(r"(?<![\w.,:/-])\d(?:([ -])\d)(?:\1\d)*(?!\w|[-.,:/]\d| \d)")
_SHORTENED = re.compile(r"(?<![\w.,])(\d+(?:\.\d+)?) ?(k|thousand|million|m)(?!\w)")
_BASED = re.compile(r"(?<!\w)0(?:x[0-9a-f]+|b[01]+|o[0-7]+)(?!\w)")
_WORD = "|".join(sorted([*_SMALL, *_LARGE], key=len, reverse=True))
_WORDS = re.compile(
    rf"(?<!\w)(minus )?((?:{_WORD})(?:[ -](?:and )?(?:{_WORD})){{0,15}})(?: point((?: (?:{_WORD})){{1,15}}))?(?!\w)"
)
_COUNTED = re.compile(  # what follows a number word in a diagnosis that only counts
    r" (?:or )?(?:more|other|different|wrong|missing|further|of|less|fewer|too|things?|calls?|tools?|errors?|"
    r"arguments?|parameters?|fields?|problems?|mistakes?|values?|options?|attempts?|digits?|characters?)(?!\w)"
)
_STATED = re.compile(r"(?:\b(?:be|to|use|try|equals?|value)|[=:']) ?'?$")
_DATE = re.compile(r"(\d{4})[-/.](\d{1,2})[-/.](\d{1,2})(?!\d)")
_DAY_FIRST = re.compile(r"(?<!\d)(\d{1,2})[-/.](\d{1,2})[-/.](\d{4})(?!\d)")
_NAMED = re.compile(rf"(?<!\w)({'|'.join(month[:3] for month in MONTHS)})[a-z]*\.?(?!\w)")
_TIME = re.compile(r"(?<![\d:])(\d{1,2}):(\d{2})(?::\d{2}(?:\.\d+)?)?(?: ?([ap])\.?m\b)?(?![\d:])")
_NOT_A_PLACE = r"(?! (?:the|an?|it|you|which|what|this|that|your|its|one|behalf)\b)"
_SET = r"(?:\b(?:be|to|try|use|set|turn(?:ed)? it|switch(?:ed)? it)|[=:]) '?"
_TRUTHS = {
    True: re.compile(rf"{_SET}(?:yes|enabled?|checked|on{_NOT_A_PLACE})(?!\w)|'(?:yes|on|enabled)'"),
    False: re.compile(
        rf"{_SET}(?:no(?=['.,;!?]|$)|disabled?|unchecked|off{_NOT_A_PLACE})(?!\w)|'(?:no|off|disabled)'"
    ),
}


def number(value: object) -> float | None:
    """The number a value is or spells in digits, None for any other value. Example: "1,250" is 1250."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value.strip().replace(",", "")) if isinstance(value, str) else float(value)
    except (ValueError, OverflowError):
        return None


@lru_cache(maxsize=256)
def numbers_in(text: str) -> frozenset[float]:
    """Every number that a text says, in any reading: "1.250" is 1.25 and 1250; "four two" is 42.

    Words for 0 and 1 count only where a value is stated ("to one", "'zero'"), other single words unless they count
    what diagnoses count ("two arguments").
    """
    found = [number(match) for match in _NUMBER.findall(text)]
    if any(char.isdigit() for char in text):
        found += [number(match.replace(",", ".")) for match in _COMMA.findall(text)]
        for match in _GROUPED.finditer(text):
            whole, _, cents = match[0].replace(match[1], "").replace(",", ".").partition(".")
            found.append(number(f"{whole}.{cents or 0}"))
        found += [number(re.sub("[ -]", "", match[0])) for match in _APART.finditer(text)]
        size = {"k": 1_000, "thousand": 1_000, "million": 1_000_000, "m": 1_000_000}
        found += [float(match[1]) * size[match[2]] for match in _SHORTENED.finditer(text)]
        found += [number(int(match, 0)) for match in _BASED.findall(text)]
    found += [_spoken(text, match) for match in _WORDS.finditer(text)]
    return frozenset(value for value in found if value is not None)


def _spoken(text: str, match: re.Match[str]) -> float | None:
    words = re.findall(_WORD, match[2])
    if len(words) == 1 and not match[3]:
        value = _SMALL.get(words[0])
        if value is None or _COUNTED.match(text, match.end()):
            return None
        if value < 2 and not _STATED.search(text, 0, match.start()):
            return None
        return -value if match[1] else value
    if len(words) > 1 and all(_SMALL.get(word, 10) < 10 for word in words):
        value = number("".join(str(_SMALL[word]) for word in words))
    else:
        value = _sum(words)
    digits = "".join(str(_SMALL.get(word, "")) for word in (match[3] or "").split())
    value = number(f"{int(value or 0)}.{digits or 0}")
    return -value if match[1] and value is not None else value


def _sum(words: list[str]) -> int:
    """Example: one thousand two hundred fifty is 1250."""
    total = current = 0
    for word in words:
        if word in _SMALL:
            current += _SMALL[word]
        elif word == "hundred":
            current = max(current, 1) * 100
        else:
            total, current = total + max(current, 1) * _LARGE[word], 0
    return total + current


@lru_cache(maxsize=4096)
def dates_of(plain: str) -> tuple[tuple[int, int, int], ...]:
    """The (year, month, day) that a value may mean; both orders of "05/01/2024"; () if it begins with no date."""
    if match := _DATE.match(plain):
        found = [(int(match[1]), int(match[2]), int(match[3]))]
    elif match := _DAY_FIRST.match(plain):
        first, second, year = map(int, match.groups())
        found = [(year, second, first), (year, first, second)]
    elif (
        len(plain) < 30
        and (match := _NAMED.search(plain))
        and MONTHS[_month(match[1])].startswith(match[0].strip("."))
    ):
        days, years = re.findall(r"(?<!\d)(\d{1,2})(?:st|nd|rd|th)?(?!\d)", plain), re.findall(r"\d{4}", plain)
        found = [(int(years[0]), _month(match[1]) + 1, int(days[0]))] if days and years else []
    else:
        found = []
    return tuple(date for date in found if 1 <= date[1] <= 12 and 1 <= date[2] <= 31)


def _month(short: str) -> int:
    return next(at for at, month in enumerate(MONTHS) if month.startswith(short))


def says_date(text: str, year: int, month: int, day: int) -> bool:
    """Whether text names a date: digits in any usual order and with any separator, or the month by name or number."""
    of_day = rf"(?:the )?(?:0?{day}(?:st|nd|rd|th)?|{_ORDINALS[day - 1]})"
    name = MONTHS[month - 1]
    word = rf"(?:{name}|{name[:3]}\.?|{name[:4]}\.?)"
    if name[:3] in text and re.search(rf"\b(?:{word},? {of_day}|{of_day}\.?(?: of)? {word})(?!\w)", text):
        return True
    numbered = rf"month\W{{1,3}}0?{month}(?!\d)"
    if "month" in text and re.search(
        rf"\b(?:{of_day} day (?:of|in) (?:the )?{numbered}|{numbered}\W+(?:and )?day\W{{1,3}}0?{day}(?!\d))"
        rf"|\bday\W{{1,3}}0?{day}\W+(?:of |and )?{numbered}",
        text,
    ):
        return True
    short = year % 100
    orders = ((year, month, day), (day, month, year), (month, day, year), (day, month, short), (month, day, short))
    forms = "|".join(r"\s?[-/. ]\s?".join(rf"0*{part}" for part in order) for order in orders)
    compact = "|".join((f"{year}{month:02}{day:02}", f"{day:02}{month:02}{year}", f"{month:02}{day:02}{year}"))
    return re.search(rf"(?<!\d)(?:{forms}|{compact})(?!\d)", text) is not None


@lru_cache(maxsize=4096)
def time_of(plain: str) -> tuple[int, int] | None:
    """The (hour, minute) in a short value, None if there is none. Example: "2:30 pm" is (14, 30)."""
    match = _TIME.search(plain) if len(plain) <= 32 else None
    if match is None:
        return None
    hour, minute = int(match[1]), int(match[2])
    if match[3]:
        hour = hour % 12 + (12 if match[3] == "p" else 0)
    return (hour, minute) if hour < 24 and minute < 60 else None


def says_time(text: str, hour: int, minute: int) -> bool:
    """Whether text names a time of day, on either clock, in digits or words."""
    half_day = f"{hour % 12 or 12}"
    ending = rf" ?{'p' if hour > 11 else 'a'}\.? ?m(?!\w)"
    forms = [rf"0?{hour} ?[:.h] ?{minute:02}(?: ?h)?(?!\d)", rf"0?{half_day} ?[:. ]? ?{minute:02}{ending}"]
    forms.append(rf"{hour:02}{minute:02}(?= ?(?:h|hrs|hours|o'clock)\b)")
    if minute == 0:
        forms.append(rf"0?{half_day}{ending}")
        forms += ["noon"] if hour == 12 else ["midnight"] if hour == 0 else []
    past, to = (rf"(?:{half_day}|{_ONES[int(half_day)]})", rf"(?:{hour % 12 + 1}|{_ONES[hour % 12 + 1]})")
    forms += (
        [{15: f"quarter past {past}", 30: f"half past {past}", 45: f"quarter to {to}"}[minute]]
        if (minute in (15, 30, 45))
        else []
    )
    return re.search(rf"(?<![\w:.])(?:{'|'.join(forms)})(?!\w)", text) is not None


def says_truth(text: str, truth: bool) -> bool:
    """Whether text says to switch something on, or off ("true" and "false" themselves are looked for as words)."""
    return _TRUTHS[truth].search(text) is not None
