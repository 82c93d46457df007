"""How a BFCL case is rendered for a policy, and how its replies are decoded: three formats.

"qwen-fc" and "qwen-prompting" are the official `QwenFCHandler` and `QwenHandler`, byte for byte: `Request.prompt` is
the text to continue. "chat" has messages and tools for any chat model, decoded by `core.chat.parse`: dots in names are
underscores (endpoints refuse dots), and held-out functions are added to the tools at their turn. `BARE_JSON` is "chat"
that also reads calls without tags.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from fission_grpo.core.types import Message
from fission_grpo.envs.bfcl.functions import to_json_schema
from fission_grpo.envs.bfcl.judge import write_call
from fission_grpo.envs.bfcl.official import Doc
from fission_grpo.evaluation.bare_json import read_turn
from fission_grpo.evaluation.bfcl import decoding
from fission_grpo.evaluation.bfcl.decoding import Decoded, OfficialCall, Undecodable, answer_text, clean
from fission_grpo.inference.base import Reply, Request

_FC_TOOLS = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>{tools}\n</tools>\n\n"
    "For each function call, return a json object with function name and arguments within <tool_call></tool_call> "
    'XML tags:\n<tool_call>\n{{"name": <function-name>, "arguments": <args-json-object>}}\n</tool_call>'
)


class Unrenderable(ValueError):
    """The official handler fails on this dialogue, which officially makes the case an inference error."""


class Conversation:
    """A case's dialogue in one format. The base class renders messages as both official handlers of Qwen3 do."""

    decode_ast: Callable[[str], list[dict[str, Any]]]  # the official rule for a single-turn reply
    has_tools_in_system_block = False

    def __init__(self, functions: Sequence[Doc]):
        self._functions = functions
        self._messages: list[Message] = []

    def add_user_turn(self, messages: Sequence[Message], added: Sequence[Doc] = ()) -> None:
        """Start a user turn with its messages, or with functions held out until now."""
        self._messages += [_added_functions(added)] if added else messages

    def request(self) -> Request:
        """What the policy has to continue. Raises Unrenderable where the official handler fails."""
        functions = self._functions if self.has_tools_in_system_block else ()
        prompt = _system_block(self._messages, functions) + _render(self._messages)
        return Request(tuple(self._messages), prompt=prompt)

    def add_reply(self, reply: Reply) -> Decoded:
        """Add a reply and decode its calls."""
        raise NotImplementedError

    def add_results(self, decoded: Decoded, results: Sequence[str]) -> None:
        """Add the results of the last reply's calls, in order."""
        for call, result in zip(decoded.calls, results, strict=True):
            self._messages.append({"role": "tool", "name": call.source, "content": result})

    def add_error(self, error: str) -> None:
        """Tell the policy that its last reply could not be decoded (mode "feedback" only)."""
        self._messages.append({"role": "tool", "name": "error", "content": json.dumps({"error": error})})

    def decode_single(self, reply: Reply) -> list[dict[str, Any]]:
        """The calls of a single-turn reply as `[{name: arguments}]`. Raises Undecodable."""
        return self.decode_ast(answer_text(reply.text))


class QwenFC(Conversation):
    """As the official `QwenFCHandler` (models of Qwen3, "FC")."""

    decode_ast = staticmethod(decoding.hermes_ast)
    has_tools_in_system_block = True

    def add_reply(self, reply: Reply) -> Decoded:
        calls = decoding.hermes_objects(reply.text)[0]  # kept as JSON values, and then without the reply's text
        message = _assistant_message(reply.text)
        self._messages.append(message | {"content": "", "tool_calls": calls} if calls else message)
        self._answer = answer_text(reply.text)
        return decoding.decode_hermes(reply.text, reply.truncated)

    def add_error(self, error: str) -> None:
        if self._messages[-1]["role"] == "assistant":  # nothing was executed, and kept calls may not be renderable
            self._messages[-1] = {"role": "assistant", "content": self._answer}
        super().add_error(error)


class QwenPrompting(Conversation):
    """As the official `QwenHandler` (models of Qwen3, "Prompt")."""

    decode_ast = staticmethod(decoding.python_ast)

    def add_user_turn(self, messages: Sequence[Message], added: Sequence[Doc] = ()) -> None:
        if not self._messages:
            messages = _with_system_prompt(messages, self._functions)
        self._functions = [*self._functions, *added]
        super().add_user_turn(messages, added)

    def add_reply(self, reply: Reply) -> Decoded:
        self._messages.append(_assistant_message(reply.text))
        return decoding.decode_python(reply.text, [str(doc["name"]) for doc in self._functions], reply.truncated)


