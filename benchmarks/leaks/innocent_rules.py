"""Texts that look like leaks but give nothing away. As in `leaking_rules.py`, `NEW` rules are held out.

Innocent texts quote what the failed call wrote for the same parameter, state a third value that is as wrong, list all
options of an enum or all tools, name parameters and types, contain the value within a longer word or number, or talk
about the dialogue without repeating the value.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from datetime import date

from leaking_rules import MONTHS, Rule, words
from situations import Situation, Target

GENERIC = (
    "error: you made a mistake. please try again.",
    "the arguments do not match what the user asked for; read the last message again",
    "at least one more tool call is needed",
    "one of the arguments is wrong, the others are fine",
    "the call is well-formed, but not the one that is needed here",
    "none of the values may be null or empty",
)
NEW_GENERIC = (
    "Execution failed: check that each value comes from the user's request.",
    "Two things to look at: the tool you chose, and its arguments.",
    "That was the first attempt; a second one is allowed.",
    "Nothing came back. Look at the schema, then write the call once more.",
    "It is on you to find out which one is off.",
    "Traceback (most recent call last): ValueError: invalid input",
)


def given(text: str, make: Callable[[Target], object] = lambda t: t.given) -> Rule:
    """The failed call's own value, quoted back."""
    return lambda s, t, n: None if t.given is None else text.format(p=t.name, v=make(t))


def other(text: str, make: Callable[[str], str] = str) -> Rule:
    """A third value; not of an enum, where it might leave only one option."""
    return lambda s, t, n: (
        text.format(p=t.name, v=make(str(t.other))) if t.other is not None and not t.options else None
    )


def listed(text: str, join: str, make: Callable[[list[str]], list[str]] = list) -> Rule:
    """All options."""
    return lambda s, t, n: text.format(p=t.name, v=join.join(make(list(t.options)))) if t.options else None


def tools(text: str, join: str) -> Rule:
    return lambda s, t, n: (
        text.format(v=join.join(tool["name"] for tool in s.tools))
        if len(s.tools) > 1 and s.failed.name != s.reference.name and t is s.targets[0]
        else None
    )


def contained(*texts: str) -> Rule:
    """A longer word or number that contains a short value."""

    def rule(s: Situation, t: Target, turn: int) -> str | None:
        if t.kind == "number":
            return texts[1].format(v=str(t.value).replace(".", ""), p=t.name)
        short = t.kind in ("text", "enum") and str(t.value).isascii() and str(t.value).isalpha() and len(t.value) < 8
        return texts[0].format(v=str(t.value).lower(), p=t.name) if short else None

    return rule


def of_kind(kind: str, text: str) -> Rule:
    return lambda s, t, n: text.format(p=t.name) if t.kind == kind else None


def once(make: Callable[[Situation, int], str | None]) -> Rule:
    """One text for a situation, whatever the target."""
    return lambda s, t, n: make(s, n) if t is s.targets[0] else None


def called(s: Situation, turn: int) -> str:
    return f"`{s.failed.name}` ran, but its answer is not what the user needs"


def digest(s: Situation, turn: int) -> str:
    return f"request {hashlib.sha1(s.name.encode()).hexdigest()} failed, see trace {hashlib.md5(s.user.encode()).hexdigest()}"  # noqa: E501


def other_number(text: str) -> Rule:
    return lambda s, t, n: text.format(p=t.name, v=words(t.other)) if isinstance(t.other, int) else None


def other_date(make: Callable[[date], str]) -> Rule:
    return lambda s, t, n: make(date.fromisoformat(t.other)) if t.kind == "date" else None


ANY_LIST = (
    "all options",
    "all options, or",
    "both booleans",
    "all options as JSON",
    "all options, bar",
    "booleans, slash",
)
"""Rules whose texts do hold the value, among all there are."""

KNOWN: Mapping[str, Rule] = {
    "generic": lambda s, t, n: GENERIC[n % len(GENERIC)],
    "given value": given("error: `{p}` is not right, got {v!r}"),
    "given value in prose": given("you wrote {v} for `{p}`, which nobody asked for"),
    "third value": other("`{p}` may as well be {v}, that would be wrong too"),
    "third value, spaced": other("not {v} either", " ".join),
    "third number in words": other_number("`{p}` is not {v}"),
    "third date, by name": other_date(lambda d: f"nothing is free on {MONTHS[d.month - 1]} {d.day}, {d.year}"),
    "all options": listed("`{p}` must be one of {v}", ", "),
    "all options, or": listed("choose: '{v}'", "' or '", lambda o: o[::-1]),
    "all tools": tools("the tools are {v}", ", "),
    "both booleans": of_kind("boolean", "`{p}` must be true or false"),
    "date format": of_kind("date", "`{p}` must match YYYY-MM-DD, such as four digits, two and two"),
    "time format": of_kind("time", "`{p}` must match HH:MM on a 24-hour clock"),
    "number type": of_kind("number", "`{p}` must be a number, without quotes or units"),
    "parameter named": lambda s, t, n: f"`{t.name}` is not right; see the user's last message",
    "part of a word": contained("the sub{v}ian form of `{p}` is unknown", "code 9{v}9 at `{p}`"),
    "called tool": once(called),
}
NEW: Mapping[str, Rule] = {
    "generic, other words": lambda s, t, n: NEW_GENERIC[n % len(NEW_GENERIC)],
    "given value, guillemets": given("I cannot work with «{v}» here ({p})"),
    "given value, shouted": given("WRONG: {v}", lambda t: str(t.given).upper()),
    "given value, twice": given("{v}, {v} again: `{p}` stays wrong"),
    "third number, digits": lambda s, t, n: f"status {t.other}: rejected" if t.kind == "number" else None,
    "third date, day first": other_date(lambda d: f"[{d.day}/{d.month}/{d.year}] service restarted"),
    "all options as JSON": listed('"enum": ["{v}"]', '", "'),
    "all options, bar": listed("{p} := {v}", " | "),
    "all tools, lines": tools("Available tools:\n- {v}", "\n- "),
    "booleans, slash": of_kind("boolean", "expected a boolean (true/false) for `{p}`"),
    "booleans, talk": of_kind("boolean", "Think about whether `{p}` is really what the user wants."),
    "log line": once(lambda s, n: f"2019-08-28 23:59:58 WARN [worker-0] {s.failed.name} returned HTTP 503"),
    "digest": once(digest),
    "link": once(lambda s, n: f"See https://docs.example.com/tools/{s.failed.name}#arguments%20and%20types for help."),
    "part of a word, other": contained("no such key: {v}ability_{p}", "offset 7{v}07 is out of range"),
    "hint at a source": lambda s, t, n: f"Take `{t.name}` from what the user wrote, word by word, not from memory.",
    "type": lambda s, t, n: f"`{t.name}` has the right type ({type(t.value).__name__}) but a wrong content.",
}
