"""One reader of chat messages as others write them: OpenAI's forms, old and new, Anthropic's blocks, Hermes text.

Endpoint replies, transcripts and data sets are read here, so that the same message means the same everywhere.
Structured calls win over calls in the text. What is not known is refused by its name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fission_grpo.core.call_queue import CallQueue
from fission_grpo.core.chat import beside_calls, parse, read_result, tagged_blocks, text_between, without_blocks
from fission_grpo.core.errors import RowError
from fission_grpo.core.json_io import NotJson, quoted, read_json, well_formed
from fission_grpo.core.types import ToolCall

SYSTEM_ROLES, RESULT_ROLES = ("system", "developer"), ("tool", "function")
ROLES = (*SYSTEM_ROLES, "user", "assistant", *RESULT_ROLES)
UNREADABLE_CALL, OTHER_FORM = "a tool call cannot be read", "a call in a form that is not read"

_TEXTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}  # field by block type
_TEXT_FIELDS = {"type", "text", "refusal", "cache_control", "citations", "annotations", "_meta"}
_THOUGHTS = ("thinking", "redacted_thinking", "reasoning", "reference")  # read by nobody but their server
_MEDIA = ("image", "image_url", "input_image", "audio", "input_audio", "video", "video_url", "document", "file")
_ARGUMENTS = ("arguments", "parameters", "args", "input")  # names of a call's arguments, in order of preference
_RESPONSE = "tool_response"  # the tag of a result as Qwen's template renders it
# beginnings of calls as models write them that do not use Hermes' format; two more within its tags
_OTHER_CALL = re.compile(
    r"<\|python_tag\|>|\[TOOL_CALLS\]|<TOOLCALL>|<function=[^>\s]{1,200}>|<function_calls?>|<tool_calls>|<invoke name="
    r"|<[|\uff5c]tool[\w\u2581]*[|\uff5c]>|<\|tool_call>|<\|action_start\|>|functools\[|to=functions\.\w|```tool_(?:code|call)"
    r"|\A\s*Action: *\w.*\n+Action Input:",
    re.IGNORECASE,
)
_OTHER_BLOCK = re.compile(r"<tool_call>\s*(?:<function=|[\w.-]+\s*<arg_key>)")


class MessageError(RowError):
    """A message cannot be read. `reason` is without details of the row, for counting."""

    def __init__(self, field: str, what: str, reason: str):
        super().__init__(field, what)
        self.reason = reason


@dataclass(frozen=True)
class ChatCall:
    """A call in an assistant message."""

    name: str
    arguments: Mapping[str, Any] | None  # None if they cannot be read
    id: Any = None
    is_object: bool = False  # the arguments were given as an object, to which Arrow may have added nulls


@dataclass(frozen=True)
class ChatMessage:
    """A message in the one form that all others are read into."""

    role: str  # "system", "user", "assistant" or "tool"
    text: str = ""  # without calls
    calls: tuple[ChatCall, ...] = ()
    unread: str | None = None  # why calls of the message cannot be read
    written: str = ""  # of an assistant: text and calls in Hermes format, arguments verbatim
    call_id: Any = None  # of a tool: the call that it answers
    name: str | None = None  # of a tool
    is_error: bool = False  # of a tool: the message says that the call failed
    is_trained: bool = True  # of an assistant: False for `weight: 0` and `loss: false`

    @property
    def error(self) -> str | None:
        """The error that a tool's result reports, None if the call succeeded."""
        error = read_result(ToolCall(self.name or ""), self.text).error
        return (self.text.strip() or "error") if error is None and self.is_error else error


def read_messages(messages: Any, *, media: bool = False) -> list[list[ChatMessage]]:
    """What each message of a dialogue says: mostly one message, several if it holds several tool results.

    Raises MessageError, naming message and field. With `media`, images and the like become "[image]" in the text; else
    they are refused, as a policy that reads text cannot see them.
    """
    if not isinstance(messages, list):
        raise MessageError("messages", f"must be a list, got {quoted(messages)}", "the messages cannot be read")
    return [_read_message(message, f"messages[{at}]", media) for at, message in enumerate(messages)]


def plain_messages(messages: Iterable[ChatMessage]) -> list[dict[str, Any]]:
    """The messages as chat templates take them. Calls that cannot be read stay in the text."""
    plain: list[dict[str, Any]] = []
    waiting = CallQueue(())
    for message in messages:
        if message.role == "assistant":
            waiting = CallQueue(message.calls)
            plain.append(_plain_assistant(message))
        elif message.role == "tool":
            call = waiting.take(str(message.call_id), message.name)
            name = message.name or (call.name if call else "tool")
            plain.append({"role": "tool", "name": name, "content": message.text})
        else:
            plain.append({"role": message.role, "content": message.text})
    return plain


