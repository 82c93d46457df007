"""Conversion between our dialogues and the messages of an OpenAI-compatible endpoint.

In our dialogues an assistant message's `content` is the complete text of the turn, structured calls included in Hermes
format (see `Reply`). An endpoint sends and expects such calls beside the content, each answered by its id.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fission_grpo.core.chat import parse
from fission_grpo.core.json_io import NotJson, encodable, read_json
from fission_grpo.core.types import Message, ToolResult
from fission_grpo.inference.base import Reply

MAX_CHARACTERS = 200_000
"""Longest reply that is kept, in characters. [ours] A hundred times the longest useful turn."""


def assistant_message(reply: Reply) -> Message:
    """Return a reply as a message of the dialogue."""
    message: dict[str, Any] = {"role": "assistant", "content": reply.text}
    return message | ({"tool_calls": list(reply.tool_calls)} if reply.tool_calls else {})


def result_messages(reply: Reply, results: Sequence[ToolResult]) -> list[Message]:
    """Return the tool results of a reply as messages, with the ids of its structured calls if their numbers agree."""
    ids = [call.get("id") for call in reply.tool_calls]
    ids = ids if len(ids) == len(results) else [None] * len(results)
    return [
        _tool_message(result.call.name, result.content, call_id) for result, call_id in zip(results, ids, strict=True)
    ]


def unread_messages(reply: Reply, name: str, error: str) -> list[Message]:
    """Return the parse error of a reply as tool messages, worded as TRL does; one for each structured call.

    Args:
        reply: the reply that could not be parsed.
        name: tool name of the messages.
        error: as `chat.parse` words it.
    """
    content = str({"error": error})
    messages = [_tool_message(name, content, call.get("id")) for call in reply.tool_calls]
    return messages or [_tool_message(name, content, None)]


def hermes_text(content: str, tool_calls: Iterable[Mapping[str, Any]]) -> str:
    """Return content and structured calls as one text with the arguments verbatim.

    Arguments that are no JSON stay unchanged, and `chat.parse` explains the error. If they would end the block early
    and so be read as something else, they are written as one JSON string, which is an error as well.

    Example:
        `hermes_text("Hi", [{"function": {"name": "ls", "arguments": "{"}}])` is
        `'Hi\\n<tool_call>\\n{"name": "ls", "arguments": {}\\n</tool_call>'`
    """
    return "\n".join([*([content] if content else []), *map(_call_block, tool_calls)])


def to_openai(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return a dialogue as `/v1/chat/completions` takes it.

    Calls are sent as `tool_calls` if each of them is valid JSON and is answered before the next message (missing ids
    are filled in). Servers refuse everything else. Other calls stay text in the assistant's content, and their results
    become user messages with `<tool_response>` blocks, as Qwen's template renders them.
    """
    converted: list[dict[str, Any]] = []
    at = 0
    while at < len(messages):
        message, end = messages[at], at + 1
        while end < len(messages) and messages[end]["role"] == "tool":
            end += 1
        results = messages[at + (message["role"] != "tool") : end]
        if message["role"] == "assistant":
            structured = _structured_turn(message, results, len(converted))
            converted += structured or [{"role": "assistant", "content": _full_text(message)}, *_as_user(results)]
        elif message["role"] == "tool":
            converted += _as_user(results)
        else:
            converted += [{"role": message["role"], "content": message.get("content") or ""}, *_as_user(results)]
        at = end
    return _encodable(converted)


