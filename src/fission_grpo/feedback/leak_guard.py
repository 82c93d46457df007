"""Does a diagnosis give the answer away? The guard that every source's text passes.

The paper's simulator sees the reference call and must not tell it (96% by human check); here a text that does is
found, replaced and counted. Strict where in doubt: a false alarm costs one diagnosis, a missed leak rewards copying.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import html
import re
import unicodedata
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any
from urllib.parse import unquote

from fission_grpo.core.json_io import quoted
from fission_grpo.core.tool_schema import parameter_schema, tool_names
from fission_grpo.core.types import Failure, ToolCall, ToolResult

HIDDEN = "\x00"
"""Stands where `leaks` took public text out; neither a letter nor space, so nothing is joined across it."""


SHORTEST_SPLIT = 3
"""Fewest letters and digits of a value that is looked for with its letters set apart. [ours]"""


SHORTEST_BACKWARDS = 6
"""Fewest characters of a value that is looked for backwards where the text does not speak of such a thing. [ours]
Shorter ones are too often other words: step and pets, loop and pool."""


SHORTEST_ROT13 = 5
"""The same of rot13; one less for a value of letters only. [ours]"""


_ESCAPE = re.compile(r"\\(?:u\{?([0-9a-fA-F]{4,6})\}?|U([0-9a-fA-F]{8})|x([0-9a-fA-F]{2}))")


_HEX = re.compile(r"(?<![0-9A-Za-z])(?:0x)?[0-9A-Fa-f]{2}(?:[ :,-]?(?:0x)?[0-9A-Fa-f]{2})+(?![0-9A-Za-z])")


_BASE64 = re.compile(r"(?<![A-Za-z0-9+/_-])[A-Za-z0-9+/_-]{4,}(?:={1,2}|(?![A-Za-z0-9+/_=-]))")


_SPOKEN = {"dot": ".", "at": "@", "slash": "/", "dash": "-", "hyphen": "-", "underscore": "_", "colon": ":"}


_SIGN = re.compile(r"\s(dot|slash|dash|hyphen|underscore|colon)\s", re.IGNORECASE)


_ANY_SIGN = re.compile(rf"\s{{1,3}}({'|'.join(_SPOKEN)})\s{{1,3}}", re.IGNORECASE)


_TURNED = re.compile(r"backward|revers|mirror|right to left|rot-?13|caesar|cipher")


_NEITHER = re.compile(r"[^\w\x00]|_")


_RUN = re.compile(r"[^\W_]+|\x00")


def readings(text: str) -> Iterator[str]:
    """The text itself, then what else it says: escapes resolved, base64 and hex decoded, spelled-out signs as signs.

    Example:
        `list(readings("use Um9tZQ=="))` is `["use Um9tZQ==", "use Rome"]`
    """
    yield text
    seen = {text}
    for _ in range(2):  # an encoding of an encoding, no deeper
        for change in (
            _unescaped,
            _signed,
            _from_hex,
            _from_base64,
        ):  # the one that may take a word for code comes last
            changed = change(text)
            if changed not in seen:
                seen.add(changed)
                yield changed
                text = changed


def _unescaped(text: str) -> str:
    if "%" in text:
        text = unquote(text)
    if "&" in text:
        text = html.unescape(text)
    if "\\" in text:
        text = _ESCAPE.sub(_character, text)
    return text


def _character(match: re.Match[str]) -> str:
    code = int(match[1] or match[2] or match[3], 16)
    return chr(code) if code < 0x110000 and not 0xD800 <= code < 0xE000 else match[0]


def _from_hex(text: str) -> str:
    return _HEX.sub(_hex, text)


def _from_base64(text: str) -> str:
    return _BASE64.sub(_base64, text)


def _hex(match: re.Match[str]) -> str:
    return _readable(bytes.fromhex(re.sub(r"0x|[ :,-]", "", match[0]))) or match[0]


def _base64(match: re.Match[str]) -> str:
    token = match[0].rstrip("=").replace("-", "+").replace("_", "/")
    if len(token) % 4 == 1:
        return match[0]
    try:
        return _readable(base64.b64decode(token + "=" * (-len(token) % 4))) or match[0]
    except binascii.Error:
        return match[0]


def _readable(data: bytes) -> str | None:
    """Bytes as printable text of two characters or more, None if they are not."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    return text if len(text) > 1 and text.isprintable() else None