class Chat(Conversation):
    """Messages and tool schemas, for any chat model."""

    def __init__(self, functions: Sequence[Doc], bare_json_calls: bool = False):
        super().__init__(functions)
        self._bare_json_calls = bare_json_calls
        self._tools = [schema_of(doc) for doc in functions]
        self._official = {tool["name"]: doc["name"] for tool, doc in zip(self._tools, functions, strict=True)}
        self._ids: list[str] = []

    def add_user_turn(self, messages: Sequence[Message], added: Sequence[Doc] = ()) -> None:
        from bfcl_eval.constants.default_prompts import DEFAULT_USER_PROMPT_FOR_ADDITIONAL_FUNCTION_FC as ADDED

        self._tools += [schema_of(doc) for doc in added]
        self._messages += [{"role": "user", "content": ADDED}] if added else messages

    def request(self) -> Request:
        return Request(tuple(self._messages), tuple(self._tools))

    def add_reply(self, reply: Reply) -> Decoded:
        turn = read_turn(reply, self._bare_json_calls)
        message: dict[str, Any] = {"role": "assistant", "content": reply.text}
        self._ids, self._is_structured = [], bool(reply.tool_calls)
        if turn.error is None and len(turn.calls) == len(reply.tool_calls) > 0:
            message["tool_calls"] = list(reply.tool_calls)  # endpoints refuse structured calls without a result
            self._ids = [str(call.get("id", "")) for call in reply.tool_calls]
        self._messages.append(message)
        calls = [OfficialCall(call.name, clean(dict(call.arguments)), write_call(call)) for call in turn.calls]
        return Decoded(tuple(calls), turn.error)

    def add_results(self, decoded: Decoded, results: Sequence[str]) -> None:
        for i, (call, result) in enumerate(zip(decoded.calls, results, strict=True)):
            call_id = {"tool_call_id": self._ids[i]} if self._ids else {}
            self._messages.append({"role": "tool", "name": call.name, "content": result, **call_id})

    def add_error(self, error: str) -> None:
        if self._is_structured:  # a tool message would need the id of a call that could not be parsed
            self._messages.append({"role": "user", "content": json.dumps({"error": error})})
        else:
            super().add_error(error)

    def decode_single(self, reply: Reply) -> list[dict[str, Any]]:
        turn = read_turn(reply, self._bare_json_calls)
        if turn.error is not None or not turn.calls:
            raise Undecodable(turn.error or "no tool call")
        return [{self._official.get(call.name, call.name): dict(call.arguments)} for call in turn.calls]


BARE_JSON = "chat-bare-json"  # "chat" with `--bare_json_calls`
_CONVERSATIONS: dict[str, Callable[[Sequence[Doc]], Conversation]] = {
    "qwen-fc": QwenFC,
    "qwen-prompting": QwenPrompting,
    "chat": Chat,
    BARE_JSON: partial(Chat, bare_json_calls=True),
}
FORMATS = tuple(_CONVERSATIONS)


def new_conversation(format: str, functions: Sequence[Doc]) -> Conversation:
    """An empty dialogue with the documented functions. Raises ValueError for an unknown format."""
    if format not in _CONVERSATIONS:
        raise ValueError(f"no BFCL format {format!r}; there are {', '.join(FORMATS)}")
    return _CONVERSATIONS[format](functions)


def schema_of(doc: Doc) -> dict[str, Any]:
    """A function's documentation as `{"name", "description", "parameters"}` in proper JSON schema."""
    name = str(doc["name"]).replace(".", "_")
    return {"name": name, "description": doc["description"], "parameters": to_json_schema(doc["parameters"])}


def _added_functions(functions: Sequence[Doc]) -> Message:
    """The user message that shows functions held out until now (`miss_func`), in both official formats."""
    from bfcl_eval.constants.default_prompts import DEFAULT_USER_PROMPT_FOR_ADDITIONAL_FUNCTION_PROMPTING as TEXT

    return {"role": "user", "content": TEXT.format(functions=[dict(doc) for doc in functions])}


