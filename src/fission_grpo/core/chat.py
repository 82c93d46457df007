"""The chat format: Hermes/Qwen `<tool_call>` text. The only file that knows it.

`parse` reads what a policy wrote, `render_call` and `render` write what it will read, `read_result` reads what a tool
answered. Upstream: the Hermes function-calling format, as in the chat templates of Qwen2.5 and Qwen3.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from fission_grpo.core.json_io import NotJson, read_json
from fission_grpo.core.types import (
    Failure,
    Message,
    ToolCall,
    ToolResult,
    Turn,
)


def recovery_id(failure: Failure) -> str:
    """Name of the corrective instance: a hash of the task and what the policy wrote, so equal failures are equal."""
    digest = hashlib.sha1(failure.task.id.encode("utf-8", "surrogatepass"))
    for turn in failure.turns:
        digest.update(b"\0" + turn.text.encode("utf-8", "surrogatepass"))
    return "x" + digest.hexdigest()[:15]


def dialogue_before(failure: Failure) -> list[Message]:
    """The dialogue up to the failing turn: the task's prompt (a plain string as a user message) and earlier turns."""
    prompt = failure.task.prompt
    messages: list[Message] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    for turn in failure.turns[:-1]:
        messages += _turn_messages(turn)
    return messages


def _turn_messages(turn: Turn) -> list[Message]:
    results = [{"role": "tool", "name": r.call.name, "content": r.content} for r in turn.results]
    return [{"role": "assistant", "content": turn.text}, *results]


MAX_LITERAL = 100_000
"""Longest tool result read as a Python literal, in characters. [ours] Longer ones are read as JSON only."""


_TAG = re.compile(r"<think>|</think>|<tool_call>|</tool_call>")


_SPACE = re.compile(r"\s*")


_PROBE_TOOL = {
    "type": "function",
    "function": {"name": "fission_probe", "description": "", "parameters": {"type": "object", "properties": {}}},
}


class _BadCall(Exception):
    """A tool call was begun but is no valid call; `unclosed` if the text ended before it did."""

    def __init__(self, message: str, unclosed: bool = False):
        super().__init__(message)
        self.unclosed = unclosed


def parse(text: str, truncated: bool = False) -> Turn:
    """Read one assistant turn. Never raises, whatever the text.

    A block is `<tool_call>` + one or more JSON objects + `</tool_call>`; each object has `name` and `arguments` (or
    `parameters`, as ToolRL writes; a JSON string holding an object is decoded). What is JSON is decided strictly, by
    `json_text.read_json`. Calls inside `<think>` are no calls; a `</think>` that nothing opened closes the thinking a
    template began in the prompt (Qwen3).

    Args:
        text: what the policy wrote, without special tokens.
        truncated: it hit its length limit. A block or thought left open at the end of the text is then no error of
            form: `Turn.error` stays None and `Turn.truncated` says what happened.

    Returns:
        Turn: `text` untouched; `content` is the text outside of thoughts and calls, stripped. With `error` set there
        are no calls, as nothing of an invalid turn is executed.

    Example:
        `parse('Hi <tool_call>{"name": "ls", "arguments": {}}</tool_call>')` has content "Hi" and one call, of "ls"
    """
    calls: list[ToolCall] = []
    outside: list[str] = []
    error = None
    at = _end_of_prefilled_thought(text)
    try:
        while tag := _TAG.search(text, at):
            outside.append(text[at : tag.start()])
            at = len(text)  # where an error leaves us
            if tag[0] == "<think>":
                end = text.find("</think>", tag.end())
                if end < 0:
                    raise _BadCall("unclosed <think>", unclosed=True)
                at = end + len("</think>")
            elif tag[0] == "<tool_call>":
                found, at = _read_block(text, tag.end())
                calls += found
            else:
                raise _BadCall(f"{tag[0]} without {tag[0].replace('/', '')} before it")
        outside.append(text[at:])
    except _BadCall as bad:
        if not (bad.unclosed and truncated):
            error, calls = str(bad), []
    return Turn(text, "".join(outside).strip(), tuple(calls), error, truncated=truncated)