def _signed(text: str) -> str:
    """Example: "zoe at acme dot org" is "zoe@acme.org". "at" is a sign only beside another one."""
    return _ANY_SIGN.sub(lambda m: _SPOKEN[m[1].lower()], text) if _SIGN.search(text) else text


def squashed(text: str) -> str:
    """Letters and digits only. Example: "New-York" is "NewYork"."""
    return _NEITHER.sub("", text)


@lru_cache(maxsize=256)
def _runs(text: str) -> tuple[str, dict[int, int]]:
    """The squashed text, and its word starts: place -> number of the word."""
    starts, parts, at = {}, [], 0
    for number, run in enumerate(_RUN.findall(text)):
        starts[at] = number
        parts.append(run)
        at += len(run)
    starts[at] = len(parts)
    return "".join(parts), starts


def says_split(text: str, core: str, words: frozenset[str]) -> bool:
    """Whether whole words of the text, set together, are `core`; but not if all of them are in `words`.

    Args:
        text: normalised by `leaks`.
        core: the value, squashed.
        words: too common to be parts of a split value.

    Example:
        "r-o-m-e" and "'ro' + 'me'" say "rome"; "the newest yorker" does not say "newyork".
    """
    if len(core) < SHORTEST_SPLIT:
        return False
    flat, starts = _runs(text)
    at = flat.find(core)
    while at >= 0:
        if at in starts and at + len(core) in starts:
            inner = sorted(place for place in starts if at <= place <= at + len(core))
            if not all(flat[begin:end] in words for begin, end in pairwise(inner)):
                return True
        at = flat.find(core, at + 1)
    return False


def says_turned(text: str, plain: str) -> bool:
    """Whether the text has a value backwards or in rot13, as a whole word.

    Example:
        "try emor, read backwards" and "try ebzr" say "rome".
    """
    told = _TURNED.search(text) is not None
    forms = [plain[::-1]] if told or len(plain) >= SHORTEST_BACKWARDS else []
    if plain.isascii() and (told or len(plain) >= SHORTEST_ROT13 - plain.isalpha()):
        forms.append(codecs.encode(plain, "rot13"))
    return any(form in text and _whole(text, form) for form in forms if form != plain)


def _whole(text: str, form: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(form)}(?!\w)", text) is not None


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


_SPOKEN_WORDS = re.compile(
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
    found += [_spoken(text, match) for match in _SPOKEN_WORDS.finditer(text)]
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


WINDOW = 24
"""How many letters and digits in a row of a longer value count as telling it. [ours]"""


_WORDS = frozenset("a an and as at be by for i if in is it must no not of on one or the to try value you".split())  # noqa: SIM905


_INDEX = re.compile(r"\[\d*\]?")


_KINDS = {ord(char): "'" for char in '“”„«»´‘’"'} | {ord(char): "-" for char in "‐‑‒–—―−"}  # not backticks


_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufe00-\ufe0f\ufeff]"
)


def leaks(
    feedback: str,
    reference: Sequence[ToolCall] | None,
    failed: Sequence[ToolCall] = (),
    tools: Sequence[Mapping[str, Any]] = (),
) -> str | None:
    """What `feedback` gives away of the reference calls, None if nothing.

    A leak is a reference argument's value (leaves of nested values one by one) or a reference tool's name. Compared
    without regard to case, spacing, quotes and invisible characters; numbers by value (3, "3.0", "three", "1 250");
    dates and times in any usual form; long values by any `WINDOW` characters of theirs; short ones as whole words,
    also with their letters set apart, backwards or in rot13, and very common words only in quotes. Escapes, base64
    and hex are resolved first. That the dialogue shows a value makes it no less the answer. No leaks are: parameter
    names (in backticks) and types; what the failed calls wrote for the same parameter, or the tool they called; a
    list of all options of an enum, of true and false, or of all tools' names; a value within a longer word.

    Not found: paraphrase, translation, sums, and telling all options but one. See `benchmarks/leaks/`.

    Args:
        reference: the expected calls; None or empty (nothing to give away) is never leaked.
        failed: the calls of the failed turn.
        tools: the task's tools, for their enums and names.

    Returns:
        str: what is leaked, such as "the value of `date`", for logs only (never shown to the policy).

    Example:
        `leaks("use Rome", [ToolCall("go", {"to": "rome"})])` is "the value of `to`"
    """
    if not reference:
        return None
    for reading in readings(_INVISIBLE.sub("", feedback)):
        text = _without_public(_plain(reading), reference, failed, tools)
        if found := _found(text, reference, failed):
            return found
    return None


