"""Conversion between our dialogues and the messages of an OpenAI-compatible endpoint.

In our dialogues an assistant message's `content` is the complete text of the turn, structured calls included in Hermes
format (see `Reply`). An endpoint sends and expects such calls beside the content, each answered by its id.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import takewhile
from typing import Any

from fission_grpo.core.chat import parse
from fission_grpo.core.json_io import NotJson, encodable, read_json
from fission_grpo.core.terminal import get_logger
from fission_grpo.core.types import Message, ToolResult
from fission_grpo.inference.base import Reply

_log = get_logger(__name__)

MAX_TOKEN_COUNT = 10**9
"""Largest number of tokens that is believed of one reply. [ours] A thousand times the longest context."""

MAX_CHARACTERS = 200_000
"""Longest reply that is kept, in characters. [ours] A hundred times the longest useful turn."""


def assistant_message(reply: Reply) -> Message:
    """Return a reply as a message of the dialogue."""
    message: dict[str, Any] = {"role": "assistant", "content": reply.text}
    return message | ({"tool_calls": list(reply.tool_calls)} if reply.tool_calls else {})


def result_messages(reply: Reply, results: Sequence[ToolResult]) -> list[Message]:
    """Return the tool results of a reply as messages, with the ids of its structured calls if their numbers agree."""
    calls = reply.tool_calls if len(reply.tool_calls) == len(results) else [{}] * len(results)
    return [_tool_message(result.call.name, result.content, call) for result, call in zip(results, calls, strict=True)]


def unread_messages(reply: Reply, name: str, error: str) -> list[Message]:
    """Return the error of `chat.parse` as tool messages, worded as TRL does; one for each structured call."""
    return [_tool_message(name, str({"error": error}), call) for call in reply.tool_calls or [{}]]


def _tool_message(name: str, content: str, call: Mapping[str, Any]) -> Message:
    message = {"role": "tool", "name": name, "content": content}
    return message if call.get("id") is None else message | {"tool_call_id": call["id"]}


def to_openai(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return a dialogue as `/v1/chat/completions` takes it.

    Calls are sent as `tool_calls` if each of them is valid JSON and is answered before the next message (missing ids
    are filled in). Servers refuse everything else. Other calls stay text in the assistant's content, and their results
    become user messages with `<tool_response>` blocks, as Qwen's template renders them.
    """
    converted = _as_user(_leading_results(messages))
    for at, message in enumerate(messages):
        results = _leading_results(messages[at + 1 :])
        if message["role"] == "assistant":
            converted += _structured_turn(message, results, len(converted)) or [
                {"role": "assistant", "content": _full_text(message)},
                *_as_user(results),
            ]
        elif message["role"] != "tool":
            converted += [{"role": message["role"], "content": message.get("content") or ""}, *_as_user(results)]
    return json.loads(encodable(json.dumps(converted, ensure_ascii=False)))


