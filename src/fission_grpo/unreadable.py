"""Tool calls nobody can read are answered with an error, so that the policy can mend them within the episode.

TRL drops such a call and ends the episode without a word. Here the tokenizer's `parse_response`, which TRL asks for
the calls of a turn, turns it into a call of the first tool with the one argument `UNREADABLE`, which tools wrapped by
`answering` (or watched) refuse with the parser's message.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fission_grpo.chat import parse

UNREADABLE = "_fission_unreadable"
"""Argument that stands for a call nobody could read; its value says why."""

_PROBE = {"type": "function", "function": {"name": "fission_probe", "arguments": {"key": "value"}}}


class UnreadableCall(ValueError):
    """The answer to a tool call that could not be read."""


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

    Args:
        tokenizer: whose parser is wrapped, once.
        tools: that all rows have, for a TRL that does not tell the parser its row's tools (before 1.16). From the
            first one the policy hears of the unreadable call; none: it does not.
    """
    tokenizer._fission_tools = tuple(tools)
    if getattr(tokenizer, "_fission_tells_unreadable", False):
        return True
    if not _writes_our_format(tokenizer):
        return False
    original, schemas = tokenizer.parse_response, Schemas()

    @functools.wraps(original)
    def parse_response(response: Any, *args: Any, **kwargs: Any) -> Any:
        known = kwargs.get("tools") or tokenizer._fission_tools
        try:
            given = {**kwargs, "tools": schemas.of(kwargs["tools"])} if kwargs.get("tools") else kwargs
            message = original(response, *args, **given)
        except (ValueError, TypeError):  # what TRL takes as "no call"
            message, reason = None, _reason(tokenizer, response)
            if reason is None or not known:
                raise
        else:
            reason = None if _calls(message) else _reason(tokenizer, response)
        if reason is None or not known:
            return message
        call = {"name": _name(known[0]), "arguments": {UNREADABLE: reason}}
        return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]}

    tokenizer.parse_response, tokenizer._fission_tells_unreadable = parse_response, True
    return True


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


def _reason(tokenizer: Any, response: Any) -> str | None:
    """Why the turn (token ids) cannot be read, None if it can, or was cut off."""
    if not isinstance(response, list) or not response or not isinstance(response[-1], int):
        return None
    ended = response[-1] == tokenizer.eos_token_id
    text = tokenizer.decode(response[:-1] if ended else response, skip_special_tokens=False)
    return parse(text, truncated=not ended).error


def _calls(message: Any) -> bool:
    """Whether a parsed message has calls that TRL will make."""
    functions = [call.get("function") for call in message.get("tool_calls") or () if isinstance(call, Mapping)]
    return bool(functions) and all(
        isinstance(f, Mapping) and isinstance(f.get("name"), str) and isinstance(f.get("arguments"), Mapping)
        for f in functions
    )


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
