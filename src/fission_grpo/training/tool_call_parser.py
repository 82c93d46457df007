"""Tool calls nobody can read are answered with an error, so that the policy can mend them within the episode.

TRL drops such a call and ends the episode without a word. Here the tokenizer's `parse_response`, which TRL asks for
the calls of a turn, turns it into a call of the first tool with the one argument `UNREADABLE`, which tools wrapped by
`answering` (or watched) refuse with the parser's message.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from fission_grpo.core.chat import parse
from fission_grpo.core.json_io import problem_in
from fission_grpo.core.types import UNREADABLE, ToolCall, Turn, UnreadableCall
from fission_grpo.training.trl_compat import parser_knows_tools, tools_of_every_row

_log = logging.getLogger(__name__)


_PROBE = {"type": "function", "function": {"name": "fission_probe", "arguments": {"key": "value"}}}


def answering(tool: Callable[..., Any]) -> Callable[..., Any]:
    """A tool function that answers unreadable calls; otherwise the same, with the same signature."""
    if inspect.iscoroutinefunction(tool):

        @functools.wraps(tool)
        async def call_async(*args: Any, **kwargs: Any) -> Any:
            _refuse(kwargs)
            return await tool(*args, **kwargs)

        return call_async

    @functools.wraps(tool)
    def call(*args: Any, **kwargs: Any) -> Any:
        _refuse(kwargs)
        return tool(*args, **kwargs)

    return call


def tell_unreadable(tokenizer: Any, tools: Sequence[Callable[..., Any]] = ()) -> bool:
    """Make a tokenizer's `parse_response` show calls that cannot be read. Returns whether it does so now.

    It does not for chat templates that write calls otherwise than as JSON in `<tool_call>` tags, whose valid calls
    our parser would not know. A call cut off at the length limit is left as it is: the episode ends there anyway.
    With any template it raises ValueError, which TRL takes as "no call", where it would raise what TRL does not
    expect (RecursionError), or where a call holds what is no JSON (NaN, unpaired surrogates, nesting beyond
    `json_text.MAX_DEPTH`): such values would end training later, in a tool, the tokenizer or a checkpoint. Calls that
    only our parser finds are made.

    Args:
        tokenizer: whose parser is wrapped, once.
        tools: that all rows have, for a TRL that does not tell the parser its row's tools (before 1.16). From the
            first one the policy hears of the unreadable call; none: it does not.
    """
    tokenizer._fission_tools = tuple(tools)
    told = getattr(tokenizer, "_fission_tells_unreadable", None)
    if told is not None:
        return told
    tells, original, schemas = _writes_our_format(tokenizer), tokenizer.parse_response, Schemas()

    @functools.wraps(original)
    def parse_response(response: Any, *args: Any, **kwargs: Any) -> Any:
        known = kwargs.get("tools") or tokenizer._fission_tools
        given = {**kwargs, "tools": schemas.of(kwargs["tools"])} if kwargs.get("tools") else kwargs
        message, fault = None, None
        try:
            message = original(response, *args, **given)
        except Exception as error:  # noqa: BLE001 - whatever a policy writes; TRL itself survives only two of these
            fault = error
        refused = None if message is None else _refused(message)
        if tells and known:
            turn = None if message is not None and _calls(message) else _read(tokenizer, response)
            reason = refused or (turn.error if turn is not None else None)
            if reason is not None:
                return _asking([ToolCall(_name(known[0]), {UNREADABLE: reason})])
            if turn is not None and turn.calls and not turn.truncated:  # as with "</tool_call>" within an argument
                return _asking(turn.calls, turn.content)
        if fault is not None or refused is not None:  # ValueError and TypeError are what TRL takes as "no call"
            raise fault if isinstance(fault, ValueError | TypeError) else ValueError(refused or repr(fault)) from fault
        return message

    tokenizer.parse_response, tokenizer._fission_tells_unreadable = parse_response, tells
    return tells


def tell_of_unreadable_calls(trainer: Any) -> None:
    """Let the policy of a trainer hear of calls that cannot be read, or warn that this is not possible."""
    answerers = tools_of_every_row(trainer)
    if not tell_unreadable(trainer._tokenizer, answerers):
        _log.warning("this chat template writes calls in a format of its own: unreadable ones end the episode")
    elif not answerers and not parser_knows_tools():
        _log.warning("environments share no tool, and TRL is older than 1.16: unreadable calls end the episode")


class Schemas:
    """JSON schemas of tool functions, made once; transformers makes them anew, from docstrings, for every turn read.

    That took 0.1 s of a starter policy's step of 2 s. Schemas do not change, so the key is the functions.
    """

    def __init__(self):
        self._known: dict[tuple[Any, ...], list[Any]] = {}

    def of(self, tools: Any) -> Any:
        """The schemas of a list of functions or methods; the list itself if it holds anything else."""
        if not all(inspect.isfunction(tool) or inspect.ismethod(tool) for tool in tools):
            return tools
        key = tuple(tools)
        if key not in self._known:
            from transformers.utils import get_json_schema

            self._known[key] = [get_json_schema(tool) for tool in tools]
        return self._known[key]


def _refuse(kwargs: Mapping[str, Any]) -> None:
    if UNREADABLE in kwargs:
        raise UnreadableCall(str(kwargs[UNREADABLE]))


def _asking(calls: Iterable[ToolCall], content: str = "") -> dict[str, Any]:
    """A turn with calls, as TRL takes it."""
    functions = [{"name": call.name, "arguments": dict(call.arguments)} for call in calls]
    tool_calls = [{"type": "function", "function": function} for function in functions]
    return {"role": "assistant", "content": content, "tool_calls": tool_calls}


def _read(tokenizer: Any, response: Any) -> Turn | None:
    """The turn (token ids) as our own parser reads it, None if there is none."""
    if not isinstance(response, list) or not response or not isinstance(response[-1], int):
        return None
    ended = response[-1] == tokenizer.eos_token_id
    text = tokenizer.decode(response[:-1] if ended else response, skip_special_tokens=False)
    return parse(text, truncated=not ended)


def _calls(message: Any) -> bool:
    """Whether a parsed message has calls that TRL will make."""
    functions = [call.get("function") for call in message.get("tool_calls") or () if isinstance(call, Mapping)]
    return bool(functions) and all(
        isinstance(f, Mapping) and isinstance(f.get("name"), str) and isinstance(f.get("arguments"), Mapping)
        for f in functions
    )


def _refused(message: Any) -> str | None:
    """Why calls that were read must not be made, None if they may."""
    calls = message.get("tool_calls") if isinstance(message, Mapping) else None
    for call in calls or ():
        function = call.get("function") if isinstance(call, Mapping) else None
        if isinstance(function, Mapping):
            if problem := problem_in([function.get("name"), function.get("arguments")]):
                return f"tool call is not valid JSON: {problem}"
            if UNREADABLE in (function.get("arguments") or ()):
                return f"unexpected argument `{UNREADABLE}`"
    return None


def _name(tool: Any) -> str:
    return tool.get("function", tool)["name"] if isinstance(tool, Mapping) else tool.__name__


def _writes_our_format(tokenizer: Any) -> bool:
    """Whether the chat template writes a tool call as `parse` reads it."""
    dialogue = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "", "tool_calls": [_PROBE]}]
    try:
        text = tokenizer.apply_chat_template(dialogue, tokenize=False)
    except Exception:  # noqa: BLE001 - templates raise what they like for dialogues they do not take
        return False
    calls = parse(text.split("assistant")[-1].rsplit("</tool_call>", 1)[0] + "</tool_call>").calls
    return [(call.name, dict(call.arguments)) for call in calls] == [("fission_probe", {"key": "value"})]
