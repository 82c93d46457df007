"""Parse errors as tool results, so that the policy can correct a malformed tool call within the episode.

TRL drops a call that it cannot parse and ends the episode. Here the tokenizer's `parse_response`, which TRL uses to
read the calls of a turn, turns it into a call of the first tool with the one argument `PARSE_ERROR`. Tools wrapped by
`with_parse_errors` (and guarded environments) raise the parser's message for it.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from fission_grpo.core.chat import parse
from fission_grpo.core.json_io import problem_in
from fission_grpo.core.terminal import get_logger
from fission_grpo.core.timing import contained, contained_async
from fission_grpo.core.types import PARSE_ERROR, ToolCall, ToolCallParseError, Turn
from fission_grpo.envs.wrapper import from_blocks, readable_errors
from fission_grpo.training.trl_compat import parser_knows_tools, tools_of_every_row

_log = get_logger(__name__)


def with_parse_errors(
    tool: Callable[..., Any], takes_images: Callable[[], bool] = lambda: True, timeout: float = 0.0
) -> Callable[..., Any]:
    """Wrap a tool function so that malformed calls raise ToolCallParseError; its signature stays the same.

    As in guarded environments, arguments are copied, an error without a message gets its class's name, a list without
    images becomes text, and a call that ends the process or runs longer than `timeout` seconds (0: no limit) fails.
    """
    name = getattr(tool, "__name__", "a tool")
    if inspect.iscoroutinefunction(tool):

        @functools.wraps(tool)
        async def call_async(*args: Any, **kwargs: Any) -> Any:
            args, kwargs = _checked(args, kwargs)

            async def answer() -> Any:
                with readable_errors():
                    return from_blocks(await tool(*args, **kwargs), takes_images())

            return await contained_async(answer(), name, timeout)

        return call_async

    @functools.wraps(tool)
    def call(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = _checked(args, kwargs)

        def answer() -> Any:
            with readable_errors():
                return from_blocks(tool(*args, **kwargs), takes_images())

        return contained(answer, name, timeout)

    return call


def _checked(args: Any, kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
    """A copy of a call's arguments. Refuses unparsable calls."""
    if PARSE_ERROR in kwargs:
        raise ToolCallParseError(str(kwargs[PARSE_ERROR]))
    return copy.deepcopy((args, kwargs))


def enable_parse_errors(trainer: Any) -> None:
    """Report parse errors to a trainer's policy, or warn that this is not possible."""
    tools = tools_of_every_row(trainer)
    if not report_parse_errors(trainer._tokenizer, tools):
        _log.warning("this chat template writes calls in a format of its own: unreadable ones end the episode")
    elif not tools and not parser_knows_tools():
        _log.warning("environments share no tool, and TRL is older than 1.16: unreadable calls end the episode")


def report_parse_errors(tokenizer: Any, tools: Sequence[Callable[..., Any]] = ()) -> bool:
    """Replace a tokenizer's `parse_response` by one that reports malformed calls. A second call changes `tools` only.

    - Parse errors are reported for chat templates that write calls as JSON in `<tool_call>` tags. A call cut off at
      the length limit is not reported, as the episode ends there. Calls that only our parser finds are made.
    - For every template, errors that TRL does not expect (RecursionError) become ValueError, which TRL takes as "no
      call". So do calls that are no valid JSON (NaN, unpaired surrogates, nesting beyond `json_io.MAX_DEPTH`): such
      values would stop training later, in a tool, the tokenizer or a checkpoint.

    Args:
        tools: the tools that all rows have, for a TRL that does not pass a row's tools to the parser (before 1.16).

    Returns:
        Whether parse errors are reported for this chat template, as results of the first tool.
    """
    tokenizer._fission_tools = tuple(tools)
    reports = getattr(tokenizer, "_fission_reports_parse_errors", None)
    if reports is None:
        reports = tokenizer._fission_reports_parse_errors = _writes_our_format(tokenizer)
        tokenizer.parse_response = _reporting_parser(tokenizer, reports)
    return reports