def render_call(call: ToolCall) -> str:
    """Write a call so that `parse` reads it back. Raises ValueError for arguments that are no JSON values.

    Example:
        `render_call(ToolCall("ls"))` is `'<tool_call>\\n{"name": "ls", "arguments": {}}\\n</tool_call>'`
    """
    try:
        body = json.dumps({"name": call.name, "arguments": dict(call.arguments)}, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"call to {call.name!r} has arguments that are not JSON values: {error}") from error
    return f"<tool_call>\n{body}\n</tool_call>"


def tools_text(tools: Sequence[Mapping[str, Any]]) -> str:
    """The Hermes instructions that list `tools`, one JSON signature a line, for templates that cannot take tools."""
    signatures = "\n".join(json.dumps(_openai_tool(tool), ensure_ascii=False) for tool in tools)
    return (
        "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
        "You are provided with function signatures within <tools></tools> XML tags:\n"
        f"<tools>\n{signatures}\n</tools>\n\n"
        "For each function call, return a json object with function name and arguments within "
        "<tool_call></tool_call> XML tags:\n"
        '<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
    )


def render(prompt: str | Sequence[Message], tools: Sequence[Mapping[str, Any]], tokenizer: Any) -> str:
    """Render a prompt to the string TRL tokenizes, ending where the assistant's turn begins.

    Templates that take tools (Qwen, Llama 3.1, ...) are given them. For those that ignore them (SmolLM2) the tools go
    into the system message, tool calls into the assistant's text, tool results into user messages, as Qwen renders
    them. A beginning-of-sequence token is left out if the tokenizer adds it again (TRL tokenizes string prompts with
    special tokens). A prompt that is a string already is returned as it is.

    Raises whatever `tokenizer.apply_chat_template` raises, as for a tokenizer without a chat template.
    """
    if isinstance(prompt, str):
        return prompt
    text = template_text(prompt, tools, tokenizer)
    bos = getattr(tokenizer, "bos_token", None)
    if bos and text.startswith(bos) and tokenizer("x")["input_ids"][:1] == [tokenizer.bos_token_id]:
        text = text[len(bos) :]
    return text


def template_text(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], tokenizer: Any) -> str:
    """As `render`, with the beginning-of-sequence token where the template writes one: to be tokenized as it is."""
    if _takes_tools(tokenizer):
        given, own = [dict(message) for message in messages], [_openai_tool(tool) for tool in tools] or None
    else:
        given, own = _plain_messages(messages, tools), None
    return _apply(tokenizer, given, own)


def read_result(call: ToolCall, content: str) -> ToolResult:
    """Read the text a tool answered. Never raises.

    It is an error if it is a mapping, as JSON or as a Python literal (TRL writes `str({"error": str(exception)})`),
    with a top-level "error" that is neither null nor false. The wording of the text is never looked at.

    Example:
        `read_result(call, "{'error': 'no such file'}").error` is "no such file"
    """
    error = None
    value = _mapping(content).get("error")
    if value is not None and value is not False:
        try:
            error = value if isinstance(value, str) else json.dumps(value)
        except (TypeError, ValueError, RecursionError):  # a set, bytes, an int beyond the digit limit
            error = content
    return ToolResult(call, content, error)


def _end_of_prefilled_thought(text: str) -> int:
    """Where the text goes on after a thought that the prompt began: past the first `</think>`, 0 if there is none.

    With a call before it, the tag is either in the call's arguments (if that reads as valid) or after a call that
    was merely thought of.
    """
    end = text.find("</think>")
    if end < 0 or "<think>" in text[:end]:
        return 0
    start = text.find("<tool_call>", 0, end)
    if start >= 0:
        try:
            if _read_block(text, start + len("<tool_call>"))[1] > end:
                return 0
        except _BadCall:
            pass
    return end + len("</think>")