def _plain_assistant(message: ChatMessage) -> dict[str, Any]:
    if not message.calls or message.unread:
        return {"role": "assistant", "content": message.written}
    functions = [{"name": call.name, "arguments": dict(call.arguments or {})} for call in message.calls]
    entries = [{"type": "function", "function": function} for function in functions]
    return {"role": "assistant", "content": message.text, "tool_calls": entries}


def call_entries(message: Mapping[str, Any], place: str) -> Sequence[Mapping[str, Any]]:
    """The structured calls of an assistant message, in OpenAI's form: `tool_calls` (a list or JSON text of one), the
    old `function_call`, or Anthropic's `tool_use` blocks. Raises MessageError."""
    entries = from_text(message.get("tool_calls"), f"{place}.tool_calls")
    if entries is not None and not isinstance(entries, list):
        raise MessageError(f"{place}.tool_calls", f"must be a list, got {quoted(entries)}", UNREADABLE_CALL)
    for number, entry in enumerate(entries or ()):
        if not isinstance(entry, Mapping):
            what = f'must be like {{"id", "function": {{"name", "arguments"}}}}, got {quoted(entry)}'
            raise MessageError(f"{place}.tool_calls[{number}]", what, UNREADABLE_CALL)
    old = from_text(message.get("function_call"), f"{place}.function_call")
    if not entries and old and not isinstance(old, Mapping):
        what = f'must be like {{"name", "arguments"}}, got {quoted(old)}'
        raise MessageError(f"{place}.function_call", what, UNREADABLE_CALL)
    entries = [entry for entry in entries or () if not _is_blank(entry, ("",))]
    if not entries and old and not _is_blank({"function": old}, ("", None)):
        entries = [{"function": old}]
    return entries or [
        {"id": block.get("id"), "function": {"name": block.get("name"), "arguments": block.get("input")}}
        for block in _blocks(message.get("content"))
        if block.get("type") == "tool_use"
    ]


def _is_blank(entry: Mapping[str, Any], names: Sequence[str | None]) -> bool:
    """Whether an entry is no call, but fields that a server always fills in."""
    name, arguments = name_and_arguments(entry)
    return name in names and (lacks_arguments(arguments) or (arguments or "").strip() == "{}")


def name_and_arguments(entry: Mapping[str, Any]) -> tuple[Any, str | None]:
    """Name and arguments' text, as written, of an entry of `tool_calls`, with or without the "function" level."""
    function = entry.get("function") or entry
    function = function if isinstance(function, Mapping) else {}
    arguments = next((function[key] for key in _ARGUMENTS if function.get(key) is not None), None)
    if arguments is not None and not isinstance(arguments, str):
        try:
            arguments = json.dumps(arguments, ensure_ascii=False)
        except (TypeError, ValueError, RecursionError):  # a date from Parquet
            arguments = str(arguments)
    return function.get("name"), arguments


def lacks_arguments(arguments: str | None) -> bool:
    """Whether a call's arguments are missing, null or blank, also as JSON text of such, as some servers write none."""
    text = (arguments or "").strip()
    if len(text) > 1 and text[0] == text[-1] == '"':
        text = text[1:-1].strip()
    return text in ("", "null")


def read_arguments(arguments: str | None) -> dict[str, Any]:
    """Arguments as an object, {} if they are missing; JSON text may be encoded twice. Raises NotJson."""
    text = arguments
    for _ in range(2):
        if text is None or lacks_arguments(text):
            return {}
        text = text.strip()
        value, end = read_json(text)
        if end < len(text):
            break
        if isinstance(value, dict):
            return value
        if not isinstance(value, str):
            break
        text = value
    raise NotJson("not one JSON object")


def call_text(name: Any, arguments: str | None) -> str:
    """A call in Hermes format with its arguments verbatim; without them if they are None, which `parse` reports.

    Arguments that are no JSON stay unchanged, and `parse` explains the error. If they would end the block early and so
    be read as something else, they are written as one JSON string, which is an error as well.
    """
    shown_name = json.dumps(name, ensure_ascii=False)
    if arguments is None:
        return f'<tool_call>\n{{"name": {shown_name}}}\n</tool_call>'
    block = f'<tool_call>\n{{"name": {shown_name}, "arguments": {arguments}}}\n</tool_call>'
    if not is_json(arguments) and parse(block).error is None:
        return f'<tool_call>\n{{"name": {shown_name}, "arguments": {json.dumps(arguments)}}}\n</tool_call>'
    return block


