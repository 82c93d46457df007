"""The chat format: `<tool_call>` text of Hermes and Qwen. No other module knows it.

`parse` reads what a policy generated, `render` and `render_call` write what it will read, `read_result` reads
a tool's answer. Format: Hermes function calling, as in the chat templates of Qwen2.5 and Qwen3.
"""

from __future__ import annotations

import ast
import itertools
import json
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fission_grpo.core.json_io import NotJson, read_json
from fission_grpo.core.types import Failure, Message, ToolCall, ToolResult, Turn

MAX_LITERAL = 100_000  # longest tool result read as a Python literal, not only as JSON, in characters [ours]

_TAG = re.compile(r"<think>|</think>|<tool_call>|</tool_call>")
_OPEN_THOUGHT = "unclosed <think>"
_SPACE = re.compile(r"\s*")
_PROBE_TOOL = {"name": "fission_probe", "description": "", "parameters": {"type": "object", "properties": {}}}


class _BadCall(Exception):
    """A tool call or thought is invalid; `unclosed` if only because the text ends inside it."""

    def __init__(self, message: str, unclosed: bool = False):
        super().__init__(message)
        self.unclosed = unclosed


def parse(text: str, truncated: bool = False) -> Turn:
    """Parse one assistant message. Never raises, whatever the text.

    A block is `<tool_call>`, one or more JSON objects, `</tool_call>`. An object has `name` and `arguments` (or
    `parameters`, as in ToolRL), an object or a JSON string of one. JSON is read strictly, by `json_io.read_json`.
    Text inside `<think>` holds no calls. A `</think>` without `<think>` ends the thought that the template opened in
    the prompt (Qwen3). In a `truncated` text (at the length limit) a block or thought may be open at its end.
    """
    calls: list[ToolCall] = []
    outside: list[str] = []
    error = None
    at = _end_of_prefilled_thought(text)
    try:
        while tag := _TAG.search(text, at):
            outside.append(text[at : tag.start()])
            at = len(text)  # after an error nothing more is content
            if tag[0] == "<think>":
                end = text.find("</think>", tag.end())
                if end < 0:
                    raise _BadCall(_OPEN_THOUGHT, unclosed=True)
                at = end + len("</think>")
            elif tag[0] == "<tool_call>":
                block, at = _read_block(text, tag.end())
                calls += block
            else:
                raise _BadCall(f"{tag[0]} without {tag[0].replace('/', '')} before it")
        outside.append(text[at:])
    except _BadCall as bad:
        if not (bad.unclosed and truncated):
            error, calls = str(bad), []
    return Turn(text, "".join(outside).strip(), tuple(calls), error, truncated=truncated)


def read_result(call: ToolCall, content: str, error_if: Callable[[str], bool] | None = None) -> ToolResult:
    """Parse a tool's answer. Never raises, unless `error_if` does.

    The answer is an error if it is a mapping, as JSON or as a Python literal (TRL writes
    `str({"error": str(exception)})`), whose "error" is not empty (not null, false, 0, [], {} or blank text, by which
    tools say that there was none; guarded tools never raise a blank message), or whose "isError" (MCP) or "is_error"
    (Anthropic) is true, both also in the "result" of JSON-RPC; or if `error_if` says so of its text.
    """
    error = None
    answer = read_mapping(content)
    if "jsonrpc" in answer and isinstance(answer.get("result"), dict):
        answer = answer["result"]
    value = answer.get("error")
    if isinstance(value, str) and not value.strip():
        value = None
    if not value and True in (answer.get("isError"), answer.get("is_error")):
        value = _block_text(answer.get("content")) or content
    if value:
        try:
            error = value if isinstance(value, str) else json.dumps(value)
        except (TypeError, ValueError, RecursionError):  # a set, bytes, an int beyond the digit limit
            error = content
    elif error_if is not None and error_if(content):
        error = content.strip() or "error"
    return ToolResult(call, content, error)


def beside_calls(content: str) -> str:
    """The content of a message whose calls are structured, so that `parse` finds no call and no error in it.

    A server's parser may leave a copy of a call, half of its tags, or an open `<think>` in the content. Copies and
    tags are left out; an open thought is closed.
    """
    turn = parse(content)
    if not (turn.calls or turn.error):
        return content
    rest = without_blocks(content, "tool_call", innermost=True)
    if turn.error == _OPEN_THOUGHT:
        rest = rest.rstrip() + "\n</think>"
    turn = parse(rest)
    return (_TAG.sub("", rest) if turn.calls or turn.error else rest).strip()


