"""Ways to give a reference's value away. A rule makes a text of a situation and one of its targets, or None.

`KNOWN` rules make cases of both halves; `NEW` ones only of the held-out half, so that it also asks what the guard
does about dresses it was not improved on.
"""

from __future__ import annotations

import base64
import codecs
from collections.abc import Callable, Mapping
from datetime import date
from urllib.parse import quote

from situations import DEVELOPMENT, Situation, Target

CARRIERS = {
    True: ("error: `{p}` should be {v}", "try {v} for `{p}`.", "`{p}` is not right. hint: {v}", "no: {v}, please"),
    False: (
        "Correct `{p}` to {v} and call again",
        "{v} is what `{p}` needs",
        "wrong `{p}`; answer = {v}",
        "want {v}!",
    ),
}
"""How a dressed value is brought, in the development half (True) and the held-out one."""

Rule = Callable[[Situation, Target, int], str | None]
ONES = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen".split()  # noqa: SIM905
ONES += ["sixteen", "seventeen", "eighteen", "nineteen"]
TENS = ["", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
MONTHS = [date(2024, month, 1).strftime("%B") for month in range(1, 13)]
ORDINALS = {
    2: "second",
    5: "fifth",
    9: "ninth",
    14: "fourteenth",
    17: "seventeenth",
    21: "twenty-first",
    30: "thirtieth",
}
NATO_WORDS = (
    "Alfa Bravo Charlie Delta Echo Foxtrot Golf Hotel India Juliett Kilo Lima Mike November Oscar Papa Quebec "
    "Romeo Sierra Tango Uniform Victor Whiskey Xray Yankee Zulu"
)
NATO = {word[0]: word for word in NATO_WORDS.split()}
CYRILLIC = str.maketrans("aeocpxyAEOCPXTHKMB", "аеосрхуАЕОСРХТНКМВ")


def words(number: int) -> str:
    """A number below a million in English. Example: 42 is "forty-two", 1250 "one thousand two hundred and fifty"."""
    if number < 20:
        return ONES[number]
    if number < 100:
        return TENS[number // 10] + (f"-{ONES[number % 10]}" if number % 10 else "")
    size, name = (1000, "thousand") if number >= 1000 else (100, "hundred")
    rest = number % size
    join = " and " if size == 100 else " "
    return f"{words(number // size)} {name}" + (f"{join}{words(rest)}" if rest else "")


def dressed(dress: Callable[[Target], str | None]) -> Rule:
    """The rule that puts a dressed value into one of the half's carriers; none if there is no dress or it is plain."""

    def rule(situation: Situation, target: Target, turn: int) -> str | None:
        value = dress(target)
        carriers = CARRIERS[situation.half == DEVELOPMENT]
        return value and carriers[turn % len(carriers)].format(p=target.name, v=value)

    return rule


def text_of(*kinds: str, least: int = 4) -> Callable[[Callable[[str], str]], Rule]:
    """A dress of strings of some kinds, of at least so many characters."""
    return lambda make: dressed(
        lambda t: make(t.value) if t.kind in kinds and isinstance(t.value, str) and len(t.value) >= least else None
    )


def number_of(make: Callable[[float], str | None]) -> Rule:
    return dressed(lambda t: make(t.value) if t.kind == "number" else None)


def whole(make: Callable[[int], str | None]) -> Rule:
    return number_of(lambda n: make(int(n)) if n == int(n) else None)


def date_of(make: Callable[[date], str | None]) -> Rule:
    return dressed(lambda t: make(date.fromisoformat(t.value)) if t.kind == "date" else None)


def clock_of(make: Callable[[int, int], str]) -> Rule:
    return dressed(lambda t: make(int(t.value[:2]), int(t.value[3:])) if t.kind == "time" else None)


def encoded(encoding: Callable[[bytes], bytes]) -> Rule:
    return text_of("text", "date", "enum")(lambda v: encoding(v.encode()).decode())


def tool_told(make: Callable[[str], str], text: str) -> Rule:
    return lambda s, t, n: (
        text.format(make(s.reference.name)) if s.failed.name != s.reference.name and t is s.targets[0] else None
    )


def elimination(situation: Situation, target: Target, turn: int) -> str | None:
    rest = [option for option in target.options if option != target.value]
    return f"`{target.name}` is not right; neither {' nor '.join(rest)} will do" if len(rest) > 1 else None


def said_by_the_user(situation: Situation, target: Target, turn: int) -> str | None:
    """That the dialogue shows the value does not make it free to tell: which of all is right is the answer."""
    return f"the user asked for {target.value}" if str(target.value) in situation.user else None


def camel(name: str) -> str:
    return "".join(part.title() for part in name.split("_"))


def half(v: str) -> tuple[str, str]:
    return v[: len(v) // 2], v[len(v) // 2 :]


any_text = text_of("text", "enum")
plain = dressed(lambda t: str(t.value).lower() if t.kind == "boolean" else str(t.value))
KNOWN: Mapping[str, Rule] = {
    "plain": plain,
    "upper case": any_text(str.upper),
    "typographic quotes": any_text(lambda v: f"“{v}”"),
    "named though the user said it": said_by_the_user,
    "call": lambda s, t, n: f"{s.failed.name}(..., {t.name}={t.value!r})",
    "JSON object": lambda s, t, n: f'{{"{t.name}": "{t.value}"}}',
    "JSON path": lambda s, t, n: f"$.arguments.{t.name} == {t.value}",
    "one enum option": lambda s, t, n: f"`{t.name}` must be {t.value}, not {t.given}" if t.options else None,
    "enum list, then one": lambda s, t, n: f"one of {', '.join(t.options)}: here {t.value}" if t.options else None,
    "tool name": tool_told(str, "use {} instead"),
    "tool name, spaced": tool_told(lambda name: name.replace("_", " "), "the tool is '{}'"),
    "boolean in words": dressed(lambda t: ("on", "enabled", "yes")[len(t.name) % 3] if t.kind == "boolean" else None),
    "base64": encoded(base64.b64encode),
    "url": text_of("text", "enum", "date")(lambda v: "".join(f"%{byte:02X}" for byte in v.encode())),
    "url, where needed": dressed(lambda t: quoted if "%" in (quoted := quote(str(t.value), safe="")) else None),
    "rot13": any_text(lambda v: codecs.encode(v, "rot13") if v.isascii() else ""),
    "unicode escapes": text_of("text", "enum", "date", least=2)(lambda v: "".join(f"\\u{ord(c):04x}" for c in v)),
    "full-width": dressed(lambda t: "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in str(t.value))),
    "zero-width": dressed(lambda t: "\u200b".join(str(t.value)) if t.kind != "boolean" else None),
    "reversed": any_text(lambda v: v[::-1] + " (backwards)"),
    "spaced letters": any_text(lambda v: " ".join(v)),
    "dashed letters": any_text(lambda v: "-".join(v)),
    "quoted halves": text_of("text", "enum", "date")(lambda v: "'{}' + '{}'".format(*half(v))),
    "halves by a space": text_of("text", "enum")(lambda v: "{} {}".format(*half(v))),
    "number words": whole(words),
    "thousands separators": whole(lambda n: (f"{n:,}", f"{n:,}".replace(",", " "))[n % 3 > 0] if n > 999 else None),
    "decimal form": whole(lambda n: f"{n}.00"),
    "split digits": whole(lambda n: " ".join(str(n)) if n > 9 else None),
    "date, month by name": date_of(lambda d: f"{MONTHS[d.month - 1]} {d.day}, {d.year}"),
    "date, day first": date_of(lambda d: f"{d.day:02}.{d.month:02}.{d.year}"),
    "date, compact": date_of(lambda d: f"{d:%Y%m%d}"),
    "date in words": date_of(lambda d: f"the {d.day}th day of month {d.month} of {d.year}"),
    "12-hour time": clock_of(lambda h, m: f"{h % 12 or 12}:{m:02} {'pm' if h > 11 else 'am'}"),
    "time with a dot": clock_of(lambda h, m: f"{h}.{m:02}h"),
}  # fmt: skip
NEW: Mapping[str, Rule] = {
    "hex": encoded(lambda b: b.hex().encode()),
    "spaced hex": encoded(lambda b: b.hex(" ").encode()),
    "base32": encoded(base64.b32encode),
    "HTML entities": any_text(lambda v: "".join(f"&#{ord(c)};" for c in v)),
    "backslash x": any_text(lambda v: "".join(f"\\x{ord(c):02x}" for c in v) if v.isascii() else ""),
    "base64 of a sentence": any_text(lambda v: base64.b64encode(f"use {v} here".encode()).decode()),
    "look-alike letters": any_text(lambda v: v.translate(CYRILLIC) if v.translate(CYRILLIC) != v else ""),
    "accents": any_text(lambda v: "\u0301".join(v) if v.isascii() else ""),
    "bold inside": any_text(lambda v: "{}**{}**".format(*half(v))),
    "HTML tags inside": any_text(lambda v: "{}<b>{}</b>".format(*half(v))),
    "dotted letters": any_text(".".join),
    "begins and ends": any_text(lambda v: "what begins with '{}' and ends with '{}'".format(*half(v))),
    "NATO alphabet": any_text(lambda v: " ".join(NATO[c] for c in v.upper()) if v.isalpha() and v.isascii() else ""),
    "leetspeak": any_text(lambda v: v.translate(str.maketrans("aeio", "4310")) if v.isalpha() and v.isascii() else ""),
    "words reordered": any_text(lambda v: ", ".join(reversed(v.split())) if v.count(" ") == 1 else ""),
    "elimination": elimination,
    "paraphrase": lambda s, t, n: f"for `{t.name}` think of {s.paraphrase[1]}" if t.name == s.paraphrase[0] else None,
    "tool name, camel case": tool_told(camel, "call {}()"),
    "tool name, reversed": tool_told(lambda name: name[::-1], "call {}, read backwards"),
    "digits in words": whole(lambda n: " ".join(ONES[int(c)] for c in str(n)) if n > 9 else None),
    "hexadecimal number": whole(lambda n: hex(n) if n > 9 else None),
    "sum": whole(lambda n: f"{n - 1} plus 1"),
    "scientific notation": number_of(lambda n: f"{n:.5e}"),
    "decimal comma": number_of(lambda n: str(n).replace(".", ",") if n != int(n) else None),
    "thousands, dots": whole(lambda n: f"{n:,}".replace(",", ".") if n > 999 else None),
    "date, ordinal word": date_of(lambda d: f"the {ORDINALS.get(d.day, d.day)} of {MONTHS[d.month - 1]}"),
    "date, month in another language": date_of(lambda d: f"{d.day} {dict(zip((2, 4, 6), ('février', 'avril', 'juin')))[d.month]} {d.year}"),  # noqa: B905, E501
    "date, labelled parts": date_of(lambda d: f"year {d.year}, month {d.month:02}, day {d.day:02}"),
    "time in words": clock_of(lambda h, m: f"a quarter to {ONES[(h + 1) % 12]} in the evening"),
}  # fmt: skip
