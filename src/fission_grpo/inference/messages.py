"""Conversion between our dialogues and the messages of an OpenAI-compatible endpoint.

In our dialogues an assistant message's `content` is the complete text of the turn, structured calls included in Hermes
format (see `Reply`). An endpoint sends and expects such calls beside the content, each answered by its id.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice, takewhile
from typing import Any

from fission_grpo.core.chat import beside_calls
from fission_grpo.core.json_io import NotJson, encodable, read_json
from fission_grpo.core.messages import (
    MessageError,
    call_entries,
    call_in_other_form,
    call_text,
    is_json,
    lacks_arguments,
    name_and_arguments,
    read_content,
)
from fission_grpo.core.terminal import get_logger, warn_once
from fission_grpo.core.tool_schema import parameter_schema, tool_names
from fission_grpo.core.types import Message, ToolResult
from fission_grpo.inference.base import Reply

_log = get_logger(__name__)

MAX_TOKEN_COUNT = 10**9
"""Largest number of tokens that is believed of one reply. [ours] A thousand times the longest context."""

MAX_CHARACTERS = 200_000
"""Longest reply that is kept, in characters. [ours] A hundred times the longest useful turn."""

MAX_CALLS = 250
"""Most structured calls of a reply. [ours] Twice what OpenAI allows; each is compared with others."""
STREAM = {"stream": True, "stream_options": {"include_usage": True}}
"""Fields of a request to a server that only streams."""

TOOL_FLAGS = (
    "start vLLM with --enable-auto-tool-choice and the model's --tool-call-parser (Qwen's and Hermes': hermes), "
    "llama.cpp with --jinja, or evaluate with --raw --tokenizer MODEL, which reads calls here"
)
"""How to have a server answer with structured calls. The flags: vLLM's docs/features/tool_calling, llama.cpp's
docs/function-calling; without them vLLM (issue 9986, HTTP 400) and llama.cpp (HTTP 500) refuse requests with tools."""

_WITHOUT_TOOLS = re.compile(r"--enable-auto-tool-choice|requires --jinja|not support tools|Unsupported param: tools")
_FENCED = re.compile(r"```\w*\s(.*?)```", re.DOTALL)
_JSON_CALL = re.compile(r'\{\s*"(?:name|function)"\s*:')
_PYTHON_CALL = re.compile(r"\[?\s*[A-Za-z_][\w.]{0,100}\((?:\s*\w+\s*=|\)\]?\s*\Z)")
_STARTS = 5  # places of a text at which a call in JSON is looked for [ours]
_AT_LIMIT = ("length", "max_tokens", "model_length", "MAX_TOKENS")  # as OpenAI, Anthropic, Mistral and Gemini say it
_EVENT = re.compile(rb"(\xef\xbb\xbf)?\s*(data|event|id|retry)?:")  # the beginning of server-sent events
_STREAM_ONLY = re.compile(
    r"only supports? stream|only stream\w{0,9} (is|are) supported|enable the stream"
    r"|stream\w{0,9} is (required|mandatory)"
    r"|stream\W{0,3}(parameter )?(must|has to|needs to|should) be (set to )?\W?(true|enabled|on)\b",
    re.IGNORECASE,
)


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
        name, arguments = name_and_arguments(call)
        if not (isinstance(name, str) and name and arguments and arguments.lstrip()[:1] == "{" and is_json(arguments)):
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
    """The response holds no completion. `reason`: "not JSON", "no choices", "malformed", "too large", "encoded"."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason


def read_completion(body: bytes, content_type: str = "", tools: Sequence[Mapping[str, Any]] = ()) -> Reply:
    """Read the body of a chat completion or of a raw completion. Raises UnreadableResponse if it is neither.

    Null content without calls is an empty turn. A refusal is read as content. Separate thoughts
    (`reasoning_content`) are dropped. Structured calls win over calls in the content. A call that the length limit cut
    is written unclosed, as a local model would have left it; such a reply has no structured calls. The chunks of a
    server that only streams are put together. `tools` are those of the request.
    """
    document = _document(body, content_type)
    choices = document.get("choices") if isinstance(document, dict) else None
    if not isinstance(choices, list) or not choices:
        raise UnreadableResponse("no choices", json.dumps(document))
    choice = _expect(dict, choices[0], "the first choice")
    message = _expect(dict, choice.get("message", {"content": choice.get("text")}), "the message")
    at_limit = choice.get("finish_reason") in _AT_LIMIT
    try:
        content = read_content(message.get("content"), "content", skip="tool_use", separator="")
        calls = tuple(call_entries(message, "message"))
        _check_number(calls)
    except MessageError as error:
        raise UnreadableResponse("malformed", f"{error.field} {error.what}") from None
    if not content and isinstance(refusal := message.get("refusal"), str):
        content = refusal
    arguments = name_and_arguments(calls[-1])[1] if calls else None
    is_open = at_limit and arguments is not None and not is_json(arguments)
    if calls:
        content = beside_calls(content)
        calls = tuple(call if is_open and call is calls[-1] else _without_blank(call, tools) for call in calls)
    text = encodable(_hermes_text(content, calls))
    if is_open:
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