def tools_to_openai(tools: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return tool schemas as the API takes them, without unknown fields such as `return` of `get_json_schema`."""
    known = ("name", "description", "parameters")
    schemas = [tool.get("function", tool) for tool in tools]
    return [{"type": "function", "function": {key: tool[key] for key in known if key in tool}} for tool in schemas]


def _leading_results(messages: Sequence[Message]) -> list[Message]:
    return list(takewhile(lambda message: message["role"] == "tool", messages))


def _as_user(results: Sequence[Message]) -> list[dict[str, Any]]:
    blocks = [f"<tool_response>\n{result.get('content') or ''}\n</tool_response>" for result in results]
    return [{"role": "user", "content": "\n".join(blocks)}] if blocks else []


def _full_text(message: Message) -> str:
    """Content and calls as one text, whether or not the content includes the calls."""
    content = message.get("content") or ""
    calls = message.get("tool_calls") or ()
    return content if content.endswith(_hermes_text("", calls)) else _hermes_text(content, calls)


def _structured_turn(message: Message, results: Sequence[Message], number: int) -> list[dict[str, Any]]:
    """An assistant message with structured calls and their results; [] where they cannot be sent in this form."""
    calls = message.get("tool_calls") or ()
    functions = []
    for call in calls:
        name, arguments = _name_and_arguments(call)
        if not (
            isinstance(name, str) and name and arguments and arguments.lstrip()[:1] == "{" and _is_json(arguments)
        ):
            return []
        functions.append({"name": name, "arguments": arguments})
    if not calls or len(calls) != len(results):
        return []
    ids = [call.get("id") for call in calls]
    by_id = {result.get("tool_call_id"): result for result in results}
    are_texts = all(isinstance(call_id, str) and call_id for call_id in ids)
    if not are_texts or by_id.keys() != set(ids) or len(by_id) < len(ids):
        ids = [f"call_{number}_{position}" for position in range(len(calls))]
        by_id = dict(zip(ids, results, strict=True))
    content = (message.get("content") or "").removesuffix(_hermes_text("", calls)).removesuffix("\n")
    entries = [
        {"id": call_id, "type": "function", "function": function}
        for call_id, function in zip(ids, functions, strict=True)
    ]
    answers = [
        {"role": "tool", "tool_call_id": call_id, "content": by_id[call_id].get("content") or ""} for call_id in ids
    ]
    return [{"role": "assistant", "content": content or None, "tool_calls": entries}, *answers]


class UnreadableResponse(Exception):
    """The response holds no completion. `reason` is "not JSON", "no choices" or "malformed"."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason


def read_completion(body: bytes, content_type: str = "") -> Reply:
    """Read the body of a chat completion or of a raw completion. Raises UnreadableResponse if it is neither.

    Null content without calls is an empty turn. A refusal is read as content. Separate thoughts
    (`reasoning_content`) are dropped. A call that the length limit cut is written unclosed, as a local model would
    have left it; such a reply has no structured calls.
    """
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        kind = content_type.partition(";")[0].strip() or "no content type"
        raise UnreadableResponse("not JSON", f"{kind}: {error}") from None
    choices = document.get("choices") if isinstance(document, dict) else None
    if not isinstance(choices, list) or not choices:
        raise UnreadableResponse("no choices", json.dumps(document))
    choice = _expect(dict, choices[0], "the first choice")
    message = _expect(dict, choice.get("message", {"content": choice.get("text")}), "the message")
    calls = tuple(_expect(list, message.get("tool_calls") or [], "tool_calls"))
    for call in calls:
        _expect(dict, call, "a tool call")
    text = encodable(_hermes_text(_content_text(message), calls))
    at_limit = choice.get("finish_reason") == "length"
    arguments = _name_and_arguments(calls[-1])[1] if calls else None
    if at_limit and arguments is not None and not _is_json(arguments):
        text, calls = text.removesuffix("}\n</tool_call>"), ()
    is_cut = len(text) > MAX_CHARACTERS
    read, written = _token_counts(document.get("usage"))
    return Reply(
        text=text[:MAX_CHARACTERS],
        tokens=written,
        truncated=at_limit or is_cut,
        tool_calls=() if is_cut else calls,
        prompt_tokens=read,
    )


def _expect(kind: type, value: Any, name: str) -> Any:
    if not isinstance(value, kind):
        raise UnreadableResponse("malformed", f"{name} is no {'list' if kind is list else 'object'}")
    return value


def _content_text(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if content is None:
        refusal = message.get("refusal")
        return refusal if isinstance(refusal, str) else ""
    if isinstance(content, list):  # parts, of which only texts are used
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    if not isinstance(content, str):
        raise UnreadableResponse("malformed", f"the content is {type(content).__name__}, not text")
    return content


def _token_counts(usage: Any) -> tuple[int | None, int]:
    """Tokens read and written; (None, 0), which is uncounted, if a server gives none or what no counter can show."""
    if not isinstance(usage, dict) or "completion_tokens" not in usage:
        return None, 0
    counts = [usage.get("prompt_tokens", 0), usage["completion_tokens"]]
    if all(type(count) is int and 0 <= count <= MAX_TOKEN_COUNT for count in counts):
        return counts[0], counts[1]
    _warn_about_counts()
    return None, 0


@lru_cache(maxsize=1)
def _warn_about_counts() -> None:
    _log.warning("an endpoint's token counts are no numbers of tokens; such replies are treated as uncounted")


def _hermes_text(content: str, tool_calls: Iterable[Mapping[str, Any]]) -> str:
    """Content and structured calls as one text with the arguments verbatim.

    Arguments that are no JSON stay unchanged, and `chat.parse` explains the error. If they would end the block early
    and so be read as something else, they are written as one JSON string, which is an error as well.
    """
    parts = [content] if content else []
    for call in tool_calls:
        name, arguments = _name_and_arguments(call)
        shown_name = json.dumps(name, ensure_ascii=False)
        if arguments is None:  # `chat.parse` reports the missing arguments
            parts.append(f'<tool_call>\n{{"name": {shown_name}}}\n</tool_call>')
            continue
        block = f'<tool_call>\n{{"name": {shown_name}, "arguments": {arguments}}}\n</tool_call>'
        if not _is_json(arguments) and parse(block).error is None:
            block = f'<tool_call>\n{{"name": {shown_name}, "arguments": {json.dumps(arguments)}}}\n</tool_call>'
        parts.append(block)
    return "\n".join(parts)


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
