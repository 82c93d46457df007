"""Does a diagnosis give the answer away? The guard that every source's text passes.

The paper's simulator sees the reference call and must not tell it (96% by human check); here a text that does is
found, replaced and counted. Strict where in doubt: a false alarm costs one diagnosis, a missed leak rewards copying.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from fission_grpo.disguises import HIDDEN, readings, says_split, says_turned, squashed
from fission_grpo.json_text import quoted
from fission_grpo.schema import parameter_schema, tool_names
from fission_grpo.spoken import dates_of, number, numbers_in, says_date, says_time, says_truth, time_of
from fission_grpo.trajectory import Failure, ToolCall, ToolResult

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