def is_json(text: str) -> bool:
    """Whether a text is one JSON value and nothing else."""
    start = len(text) - len(text.lstrip())
    try:
        return not text[read_json(text, start, start)[1] :].strip()
    except NotJson:
        return False


def read_content(content: Any, place: str, *, skip: str = "", media: bool = False, separator: str = "\n") -> str:
    """The text of a message's content: a string, null, or blocks. Thoughts, and blocks of type `skip`, are left out.

    Raises MessageError, naming the type of a block that is no text.
    """
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list | Mapping):
        what = f"must be a string, a list of parts or null, got {quoted(content)}"
        raise MessageError(place, what, "a message cannot be read")
    texts = []
    for number, block in enumerate(content if isinstance(content, list) else [content]):
        if isinstance(block, str):
            texts.append(block)
            continue
        block = block if isinstance(block, Mapping) else {}
        kind = block.get("type")
        field = _TEXTS.get(kind or "text") if kind is None or isinstance(kind, str) else None
        if field is not None and isinstance(block.get(field), str):
            texts.append(block[field])
        elif media and kind in _MEDIA:
            texts.append(f"[{kind}]")
        elif kind not in (*_THOUGHTS, skip) and not (field and kind and block.get(field) is None):
            name = f"of type {quoted(kind)}" if kind is not None else "without a type"
            reason = f"a message holds more than text: a block {name}"
            raise MessageError(f"{place}[{number}]", f"is a block {name}, which is not read; leave it out", reason)
    return separator.join(texts)


def call_in_other_form(text: str) -> str | None:
    """How an assistant's text begins a call in a form that `parse` does not read; None if it has no such call.

    Example: of '[TOOL_CALLS] [{"name": "f", "arguments": {}}]' it is "[TOOL_CALLS]".
    """
    opened, end, rest = text.partition("</think>")
    if end and "<think>" not in opened and "<tool_call>" not in opened:  # a thought that the prompt began
        text = rest
    text = without_blocks(text, "think", "scratch_pad")
    if "<tool_call>" in text:
        found = _OTHER_BLOCK.search(text)
        return found[0] if found else None
    if found := _OTHER_CALL.search(text):
        return found[0]
    body = text.strip().removeprefix("```json").removeprefix("```").removesuffix("```").strip()
    if body[:1] not in ("{", "["):
        return None
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None
    calls = value if isinstance(value, list) else [value]
    functions = [call.get("function", call) for call in calls if isinstance(call, dict)]
    are_calls = [
        isinstance(one, dict) and isinstance(one.get("name"), str) and any(key in one for key in _ARGUMENTS)
        for one in functions
    ]
    return body if are_calls and all(are_calls) and len(are_calls) == len(calls) else None


def _read_message(message: Any, place: str, media: bool) -> list[ChatMessage]:
    role = message.get("role") if isinstance(message, Mapping) else None
    if role not in ROLES:
        what = "must be an object with a `role`" if not isinstance(message, Mapping) else "has an unknown role"
        reason = "a message cannot be read" if not isinstance(message, Mapping) else "a message has an unknown role"
        raise MessageError(place, f"{what} (one of {', '.join(ROLES)}), got {quoted(message)}", reason)
    if role == "assistant":
        return [_read_assistant(message, place, media)]
    content = message.get("content")
    results = [block for block in _blocks(content) if block.get("type") == "tool_result"]
    if not results and role in RESULT_ROLES:
        return _unwrapped(_read_result(message, message.get("tool_call_id"), f"{place}.content", media))
    text = well_formed(read_content(content, f"{place}.content", skip="tool_result", media=media))
    read = [
        result
        for block in results
        for result in _unwrapped(_read_result(block, block.get("tool_use_id"), f"{place}.content", media))
    ]
    if role == "user" and (blocks := list(tagged_blocks(text, _RESPONSE))):
        read += [ChatMessage("tool", block.body.strip("\n")) for block in blocks]
        text = "\n".join(part.strip() for part in text_between(text, blocks)).strip()
    if text or not read:
        read.append(ChatMessage("system" if role in SYSTEM_ROLES else "user", text))
    return read


def _unwrapped(result: ChatMessage) -> list[ChatMessage]:
    """The results in a tool's message that consists of `<tool_response>` blocks; else the message itself."""
    blocks = list(tagged_blocks(result.text, _RESPONSE))
    if not blocks or any(part.strip() for part in text_between(result.text, blocks)):
        return [result]
    return [replace(result, text=block.body.strip("\n")) for block in blocks]