def render_call(call: ToolCall) -> str:
    """Write a call as text that `parse` reads. Raises ValueError if its arguments are not JSON values."""
    try:
        body = json.dumps({"name": call.name, "arguments": dict(call.arguments)}, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"call to {call.name!r} has arguments that are not JSON values: {error}") from error
    return f"<tool_call>\n{body}\n</tool_call>"


def render(
    prompt: str | Sequence[Message],
    tools: Sequence[Mapping[str, Any]],
    tokenizer: Any,
    template_options: Mapping[str, Any] | None = None,
) -> str:
    """Render a prompt to the string that TRL tokenizes; a string is returned unchanged.

    A template without support for tools (SmolLM2) gets them in the system message, tool calls in assistant messages,
    and results in user messages, all as Qwen renders them. A beginning-of-sequence token is left out if the tokenizer
    adds one too. `template_options` are further arguments of the template, such as `enable_thinking`. Raises whatever
    `tokenizer.apply_chat_template` raises.
    """
    if isinstance(prompt, str):
        return prompt
    text = template_text(prompt, tools, tokenizer, template_options)
    bos = getattr(tokenizer, "bos_token", None)
    if bos and text.startswith(bos) and tokenizer("x")["input_ids"][:1] == [tokenizer.bos_token_id]:
        text = text[len(bos) :]
    return text


def template_text(
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]],
    tokenizer: Any,
    template_options: Mapping[str, Any] | None = None,
) -> str:
    """As `render`, but with the beginning-of-sequence token if the template writes one."""
    if takes_tools(tokenizer):
        own = [dict(message) for message in messages]
        return _apply(tokenizer, own, [_openai_tool(tool) for tool in tools], **(template_options or {}))
    return _apply(tokenizer, _plain_messages(messages, tools), [], **(template_options or {}))


def tools_text(tools: Sequence[Mapping[str, Any]]) -> str:
    """Hermes' instructions with one JSON signature per tool, for templates without support for tools."""
    signatures = "\n".join(json.dumps(_openai_tool(tool), ensure_ascii=False) for tool in tools)
    return (
        "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
        "You are provided with function signatures within <tools></tools> XML tags:\n"
        f"<tools>\n{signatures}\n</tools>\n\n"
        "For each function call, return a json object with function name and arguments within "
        "<tool_call></tool_call> XML tags:\n"
        '<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
    )


def turn_messages(turn: Turn) -> list[Message]:
    """The turn as chat messages: the generated text, then one tool message per result."""
    results = [{"role": "tool", "name": r.call.name, "content": r.content} for r in turn.results]
    return [{"role": "assistant", "content": turn.text}, *results]


def dialogue_before(failure: Failure) -> list[Message]:
    """The chat messages before the failing turn: the task's prompt (a string as a user message) and earlier turns."""
    prompt = failure.task.prompt
    messages: list[Message] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    return messages + [message for turn in failure.turns[:-1] for message in turn_messages(turn)]


def dialogue_results(messages: Sequence[Message]) -> tuple[ToolResult, ...]:
    """The calls of a dialogue's assistant messages, structured or as text, with their results, in order.

    Results are matched by `tool_call_id` where calls and results have different ids, else by order. A system or user
    message may stand between turns, not between a call and its result. ValueError names a message for which it does.
    """
    done: list[ToolResult] = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            if message["role"] == "tool" and messages[index - 1]["role"] not in ("assistant", "tool"):
                raise ValueError(f"messages[{index}] is the result of no call")
            continue
        entries = message.get("tool_calls") or ()
        calls = [_message_call(entry) for entry in entries] or parse(message.get("content") or "").calls
        answers = list(itertools.takewhile(lambda one: one["role"] == "tool", messages[index + 1 :]))
        if len(calls) != len(answers):
            raise ValueError(f"messages[{index}] has {len(calls)} calls, but {len(answers)} results follow")
        ids = [entry.get("id") for entry in entries]
        by_id = {answer.get("tool_call_id"): answer for answer in answers}
        if ids and len({*ids, None}) > len(ids) and None not in by_id:  # all have ids, and different ones
            if by_id.keys() != set(ids):
                raise ValueError(f"messages[{index}] has calls {ids}, but the results are of {list(by_id)}")
            answers = [by_id[one] for one in ids]
        contents = ["" if answer.get("content") is None else str(answer["content"]) for answer in answers]
        done += [read_result(call, content) for call, content in zip(calls, contents, strict=True)]
    return tuple(done)


def _end_of_prefilled_thought(text: str) -> int:
    """Index after the first `</think>` if it closes a thought opened in the prompt, else 0.

    A `<tool_call>` before it is either a valid call with the tag in its arguments (0), or part of the thought.
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
    """The calls from index `start` to the block's closing tag, and the index after the tag."""
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
    arguments = _decoded(value[keys[0]], keys[0])
    if not isinstance(arguments, dict):
        raise _BadCall(f'tool call\'s "{keys[0]}" is not a JSON object')
    return ToolCall(name, arguments)