def call_as_text(text: str) -> str | None:
    """The call that a text holds in JSON, in a code block or not, in Python, or in another form that is not read.

    Examples: '{"name": "f", "arguments": {}}' in a sentence, "[f(x=1)]", "<function=f>"; None for a text without one.
    """
    for part in (text, *_FENCED.findall(text)):
        if (found := call_in_other_form(part)) or _PYTHON_CALL.match(part.strip()):
            return found or part.strip()
    for start in islice(_JSON_CALL.finditer(text), _STARTS):
        try:
            _, end = read_json(text, start.start())
        except NotJson:
            continue
        if call_in_other_form(text[start.start() : end]):
            return text[start.start() : end]
    return None


def refuses_tools(refusal: str) -> bool:
    """Whether the text of a refused request says that the server was started without support for tools."""
    return _WITHOUT_TOOLS.search(refusal) is not None


def wants_stream(refusal: str) -> bool:
    """Whether the text of a refused request says that the server only streams."""
    return _STREAM_ONLY.search(refusal) is not None


def _document(body: bytes, content_type: str) -> Any:
    """The completion in a body, streamed or not. Raises UnreadableResponse."""
    try:
        if "event-stream" in content_type or _EVENT.match(body):
            return _read_stream(body.decode("utf-8-sig"))
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        kind = content_type.partition(";")[0].strip() or "no content type"
        raise UnreadableResponse("not JSON", f"{kind}: {error}") from None
    except MessageError as error:
        raise UnreadableResponse("malformed", f"{error.field} {error.what}") from None
    except (AttributeError, TypeError, IndexError) as error:
        raise UnreadableResponse("malformed", f"a chunk of the stream: {error}") from None


def _read_stream(text: str) -> dict[str, Any]:
    """The completion that server-sent events make together, in the form of one that was not streamed.

    Raises UnreadableResponse for an error among them and for a stream that was cut off; ValueError, AttributeError or
    TypeError for chunks of another form.
    """
    stream = _Stream()
    reason, usage, is_raw, has_deltas = None, None, False, False
    data = [line.removeprefix("data:").strip() for line in text.split("\n") if line.startswith("data:")]
    for chunk in (json.loads(part) for part in data if part and part != "[DONE]"):
        if chunk.get("error"):
            raise UnreadableResponse("no choices", json.dumps(chunk))
        usage = chunk.get("usage") or usage
        for choice in (chunk.get("choices") or [])[:1]:
            is_raw = is_raw or "text" in choice
            stream.add(choice.get("delta") or {"content": choice.get("text")})
            has_deltas = has_deltas or bool(choice.get("delta"))
            if choice.get("message"):
                stream.add(choice["message"], is_whole=has_deltas)
            reason = choice.get("finish_reason") or reason
    if reason is None and "[DONE]" not in data:
        raise UnreadableResponse("malformed", "the stream ended before the completion did")
    answer = {"text": stream.message.get("content", "")} if is_raw else {"message": stream.message}
    return {"choices": [{**answer, "finish_reason": reason}], "usage": usage}


class _Parts(list[str]):
    """The parts of a text that is streamed, as adding each to the text would take quadratic time."""


