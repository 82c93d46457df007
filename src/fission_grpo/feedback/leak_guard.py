"""Find reference values and tool names that a feedback text gives away.

A policy that reads the right value learns to copy it. The guard assumes a source that is careless, not one that wants
to deceive it: encodings, ciphers and paraphrase are not found (`benchmarks/leaks/README.md` has the list).
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from fission_grpo.core.chat import read_result, read_structure
from fission_grpo.core.json_io import quoted, walk_json
from fission_grpo.core.tool_schema import parameter_schema, tool_names
from fission_grpo.core.types import Failure, ToolCall, ToolResult
from fission_grpo.feedback.value_forms import (
    CJK,
    MASK,
    is_short,
    is_used,
    letters_and_digits,
    normalize,
    number_of,
    number_spans,
    states_boolean,
    states_date,
    states_number,
    states_time,
    without_http_status,
    without_markup,
)

FRAGMENT = 24  # a piece of a value with this many letters and digits counts as the value [ours]
CUT = 1_000  # a text of at least as many characters that begins a message is that message, cut to length [ours]
SENTENCE = 6  # a part of a tool result with at least as many words is something that the result says [ours]
FEW = 3  # so has a tool's error or a field of its answer; fewer may well be a value [ours]
COMMON_WORDS = frozenset(  # values that count only in quotes or after "=", because most texts contain them [ours]
    "a an and as at be by for i if in is it must no not of on one or the to try value you".split()  # noqa: SIM905
)
TOOL_WORDS = frozenset({"tool", "function", "method", "command", "call"})  # beside them a tool is named
_WORD = re.compile(f"[{CJK}]{{2}}|[^\\s{CJK}]+")  # without spaces two characters count as a word
_BETWEEN_OPTIONS = re.compile(r"['\s,;/|()\[\]*•-]+(?:(?:and|or)[\s']+)?")
_PROPER = re.compile(r"(?<=[a-z0-9,;'\"`] )['\"`(]?([A-Z]\w+)|(?<=\w )([A-Z][a-z]\w*)")


def find_leak(text: str, failure: Failure, from_environment: bool | None = None) -> str | None:
    """Find what a feedback text gives away of a failure's reference calls; None if the environment itself said it.

    The answer is for logs only, never shown to the policy. `from_environment` is whether it did; by default that is
    looked up in the dialogue, and of a text that quotes the environment's messages only the rest is judged.
    """
    if environment_said(text, failure) if from_environment is None else from_environment:
        return None
    made = [call for turn in failure.turns for call in turn.calls]
    parts = _without_messages(text, failure) if from_environment is None else [text]
    leaks = (find_reference_leak(part, failure.reference, made, failure.tools) for part in parts)
    return next(filter(None, leaks), None)


def environment_said(text: str, failure: Failure) -> bool:
    """Whether the dialogue has the text as a message of a tool, or as a sentence of a tool result."""
    results = _results(failure)
    if any(is_message(text, result) for result in results):
        return True
    if len(text.split()) < SENTENCE:
        return False
    forms, contents = _renderings(text), [said for result in results for said in _renderings(result.content)]
    return any(form in said for form in forms for said in contents)


def _results(failure: Failure) -> list[ToolResult]:
    """All tool results of the dialogue; those that stand in the prompt too."""
    prompt = () if isinstance(failure.task.prompt, str) else failure.task.prompt
    contents = [message.get("content") for message in prompt if message.get("role") in ("tool", "function")]
    texts = [content if isinstance(content, str) else json.dumps(content, default=str) for content in contents]
    shown = [read_result(ToolCall("tool"), text) for text in texts]
    return [*shown, *failure.task.history, *(result for turn in failure.turns for result in turn.results)]


def _without_messages(text: str, failure: Failure) -> list[str]:
    """The parts of a text between the messages of tools that it quotes."""
    values = [letters_and_digits(normalize(value)) for _, _, value in _arguments(failure.reference or ())]
    quoted_forms = set()
    text = " ".join(text.split())
    folded = text.casefold()
    for message in {message for result in _results(failure) for message in _messages(result)}:
        plain = letters_and_digits(normalize(message))
        if not any(plain in value for value in values):  # else it is data
            forms = {re.sub(r"^(?i:\w*error|\w*exception): ", "", form).rstrip(".!?") for form in _renderings(message)}
            quoted_forms |= {form for form in forms if form and form.casefold() in folded}
            starts = [(form, text.find(form[:CUT])) for form in forms if len(form) > CUT]  # it may be cut to length
            quoted_forms |= {text[at:] for form, at in starts if at >= 0 and form.startswith(text[at:])}
    if not quoted_forms:
        return [text]
    one = "|".join(re.escape(form) for form in sorted(quoted_forms, key=len, reverse=True))
    return re.split(rf"(?i)(?<!\w)(?:{one})(?!\w)", text)


def _messages(result: ToolResult) -> Iterator[str]:
    """What a tool says: its error, the content, and the texts in the content if that is a structure."""
    enough = SENTENCE if result.error is None else FEW
    for text in filter(None, (result.error, result.content)):
        structure = read_structure(text)
        if structure is None and len(_WORD.findall(text)) >= enough:
            yield text
        for path, leaf in walk_json(structure):
            is_item = any(isinstance(key, int) for key in path)  # a list holds data
            if isinstance(leaf, str) and len(_WORD.findall(leaf)) >= (enough if is_item else FEW):
                yield from _messages(ToolResult(result.call, leaf, leaf))


def is_message(text: str, result: ToolResult) -> bool:
    """Whether a text is the message or the content of a tool result, however it is escaped, spaced or cut."""
    forms = _renderings(text)
    messages = {form for said in (result.error, result.content) if said is not None for form in _renderings(said)}
    if not forms.isdisjoint(messages):
        return True
    begins = {re.sub(r"\\[\\ux0-9a-f]{0,5}$", "", form) for form in forms}  # without a part of an escape sequence
    return len(text) >= CUT and any(said.startswith(form) for form in begins for said in messages)


def _renderings(text: str) -> set[str]:
    """A text as it is, and as JSON or a Python literal shows it; without spacing and quotes around it."""
    forms = {
        form
        for plain in {text, text.strip()}
        for form in (plain, json.dumps(plain)[1:-1], json.dumps(plain, ensure_ascii=False)[1:-1], repr(plain)[1:-1])
    }
    return {" ".join(form.split()).strip("'\"` ") for form in forms}


def find_reference_leak(
    text: str,
    reference: Sequence[ToolCall] | None,
    failed: Sequence[ToolCall] = (),
    tools: Sequence[Mapping[str, Any]] = (),
) -> str | None:
    """Find what a text gives away of the reference calls: the value of an argument or the name of a tool.

    No leaks are: names of parameters in backticks, complete lists of options, booleans or tools, what the failed calls
    wrote for the same parameter, the tools that they called, a value within a longer word, and a short value where the
    text does not use it as one ("2 validation errors").

    Example:
        `find_reference_leak("use Rome", [ToolCall("go", {"to": "rome"})])` is "the value of `to`".
    """
    if not reference:
        return None
    forms = dict.fromkeys((text, without_markup(text)))
    leaks = (_find_in_form(form, reference, failed, tools) for form in forms)
    return next(filter(None, leaks), None)


def _find_in_form(
    text: str, reference: Sequence[ToolCall], failed: Sequence[ToolCall], tools: Sequence[Mapping[str, Any]]
) -> str | None:
    """`find_reference_leak` of one way to read a text."""
    proper = {word.casefold() for words in _PROPER.findall(text) for word in words}  # capitalised within a sentence
    text = _hide_public(without_http_status(normalize(text)), reference, failed, tools)
    called = [call.name for call in failed]
    for call in reference:
        if call.name in called:
            continue
        hidden = _hide_written(text, _quotations(called), call.name)
        is_called = any(hidden.startswith("(", end) for _, end in _word_spans(hidden, normalize(call.name)))
        if is_called or _states(hidden, call.name, TOOL_WORDS, proper):
            return f"the name of tool {quoted(call.name)}"
    written: dict[str, list[Any]] = defaultdict(list)
    for name, _, value in _arguments(failed):
        written[name].append(value)
    forms = {name: _quotations(values) for name, values in written.items()}
    known = {name: {form for value in values for form in _equal_forms(value)} for name, values in written.items()}
    for name, words, value in _arguments(reference):
        new = known.get(name, set()).isdisjoint(_equal_forms(value))
        if new and _states(_hide_written(text, forms.get(name, ()), value), value, words, proper):
            return f"the value of `{name}`"
    return None


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
    return MASK + (f"'{''.join(rest)}'" if rest else "")


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
            text = text[: run[0].start()] + MASK + text[run[-1].end() :]
    return text


def _hide_written(text: str, forms: Iterable[str], secret: Any) -> str:
    """Mask quotations of what the failed calls wrote, except a short one that is a part of the secret."""
    whole = letters_and_digits(normalize(secret))
    for form in forms:
        part = letters_and_digits(form)
        if form not in text or (len(part) < FRAGMENT and part != whole and part in whole):
            continue
        pattern = re.escape(form) if len(form) > FRAGMENT else rf"(?<!\w){re.escape(form)}(?!\w)"
        text = re.sub(pattern, MASK, text)
    return text


def _quotations(written: Sequence[Any]) -> list[str]:
    """How a message may quote values: in full, or cut as `quoted` does. The longest come first."""
    forms = {form for value in written if len(form := normalize(value)) < 4096}
    forms |= {normalize(quoted(value).removesuffix("...").strip("'\"")) for value in written}
    return sorted(filter(None, forms), key=len, reverse=True)


def _states(text: str, value: Any, names: Collection[str], proper: Collection[str]) -> bool:
    """Whether a normalized text states a value in any of its forms; a short one only where it uses it as a value.

    `names` are words beside which a short value is used as one, `proper` the words that the text capitalises.
    """
    number = number_of(value)
    if number is not None:
        if not is_short(value):
            if states_number(text, number):
                return True
        elif any(is_used(text, *span, names, is_number=True) for span in number_spans(text, number)):
            return True
        if not isinstance(value, str):
            return False
    if isinstance(value, bool) and states_boolean(text, value):
        return True
    plain = normalize(value).replace("`", "'")
    core = letters_and_digits(plain)
    if not core or plain in COMMON_WORDS:
        return f"'{plain}'" in text or (bool(core) and re.search(rf"= ?{plain}(?!\w)", text) is not None)
    if not core.isascii() or len(core) >= 8:
        # The set keeps the search linear in both lengths.
        flat, size = letters_and_digits(text), min(FRAGMENT, len(core))
        fragments = {flat[at : at + size] for at in range(len(flat) - size + 1)}
        if any(core[at : at + size] in fragments for at in range(len(core) - size + 1)):
            return True
    elif number is None:
        spans = _word_spans(text, plain)
        if not is_short(value) or (isinstance(value, str) and value[:1].isupper() and plain in proper):
            if any(True for _ in spans):
                return True
        elif any(is_used(text, *span, names) for span in spans):
            return True
    return states_date(text, plain) or states_time(text, plain)


def _word_spans(text: str, plain: str) -> Iterator[tuple[int, int]]:
    """Where a text has a short value as separate words, also spaced ("new-york"), but not "to be" for "tobe"."""
    words = [word for word in re.split("[ _-]+", plain) if word]
    pieces = [char for word in words for char in word] if len(letters_and_digits(plain)) > 2 else words
    pattern = "[ _-]*".join(map(re.escape, pieces))
    for match in re.finditer(rf"(?<!\w){pattern}(?!\w)", text):
        parts = re.split("[ _-]+", match[0])
        if parts == words or not COMMON_WORDS.issuperset(parts):
            yield match.span()


def _equal_forms(value: Any) -> set[str | float]:
    """Two values count as equal if they share one of these, as 3 and "3.0" do."""
    number = number_of(value)
    return {normalize(value)} if number is None else {normalize(value), number}


def _arguments(calls: Iterable[ToolCall]) -> Iterator[tuple[str, set[str], Any]]:
    """(parameter, words of the keys that lead to it, scalar) for every scalar of every argument."""
    for call in calls:
        for name, value in call.arguments.items():
            for path, node in walk_json(value):
                if not isinstance(node, Mapping | list | tuple):
                    yield name, _words([name, *path]), node


def _words(keys: Iterable[Any]) -> set[str]:
    """The words of parameter names, in the singular: of "num_seats" they are "num" and "seat"."""
    words = {word for key in keys for word in re.findall(r"[^\W_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", str(key)))}
    return {word.casefold().removesuffix("s") for word in words} - COMMON_WORDS - {""}


def _mappings(value: Any) -> list[Mapping[str, Any]]:
    return [node for _, node in walk_json(value) if isinstance(node, Mapping)]


def _keys(mappings: Iterable[Mapping[str, Any]]) -> set[str]:
    return {normalize(str(key)) for mapping in mappings for key in mapping}
