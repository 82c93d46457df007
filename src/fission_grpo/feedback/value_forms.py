"""How texts state values: numbers, dates, times and booleans in the forms that people write, and short values."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Collection, Iterator
from http import HTTPStatus
from typing import Any

from fission_grpo.core.json_io import quoted

MASK = "\0"  # replaces public text; neither a letter nor a space, so that nothing is joined across it
_MARKS = str.maketrans(dict.fromkeys('“”„«»‹›「」『』´‘’"', "'") | dict.fromkeys("‐‑‒–—―−", "-") | {MASK: " "})
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufe00-\ufe0f\ufeff]"
)

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

# Markup around values. Emphasis is left out, an element's text counts as the value of a field.
CJK = "\u3040-\u30ff\u3400-\u9fff"
_MARKUP = (
    (re.compile(r"(?<!\\)\\++(?=[\"'])"), ""),  # JSON in JSON
    (re.compile(r"(?<!\\)\\++[nrt](?![a-z])"), " "),  # its line breaks
    (re.compile(r"(?m)^[ \t]*(?:[#>]+|\+) "), "• "),  # headings, quotations, changed lines
    (re.compile(r"~~([^~\n]+)~~"), r"\1, "),
    (
        re.compile(
            r"(?i)</?(?:b|i|u|s|em|strong|mark|small|big|del|ins|span|font|a|p|li|ul|ol|br|div)(?: [^<>]*)?/?>"
        ),
        "",
    ),
    (re.compile(r"<([\w:.-]++)(?: [^<>]*+)?>([^<>]*+)</\1>"), lambda found: f" {found[1]}='{found[2].strip()}' ; "),
    (re.compile(r"(?<![\w*_])(\*{1,3}|_{1,3})(?=[^\s*_])([^*\n]*?[^\s*_])\1(?![\w*_])"), r"\2"),
    (re.compile(rf"(?<=[{CJK}])(?=[a-zA-Z\d'\"])|(?<=[a-zA-Z\d'\"])(?=[{CJK}])"), " "),
)
_PHRASES = [(status.value, status.phrase.casefold()) for status in HTTPStatus]
_PHRASES += [(413, "payload too large"), (413, "content too large"), (422, "unprocessable content")]
_PHRASES += [(422, "unprocessable entity"), (500, "server error")]
_STATUSES = "|".join(
    f"{code}[ :(-]{{1,3}}{re.escape(phrase)}\\b|\\b{re.escape(phrase)}[ :([-]{{1,3}}{code}\\b"
    for code, phrase in _PHRASES
)
_HTTP_STATUS = re.compile(rf"(?<![\w.])(?:{_STATUSES})")

# Short values stand in most texts by chance, so they count only where a text uses them as a value. [all ours]
SHORT_WORD, SHORT_NUMBER = 8, 1_000  # short are words of fewer letters, and whole numbers below
_ASSIGNED = re.compile(r"(?:(?<![<>!])=|[-=]>|→) ?'?$")
_OPENED = re.compile(rf"(?:^|[:(\[{{|*•{MASK}] ?|(?:[,;.!?]|(?<!\w)-) |'[.])'?$")
_CLOSED = re.compile(
    rf"'(?!\w)|(?:$|[)\]}}。、]|[.,;:!?]+(?=[\s')\]}}{CJK}]|$)| [-|(]| ?(?:!=|==|<>|≠)| vs(?!\w)"
    r"| (?:instead|please|not|but|rather|and|or|for|as|here|because|since|so|then|if|of (?:them|these|those|it))\b)"
)
_CUE = re.compile(
    r"(?<!\w)(?:us(?:e|es|ing)|try|trying|want(?:s|ed)?|need(?:s|ed)?|requires?|expect(?:s|ed)?|choose|pick|select|"
    r"give|pass|put|enter|provide|write|say|ask|set|make|call|run|take|means?|meant|be|been|equals?|called|named|hint|got|"
    r"answer|value|correct|right|actually|rather|really|exactly|just|simply|here|but|with|into|"
    r"(?:it|this|that|value|answer|one|option) (?:is|has to be)|it's)(?: (?:it|the|to|for|number|value|word))* '?$"
)
_PLACED = re.compile(r"(?<!\w)(?:to|in|at|from|for|as) '?$")
_NO_VALUE = re.compile(  # a verb or a denied value follows
    r"(?:(?<!\w)(?:not|never|cannot|no)(?: \w+)?|n't(?: \w+)?|(?<!\w)(?:fail(?:s|ed|ure)?|(?:un)?able|"
    r"tr(?:y|ies|ied|ying)|"
    r"needs?|needed|wants?|wanted|has|have|had|how|order|attempt\w*|forgot|allowed|permitted|refused|possible|likely|\w+thing|"
    r"ready|permission|access|required|expected|is|are|was|were) to|(?:log\w*|sign\w*) in) '?$"
)
_RIGHT_ONE = re.compile(
    r"'? (?:is|are|was|were|would be)(?: the)? (?:what|right|correct|needed|wanted|expected|meant|better|one)\b"
)
_COMPARED = re.compile(  # both sides of a comparison that stands alone, as "3 != 2"
    rf"(?:^|[:(;,] |\bassert )(?:not )?'?(?:(-?\d[\d.,]*)|[\w{MASK}-]+)'?(?: ?(?:!==?|<>|≠) ?| vs\.? )'?$"
)
_CUE_CJK = re.compile(
    r"(?:应该?[为是用]|应当[为是用]|应(?:设|改)[为成]|[改换]用|[改换设写填][为成]|设置[为成]|必须[为是用]|需要?[为是]|正确(?:的?值|答案)?[为是]|"
    r"[请使]用|等于|值[为是]) ?'?$"
)
_PARAMETER = (
    r"(?:keyword )?(?:arguments?|parameters?|attributes?|fields?|keys?|keywords?|columns?|propert(?:y|ies)|variables?)"
)
_WRONG = (
    r"(?:unknown|unexpected|unsupported|unrecogni[sz]ed|undefined|invalid|"
    r"not (?:known|expected|supported|recogni[sz]ed|defined|found|allowed|valid|implemented))"
)
_REJECTED = rf"(?:{_WRONG}|missing|required|deprecated|not given|not an? \w+)"
_IDENTIFIER = re.compile(
    r"' (?:is not defined|is undefined|object (?:is|has)|has no attribute|is an invalid keyword|"
    rf"{_PARAMETER} (?:(?:is|was|are) {_REJECTED}|does not exist|do not exist)|"
    rf"is (?:not an? (?:valid|known)|an? (?:{_WRONG}|required)) {_PARAMETER})\b"
)
_DENIED = re.compile(rf"(?<!\w){_WRONG}(?: \w+)?: $")  # the value after it is a wrong one
_GREETING = re.compile(
    r"(?:hi|hello|hey|ok|okay|oh|ah|oops|sorry|hm+)[,.!] (?:the|this|that|your?|i|we|it|there|but|an?|no|please|"
    r"some\w*|unfortunately|sorry|requests?|server|service|tools?|calls?|errors?|try)\b"
)
_NAMED_IN_ERROR = re.compile(
    r"(?<!\w)(?:missing|unexpected|unknown|extra|required|no)(?!\w)[^.;]{0,40}(?:arguments?|parameters?|attributes?|"
    r"fields?|keys?|columns?|propert(?:y|ies)):? (?:'\w+'(?:, | and |, and ))*'$"
)
_OTHER_NUMBER = re.compile(
    r"(?<!\w)(?:line|col(?:umn)?|(?:exit|return|error|status) ?(?:code|status)?|code|errno|port|pid|pos(?:ition)?|"
    r"char(?:acter)?|index|step|attempt|retries|level|version|limit|max(?:imum)?|min(?:imum)?|length)\b[ '=:is]*$"
)
_COUNT = re.compile(
    r"(?:arguments?|parameters?|values?|items?|elements?|tokens?|times?|expected \d+),? (?:but )?got $"
)
_LIST_MARK = re.compile(r"[.)] \w")
_LINK = (
    r"(?:'s)?'?(?:[ =:(→]|[-=]>|(?:of|as|is|was|to|be|being|been|should|shall|must|needs?|has|have|ought|set|value|"
    r"count|number|equals?|actually|exactly|really|at (?:least|most)|(?:more|less|greater) than|by|in|"
    r"(?:that )?(?:you|we|they|the user) (?:needs?|wants?|meant|asked for))(?= ))*'?$"
)


def is_short(value: Any) -> bool:
    """Whether a value may well stand in a text by chance, as "nice" or 2."""
    number = number_of(value)
    if number is not None:
        return number.is_integer() and abs(number) < SHORT_NUMBER
    plain = normalize(value)
    return plain.isascii() and plain.isalpha() and len(plain) < SHORT_WORD


def is_used(text: str, start: int, end: int, names: Collection[str], is_number: bool = False) -> bool:
    """Whether a normalized text uses `text[start:end]` as a value, not as a word or count of its own.

    So it does in quotes, after an equals sign, as a clause or item of its own, after words such as "use" or "should
    be", and beside a word of `names` (its parameter's) or a masked one.

    Example:
        2 is used in "seats should be 2", "`seats`: 2" and "2 seats", but not in "2 validation errors for book".
    """
    left, right = text[max(0, start - 80) : start].rstrip("$€£#"), text[end : end + 40]
    if left.endswith("'") and right.startswith("'"):
        is_identifier = re.search(rf"(?<!\w){_PARAMETER}:? '$", left) and re.match(rf"' (?:is|was) {_REJECTED}", right)
        return not (is_identifier or _IDENTIFIER.match(right) or _NAMED_IN_ERROR.search(left))
    word = "|".join([MASK, *(rf"(?<!\w){re.escape(name)}" for name in names)])
    is_named = re.search(rf"(?:{word})(?:(?<=\w)e?s)?{_LINK}", left) is not None
    is_before_name = re.match(rf"'?[ -]?(?:{word})(?:(?<=\w)e?s)?(?!\w)", right) is not None
    if is_number and (is_named or is_before_name):
        return True
    is_item = _OPENED.search(left) is not None
    if (
        is_number
        and re.search(r"(?:error|fail\w*|status|response) [(\[]$", left)
        and re.match(r"[1-5]\d\d", text[start:])
    ):
        return False
    if is_number and (_OTHER_NUMBER.search(left) or _COUNT.search(left) or (is_item and _LIST_MARK.match(right))):
        return False
    if _ASSIGNED.search(left) or _RIGHT_ONE.match(right) or re.match(rf"'? (?:is|was) the (?:{word})\b", right):
        return True
    is_wanted = rf"'?(?: (?:{word})s?)? (?:is|was|were) (?:requested|asked|needed|wanted|right)\b"
    if (is_named or is_before_name or is_number) and re.match(is_wanted, right):
        return True
    is_cued = (_CUE.search(left) or re.search("(?<!不)[是为用] '?$", left)) is not None
    is_placed = _PLACED.search(left) is not None
    if is_before_name and (is_cued or is_placed):  # as "use open mode"
        return True
    # as "error: the request was rejected", "file not found", "none of them"
    is_heading = right.startswith((":", " not ", " of ")) and not left.strip()
    if is_heading or _NO_VALUE.search(left) or _DENIED.search(left) or _is_greeting(text, start, left):
        return False
    compared = _COMPARED.search(left)
    if _CUE_CJK.search(left) or (compared and (not is_number or is_named or compared[1] or MASK in compared[0])):
        return True
    if not _CLOSED.match(right):
        return False
    if is_number and left.endswith((" is ", " are ")):
        return True
    return is_named or is_item or is_cued or is_placed


def _is_greeting(text: str, start: int, left: str) -> bool:
    return re.search(r"(?:^|[.:!?] )$", left) is not None and _GREETING.match(text, start) is not None


def without_markup(text: str) -> str:
    """A text without emphasis, tags and escapes; elements become fields."""
    text = html.unescape(text)
    for pattern, replacement in _MARKUP:
        text = pattern.sub(replacement, text)
    return text


def without_http_status(text: str) -> str:
    """A normalized text without HTTP status codes that stand beside their phrases, as in "200 OK"."""
    return _HTTP_STATUS.sub(lambda match: "status not found" if " not " in match[0] else "status", text)


def normalize(value: Any) -> str:
    """A text without differences in case, width, quotes, dashes and spacing, and without invisible characters."""
    text = value if isinstance(value, str) else quoted(value)
    text = _INVISIBLE.sub("", unicodedata.normalize("NFKC", _INVISIBLE.sub("", text)))
    return " ".join(text.casefold().translate(_MARKS).split())


def letters_and_digits(text: str) -> str:
    return re.sub(r"[^\w\0]|_", "", text)


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
    return any(True for _ in number_spans(text, number))


def number_spans(text: str, number: float) -> Iterator[tuple[int, int]]:
    """Yield where a text states a number."""
    yield from (match.span() for match in _NUMBER.finditer(text) if number == number_of(match[0]))
    if not abs(number) < 1e15:  # also NaN
        return
    sign, (whole, _, cents) = "-" if number < 0 else "(?<!-)", f"{abs(number):,.6f}".rstrip("0").partition(".")
    grouped = whole.replace(",", "[ ,._']?") + (f"[.,]{cents}0*" if cents else r"(?:[.,]0{1,2})?")
    yield from (match.span() for match in re.finditer(_NUMBER_START + sign + grouped + _NUMBER_END, text))
    if cents or abs(number) >= 1_000_000:
        return
    words = ("minus " if number < 0 else "") + _spelled(int(abs(number)))
    end = rf"(?!\w)(?![ -](?:and )?(?:{_NUMBER_WORD})(?!\w))(?! (?:or )?(?:{_COUNTED})(?!\w))"
    for match in re.finditer(rf"(?<!\w)((?:{_NUMBER_WORD})[ -](?:and )?)?{words}{end}", text):
        if not match[1] and (abs(number) > 1 or _STATED.search(text[: match.start()])):
            yield match.span()


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