class _Stream:
    """The message that the chunks of a stream make together."""

    def __init__(self) -> None:
        self._texts: dict[str, _Parts] = {}  # content and refusal
        self._calls: list[dict[str, Any]] = []
        self._function: dict[str, Any] = {}  # the old form of a call
        self._open: dict[Any, dict[str, Any]] = {}  # the call that a chunk with this index continues

    @property
    def message(self) -> dict[str, Any]:
        calls = [{**call, "function": _joined(call["function"])} for call in self._calls]
        old = {"function_call": _joined(self._function)} if self._function else {}
        return {**_joined(self._texts), "tool_calls": calls, **old}

    def add(self, delta: Mapping[str, Any], is_whole: bool = False) -> None:
        """Add a chunk. A whole message, as some servers send at the end, replaces what it repeats."""
        texts: dict[str, Any] = {"content": read_content(delta.get("content"), "a chunk's content", separator="")}
        texts["refusal"] = delta.get("refusal")
        for key, value in texts.items():
            if isinstance(value, str) and value:
                if is_whole:
                    self._texts[key] = _Parts()
                self._texts.setdefault(key, _Parts()).append(value)
        parts = delta.get("tool_calls") or ()
        if is_whole and parts:
            self._calls, self._open = [], {}
        for number, part in enumerate(parts):
            _add_part(self._call(part, number - len(parts)), part)
        if old := delta.get("function_call"):
            call = {"function": {} if is_whole else self._function}
            _add_part(call, {"function": old})
            self._function = call["function"]

    def _call(self, part: Mapping[str, Any], position: int) -> dict[str, Any]:
        """The call that a part continues, or a new one. Servers give indices, or ids alone, or one index for all."""
        calls, index, name = self._calls, part.get("index"), (part.get("function") or {}).get("name")
        if index is not None:
            call = self._open.get(index)
        elif part.get("id"):
            call = next((call for call in calls if call.get("id") == part["id"]), None)
        else:
            call = None
        if call is None and index is None and calls and not name:
            call = calls[max(position, -len(calls))]
        # an id without a name begins no call: some servers make up one for each chunk
        if call is None or (name and _is_other_call(call, part)):
            call = {"function": {}}
            calls.append(call)
            _check_number(calls)
        self._open[index] = call
        return call


def _is_other_call(call: Mapping[str, Any], part: Mapping[str, Any]) -> bool:
    """Whether a part with a name does not continue this call: by its id, or as the call's arguments are complete."""
    if part.get("id") and call.get("id"):
        return part["id"] != call["id"]
    (_, known), (_, more) = name_and_arguments({"function": _joined(call["function"])}), name_and_arguments(part)
    return bool(known and more) and is_json(known or "")


def _add_part(call: dict[str, Any], part: Mapping[str, Any]) -> None:
    """Add a streamed part of a call to it: its texts are continued; its id, type and whole name may be repeated."""
    call |= {key: part[key] for key in ("id", "type") if part.get(key) and key not in call}
    function = call["function"]
    for key, value in (part.get("function") or {}).items():
        known = function.get(key)
        if value is None or (key == "name" and isinstance(known, _Parts) and value == "".join(known)):
            continue
        if isinstance(value, str) and isinstance(known, _Parts):
            known.append(value)
        else:
            function[key] = _Parts([value]) if isinstance(value, str) else value


def _joined(texts: Mapping[str, Any]) -> dict[str, Any]:
    return {key: "".join(value) if isinstance(value, _Parts) else value for key, value in texts.items()}


def _check_number(calls: Sequence[Any]) -> None:
    if len(calls) > MAX_CALLS:
        raise UnreadableResponse("malformed", f"more than {MAX_CALLS:,} calls in one reply")


def _expect(kind: type, value: Any, name: str) -> Any:
    if not isinstance(value, kind):
        raise UnreadableResponse("malformed", f"{name} is no object")
    return value


def _without_blank(call: Mapping[str, Any], tools: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The call with `{}` for blank or missing arguments, unless its tool requires some: then they are missing."""
    name, arguments = name_and_arguments(call)
    function = call.get("function") or call
    if not lacks_arguments(arguments) or not isinstance(name, str) or not isinstance(function, Mapping):
        return call
    schemas = [parameter_schema(tool) for tool in tools if tool_names([tool]) == [name]]
    if any(schema.get("required") for schema in schemas):
        return call
    function = {"name": name, "arguments": "{}"}
    return {**call, "function": function} if "function" in call else {**call, **function}


def _token_counts(usage: Any) -> tuple[int | None, int]:
    """Tokens read and written; (None, 0), which is uncounted, if a server gives none or what no counter can show."""
    if not isinstance(usage, dict) or "completion_tokens" not in usage:
        return None, 0
    counts = [usage.get("prompt_tokens", 0), usage["completion_tokens"]]
    if all(type(count) is int and 0 <= count <= MAX_TOKEN_COUNT for count in counts):
        return counts[0], counts[1]
    warn_once(_log, "an endpoint's token counts are no numbers of tokens; such replies are treated as uncounted")
    return None, 0


def _hermes_text(content: str, tool_calls: Iterable[Mapping[str, Any]]) -> str:
    """Content and structured calls as one text with the arguments verbatim."""
    return "\n".join([*([content] if content else []), *(call_text(*name_and_arguments(call)) for call in tool_calls)])
