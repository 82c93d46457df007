"""Replies as dialogue messages, and dialogues as a chat endpoint takes them.

In our dialogues an assistant message's `content` is all that the policy wrote, structured calls written out in Hermes
format (see `play.Reply`). An OpenAI-compatible endpoint wants such calls beside the content, each answered by its id.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fission_grpo.core.chat import parse
from fission_grpo.core.json_io import NotJson, encodable, read_json
from fission_grpo.core.types import Message, ToolResult
from fission_grpo.inference.base import Reply


def assistant_message(reply: Reply) -> Message:
    """A reply as the dialogue keeps it."""
    message: dict[str, Any] = {"role": "assistant", "content": reply.text}
    return message | ({"tool_calls": list(reply.tool_calls)} if reply.tool_calls else {})


def result_messages(reply: Reply, results: Sequence[ToolResult]) -> list[Message]:
    """What the tools answered to a reply, with the ids of its structured calls where it has as many."""
    ids = [call.get("id") for call in reply.tool_calls]
    ids = ids if len(ids) == len(results) else [None] * len(results)
    return [_result(result.call.name, result.content, own) for result, own in zip(results, ids, strict=True)]


def unread_messages(reply: Reply, name: str, error: str) -> list[Message]:
    """A reply that could not be read is told why, as TRL words a tool's error; every structured call is told so.

    Args:
        reply: that could not be read.
        name: whose answer it is said to be.
        error: why, as `chat.parse` says it.
    """
    content = str({"error": error})
    return [_result(name, content, call.get("id")) for call in reply.tool_calls] or [_result(name, content, None)]


def hermes_text(content: str, tool_calls: Iterable[Mapping[str, Any]]) -> str:
    """What a chat endpoint's policy wrote as one text: its words, then its calls, arguments verbatim.

    Arguments that are no JSON stay so, and `chat.parse` says why they cannot be read. If they would end the block
    early and so read as something else, they are written as one JSON string, which reads as just as wrong.

    Example:
        `hermes_text("Hi", [{"function": {"name": "ls", "arguments": "{"}}])` is
        `'Hi\\n<tool_call>\\n{"name": "ls", "arguments": {}\\n</tool_call>'`
    """
    return "\n".join([*([content] if content else []), *map(_written, tool_calls)])


def without_last_end(text: str, tool_calls: Sequence[Mapping[str, Any]]) -> str:
    """A `hermes_text` whose last call was cut within its arguments, without that call's end; "" if it was not cut."""
    _, arguments = _parts(tool_calls[-1]) if tool_calls else (None, None)
    return text.removesuffix("}\n</tool_call>") if arguments is not None and not _is_json(arguments) else ""


def to_openai(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """A dialogue as `/v1/chat/completions` takes it.

    Calls are sent as `tool_calls`, with the arguments as the JSON text they came as, if each of them can be read and
    is answered before the next message (calls without ids get some). Servers refuse everything else: such calls stay
    text in the assistant's content, and tool results that answer nothing structured become user messages with
    `<tool_response>` blocks, as Qwen's template renders them.
    """
    sent: list[dict[str, Any]] = []
    at = 0
    while at < len(messages):
        message, end = messages[at], at + 1
        while end < len(messages) and messages[end]["role"] == "tool":
            end += 1
        results = messages[at + (message["role"] != "tool") : end]
        if message["role"] == "assistant":
            structured = _structured(message, results, len(sent))
            sent += structured or [{"role": "assistant", "content": _all_text(message)}, *_as_user(results)]
        elif message["role"] == "tool":
            sent += _as_user(results)
        else:
            sent += [{"role": message["role"], "content": message.get("content") or ""}, *_as_user(results)]
        at = end
    return _encodable(sent)


def tools_to_openai(tools: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Schemas as the API takes them, without what it does not know (`get_json_schema` tells what a tool returns)."""
    given = [tool.get("function", tool) for tool in tools]
    known = ("name", "description", "parameters")
    return [{"type": "function", "function": {key: one[key] for key in known if key in one}} for one in given]


def _result(name: str, content: str, call_id: Any) -> Message:
    message = {"role": "tool", "name": name, "content": content}
    return message if call_id is None else message | {"tool_call_id": call_id}


def _written(call: Mapping[str, Any]) -> str:
    name, arguments = _parts(call)
    if arguments is None:  # `chat.parse` says that there are none
        return f"<tool_call>\n{json.dumps({'name': name}, ensure_ascii=False)}\n</tool_call>"
    text = _block(name, arguments)
    if not _is_json(arguments) and parse(text).error is None:
        text = _block(name, json.dumps(arguments))
    return text


def _block(name: Any, arguments: str) -> str:
    return f'<tool_call>\n{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": {arguments}}}\n</tool_call>'


def _parts(call: Mapping[str, Any]) -> tuple[Any, str | None]:
    """Name and arguments' text of an entry of `tool_calls`, with or without the "function" level."""
    function = call.get("function", call)
    function = function if isinstance(function, Mapping) else {}
    arguments = function.get("arguments")
    if arguments is not None and not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return function.get("name"), arguments


def _is_json(text: str) -> bool:
    start = len(text) - len(text.lstrip())
    try:
        return not text[read_json(text, start, start)[1] :].strip()
    except NotJson:
        return False


def _all_text(message: Message) -> str:
    """Words and calls as one text, whether the content holds the calls already or not."""
    content = message.get("content") or ""
    calls = message.get("tool_calls") or ()
    return content if content.endswith(hermes_text("", calls)) else hermes_text(content, calls)


def _structured(message: Message, results: Sequence[Message], number: int) -> list[dict[str, Any]]:
    """An assistant message with structured calls and their results, [] where they cannot be sent as such."""
    calls = message.get("tool_calls") or ()
    parts = [_parts(call) for call in calls]
    if not calls or len(calls) != len(results):
        return []
    if not all(isinstance(name, str) and name and arguments and _is_object(arguments) for name, arguments in parts):
        return []
    ids = [call.get("id") for call in calls]
    answered = {result.get("tool_call_id"): result for result in results}
    if all(isinstance(one, str) and one for one in ids) and len(set(ids)) == len(ids) and set(ids) == set(answered):
        results = [answered[one] for one in ids]
    else:
        ids = [f"call_{number}_{position}" for position in range(len(ids))]
    content = (message.get("content") or "").removesuffix(hermes_text("", calls)).removesuffix("\n")
    entries = [
        {"id": one, "type": "function", "function": {"name": name, "arguments": arguments}}
        for one, (name, arguments) in zip(ids, parts, strict=True)
    ]
    answers = [
        {"role": "tool", "tool_call_id": one, "content": result.get("content") or ""}
        for one, result in zip(ids, results, strict=True)
    ]
    return [{"role": "assistant", "content": content or None, "tool_calls": entries}, *answers]


def _is_object(text: str) -> bool:
    return text.lstrip().startswith("{") and _is_json(text)


def _as_user(results: Sequence[Message]) -> list[dict[str, Any]]:
    blocks = [f"<tool_response>\n{result.get('content') or ''}\n</tool_response>" for result in results]
    return [{"role": "user", "content": "\n".join(blocks)}] if blocks else []


def _encodable(value: Any) -> Any:
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, Mapping):
        return {key: _encodable(inner) for key, inner in value.items()}
    return [_encodable(inner) for inner in value] if isinstance(value, list) else value
