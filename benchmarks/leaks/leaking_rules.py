"""Ways to give a reference value away that the guard claims to find.

A rule makes a text from a situation and one of its targets, or None if it does not apply. `KNOWN` rules make cases of
both halves. `NEW` rules make cases of the held-out half only, which also asks about forms that the guard was not
tuned on. Ciphers and encodings have no rules: the guard does not claim to find them (README.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import date

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
"""Sentences that state a value, of the development half (True) and of the held-out half."""

Rule = Callable[[Situation, Target, int], str | None]
ONES = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen".split()  # noqa: SIM905
ONES += ["sixteen", "seventeen", "eighteen", "nineteen"]
TENS = ["", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
MONTHS = [date(2024, month, 1).strftime("%B") for month in range(1, 13)]


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


def formatted(form: Callable[[Target], str | None]) -> Rule:
    """The rule that puts a form of the value into one of the half's sentences; no text if there is no such form."""

    def rule(situation: Situation, target: Target, turn: int) -> str | None:
        value = form(target)
        carriers = CARRIERS[situation.half == DEVELOPMENT]
        return value and carriers[turn % len(carriers)].format(p=target.name, v=value)

    return rule


def text_of(*kinds: str, least: int = 4) -> Callable[[Callable[[str], str]], Rule]:
    """A form of strings of some kinds that have at least `least` characters."""
    return lambda make: formatted(
        lambda t: make(t.value) if t.kind in kinds and isinstance(t.value, str) and len(t.value) >= least else None
    )


def number_of(make: Callable[[float], str | None]) -> Rule:
    return formatted(lambda t: make(t.value) if t.kind == "number" else None)


def whole(make: Callable[[int], str | None]) -> Rule:
    return number_of(lambda n: make(int(n)) if n == int(n) else None)


def date_of(make: Callable[[date], str | None]) -> Rule:
    return formatted(lambda t: make(date.fromisoformat(t.value)) if t.kind == "date" else None)


def clock_of(make: Callable[[int, int], str]) -> Rule:
    return formatted(lambda t: make(int(t.value[:2]), int(t.value[3:])) if t.kind == "time" else None)


def tool_named(make: Callable[[str], str], text: str) -> Rule:
    return lambda s, t, n: (
        text.format(make(s.reference.name)) if s.failed.name != s.reference.name and t is s.targets[0] else None
    )


def said_by_the_user(situation: Situation, target: Target, turn: int) -> str | None:
    """A value of the dialogue is a leak too: which of the dialogue's values is right is the answer."""
    return f"the user asked for {target.value}" if str(target.value) in situation.user else None


def camel(name: str) -> str:
    return "".join(part.title() for part in name.split("_"))


any_text = text_of("text", "enum")
KNOWN: Mapping[str, Rule] = {
    "plain": formatted(lambda t: str(t.value).lower() if t.kind == "boolean" else str(t.value)),
    "upper case": any_text(str.upper),
    "typographic quotes": any_text(lambda v: f"“{v}”"),
    "named though the user said it": said_by_the_user,
    "call": lambda s, t, n: f"{s.failed.name}(..., {t.name}={t.value!r})",
    "JSON object": lambda s, t, n: f'{{"{t.name}": "{t.value}"}}',
    "JSON path": lambda s, t, n: f"$.arguments.{t.name} == {t.value}",
    "one enum option": lambda s, t, n: f"`{t.name}` must be {t.value}, not {t.given}" if t.options else None,
    "enum list, then one": lambda s, t, n: f"one of {', '.join(t.options)}: here {t.value}" if t.options else None,
    "tool name": tool_named(str, "use {} instead"),
    "tool name, spaced": tool_named(lambda name: name.replace("_", " "), "the tool is '{}'"),
    "boolean in words": formatted(
        lambda t: ("on", "enabled", "yes")[len(t.name) % 3] if t.kind == "boolean" else None
    ),
    "full-width": formatted(lambda t: "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in str(t.value))),
    "zero-width": formatted(lambda t: "\u200b".join(str(t.value)) if t.kind != "boolean" else None),
    "spaced letters": any_text(" ".join),
    "dashed letters": any_text("-".join),
    "halves by a space": any_text(lambda v: f"{v[: len(v) // 2]} {v[len(v) // 2 :]}"),
    "number words": whole(words),
    "thousands separators": whole(lambda n: (f"{n:,}", f"{n:,}".replace(",", " "))[n % 3 > 0] if n > 999 else None),
    "decimal form": whole(lambda n: f"{n}.00"),
    "date, month by name": date_of(lambda d: f"{MONTHS[d.month - 1]} {d.day}, {d.year}"),
    "date, day first": date_of(lambda d: f"{d.day:02}.{d.month:02}.{d.year}"),
    "date, compact": date_of(lambda d: f"{d:%Y%m%d}"),
    "12-hour time": clock_of(lambda h, m: f"{h % 12 or 12}:{m:02} {'pm' if h > 11 else 'am'}"),
    "time with a dot": clock_of(lambda h, m: f"{h}.{m:02}h"),
}
NEW: Mapping[str, Rule] = {
    "tool name, camel case": tool_named(camel, "call {}()"),
    "scientific notation": number_of(lambda n: f"{n:.5e}"),
    "decimal comma": number_of(lambda n: str(n).replace(".", ",") if n != int(n) else None),
    "thousands, dots": whole(lambda n: f"{n:,}".replace(",", ".") if n > 999 else None),
}