def leak_in(feedback: str, failure: Failure) -> str | None:
    """`leaks` of a failure's reference, its rollout's calls and its tools; None for what its environment has said."""
    if any(feedback == result.error or feedback in result.content for result in _results(failure)):
        return None
    made = [call for turn in failure.turns for call in turn.calls]
    return leaks(feedback, failure.reference, made, failure.tools)


def _results(failure: Failure) -> Sequence[ToolResult]:
    return failure.turns[-1].results if failure.turns else ()


def _found(text: str, reference: Sequence[ToolCall], failed: Sequence[ToolCall]) -> str | None:
    """What one reading of a text, without what is public, gives away."""
    called = {call.name for call in failed}
    for call in reference:
        hidden = _without_quotations(text, called, call.name)
        if call.name not in called and _says(hidden, call.name):
            return f"the name of tool {quoted(call.name)}"
    written: dict[str, list[Any]] = {name: [] for name in {name for name, _ in _arguments(reference)}}
    for name, value in _arguments(failed):
        if name in written:
            written[name].append(value)
    for name, value in _arguments(reference):
        wrote = written[name]
        if any(_same(value, given) for given in wrote):
            continue
        if _says(_without_quotations(text, wrote, value), value):
            return f"the value of `{name}`"
    return None


def _arguments(calls: Sequence[ToolCall]) -> Iterator[tuple[str, Any]]:
    """(top-level parameter, scalar leaf) for every leaf of every call. Keys of nested objects count as names."""
    for call in calls:
        for name, value in call.arguments.items():
            waiting = [value]
            while waiting:
                item = waiting.pop()
                if isinstance(item, Mapping):
                    waiting += item.values()
                elif isinstance(item, list | tuple):
                    waiting += item
                else:
                    yield name, item


def _plain(value: Any) -> str:
    """Text without differences that do not matter: case, width, kinds of quotes and dashes, spacing."""
    text = value if isinstance(value, str) else quoted(value)
    return _plain_short(text) if len(text) <= 200 else _plain_text(text)


def _plain_text(text: str) -> str:
    text = _INVISIBLE.sub("", unicodedata.normalize("NFKC", text)).casefold().replace(HIDDEN, " ").translate(_KINDS)
    return " ".join(text.split())


_plain_short = lru_cache(maxsize=8192)(_plain_text)  # names and options come up with every failure


def _without_public(text: str, reference: Sequence[ToolCall], failed: Sequence[ToolCall], tools: Any) -> str:
    """The text with parameter names in backticks and complete lists of options hidden, and backticks as quotes."""
    names = {name for call in (*reference, *failed) for name in call.arguments}
    lists: list[Sequence[Any]] = [["true", "false"]]
    schemas = [parameter_schema(tool) for tool in tools]
    for schema in schemas:
        names |= set(schema.get("properties", {}))
        lists += [options for options in _enums(schema) if len(options) > 1]
    known = {_plain(name) for name in names}
    given = [call.arguments for call in (*reference, *failed)] + [_properties(schema) for schema in schemas]
    inner = {_plain(key) for one in given for key in _keys(one)} if "`" in text else set()
    text = re.sub(r"`([^`]*)`", lambda m: _quoted(m[1], known, inner), text).replace("`", "'")
    for options in [tool_names(tools), *lists]:
        text = _hide_list(text, [_plain(option) for option in options])
    return text


def _quoted(inside: str, names: Container[str], keys: Container[str]) -> str:
    """What stands in backticks: hidden if it is a parameter or a path of keys such as `a.b[0]`, else in quotes.

    Of a path that goes on with what is no key only the parameter is hidden: "`to.rome`" says "rome".
    """
    top, *rest = re.split(r"(?=[.\[])", inside)
    if top not in names:
        return f"'{inside}'"
    at = next((i for i, part in enumerate(rest) if not _INDEX.fullmatch(part) and part[1:] not in keys), len(rest))
    return HIDDEN + (f"'{''.join(rest[at:])}'" if at < len(rest) else "")


