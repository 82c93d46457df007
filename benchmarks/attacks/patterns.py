"""Edge: regular expressions in schemas, and the text that they are matched with; those of `--error_pattern`, too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

from values import in_thread, refused, text

from fission_grpo.core.errors import UsageError
from fission_grpo.core.result_errors import check_error_pattern, matches
from fission_grpo.core.tool_schema import check_call, check_tool_schema
from fission_grpo.core.types import ToolCall

ATOMS = (
    *("a", "b", "x", "0", ".", r"\d", r"\w", r"\s", r"\S", "[a-z]", "[^a]", "[0-9a-f]", r"\b", "^", "$", r"\.", "-"),
    *(
        r"\p{L}",
        r"\p{Script=Greek}",
        r"(?<year>\d{4})",
        r"\k<year>",
        r"\1",
        r"\u0041",
        r"\u{1F600}",
        r"\cA",
        "[]",
        "[^]",
    ),
    *(
        "(?=a)",
        "(?!a)",
        "(?<=a)",
        "(?<!b)",
        r"\Z",
        "(?i)",
        "[[:alpha:]]",
        "é",
        "\x00",
        "[z-a]",
        "\\",
        "[",
        "(",
        ")",
        "]",
    ),
)
REPEATS = ("*", "+", "?", "{2}", "{1,3}", "{0,}", "*?", "++", "{1000}", "{99999999999}", "{,5}", "{2,1}", "**")


def pattern(rng: Random, depth: int = 4) -> str:
    """A regular expression, often one that backtracks for ever, now and then none at all."""
    parts = []
    for _ in range(rng.randint(1, 4)):
        part = rng.choice(ATOMS[: 17 if rng.random() < 0.8 else None])
        if depth and rng.random() < 0.5:
            inner = pattern(rng, depth - 1)
            part = rng.choice((f"({inner})", f"(?:{inner})", f"({inner}|{inner})", f"({inner}|{part})"))
        if rng.random() < 0.5:
            part += rng.choice(REPEATS[: 6 if rng.random() < 0.8 else None])
        parts.append(part)
    whole = "".join(parts)
    if depth == 4 and rng.random() < 0.1:
        whole = rng.choice(("(" * 3000 + whole, "(" * 200 + whole + ")*" * 200, whole * 2000, f"({whole}){{5000}}"))
    return f"^{whole}$" if depth == 4 and rng.random() < 0.6 else whole


def subject(rng: Random) -> str:
    """A text to match: what patterns repeat, with an end that does not fit."""
    size = rng.choice((1, 10, 30, 100, 2000, 50_000))
    repeated = rng.choice(("a", "ab", "0", "x", "aa0", "a-", ".", " ", "é")) * size
    return rng.choice((repeated, repeated + "!", repeated + "\n", text(rng, 5000)))


def prepare(_: Path) -> Callable[[Random], str]:
    return attack


def attack(rng: Random) -> str:
    """One pattern and several texts: refused with a ValueError, or checked within the limits, in any thread."""
    if rng.random() < 0.15:
        return _error_pattern(rng)
    made = pattern(rng)
    parameters = {"type": "object", "properties": {"a": {"type": "string", "pattern": made}}}
    if rng.random() < 0.3:
        parameters["patternProperties"] = {made: {"type": "integer"}}
    tool = {"name": "f", "description": "", "parameters": parameters}
    try:
        check_tool_schema(tool)
    except ValueError as error:
        return refused(error)
    if rng.random() < 0.5:
        return _check(tool, rng)
    return in_thread(lambda: _check(tool, rng))


def _check(tool: dict[str, object], rng: Random) -> str:
    problem = check_call(ToolCall("f", {"a": subject(rng), subject(rng)[:200]: 1}), [tool])
    return "checked: right" if problem is None else "checked: wrong"


def _error_pattern(rng: Random) -> str:
    try:
        compiled = check_error_pattern(pattern(rng))
    except ValueError:
        return "error pattern refused"
    try:
        found = matches(compiled, subject(rng))
    except UsageError:
        return "error pattern too slow, named"
    return f"error pattern: {'match' if found else 'no match'}"
