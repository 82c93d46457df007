"""Does a diagnosis say where the fault is? It names the called tool, a parameter, a value written, or the form."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from fission_grpo.diagnose import FIXED_TEXT
from fission_grpo.json_text import quoted
from fission_grpo.schema import parameter_schema, tool_names
from fission_grpo.trajectory import ErrorKind, Failure

_COMMON = "a b by call data error format id input key message name number of text to tool type value x y"
COMMON = frozenset(_COMMON.split())
"""Parameter names that any error message may hold by chance: they count in quotes or backticks only. [ours]"""

_FORM: Mapping[ErrorKind, str] = {
    ErrorKind.UNPARSED: r"\b(json|call|tool_call|closed?|brace|bracket|quote|arguments?)\b|<",
    ErrorKind.NO_CALL: r"\b(call|tool)\w*",
    ErrorKind.TRUNCATED: r"\b(cut|truncated|length|limit|short\w*|long)\b",
    ErrorKind.OUT_OF_TURNS: r"\b(turns?|steps?|finish\w*)\b",
}
"""Where no call is at fault but the turn's form, what a text must speak of. [ours]"""


def is_specific(text: str, failure: Failure) -> bool:
    """Whether a diagnosis says where the fault is. See `named_by`.

    Example:
        "error: `priority` is not right" is specific of a call with `priority`, `FIXED_TEXT` of nothing.
    """
    return named_by(text, failure) is not None


def named_by(text: str, failure: Failure) -> str | None:
    """How a diagnosis points at the fault: "tool", "parameter", "value" or "form"; None if it does not.

    Args:
        text: the diagnosis.
        failure: what it is about. The parameters in question are those of the tools that the failed turn called, as
            their schemas and the calls themselves name them, with "_" or a space between words; the values are what
            the calls wrote (texts of three or more characters and numbers). If the turn has no calls (unreadable,
            none made, cut off), or none is needed, speaking of the form is specific.
    """
    if text.strip() == FIXED_TEXT:
        return None
    plain = text.casefold()
    if any(_holds(plain, call.name) for call in failure.calls):
        return "tool"
    if any(_holds(plain, name) for name in _parameters(failure)):
        return "parameter"
    if any(_holds(plain, value) for call in failure.calls for value in _values(call.arguments)):
        return "value"
    needless = bool(failure.calls) and failure.reference == ()
    form = _FORM[ErrorKind.NO_CALL] if needless else _FORM.get(failure.kind)
    whole = needless or not failure.calls or failure.kind is ErrorKind.TRUNCATED
    return "form" if form and whole and re.search(form, plain) else None


def _parameters(failure: Failure) -> set[str]:
    called = {call.name for call in failure.calls}
    names = {name for call in failure.calls for name in call.arguments}
    for name, tool in zip(tool_names(failure.task.tools), failure.task.tools, strict=True):
        if name in called:
            names |= set(parameter_schema(tool).get("properties", {}))
    return names


def _values(arguments: Any) -> Iterator[str]:
    """The texts of three or more characters and the numbers in a call's arguments."""
    waiting = [arguments]
    while waiting:
        item = waiting.pop()
        if isinstance(item, Mapping):
            waiting += item.values()
        elif isinstance(item, list | tuple):
            waiting += item
        elif isinstance(item, str) and len(item.strip()) > 2:
            yield item.strip()
        elif isinstance(item, int | float) and not isinstance(item, bool):
            yield quoted(item)


def _holds(plain: str, name: str) -> bool:
    """Whether a text in lower case holds a name as a whole word; a very common word only in quotes."""
    name = name.casefold()
    if not name:
        return False
    if name in COMMON:
        return re.search(rf"[`'\"]{re.escape(name)}[`'\"]", plain) is not None
    spelled = "[ _-]".join(map(re.escape, re.split(r"[ _-]", name)))
    return re.search(rf"(?<!\w){spelled}(?!\w)", plain) is not None