def _reporting_parser(tokenizer: Any, reports: bool) -> Callable[..., Any]:
    original = tokenizer.parse_response

    @functools.wraps(original)
    def parse_response(response: Any, *args: Any, **kwargs: Any) -> Any:
        tools = kwargs.get("tools") or tokenizer._fission_tools
        if kwargs.get("tools"):
            kwargs["tools"] = tool_schemas(kwargs["tools"])
        message, error = None, None
        try:
            message = original(response, *args, **kwargs)
        except Exception as caught:  # noqa: BLE001 - a policy can write anything; TRL itself expects only two of these
            error = caught
        problem = _problem_in_calls(message)
        if reports and tools:
            turn = None if _has_valid_calls(message) else _parse_turn(tokenizer, response)
            reason = problem or (turn.error if turn is not None else None)
            if reason is not None:
                tool = tools[0]
                name = tool.get("function", tool)["name"] if isinstance(tool, Mapping) else tool.__name__
                return _message_with([ToolCall(name, {PARSE_ERROR: reason})])
            if turn is not None and turn.calls and not turn.truncated:  # as with "</tool_call>" within an argument
                return _message_with(turn.calls, turn.content)
        if isinstance(error, ValueError | TypeError):  # what TRL takes as "no call"
            raise error
        if error is not None or problem is not None:
            raise ValueError(problem or repr(error)) from error
        return message

    return parse_response


def tool_schemas(tools: Any) -> Any:
    """The JSON schemas of a list of functions or methods; the list itself if it holds anything else."""
    if all(inspect.isfunction(tool) or inspect.ismethod(tool) for tool in tools):
        return _schemas_of(tuple(tools))
    return tools


@functools.lru_cache(maxsize=512)  # else made for every turn: 0.1 s of a starter policy's step of 2 s
def _schemas_of(tools: tuple[Any, ...]) -> list[Any]:
    from transformers.utils import get_json_schema

    return [get_json_schema(tool) for tool in tools]


def _message_with(calls: Iterable[ToolCall], content: str = "") -> dict[str, Any]:
    functions = [{"name": call.name, "arguments": dict(call.arguments)} for call in calls]
    tool_calls = [{"type": "function", "function": function} for function in functions]
    return {"role": "assistant", "content": content, "tool_calls": tool_calls}


def _parse_turn(tokenizer: Any, response: Any) -> Turn | None:
    """The turn as our parser reads it; None if `response` is no list of token ids."""
    if not isinstance(response, list) or not response or not isinstance(response[-1], int):
        return None
    ended = response[-1] == tokenizer.eos_token_id
    text = tokenizer.decode(response[:-1] if ended else response, skip_special_tokens=False)
    return parse(text, truncated=not ended)


def _functions(message: Any) -> list[Any]:
    """The `function` of each call of a parsed message."""
    calls = message.get("tool_calls") if isinstance(message, Mapping) else None
    return [call.get("function") for call in calls or () if isinstance(call, Mapping)]


def _has_valid_calls(message: Any) -> bool:
    """Whether a parsed message has calls, all of which TRL will make."""
    functions = _functions(message)
    return bool(functions) and all(
        isinstance(f, Mapping) and isinstance(f.get("name"), str) and isinstance(f.get("arguments"), Mapping)
        for f in functions
    )


def _problem_in_calls(message: Any) -> str | None:
    """The reason why parsed calls must not be made, None if they may."""
    for function in _functions(message):
        if isinstance(function, Mapping):
            if problem := problem_in([function.get("name"), function.get("arguments")]):
                return f"tool call is not valid JSON: {problem}"
            if PARSE_ERROR in (function.get("arguments") or ()):
                return f"unexpected argument `{PARSE_ERROR}`"
    return None


def _writes_our_format(tokenizer: Any) -> bool:
    """Whether the chat template writes a tool call as `parse` reads it."""
    probe = ToolCall("fission_probe", {"key": "value"})
    dialogue = [{"role": "user", "content": "x"}, _message_with([probe])]
    try:
        text = tokenizer.apply_chat_template(dialogue, tokenize=False)
    except Exception:  # noqa: BLE001 - a template can raise anything for a dialogue that it does not support
        return False
    return parse(text.split("assistant")[-1].rsplit("</tool_call>", 1)[0] + "</tool_call>").calls == (probe,)
