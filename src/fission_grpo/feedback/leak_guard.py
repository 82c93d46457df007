"""Find reference values and tool names that a feedback text gives away.

Feedback may say what is wrong with a call, but not what the right call is: a policy that reads the right value learns
to copy it. The guard assumes a source that is careless, not one that wants to deceive it. Encodings, ciphers and
paraphrase are not found; `benchmarks/leaks/README.md` has the list.
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
from fission_grpo.feedback.value_forms import number_of, states_boolean, states_date, states_number, states_time

FRAGMENT = 24
"""A piece of a value with this many letters and digits counts as the value. [ours]"""

COMMON_WORDS = frozenset(
    "a an and as at be by for i if in is it must no not of on one or the to try value you".split()  # noqa: SIM905
)
"""Values that count only in quotes, because most texts contain them. [ours]"""

_MASK = "\0"  # replaces public text; neither a letter nor a space, so that nothing is joined across it
_MARKS = str.maketrans(dict.fromkeys('“”„«»´‘’"', "'") | dict.fromkeys("‐‑‒–—―−", "-") | {_MASK: " "})
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufe00-\ufe0f\ufeff]"
)
_BETWEEN_OPTIONS = re.compile(r"['\s,;/|()\[\]*•-]+(?:(?:and|or)[\s']+)?")


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
    """A text without punctuation and spaces."""
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
        edges = ("", "") if len(form) > FRAGMENT else (r"(?<!\w)", r"(?!\w)")
        text = re.sub(edges[0] + re.escape(form) + edges[1], _MASK, text)
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