def _read_block(text: str, start: int) -> tuple[list[ToolCall], int]:
    """The calls between `start` and the block's closing tag, and where the text goes on after it."""
    calls: list[ToolCall] = []
    start = at = _after_space(text, start)
    while not text.startswith("</tool_call>", at):
        try:
            value, at = read_json(text, at, start)
        except NotJson as error:
            if error.open_ended and text.find("</tool_call>", at) < 0:
                raise _BadCall("unclosed <tool_call>", unclosed=True) from None
            raise _BadCall(f"tool call is not valid JSON: {error}") from None
        calls.append(_call(value))
        at = _after_space(text, at)
    if not calls:
        raise _BadCall("empty <tool_call>")
    return calls, at + len("</tool_call>")


def _call(value: Any) -> ToolCall:
    if not isinstance(value, dict):
        raise _BadCall("tool call is not a JSON object")
    name = value.get("name")
    if name is None or name == "":
        raise _BadCall('tool call has no "name"')
    if not isinstance(name, str):
        raise _BadCall('tool call\'s "name" is not a string')
    keys = [key for key in ("arguments", "parameters") if key in value]
    if len(keys) != 1:
        raise _BadCall('tool call has both "arguments" and "parameters"' if keys else 'tool call has no "arguments"')
    arguments = value[keys[0]]
    if isinstance(arguments, str):
        arguments = _decoded(arguments, keys[0])
    if not isinstance(arguments, dict):
        raise _BadCall(f'tool call\'s "{keys[0]}" is not a JSON object')
    return ToolCall(name, arguments)


def _decoded(text: str, key: str) -> Any:
    start = _after_space(text, 0)
    try:
        value, end = read_json(text, start, start)
    except NotJson as error:
        raise _BadCall(f'tool call\'s "{key}" is a string that is not valid JSON: {error}') from None
    if _after_space(text, end) < len(text):
        raise _BadCall(f'tool call\'s "{key}" is a string with more than one JSON value')
    return value


def _after_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _mapping(content: str) -> Mapping[str, Any]:
    """The mapping `content` spells out as JSON or as a Python literal, {} if it is neither."""
    if not content.lstrip().startswith("{"):
        return {}
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        if len(content) > MAX_LITERAL:
            return {}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # invalid escapes in the text are not our code's
                value = ast.literal_eval(content.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return {}
    return value if isinstance(value, dict) else {}


def _openai_tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    """The form templates expect, whichever of the two forms was given."""
    return dict(tool) if isinstance(tool.get("function"), Mapping) else {"type": "function", "function": dict(tool)}


def _apply(tokenizer: Any, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> str:
    return tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=True)


def _takes_tools(tokenizer: Any) -> bool:
    question = [{"role": "user", "content": "x"}]
    return _apply(tokenizer, question, [_PROBE_TOOL]) != _apply(tokenizer, question, None)


def _plain_messages(prompt: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The messages with everything about tools written out as text, in the roles every template knows."""
    messages: list[dict[str, Any]] = []
    answering = False  # the last message collects tool results
    for message in prompt:
        role, content = message["role"], message.get("content") or ""
        if role == "tool":
            block = f"<tool_response>\n{content}\n</tool_response>"
            if answering:
                messages[-1]["content"] += "\n" + block
            else:
                messages.append({"role": "user", "content": block})
        else:
            written = [render_call(_message_call(entry)) for entry in message.get("tool_calls") or ()]
            messages.append({"role": role, "content": "\n".join([*([content] if content else []), *written])})
        answering = role == "tool"
    if tools:
        if not messages or messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": ""})
        messages[0]["content"] = (messages[0]["content"] + "\n\n" + tools_text(tools)).strip()
    return messages


def _message_call(entry: Mapping[str, Any]) -> ToolCall:
    """The call in one entry of a chat message's `tool_calls`, with or without the "function" level."""
    function = entry.get("function", entry)
    arguments = function.get("arguments") or {}
    return ToolCall(function["name"], json.loads(arguments) if isinstance(arguments, str) else arguments)