def _read_result(result: Mapping[str, Any], call_id: Any, place: str, media: bool) -> ChatMessage:
    """A tool's message or `tool_result` block. Blocks are read as text; other objects and lists are its JSON."""
    content, name = result.get("content"), result.get("name")
    parts = content if isinstance(content, list) else [content]
    is_listed = parts is content
    if isinstance(content, list | Mapping) and not (parts and all(_is_result_block(one, is_listed) for one in parts)):
        text = json.dumps(content, ensure_ascii=False, default=str)
    else:
        text = read_content(content, place, media=media)
    is_error = (
        any(str(result.get(key)).strip().lower() in ("true", "1") for key in ("is_error", "isError"))
        or result.get("status") == "error"
    )
    name = name if isinstance(name, str) and name else None
    return ChatMessage("tool", well_formed(text), call_id=call_id, name=name, is_error=is_error)


def _is_result_block(part: Any, is_listed: bool) -> bool:
    """Whether a result, or a part of its list, is a block of text or media, not a tool's own object with a "type"."""
    fields = {key for key, value in part.items() if value is not None} if isinstance(part, Mapping) else set()
    kind = part["type"] if "type" in fields else None
    if isinstance(kind, str) and kind in _TEXTS:
        text = part.get(_TEXTS[kind])
        return fields <= _TEXT_FIELDS or (is_listed and isinstance(text, str))
    return kind in _MEDIA and bool(fields & {*_MEDIA, "source", "data"})


def _read_assistant(message: Mapping[str, Any], place: str, media: bool) -> ChatMessage:
    text = well_formed(read_content(message.get("content"), f"{place}.content", skip="tool_use", media=media))
    entries = call_entries(message, place)
    is_to_learn = is_trained(message, place)
    if not entries:
        turn = parse(text) if "<tool_call>" in text else None
        calls = tuple(ChatCall(call.name, call.arguments) for call in turn.calls) if turn else ()
        if not calls and (form := call_in_other_form(text)):
            what = f"holds {OTHER_FORM}, {quoted(form)}; give it as `tool_calls` or as Hermes text"
            raise MessageError(f"{place}.content", what, OTHER_FORM)
        return ChatMessage(
            "assistant",
            turn.content if turn and calls else text,
            calls,
            turn.error if turn else None,
            written=text,
            is_trained=is_to_learn,
        )
    text = beside_calls(text)
    calls, problems, written = [], [], [text] if text else []
    for number, entry in enumerate(entries):
        name, arguments = name_and_arguments(entry)
        if not isinstance(name, str):
            field = f"{place}.tool_calls[{number}].function.name"
            raise MessageError(field, f"must be a string, got {quoted(name)}", UNREADABLE_CALL)
        name, arguments = well_formed(name), None if arguments is None else well_formed(arguments)
        written.append(call_text(name, "{}" if lacks_arguments(arguments) else arguments))
        value = None
        try:
            value = read_arguments(arguments)
        except NotJson as error:
            reason = str(error) if str(error).startswith("not ") else f"not valid JSON: {error}"
            problems.append(f"the arguments of {quoted(name)} are {reason}")
        given = entry.get("function") or entry
        is_object = isinstance(given.get("arguments"), Mapping)
        calls.append(ChatCall(name, value, entry.get("id"), is_object))
    unread = "; ".join(problems) or None
    return ChatMessage("assistant", text, tuple(calls), unread, "\n".join(written), is_trained=is_to_learn)


def is_trained(message: Mapping[str, Any], place: str) -> bool:
    """Whether a turn is one to learn from, by OpenAI's `weight` (0 or 1) or ms-swift's `loss`. Raises MessageError."""
    for key in ("weight", "loss"):
        given = message.get(key)
        try:
            value = json.loads(given.lower()) if isinstance(given, str) else given
        except ValueError:
            value = given
        if value is not None and not isinstance(value, int | float):
            raise MessageError(
                f"{place}.{key}", f"must be 0 or 1, got {quoted(given)}", f"the {key} of a message is no number"
            )
        if value is not None and value == 0:
            return False
    return True


def from_text(value: Any, place: str) -> Any:
    """A value that may be given as JSON text; None if that is blank. Raises MessageError if it is no JSON."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else None
    except (ValueError, RecursionError) as error:
        raise MessageError(
            place, f"is text that is not JSON ({error}), got {quoted(value)}", UNREADABLE_CALL
        ) from error


def _blocks(content: Any) -> Sequence[Mapping[str, Any]]:
    blocks = content if isinstance(content, list) else [content]
    return [block for block in blocks if isinstance(block, Mapping)]