def _with_system_prompt(messages: Sequence[Message], functions: Sequence[Doc]) -> list[Message]:
    """The first messages with `QwenHandler`'s system prompt before them, or joined to their system message."""
    from bfcl_eval.constants import default_prompts as official

    style = official.PROMPT_STYLE_TEMPLATES["classic"]
    output, types = official.OUTPUT_FORMAT_MAPPING["python"], official.PARAM_TYPE_MAPPING["python"]
    filled = {
        "tool_call_format": style["tool_call_no_tag"].format(output_format=output, param_types=types),
        "available_tools": style["available_tools"].format(format="json", functions=json.dumps(functions, indent=4)),
    }
    system = official.PROMPT_TEMPLATE_MAPPING["plaintext"].format(**(style | filled))
    if messages[0]["role"] == "system":
        return [{**messages[0], "content": f"{system}\n\n{messages[0]['content']}"}, *messages[1:]]
    return [{"role": "system", "content": system}, *messages]


def _assistant_message(text: str) -> dict[str, Any]:
    """How the official handlers keep a reply."""
    thought, answer = _split_thought(text)
    return {"role": "assistant", "content": answer, "reasoning_content": thought}


def _split_thought(text: str) -> tuple[str, str]:
    """A reply as (thought, answer)."""
    if "</think>" not in text:
        return "", text
    parts = text.split("</think>")
    return parts[0].rstrip("\n").split("<think>")[-1].lstrip("\n"), parts[-1].lstrip("\n")


def _block(role: str, content: str) -> str:
    return f"<|im_start|>{role}\n{content}<|im_end|>\n"


def _system_block(messages: Sequence[Message], functions: Sequence[Doc] = ()) -> str:
    """The system block: the system message if there is one, and the functions if there are any."""
    parts = [messages[0]["content"]] if messages[0]["role"] == "system" else []
    if functions:
        parts.append(_FC_TOOLS.format(tools="".join(f"\n{json.dumps(doc)}" for doc in functions)))
    return _block("system", "\n\n".join(parts)) if parts else ""


def _render(messages: Sequence[Message]) -> str:
    """Everything after the system block, and the header of the turn to write."""
    last_query = max((i for i, message in enumerate(messages) if _is_query(message)), default=len(messages) - 1)
    parts = []
    for i, message in enumerate(messages):
        role = message["role"]
        if role == "user" or (role == "system" and i > 0):
            parts.append(_block(role, message["content"]))
        elif role == "assistant":
            parts.append(_render_assistant(message, shows_thought=i > last_query))
        elif role == "tool":
            is_first = i == 0 or messages[i - 1]["role"] != "tool"
            is_last = i == len(messages) - 1 or messages[i + 1]["role"] != "tool"
            parts.append("<|im_start|>user" if is_first else "")
            parts.append(f"\n<tool_response>\n{message['content']}\n</tool_response>")
            parts.append("<|im_end|>\n" if is_last else "")
    return "".join(parts) + "<|im_start|>assistant\n"


def _is_query(message: Message) -> bool:
    content = message["content"]
    is_result = content.startswith("<tool_response>") and content.endswith("</tool_response>")
    return message["role"] == "user" and not is_result


def _render_assistant(message: Message, shows_thought: bool) -> str:
    thought, content = message.get("reasoning_content") or "", message["content"]
    if not thought:
        thought, content = _split_thought(content)
    shown = content
    if shows_thought and thought:
        content = content.lstrip("\n")
        stripped = thought.strip("\n")
        shown = f"<think>\n{stripped}\n</think>\n\n{content}"
    return _block("assistant", shown + _render_calls(content, message.get("tool_calls", ())))


def _render_calls(content: str, calls: Sequence[Mapping[str, Any]]) -> str:
    """Kept calls as text; officially, a call equal to the first has no line break before it."""
    text = ""
    try:
        for call in calls:
            text += "\n" if content or call != calls[0] else ""
            inner = call["function"] if "function" in call else call  # noqa: SIM401 - it may be no mapping
            arguments = inner["arguments"]
            written = arguments if isinstance(arguments, str) else json.dumps(arguments)
            text += '<tool_call>\n{"name": "' + inner["name"] + '", "arguments": ' + written + "}\n</tool_call>"
    except (KeyError, TypeError, IndexError) as error:
        raise Unrenderable(str(error)) from error
    return text