def _properties(schema: Any) -> list[Any]:
    """The names of a schema's fields at every depth, as keys of mappings."""
    found, waiting = [], [schema]
    while waiting:
        item = waiting.pop()
        if isinstance(item, Mapping):
            fields = item.get("properties")
            found += [dict.fromkeys(fields)] if isinstance(fields, Mapping) else []
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item
    return found


def _keys(value: Any) -> Iterator[str]:
    """Every key of objects within a value."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, Mapping):
            yield from map(str, item)
            waiting += item.values()
        elif isinstance(item, list | tuple):
            waiting += item


def _enums(schema: Any) -> Iterator[Sequence[Any]]:
    waiting = [schema]
    while waiting:
        item = waiting.pop()
        if isinstance(item, Mapping):
            if isinstance(item.get("enum"), list):
                yield item["enum"]
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item


def _hide_list(text: str, options: Sequence[str]) -> str:
    """Hide each run of options, separated by nothing but punctuation, "and" and "or", that names every one of them."""
    if not options or not all(option and option in text for option in options):
        return text
    one = "|".join(re.escape(option) for option in sorted(set(options), key=len, reverse=True))
    run = rf"(?<!\w)(?:{one})(?:['\s,;/|()\[\]*•-]+(?:(?:and|or)[\s']+)?(?:{one}))*(?!\w)"

    def hidden(match: re.Match[str]) -> str:
        return HIDDEN if set(re.findall(rf"(?<!\w)(?:{one})(?!\w)", match[0])) == set(options) else match[0]

    return re.sub(run, hidden, text)


def _without_quotations(text: str, written: Iterable[Any], value: Any) -> str:
    """The text with what the failed calls wrote hidden, where that does not tear the value looked for."""
    for form in sorted({form for given in written for form in _quotations(given)}, key=len, reverse=True):
        text = _hide(text, form) if form in text and not _is_part(form, value) else text
    return text


def _quotations(given: Any) -> set[str]:
    """How a message may quote what a failed call wrote: in full, or cut by `json_text.quoted`."""
    cut = _plain(quoted(given).removesuffix("...").strip("'\""))
    return {form for form in (_plain(given) if len(str(given)) < 4096 else "", cut) if form}


def _is_part(form: str, value: Any) -> bool:
    """Whether a quotation is a short part of a value: hiding it could tear the value, and alone it does not say it."""
    part, whole = squashed(form), squashed(_plain(value))
    return len(part) < WINDOW and part != whole and part in whole


def _hide(text: str, form: str) -> str:
    if len(form) > WINDOW:
        return text.replace(form, HIDDEN)
    return re.sub(rf"(?<!\w){re.escape(form)}(?!\w)", HIDDEN, text)


def _same(value: Any, given: Any) -> bool:
    spelled = number(value)
    return _plain(value) == _plain(given) or (spelled is not None and spelled == number(given))


def _says(text: str, value: Any) -> bool:
    """Whether normalised text states a value."""
    spelled = number(value)
    if spelled is not None and spelled in numbers_in(text):
        return True
    if spelled is not None and not isinstance(value, str):
        return False
    if isinstance(value, bool) and says_truth(text, value):
        return True
    plain = _plain(value).replace("`", "'")
    core = squashed(plain)
    if not core or plain in _WORDS:
        return f"'{plain}'" in text
    if not core.isascii() or len(core) >= 8:
        flat = squashed(text)
        windows = range(max(1, len(core) - WINDOW + 1))
        if any(core[at : at + WINDOW] in flat for at in windows):
            return True
    parts = map(re.escape, re.split(r"[\s_-]+", plain))
    if re.search(rf"(?<!\w){'[ _-]*'.join(parts)}(?!\w)", text):
        return True
    if isinstance(value, str) and (says_split(text, core, _WORDS) or says_turned(text, plain)):
        return True
    time = time_of(plain)
    return any(says_date(text, *date) for date in dates_of(plain)) or (time is not None and says_time(text, *time))
