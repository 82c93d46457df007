"""Errors that a tool's result reports in words: by how it begins, by a status of failure, or by a user's pattern.

Conversion leaves out turns with such results; evaluation counts them only if they match the pattern. `read_result`
finds the errors that the structure of a result tells, and nothing else decides rewards.
"""

from __future__ import annotations

import re

from fission_grpo.core.chat import read_mapping
from fission_grpo.core.errors import TimeLimitExceeded, UsageError
from fission_grpo.core.json_io import quoted
from fission_grpo.core.timing import contained

PATTERN_LENGTH = 1000  # characters of a result that `--error_pattern` is held against [ours]
PATTERN_SECONDS = 2.0  # limit for one of them, as some regular expressions take exponential time [ours]
# beginnings of results that report an error in a way of their own, such as "ValueError: no such city" [ours]
LIKE_AN_ERROR = re.compile(
    r"\s*[\"'\[(*]{0,3}([\w.]{0,100}(Error|Exception)|ERROR|error)(\*\*)?"
    r"([:!]|\][\s:]|\.(\s|$)|\s*(\n|$)|\s\((\d|[^()\n]{0,80}\):)"
    r"|\s(\d|-|(during|executing|calling|invoking|running|in|code|occurred|while|when)\b)"
    r"|\s(?!correcting|handling|logging|reporting|checking|tracking)\w+ing\b)"
    r"|\s*[\"']?(Traceback \(most recent call last\)|<[\w-]{0,100}error>)"
    r"|\s*[\"'\[(*]{0,3}(?i:an?\s([\w-]+\s){0,3}(error|exception)\s(has\s)?(occurred|was)\b"
    r"|(exception|failure)\s(has\s)?occurred\b|failed\sto\s[a-z]"
    r"|(tool|function|api|execution|runtime|request|server|internal|http|call|connection|validation)"
    r"(\s['\"`]?[\w.-]{1,60}['\"`]?){0,2}"
    r"\s(error|failure|failed)([:.!]|\s*(\n|$)|\s(\d|(with|due|because|after)\b)))"
    r"|\s*\{[^{}]{0,300}?[\"'](status|success|ok)[\"']\s*:\s*([\"'](?i:error|failed|failure)[\"']|[Ff]alse\b)"
)


def compile_error_pattern(text: str) -> re.Pattern[str]:
    """The regular expression of an `--error_pattern`. Raises UsageError for one that cannot be used."""
    try:
        pattern = re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise UsageError(f"{quoted(text)} is no regular expression ({error}); example: '^Error'") from None
    if pattern.match("") and pattern.match("x"):
        raise UsageError(f"{quoted(text)} fits every text, so every result would be an error; example: '^Error'")
    return pattern


def is_like_an_error(text: str) -> bool:
    """Whether a result begins like an error in words, or has a status of failure on the first level of its object."""
    if LIKE_AN_ERROR.match(text):
        return True
    values = [value for key, value in read_mapping(text).items() if str(key).lower() in ("status", "success", "ok")]
    words = ("error", "failed", "failure", "false")
    return any(value is False or (isinstance(value, str) and value.strip().lower() in words) for value in values)


def matches(pattern: re.Pattern[str], text: str) -> bool:
    """Whether a pattern is found in the beginning of a tool's result. Raises UsageError if that takes too long."""
    try:
        return contained(lambda: pattern.search(text[:PATTERN_LENGTH]) is not None, "the pattern", PATTERN_SECONDS)
    except TimeLimitExceeded:
        what = f"--error_pattern {quoted(pattern.pattern)} takes too long on the result {quoted(text)}"
        raise UsageError(f"{what}; write a simpler one, without repetition inside of repetition") from None