def tools_to_openai(tools: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return tool schemas as the API takes them, without unknown fields such as `return` of `get_json_schema`."""
    known = ("name", "description", "parameters")
    schemas = [tool.get("function", tool) for tool in tools]
    return [{"type": "function", "function": {key: tool[key] for key in known if key in tool}} for tool in schemas]


class UnreadableResponse(Exception):
    """The response holds no completion. `reason` is "not JSON", "no choices" or "malformed"."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason


def read_completion(body: bytes, content_type: str = "") -> Reply:
    """Read the body of a chat completion or of a raw completion.

    Null content without calls is an empty turn. A refusal is read as content. Separate thoughts
    (`reasoning_content`) are dropped. A call that the length limit cut is written unclosed, as a local model would
    have left it; such a reply has no structured calls.

    Raises:
        UnreadableResponse: the body is neither.
    """
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        kind = content_type.partition(";")[0].strip() or "no content type"
        raise UnreadableResponse("not JSON", f"{kind}: {error}") from None
    choices = document.get("choices") if isinstance(document, dict) else None
    if not isinstance(choices, list) or not choices:
        raise UnreadableResponse("no choices", json.dumps(document))
    choice = _expect_object(choices[0], "the first choice")
    message = _expect_object(choice.get("message", {"content": choice.get("text")}), "the message")
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list):
        raise UnreadableResponse("malformed", "tool_calls is no list")
    calls = tuple(_expect_object(call, "a tool call") for call in calls)
    content = message.get("content")
    if content is None and isinstance(message.get("refusal"), str):
        content = message["refusal"]
    text, at_limit = encodable(hermes_text(_content_text(content), calls)), choice.get("finish_reason") == "length"
    if at_limit and (unclosed := _without_last_end(text, calls)):
        text, calls = unclosed, ()
    is_cut = len(text) > MAX_CHARACTERS
    usage = document.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    return Reply(
        text=text[:MAX_CHARACTERS],
        tokens=_token_count(usage.get("completion_tokens")),
        truncated=at_limit or is_cut,
        tool_calls=() if is_cut else calls,
        prompt_tokens=_token_count(usage.get("prompt_tokens")) if "completion_tokens" in usage else None,
    )


def _expect_object(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UnreadableResponse("malformed", f"{name} is no object")
    return value


def _content_text(content: Any) -> str:
    if isinstance(content, list):  # parts, of which only texts are used
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    if not isinstance(content, str | None):
        raise UnreadableResponse("malformed", f"the content is {type(content).__name__}, not text")
    return content or ""


def _token_count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0


def _without_last_end(text: str, tool_calls: Sequence[Mapping[str, Any]]) -> str:
    """A `hermes_text` whose last call was cut within its arguments, without that call's end; "" if it was not cut."""
    _, arguments = _name_and_arguments(tool_calls[-1]) if tool_calls else (None, None)
    return text.removesuffix("}\n</tool_call>") if arguments is not None and not _is_json(arguments) else ""


def _tool_message(name: str, content: str, call_id: Any) -> Message:
    message = {"role": "tool", "name": name, "content": content}
    return message if call_id is None else message | {"tool_call_id": call_id}


def _call_block(call: Mapping[str, Any]) -> str:
    name, arguments = _name_and_arguments(call)
    shown_name = json.dumps(name, ensure_ascii=False)
    if arguments is None:  # `chat.parse` reports the missing arguments
        return f'<tool_call>\n{{"name": {shown_name}}}\n</tool_call>'
    block = f'<tool_call>\n{{"name": {shown_name}, "arguments": {arguments}}}\n</tool_call>'
    if _is_json(arguments) or parse(block).error is not None:
        return block
    return f'<tool_call>\n{{"name": {shown_name}, "arguments": {json.dumps(arguments)}}}\n</tool_call>'


def _name_and_arguments(call: Mapping[str, Any]) -> tuple[Any, str | None]:
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


def _full_text(message: Message) -> str:
    """Content and calls as one text, whether or not the content includes the calls."""
    content = message.get("content") or ""
    calls = message.get("tool_calls") or ()
    return content if content.endswith(hermes_text("", calls)) else hermes_text(content, calls)


def _structured_turn(message: Message, results: Sequence[Message], number: int) -> list[dict[str, Any]]:
    """An assistant message with structured calls and their results; [] where they cannot be sent in this form."""
    calls = message.get("tool_calls") or ()
    parts = [_name_and_arguments(call) for call in calls]
    if not calls or len(calls) != len(results):
        return []
    if not all(isinstance(name, str) and name and arguments and _is_object(arguments) for name, arguments in parts):
        return []
    ids = [call.get("id") for call in calls]
    by_id = {result.get("tool_call_id"): result for result in results}
    if (
        all(isinstance(call_id, str) and call_id for call_id in ids)
        and len(by_id) == len(ids)
        and set(ids) == set(by_id)
    ):
        results = [by_id[call_id] for call_id in ids]
    else:
        ids = [f"call_{number}_{position}" for position in range(len(ids))]
    content = (message.get("content") or "").removesuffix(hermes_text("", calls)).removesuffix("\n")
    entries = [
        {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
        for call_id, (name, arguments) in zip(ids, parts, strict=True)
    ]
    answers = [
        {"role": "tool", "tool_call_id": call_id, "content": result.get("content") or ""}
        for call_id, result in zip(ids, results, strict=True)
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
