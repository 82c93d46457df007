"""A deterministic diagnosis from the parser, the schema and, as privileged input, the reference calls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fission_grpo.core.json_io import quoted
from fission_grpo.core.rewards import match_calls, same_value
from fission_grpo.core.tool_schema import check_call, parameter_schema, tool_names
from fission_grpo.core.types import ErrorKind, Failure, ToolCall
from fission_grpo.feedback.leak_guard import leak_in

MAX_LENGTH = 2_000
"""Longest feedback, in characters; the rest is cut off. [ours]"""


MAX_NAMED = 3
"""Most faults of a wrong call that `rules` names at once. [ours]"""


def rules(failure: Failure) -> str | None:
    """A deterministic diagnosis that is as specific as it can be without giving the answer away.

    For a wrong call the task's reference is privileged input: the text says which argument is off, missing or one too
    many, or that another tool, more calls or fewer are needed, never a value or a tool's name. Of several wordings,
    from specific to vague, it takes the first that `leaks` passes. None if there is none. Where an episode reported no
    error (`low_reward`), the calls that worked are compared with those its environment expects, if it knows them.

    Example:
        "error: `date` must match YYYY-MM-DD, got 1706745600"; "error: `units` is not right, got 'kelvin'".
    """
    for text in _wordings(failure):
        if text and leak_in(text[:MAX_LENGTH], failure) is None:
            return text[:MAX_LENGTH]
    return None


def _wordings(failure: Failure) -> Iterator[str]:
    """What could be said of a failure, from specific to vague."""
    match failure.kind:
        case ErrorKind.UNPARSED:
            told = failure.turns[-1].results  # the policy has been told already, in these words
            yield failure.detail if told else f"error: {failure.detail}"
            yield "error: the tool call could not be read"
        case ErrorKind.UNKNOWN_TOOL | ErrorKind.BAD_ARGUMENTS:
            yield from _schema_wordings(failure)
        case ErrorKind.RAISED:
            yield failure.detail
            yield "error: the tool reported an error"
        case ErrorKind.WRONG_CALL:
            yield from _compared(failure, failure.calls)
            yield "error: the tool calls are not the right ones"
        case ErrorKind.LOW_REWARD if failure.reference is not None:
            results = [result for turn in failure.turns for result in turn.results]
            worked = [result.call for result in results if result.error is None]
            yield from _compared(failure, worked, others_allowed=True)
        case ErrorKind.NO_CALL:
            yield "error: a tool call is needed here, but none was made"
        case ErrorKind.TRUNCATED:
            yield "error: the answer was cut off at its length limit; keep it shorter"
        case ErrorKind.OUT_OF_TURNS:
            yield "error: the task was not finished within the turns allowed"


def _schema_wordings(failure: Failure) -> Iterator[str]:
    calls, tools = failure.calls, failure.tools
    problem = None
    if tools and failure.call_index is not None and failure.call_index < len(calls):
        problem = check_call(calls[failure.call_index], tools)
    if problem:
        yield f"error: {problem.message}"
    if failure.detail and not (problem and problem.message == failure.detail):
        yield failure.detail
    if problem and problem.parameter:
        yield f"error: `{problem.parameter}` does not fit the tool's schema"
    if failure.kind == ErrorKind.UNKNOWN_TOOL:
        yield "error: there is no tool of that name"
    yield "error: the arguments do not fit the tool's schema"


def _compared(failure: Failure, calls: Sequence[ToolCall], others_allowed: bool = False) -> Iterator[str]:
    """How calls differ from the reference, first with what they have instead, then without."""
    for told in (True, False):
        faults = list(_faults(calls, failure, told, others_allowed))
        yield "error: " + "; ".join(faults[:MAX_NAMED]) if faults else ""


def _faults(calls: Sequence[ToolCall], failure: Failure, told: bool, others_allowed: bool) -> Iterator[str]:
    """How calls differ from the reference, in words without its values; with what the calls have instead if `told`.

    In an episode other calls are allowed, as they may have been made to find something out.
    """
    reference: Sequence[ToolCall] = failure.reference or ()
    if not calls:
        yield "a tool call is needed here, but none was made" if reference else "the answer is empty"
        return
    if not reference:
        yield "no tool call is needed here"
        return
    matched = {i: j for i, j, _ in match_calls(calls, reference)}
    spare = [call for i, call in enumerate(calls) if i not in matched and not others_allowed]
    lacking = len(reference) - len(matched)
    for index, call in enumerate(spare):
        named = f" {quoted(call.name)}" if told else ""
        yield f"another tool than{named or ' this'} is needed" if index < lacking else f"a call{named} is not needed"
    if lacking > len(spare):
        yield "at least one more tool call is needed"
    for i, j in matched.items():
        where = f" in the call of {quoted(calls[i].name)}" if len(calls) > 1 and told else ""
        for fault in _argument_faults(
            calls[i].arguments, reference[j].arguments, _known(calls[i], failure.tools), told
        ):
            yield fault + where


def _known(call: ToolCall, tools: Sequence[Mapping[str, Any]]) -> set[str] | None:
    """The parameters that a tool's schema names, None if there is no schema to ask."""
    for name, tool in zip(tool_names(tools), tools, strict=True):
        if name == call.name:
            return set(parameter_schema(tool).get("properties", {}))
    return None


def _argument_faults(
    given: Mapping[str, Any], expected: Mapping[str, Any], known: set[str] | None, told: bool
) -> Iterator[str]:
    """Faults by top-level parameter. A nested key is named only if the call wrote it: it may be part of the answer."""
    for name in given:
        if name not in expected:
            yield f"`{quoted(name)[1:-1]}` should not be given"
    for name, value in expected.items():
        if name not in given:
            public = known is None or name in known
            yield f"`{name}` is missing" if public else "an argument is missing"
        elif not same_value(given[name], value):
            path, inner, wanted = _where(name, given[name], value)
            if isinstance(inner, Mapping) and isinstance(wanted, Mapping) and inner.keys() < wanted.keys():
                yield f"`{path}` lacks a field"
            else:
                yield f"`{path}` is not right" + (f", got {quoted(inner)}" if told else "")


def _where(path: str, given: Any, expected: Any) -> tuple[str, Any, Any]:
    """The deepest path that the call wrote and that holds all of the difference, and both values there."""
    while isinstance(given, Mapping) and isinstance(expected, Mapping) and given.keys() == expected.keys():
        wrong = [key for key in given if not same_value(given[key], expected[key])]
        if len(wrong) != 1:
            break
        path, given, expected = f"{path}.{quoted(wrong[0])[1:-1]}", given[wrong[0]], expected[wrong[0]]
    return path, given, expected
