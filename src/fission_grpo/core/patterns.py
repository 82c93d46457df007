"""Regular expressions from outside, of schemas and options: what may be compiled, and searches with a time limit."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import regex

from fission_grpo.core.json_io import quoted
from fission_grpo.core.terminal import get_logger

_log = get_logger(__name__)

MAX_PATTERN = 5000  # characters of a pattern [ours]
MAX_REPEATS = 10_000  # parts of a pattern after its repetitions are written out, as its compiler does [ours]
MAX_MATCHED = 1_000_000  # characters of a text that a pattern is held against [ours]; it takes 100 bytes for each
PATTERN_SECONDS = 2.0  # of one pattern on one text [ours]; some take exponential time
_TOKEN = re.compile(r"\\.|\[\^?\]?(?:[^\]\\]|\\.?)*+\]?|\{(\d+)?(,\d*)?\}[?+]?|\(\?[^)=!<>:]*+[=!:>]?|.", re.DOTALL)
# of `re.error`: a pattern with such a fault is none in any dialect
_BROKEN_PATTERN = re.compile(
    r"missing \)|unbalanced|unterminated|(nothing to|multiple|min) repeat|end of|bad character range [^\\]*$"
)
# of compiling: wrong, a{99999999999}, nested too deeply; and what `regex` raises, which is less exact
NO_PATTERN = (re.error, OverflowError, RecursionError, regex.error, ValueError, IndexError, KeyError, MemoryError)


class CannotBeChecked(Exception):
    """A value and its schema take too much work. The message is for the policy."""


def pattern_matches(pattern: str, text: str, python: bool = False) -> bool:
    """Whether a pattern is found in a text. Raises CannotBeChecked if that takes too long.

    "$" is the end of the text, as in JavaScript, or in `python` also before a newline that ends it.
    """
    if len(text) > MAX_MATCHED:
        raise CannotBeChecked("a text is too long to be checked against the patterns of the schema")
    try:
        return _compiled(pattern, python).search(text, timeout=PATTERN_SECONDS, concurrent=True) is not None
    except (TimeoutError, MemoryError):
        message = "the arguments could not be checked against the patterns of the schema"
        raise CannotBeChecked(message) from None


@lru_cache(maxsize=4096)
def _compiled(pattern: str, python: bool = False) -> Any:
    """A pattern that Python's `re` knows, compiled by a library with time limits."""
    end = "$" if python else "\\Z"
    return regex.compile("".join(end if found[0] == "$" else _as_literal(found) for found in _TOKEN.finditer(pattern)))


def _as_literal(token: re.Match[str]) -> str:
    """A token of a pattern, with what only `regex` gives a meaning escaped: "{e}", and "[" within a class."""
    text = token[0]
    if text[0] == "{" and not (token[1] or token[2]):
        return "\\" + text
    if text[0] == "[" and len(text) > 1:
        return "[" + re.sub(r"(\\.)|\[", lambda found: found[1] or "\\[", text[1:])
    return text


def _size_of(pattern: str) -> int:
    """The number of parts of a pattern once what is repeated is written as often as it has to be there."""
    sizes, last = [0], 0  # of the open groups; of the last part
    for token in _TOKEN.finditer(pattern):
        if token[0][0] == "(":
            sizes.append(0)
            last = 0
        elif token[0] == ")" and len(sizes) > 1:
            last = 1 + sizes.pop()
            sizes[-1] += last
        elif token[0][0] == "{" and (token[1] or token[2]):
            sizes[-1] += last * max(int((token[1] or "1")[:9]) - 1, 0)
            last *= max(int((token[1] or "1")[:9]), 1)
        else:
            last = 1
            sizes[-1] += 1
    return sum(sizes)


def check_python_pattern(pattern: str) -> None:
    """Raises one of `NO_PATTERN` for a pattern that Python cannot compile, or not in a short time."""
    if len(pattern) > MAX_PATTERN or _size_of(pattern) > MAX_REPEATS:
        raise OverflowError(f"longer than {MAX_PATTERN:,} characters, or {MAX_REPEATS:,} parts with its repetitions")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of "[[", which is "[" here
        re.compile(pattern)


def check_pattern(pattern: Any) -> bool:
    """Whether a pattern is one in any dialect. Raises re.error for one that is not closed or repeats nothing."""
    try:
        if isinstance(pattern, str):
            check_python_pattern(pattern)
    except re.error as error:
        if _BROKEN_PATTERN.search(error.msg):
            raise
    return True


def _is_foreign(pattern: Any) -> bool:
    """Whether Python cannot compile a pattern. JSON Schema's are JavaScript's, which has \\p{L} and (?<name>...)."""
    try:
        check_python_pattern(pattern)
        _compiled(pattern)
    except NO_PATTERN:
        return True
    return False


def drop_foreign_patterns(parts: Sequence[dict[str, Any]]) -> None:
    """Remove patterns that cannot be checked here, with a warning; whatever they demand is then taken as fulfilled."""
    has_named = any("patternProperties" in part for part in parts)
    for part in parts:
        if has_named and part.pop("unevaluatedProperties", None) is not None:
            what = "`unevaluatedProperties` of a schema with `patternProperties` is not checked: it has no time limit"
            _log.warning("a schema's %s", what)
        if "pattern" in part and _is_foreign(part["pattern"]):
            _log.warning("a schema's pattern %s is not checked: Python cannot compile it", quoted(part.pop("pattern")))
        named = part.get("patternProperties", {})
        for pattern in [key for key in named if _is_foreign(key)]:
            _log.warning("a schema's pattern %s is not checked: Python cannot compile it", quoted(pattern))
            del named[pattern]
            named[".*"] = True  # every name may be one that it allows
