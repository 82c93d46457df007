"""Deterministic feedback from the parser, the schema and, as privileged input, the reference calls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fission_grpo.core.json_io import quoted
from fission_grpo.core.rewards import is_bare_call, match_calls, same_value
from fission_grpo.core.tool_schema import check_call, parameter_schema, tool_names
from fission_grpo.core.types import ErrorKind, Failure, ToolCall
from fission_grpo.feedback.leak_guard import find_leak

MAX_LENGTH = 2_000  # longest feedback, in characters; the rest is cut off [ours]
MAX_FAULTS = 3  # most faults of a wrong call that `rules` names at once [ours]


def rules(failure: Failure) -> str | None:
    """Return the most specific feedback that does not give the answer away, None if there is none.

    For a wrong call the task's reference is privileged input: the text says which argument is wrong, missing or
    superfluous, or that another tool, more calls or fewer are needed, never a value or a tool's name. Where an episode
    reported no error (`low_reward`), its successful calls are compared with the expected ones, if there are any.

    Example:
        "error: `date` must match YYYY-MM-DD, got 1706745600"
    """
    for text in _wordings(failure):
        if text and find_leak(text[:MAX_LENGTH], failure) is None:
            return text[:MAX_LENGTH]
    return None


def _wordings(failure: Failure) -> Iterator[str]:
    """Wordings from specific to vague."""
    match failure.kind:
        case ErrorKind.UNPARSED:
            is_in_dialogue = failure.turns[-1].results  # the environment answered with these words
            yield failure.detail if is_in_dialogue else f"error: {failure.detail}"
            yield "error: the tool call could not be read"
        case ErrorKind.UNKNOWN_TOOL | ErrorKind.BAD_ARGUMENTS:
            yield from _schema_wordings(failure)
        case ErrorKind.RAISED:
            yield failure.detail
            yield "error: the tool reported an error"
        case ErrorKind.WRONG_CALL:
            yield from _comparison_wordings(failure, failure.calls)
            yield "error: the tool calls are not the right ones"
        case ErrorKind.LOW_REWARD if failure.reference is not None:
            results = [result for turn in failure.turns for result in turn.results]
            successful = [result.call for result in results if result.error is None]
            yield from _comparison_wordings(failure, successful, others_allowed=True)
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


def _comparison_wordings(failure: Failure, calls: Sequence[ToolCall], others_allowed: bool = False) -> Iterator[str]:
    """How calls differ from the reference, first with the values that they have, then without."""
    for quote_calls in (True, False):
        faults = list(_faults(calls, failure, quote_calls, others_allowed))
        yield "error: " + "; ".join(faults[:MAX_FAULTS]) if faults else ""


def _faults(calls: Sequence[ToolCall], failure: Failure, quote_calls: bool, others_allowed: bool) -> Iterator[str]:
    """How calls differ from the reference, without its values; with names and values of the calls if `quote_calls`.

    In an episode other calls are allowed, because they may have been made to look something up.
    """
    reference: Sequence[ToolCall] = failure.reference or ()
    if not calls:
        if reference:
            yield "a tool call is needed here, but none was made"
        else:
            yield "no tool call is needed here" if is_bare_call(failure.turns[-1].content) else "the answer is empty"
        return
    if not reference:
        yield "no tool call is needed here"
        return
    matched = {i: j for i, j, _ in match_calls(calls, reference)}
    superfluous = [call for i, call in enumerate(calls) if i not in matched and not others_allowed]
    num_missing = len(reference) - len(matched)
    for index, call in enumerate(superfluous):
        named = f" {quoted(call.name)}" if quote_calls else ""
        yield (
            f"another tool than{named or ' this'} is needed" if index < num_missing else f"a call{named} is not needed"
        )
    if num_missing > len(superfluous):
        yield "at least one more tool call is needed"
    for i, j in matched.items():
        where = f" in the call of {quoted(calls[i].name)}" if len(calls) > 1 and quote_calls else ""
        schema = next((tool for tool in failure.tools if tool_names([tool]) == [calls[i].name]), None)
        parameters = None if schema is None else set(parameter_schema(schema).get("properties", {}))
        for fault in _argument_faults(calls[i].arguments, reference[j].arguments, parameters, quote_calls):
            yield fault + where


def _argument_faults(
    given: Mapping[str, Any], expected: Mapping[str, Any], parameters: set[str] | None, quote_calls: bool
) -> Iterator[str]:
    """Faults by top-level parameter. A nested key is named only if the call wrote it: it may be part of the answer."""
    for name in given:
        if name not in expected:
            yield f"`{quoted(name)[1:-1]}` should not be given"
    for name, value in expected.items():
        if name not in given:
            is_public = parameters is None or name in parameters
            yield f"`{name}` is missing" if is_public else "an argument is missing"
        elif not same_value(given[name], value):
            path, inner, wanted = _locate_difference(name, given[name], value)
            if isinstance(inner, Mapping) and isinstance(wanted, Mapping) and inner.keys() < wanted.keys():
                yield f"`{path}` lacks a field"
            else:
                yield f"`{path}` is not right" + (f", got {quoted(inner)}" if quote_calls else "")


def _locate_difference(path: str, given: Any, expected: Any) -> tuple[str, Any, Any]:
    """The deepest path in the call that contains the complete difference, and both values there."""
    while isinstance(given, Mapping) and isinstance(expected, Mapping) and given.keys() == expected.keys():
        wrong = [key for key in given if not same_value(given[key], expected[key])]
        if len(wrong) != 1:
            break
        path, given, expected = f"{path}.{quoted(wrong[0])[1:-1]}", given[wrong[0]], expected[wrong[0]]
    return path, given, expected
