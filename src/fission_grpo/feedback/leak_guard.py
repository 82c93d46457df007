"""Find reference values and tool names that a feedback text gives away.

A policy that reads the right value learns to copy it. The guard assumes a source that is careless, not one that wants
to deceive it: encodings, ciphers and paraphrase are not found (`benchmarks/leaks/README.md` has the list).
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from fission_grpo.core.json_io import quoted, walk_json
from fission_grpo.core.tool_schema import parameter_schema, tool_names
from fission_grpo.core.types import Failure, ToolCall

FRAGMENT = 24  # a piece of a value with this many letters and digits counts as the value [ours]
COMMON_WORDS = frozenset(  # values that count only in quotes, because most texts contain them [ours]
    "a an and as at be by for i if in is it must no not of on one or the to try value you".split()  # noqa: SIM905
)
_MASK = "\0"  # replaces public text; neither a letter nor a space, so that nothing is joined across it
_MARKS = str.maketrans(dict.fromkeys('“”„«»´‘’"', "'") | dict.fromkeys("‐‑‒–—―−", "-") | {_MASK: " "})
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufe00-\ufe0f\ufeff]"
)
_BETWEEN_OPTIONS = re.compile(r"['\s,;/|()\[\]*•-]+(?:(?:and|or)[\s']+)?")

# Numbers, dates, times and booleans in normalized texts, in the forms that people write them in.
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


def find_leak(text: str, failure: Failure) -> str | None:
    """Find what a feedback text gives away of a failure's reference calls; None if the environment itself said it.

    The answer is for logs only, never shown to the policy.
    """
    results = failure.turns[-1].results if failure.turns else ()
    if any(text == result.error or text in result.content for result in results):
        return None
    made = [call for turn in failure.turns for call in turn.calls]
    return find_reference_leak(text, failure.reference, made, failure.tools)


def find_reference_leak(
    text: str,
    reference: Sequence[ToolCall] | None,
    failed: Sequence[ToolCall] = (),
    tools: Sequence[Mapping[str, Any]] = (),
) -> str | None:
    """Find what a text gives away of the reference calls: the value of an argument or the name of a tool.

    No leaks are: names of parameters in backticks, complete lists of options, booleans or tools, what the failed calls
    wrote for the same parameter, the tools that they called, and a value within a longer word.

    Example:
        `find_reference_leak("use Rome", [ToolCall("go", {"to": "rome"})])` is "the value of `to`".
    """
    if not reference:
        return None
    text = _hide_public(normalize(text), reference, failed, tools)
    called = [call.name for call in failed]
    for call in reference:
        if call.name not in called and _states(_hide_written(text, _quotations(called), call.name), call.name):
            return f"the name of tool {quoted(call.name)}"
    written: dict[str, list[Any]] = defaultdict(list)
    for name, value in _arguments(failed):
        written[name].append(value)
    forms = {name: _quotations(values) for name, values in written.items()}
    known = {name: {form for value in values for form in _equal_forms(value)} for name, values in written.items()}
    for name, value in _arguments(reference):
        new = known.get(name, set()).isdisjoint(_equal_forms(value))
        if new and _states(_hide_written(text, forms.get(name, ()), value), value):
            return f"the value of `{name}`"
    return None


def normalize(value: Any) -> str:
    """A text without differences in case, width, quotes, dashes and spacing, and without invisible characters."""
    text = value if isinstance(value, str) else quoted(value)
    text = _INVISIBLE.sub("", unicodedata.normalize("NFKC", _INVISIBLE.sub("", text)))
    return " ".join(text.casefold().translate(_MARKS).split())


def letters_and_digits(text: str) -> str:
    return re.sub(r"[^\w\0]|_", "", text)


def _hide_public(text: str, reference: Sequence[ToolCall], failed: Sequence[ToolCall], tools: Sequence[Any]) -> str:
    """Mask parameter names in backticks and complete lists of options; other backticks become quotes."""
    schemas = [parameter_schema(tool) for tool in tools]
    nodes = _mappings(schemas)
    if "`" in text:
        given = [call.arguments for call in (*reference, *failed)]
        names = _keys([*given, *(schema.get("properties", {}) for schema in schemas)])
        fields = [node["properties"] for node in nodes if isinstance(node.get("properties"), Mapping)]
        keys = _keys([*fields, *_mappings(given)])
        text = re.sub(r"`([^`]*)`", lambda match: _hide_path(match[1], names, keys), text).replace("`", "'")
    enums = [node["enum"] for node in nodes if isinstance(node.get("enum"), list) and len(node["enum"]) > 1]
    for options in (tool_names(tools), ["true", "false"], *enums):
        text = _hide_list(text, {normalize(option) for option in options})
    return text


def _hide_path(inside: str, names: Collection[str], keys: Collection[str]) -> str:
    """Mask as much of what stood in backticks as is a path of keys: all of `a.b[0]`, only `to` of `to.rome`."""
    top, *rest = re.split(r"(?=[.\[])", inside)
    if top not in names:
        return f"'{inside}'"
    while rest and (rest[0][1:] in keys or re.fullmatch(r"\[\d*\]?", rest[0])):
        rest.pop(0)
    return _MASK + (f"'{''.join(rest)}'" if rest else "")


def _hide_list(text: str, options: Collection[str]) -> str:
    """Mask each run of options that names every one of them, with nothing but punctuation, "and" or "or" between."""
    if not options or not all(option and option in text for option in options):
        return text
    one = "|".join(re.escape(option) for option in sorted(options, key=len, reverse=True))
    runs: list[list[re.Match[str]]] = []
    for match in re.finditer(rf"(?<!\w)(?:{one})(?!\w)", text):
        if runs and _BETWEEN_OPTIONS.fullmatch(text, runs[-1][-1].end(), match.start()):
            runs[-1].append(match)
        else:
            runs.append([match])
    for run in reversed(runs):
        if {match[0] for match in run} == set(options):
            text = text[: run[0].start()] + _MASK + text[run[-1].end() :]
    return text


def _hide_written(text: str, forms: Iterable[str], secret: Any) -> str:
    """Mask quotations of what the failed calls wrote, except a short one that is a part of the secret."""
    whole = letters_and_digits(normalize(secret))
    for form in forms:
        part = letters_and_digits(form)
        if form not in text or (len(part) < FRAGMENT and part != whole and part in whole):
            continue
        pattern = re.escape(form) if len(form) > FRAGMENT else rf"(?<!\w){re.escape(form)}(?!\w)"
        text = re.sub(pattern, _MASK, text)
    return text


def _quotations(written: Sequence[Any]) -> list[str]:
    """How a message may quote values: in full, or cut as `quoted` does. The longest come first."""
    forms = {form for value in written if len(form := normalize(value)) < 4096}
    forms |= {normalize(quoted(value).removesuffix("...").strip("'\"")) for value in written}
    return sorted(filter(None, forms), key=len, reverse=True)


def _states(text: str, value: Any) -> bool:
    """Whether a normalized text states a value in any of its forms."""
    number = number_of(value)
    if number is not None and states_number(text, number):
        return True
    if number is not None and not isinstance(value, str):
        return False
    if isinstance(value, bool) and states_boolean(text, value):
        return True
    plain = normalize(value).replace("`", "'")
    core = letters_and_digits(plain)
    if not core or plain in COMMON_WORDS:
        return f"'{plain}'" in text
    if not core.isascii() or len(core) >= 8:
        # The set keeps the search linear in both lengths.
        flat, size = letters_and_digits(text), min(FRAGMENT, len(core))
        fragments = {flat[at : at + size] for at in range(len(flat) - size + 1)}
        if any(core[at : at + size] in fragments for at in range(len(core) - size + 1)):
            return True
    elif _has_words(text, plain):
        return True
    return states_date(text, plain) or states_time(text, plain)


def _has_words(text: str, plain: str) -> bool:
    """Whether a text has a short value as separate words, also spaced ("new-york"), but not "to be" for "tobe"."""
    words = [word for word in re.split("[ _-]+", plain) if word]
    pieces = [char for word in words for char in word] if len(letters_and_digits(plain)) > 2 else words
    pattern = "[ _-]*".join(map(re.escape, pieces))
    found = (re.split("[ _-]+", match) for match in re.findall(rf"(?<!\w){pattern}(?!\w)", text))
    return any(parts == words or not COMMON_WORDS.issuperset(parts) for parts in found)


def _equal_forms(value: Any) -> set[str | float]:
    """Two values count as equal if they share one of these, as 3 and "3.0" do."""
    number = number_of(value)
    return {normalize(value)} if number is None else {normalize(value), number}


def _arguments(calls: Iterable[ToolCall]) -> Iterator[tuple[str, Any]]:
    """(parameter, scalar) for every scalar of every argument, however deeply nested."""
    for call in calls:
        for name, value in call.arguments.items():
            for _, node in walk_json(value):
                if not isinstance(node, Mapping | list | tuple):
                    yield name, node


def _mappings(value: Any) -> list[Mapping[str, Any]]:
    return [node for _, node in walk_json(value) if isinstance(node, Mapping)]


def _keys(mappings: Iterable[Mapping[str, Any]]) -> set[str]:
    return {normalize(str(key)) for mapping in mappings for key in mapping}


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
    """Whether a text states a number, as "1,250.00", "1 250", "1.25e3" or "one thousand two hundred and fifty"."""
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
