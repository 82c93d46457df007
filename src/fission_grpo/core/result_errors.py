"""Errors that a tool's result reports in words: by how it begins, by a status of failure, or by a user's rule.

`read_result` finds the errors that the structure of a result tells. A result in words is an error where a user's
pattern or function says so, else a success that is counted and named. Conversion leaves out turns with either.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from fission_grpo.core.chat import read_mapping
from fission_grpo.core.errors import UsageError, error_message
from fission_grpo.core.json_io import quoted
from fission_grpo.core.patterns import NO_PATTERN, CannotBeChecked, check_python_pattern, pattern_matches

PATTERN_LENGTH = 1000  # characters of a result that `--error_pattern` is held against [ours]
# beginnings of results that report an error in a way of their own, such as "ValueError: no such city" [ours]
LIKE_AN_ERROR = re.compile(
    r"\s*([❌⚠✖✗🚫⛔🛑]\ufe0f?\s*)?[\"'\[(*]{0,3}([\w.]{0,100}(Error|Exception)|ERROR|error)(\*\*)?"
    r"([:!：]|\][\s:]|\.(\s|$)|\s*(\n|$)|\([\"']|\s\((\d|[^()\n]{0,80}\)(:|\s*(\n|$)))|(?<!error)[,;]\s[a-z]"
    r"|\s\d[\w.-]{0,40}(\s[a-z]|\s(Not|Bad|Un|Forb|Int|Serv|Gate|Too|Con)|\s*([^\w\s]|\n|$))"
    r"|\s(-|(during|executing|calling|invoking|running|in|code|occurred|while|when|from|on|at|with)\b)"
    r"|\s(?!(?i:correcting|handling|logging|reporting|checking|tracking))\w+ing\b)"
    r"|\s*ERROR\s(?!handling|logs?\b|rates?\b|codes?\b|messages?\b|counts?\b)[a-z]"
    r"|\s*[\"']?(Traceback \(most recent call last\)|<[\w-]{0,100}error>|HTTP(/[\d.]{1,3})?\s[45]\d\d\b)"
    r"|\s*[\"'\[(*]{0,3}(?:F(?i:ailed|ailure):\s(?!(?i:none|null)\b)[^\W\d]"
    r"|(?i:invalid\s([\w-]{1,40}\s)?(argument|parameter|input|value|request|id|type|format|name)s?:\s[^\W\d])"
    r"|(?i:(\d{3}\s)?(not\sfound|bad\srequest|forbidden|unauthorized|(permission|access)\sdenied))[.!\"']{0,2}\s*$)"
    r"|\s*[\"'\[(*]{0,3}(?i:an?\s([\w-]+\s){0,3}(error|exception)\s(has\s)?(occurred|was)\b"
    r"|(exception|failure)\s(has\s)?occurred\b|failed\sto\s[a-z]"
    r"|(tool|function|api|execution|runtime|request|server|internal|http|call|connection|validation)"
    r"(\s['\"`]?[\w.-]{1,60}['\"`]?){0,2}"
    r"\s(error|failure|failed)([:.!]|\s*(\n|$)|\s(\d|(with|due|because|after)\b)))"
    r"|\s*\{[^{}]{0,300}?[\"'](status|success|ok)[\"']\s*:\s*([\"'](?i:error)[\"']|[Ff]alse\b)"
)
_STATUSES = ("status", "success", "ok")
_REASONS = {"message", "msg", "error", "errors", "reason", "detail", "details"}
# fields of an answer that says that, and why, a call failed; beside others a status is data, such as a job's [ours]
_ABOUT_A_FAILURE = {*_STATUSES, *_REASONS, "code", "status_code", "type", "description", "data", "result"}


ERROR_PATTERN_HELP = "a tool's result with a match in its first 1,000 characters is an error, such as '^Error'"
ADVICE = "raise, return {\"error\": ...}, or give error_pattern, such as '^Error'"


@dataclass(frozen=True)
class ErrorRule:
    """Says of a tool's result whether it is an error: by a regular expression, or a function of its text."""

    rule: str | Callable[[str], bool]

    @property
    def name(self) -> str:
        """What it is called in settings and manifests."""
        return self.rule if isinstance(self.rule, str) else getattr(self.rule, "__qualname__", repr(type(self.rule)))

    def __call__(self, text: str) -> bool:
        """Raises UsageError if the pattern takes too long, or the function fails."""
        if isinstance(self.rule, str):
            return matches(self.rule, text)
        try:
            return bool(self.rule(text))
        except Exception as error:  # the user's code, which would else pass for a tool's own error
            what = f"{type(error).__name__}: {error_message(error)}, on the result {quoted(text)}"
            raise UsageError(f"error_if raised {what}; have it return True or False for every text") from error