def _decoded(text: Any, key: str) -> Any:
    if not isinstance(text, str):
        return text
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


@dataclass(frozen=True)
class Block:
    """`<tag>body</tag>` in a text, from index `start` to index `end`."""

    tag: str
    body: str
    start: int
    end: int


def tagged_blocks(text: str, *tags: str, innermost: bool = False) -> Iterator[Block]:
    """Yield the blocks of tags, each up to the next closing tag of its own, in linear time for any text.

    With `innermost`, a `tool_call` with a second opening tag before its closing tag begins at the second.
    """
    opening = re.compile(f"<({'|'.join(tags)})>")
    closings = dict.fromkeys(tags, -1)  # index of each tag's next closing tag, looked for once
    at = 0
    while match := opening.search(text, at):
        tag, at = match[1], match.end()
        if closings[tag] < at:
            found = text.find(f"</{tag}>", at)
            closings[tag] = len(text) if found < 0 else found
        end = closings[tag]
        if end == len(text) or (innermost and tag == "tool_call" and text.find(match[0], at, end) >= 0):
            continue
        yield Block(tag, text[at:end], match.start(), end + len(tag) + 3)
        at = end + len(tag) + 3


def without_blocks(text: str, *tags: str, innermost: bool = False) -> str:
    """The text without the blocks of tags, see `tagged_blocks`."""
    return "".join(text_between(text, tagged_blocks(text, *tags, innermost=innermost)))


def text_between(text: str, blocks: Iterable[Block]) -> list[str]:
    """The parts of a text before, between and after blocks."""
    parts, at = [], 0
    for block in blocks:
        parts.append(text[at : block.start])
        at = block.end
    return [*parts, text[at:]]


def read_mapping(content: str) -> Mapping[str, Any]:
    """The mapping that `content` spells as JSON or as a Python literal, {} if there is none."""
    value = read_structure(content) if content.lstrip().startswith("{") else None
    return value if isinstance(value, dict) else {}


def read_structure(content: str) -> Any:
    """The mapping or list that `content` spells as JSON or as a Python literal, None if there is none."""
    if not content.lstrip().startswith(("{", "[")):
        return None
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        if len(content) > MAX_LITERAL:
            return None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about invalid escapes in the text
                return ast.literal_eval(content.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return None


def _block_text(content: Any) -> str:
    """The texts of a list of content blocks, or the text itself; "" for anything else."""
    blocks = content if isinstance(content, list) else [{"text": content}]
    texts = [block.get("text") for block in blocks if isinstance(block, dict)]
    return "\n".join(text for text in texts if isinstance(text, str)).strip()


def _openai_tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    """The tool in OpenAI's form, which templates expect."""
    return dict(tool) if isinstance(tool.get("function"), Mapping) else {"type": "function", "function": dict(tool)}


def _apply(tokenizer: Any, messages: list[dict[str, Any]], tools: list[dict[str, Any]], **options: Any) -> str:
    settings = {"tokenize": False, "add_generation_prompt": True, **options}
    return tokenizer.apply_chat_template(messages, tools=tools or None, **settings)


def takes_tools(tokenizer: Any) -> bool:
    question = [{"role": "user", "content": "x"}]
    return _apply(tokenizer, question, [_openai_tool(_PROBE_TOOL)]) != _apply(tokenizer, question, [])


def _plain_messages(prompt: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The messages with tools, calls and results as text, in the roles that every template knows."""
    messages: list[dict[str, Any]] = []
    after_result = False
    for message in prompt:
        role, content = message["role"], message.get("content") or ""
        if role == "tool":
            block = f"<tool_response>\n{content}\n</tool_response>"
            if after_result:  # consecutive results share one user message
                messages[-1]["content"] += "\n" + block
            else:
                messages.append({"role": "user", "content": block})
        else:
            calls = [render_call(_message_call(entry)) for entry in message.get("tool_calls") or ()]
            messages.append({"role": role, "content": "\n".join([*([content] if content else []), *calls])})
        after_result = role == "tool"
    if tools:
        if not messages or messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": ""})
        messages[0]["content"] = (messages[0]["content"] + "\n\n" + tools_text(tools)).strip()
    return messages


def _message_call(entry: Mapping[str, Any]) -> ToolCall:
    """The call in one entry of a chat message's `tool_calls`, in OpenAI's form or not."""
    function = entry.get("function", entry)
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        arguments = json.loads(arguments.strip() or "{}") or {}
    return ToolCall(function["name"], arguments)