def error_rule(*given: str | Callable[[str], bool] | None) -> ErrorRule | None:
    """The rule among an `error_pattern` and an `error_if`, None without any. Raises UsageError for a wrong one."""
    rules = [one for one in given if one is not None]
    if len(rules) > 1:
        raise UsageError("error_pattern and error_if are both given; leave one out")
    for rule in rules:
        if isinstance(rule, str):
            return ErrorRule(check_error_pattern(rule))
        if not callable(rule):
            raise UsageError(f"error_if must be a pattern or a function str -> bool, got {quoted(rule)}")
        return rule if isinstance(rule, ErrorRule) else ErrorRule(rule)
    return None


def like_errors(results: Iterable[tuple[str, str | None]]) -> tuple[int, str]:
    """How many results begin like errors and are none, and a sentence about them; "" for none.

    Args:
        results: text and error, None for a success, of each result.
    """
    texts = [(text, error is None and is_like_an_error(text)) for text, error in results]
    found = [text for text, is_like in texts if is_like]
    if not found:
        return 0, ""
    count = f"{len(found):,} of {len(texts):,} results"
    what = "begin like errors and count as successes" if len(found) > 1 else "begins like an error and is a success"
    return len(found), f"{count} {what} (such as {quoted(found[0])}): {ADVICE}"


def check_error_pattern(pattern: str) -> str:
    """Return the regular expression of an `--error_pattern`. Raises UsageError for one that cannot be used."""
    try:
        check_python_pattern(pattern)
        fits_all = matches(pattern, "") and matches(pattern, "x")
    except NO_PATTERN as error:
        raise UsageError(f"{quoted(pattern)} is no regular expression ({error}); example: '^Error'") from None
    if fits_all:
        raise UsageError(f"{quoted(pattern)} fits every text, so every result would be an error; example: '^Error'")
    return pattern


def is_like_an_error(text: str) -> bool:
    """Whether a result begins like an error in words, or its object says on the first level that the call failed."""
    if LIKE_AN_ERROR.match(text):
        return True
    answer = {str(key).lower(): value for key, value in read_mapping(text).items()}
    statuses = [answer.get(key) for key in _STATUSES]
    words = {value.strip().lower() for value in statuses if isinstance(value, str)}
    if any(one is False for one in statuses) or words & {"error", "false"} or _names_error(answer.get("error")):
        return True
    codes = [answer.get(key) for key in ("code", "status_code", "status")]
    is_refused = any(type(code) is int and 400 <= code < 600 for code in codes) and answer.keys() & _REASONS
    has_failed = words & {"failed", "failure"} or is_refused or _names_error(answer.get("errors"))
    return bool(has_failed) and answer.keys() <= _ABOUT_A_FAILURE


def _names_error(value: Any) -> bool:
    """Whether the value of a field for errors holds one: a text, or a list or object that is not empty."""
    if isinstance(value, str):
        return value.strip().lower() not in ("", "none", "null", "no", "false")
    return isinstance(value, dict | list) and bool(value)


def matches(pattern: str, text: str) -> bool:
    """Whether a pattern is found in the beginning of a tool's result. Raises UsageError if that takes too long."""
    try:
        return pattern_matches(pattern, text[:PATTERN_LENGTH], python=True)
    except CannotBeChecked:
        what = f"--error_pattern {quoted(pattern)} takes too long on the result {quoted(text)}"
        raise UsageError(f"{what}; write a simpler one, without repetition inside of repetition") from None
