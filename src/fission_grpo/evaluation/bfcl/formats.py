"""How a BFCL case is shown to a policy, and how its replies are read: three formats.

- "qwen-fc" and "qwen-prompting": the prompts and decode rules of the official `QwenFCHandler` and `QwenHandler`, byte
  for byte; `Request.prompt` is the text to continue.
- "chat": messages and tool schemas for any model with a chat template of its own or behind a chat endpoint, read with
  `core.chat.parse`. There is no official counterpart: schemas are proper JSON schema, dots in function names
  are underscores (endpoints refuse dots), and functions held out are added to the tools at their turn, with the
  message that official function-calling models get.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from fission_grpo.core.chat import parse
from fission_grpo.core.types import Message
from fission_grpo.envs.bfcl.judge import write_call
from fission_grpo.envs.bfcl.official import Doc
from fission_grpo.evaluation.bfcl.decoding import (
    Decoded,
    OfficialCall,
    Undecodable,
    answer_text,
    clean,
    decode_hermes,
    decode_python,
    hermes_ast,
    hermes_objects,
    python_ast,
)
from fission_grpo.inference.base import Reply, Request


class Unrenderable(ValueError):
    """The official handler fails on this dialogue, and officially the whole case is an inference error."""


def fc_prompt(messages: Sequence[Message], functions: Sequence[Doc]) -> str:
    """The prompt of `QwenFCHandler`.

    Args:
        messages: roles system, user, assistant (with `tool_calls` and `reasoning_content`, as `fc_message` gives) and
            tool.
        functions: listed in `<tools>`; without any there is no such text.

    Raises:
        Unrenderable: a kept tool call has no name or arguments.
    """
    system = messages[0]["content"] if messages[0]["role"] == "system" else None
    text = ""
    if functions:
        listed = "".join(f"\n{json.dumps(doc)}" for doc in functions)
        text = _block("system", (f"{system}\n\n" if system is not None else "") + _FC_TOOLS.format(tools=listed))
    elif system is not None:
        text = _block("system", system)
    return text + _dialogue(messages)


def prompting_prompt(messages: Sequence[Message]) -> str:
    """The prompt of `QwenHandler`, whose functions are in the system message (`prompting_system`)."""
    system = _block("system", messages[0]["content"]) if messages[0]["role"] == "system" else ""
    return system + _dialogue(messages)


def prompting_system(messages: Sequence[Message], functions: Sequence[Doc]) -> list[Message]:
    """The first messages with the official system prompt before them, or joined to the system message they have."""
    from bfcl_eval.constants.default_prompts import (
        OUTPUT_FORMAT_MAPPING,
        PARAM_TYPE_MAPPING,
        PROMPT_STYLE_TEMPLATES,
        PROMPT_TEMPLATE_MAPPING,
    )

    style = PROMPT_STYLE_TEMPLATES["classic"]
    system = PROMPT_TEMPLATE_MAPPING["plaintext"].format(
        persona=style["persona"],
        task=style["task"],
        tool_call_format=style["tool_call_no_tag"].format(
            output_format=OUTPUT_FORMAT_MAPPING["python"], param_types=PARAM_TYPE_MAPPING["python"]
        ),
        multiturn_behavior=style["multiturn_behavior"],
        available_tools=style["available_tools"].format(format="json", functions=json.dumps(functions, indent=4)),
    )
    if messages[0]["role"] == "system":
        return [{**messages[0], "content": f"{system}\n\n{messages[0]['content']}"}, *messages[1:]]
    return [{"role": "system", "content": system}, *messages]


def more_functions(functions: Sequence[Doc]) -> Message:
    """The user message that shows functions held out so far (`miss_func`), as local models get it in both formats."""
    from bfcl_eval.constants.default_prompts import DEFAULT_USER_PROMPT_FOR_ADDITIONAL_FUNCTION_PROMPTING as TEXT

    return {"role": "user", "content": TEXT.format(functions=[dict(doc) for doc in functions])}


def fc_message(text: str, calls: Sequence[Any]) -> Message:
    """How `QwenFCHandler` keeps a reply: without its text if `calls`, the JSON values of its blocks, are not empty."""
    thought, answer = _parted(text)
    if calls:
        return {"role": "assistant", "content": "", "tool_calls": list(calls), "reasoning_content": thought}
    return {"role": "assistant", "content": answer, "reasoning_content": thought}


def prompting_message(text: str) -> Message:
    """How `QwenHandler` keeps a reply."""
    thought, answer = _parted(text)
    return {"role": "assistant", "content": answer, "reasoning_content": thought}


_FC_TOOLS = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>{tools}\n</tools>\n\n"
    "For each function call, return a json object with function name and arguments within <tool_call></tool_call> "
    'XML tags:\n<tool_call>\n{{"name": <function-name>, "arguments": <args-json-object>}}\n</tool_call>'
)


def _parted(text: str) -> tuple[str, str]:
    """A reply as (thought, answer)."""
    if "</think>" not in text:
        return "", text
    parts = text.split("</think>")
    return parts[0].rstrip("\n").split("<think>")[-1].lstrip("\n"), parts[-1].lstrip("\n")


def _block(role: str, content: str) -> str:
    return f"<|im_start|>{role}\n{content}<|im_end|>\n"


def _dialogue(messages: Sequence[Message]) -> str:
    """Everything after the opening system text, and the header of the turn to write."""
    query = max((i for i, message in enumerate(messages) if _is_query(message)), default=len(messages) - 1)
    parts = []
    for i, message in enumerate(messages):
        role = message["role"]
        if role == "user" or (role == "system" and i > 0):
            parts.append(_block(role, message["content"]))
        elif role == "assistant":
            parts.append(_assistant(message, after_query=i > query))
        elif role == "tool":
            first = i == 0 or messages[i - 1]["role"] != "tool"
            last = i == len(messages) - 1 or messages[i + 1]["role"] != "tool"
            parts.append("<|im_start|>user" if first else "")
            parts.append(
                f"\n<tool_response>\n{message['content']}\n</tool_response>" + ("<|im_end|>\n" if last else "")
            )
    return "".join(parts) + "<|im_start|>assistant\n"


def _is_query(message: Message) -> bool:
    content = message["content"]
    answers = content.startswith("<tool_response>") and content.endswith("</tool_response>")
    return message["role"] == "user" and not answers


def _assistant(message: Message, after_query: bool) -> str:
    """An earlier reply. Thoughts are shown only since the last question."""
    thought, content = message.get("reasoning_content") or "", message["content"]
    if not thought:
        thought, content = _parted(content)
    if after_query and thought:
        thought = thought.strip("\n")
        content = content.lstrip("\n")
        shown = f"<think>\n{thought}\n</think>\n\n{content}"
    else:
        shown = content
    return _block("assistant", shown + _kept_calls(content, message.get("tool_calls", ())))


def _kept_calls(content: str, calls: Sequence[Mapping[str, Any]]) -> str:
    """Calls written out again; a call equal to the first stands without a line break before it, as officially."""
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


FORMATS = ("qwen-fc", "qwen-prompting", "chat")


class Dialogue(Protocol):
    """A case's dialogue in one format. It is changed by every method but `request`."""

    def say(self, messages: Sequence[Message], added: Sequence[Doc] = ()) -> None:
        """Begin a user turn with its messages, or with functions held out so far."""
        ...

    def request(self) -> Request:
        """What to continue. Raises Unrenderable where the official handler fails."""
        ...

    def hear(self, reply: Reply) -> Decoded:
        """Add a reply and read its calls."""
        ...

    def answer(self, decoded: Decoded, results: Sequence[str]) -> None:
        """Add the results of the last reply's calls, in order."""
        ...

    def tell(self, error: str) -> None:
        """Tell the policy that something in its last reply could not be read (mode "told" only)."""
        ...

    def single(self, reply: Reply) -> list[dict[str, Any]]:
        """The calls of a single-turn reply as `[{name: arguments}]`. Raises Undecodable."""
        ...


def new_dialogue(format: str, functions: Sequence[Doc]) -> Dialogue:
    """An empty dialogue over the documented functions. Raises ValueError for an unknown format."""
    kinds = {"qwen-fc": QwenFC, "qwen-prompting": QwenPrompting, "chat": Chat}
    if format not in kinds:
        raise ValueError(f"no BFCL format {format!r}; there are {', '.join(FORMATS)}")
    return kinds[format](functions)


class QwenFC:
    """As the official `QwenFCHandler` (models of Qwen3, "FC")."""

    def __init__(self, functions: Sequence[Doc]):
        self._functions, self._messages = functions, []

    def say(self, messages: Sequence[Message], added: Sequence[Doc] = ()) -> None:
        self._messages += [more_functions(added)] if added else messages

    def request(self) -> Request:
        return Request(tuple(self._messages), prompt=fc_prompt(self._messages, self._functions))

    def hear(self, reply: Reply) -> Decoded:
        self._messages.append(fc_message(reply.text, hermes_objects(reply.text)[0]))
        self._text = answer_text(reply.text)
        return decode_hermes(reply.text, reply.truncated)

    def answer(self, decoded: Decoded, results: Sequence[str]) -> None:
        self._messages += [
            {"role": "tool", "name": call.source, "content": result}
            for call, result in zip(decoded.calls, results, strict=True)
        ]

    def tell(self, error: str) -> None:
        if self._messages[-1]["role"] == "assistant":  # nothing was executed; calls kept may not be renderable
            self._messages[-1] = {"role": "assistant", "content": self._text}
        self._messages.append({"role": "tool", "name": "error", "content": json.dumps({"error": error})})

    def single(self, reply: Reply) -> list[dict[str, Any]]:
        return hermes_ast(answer_text(reply.text))


class QwenPrompting:
    """As the official `QwenHandler` (models of Qwen3, "Prompt")."""

    def __init__(self, functions: Sequence[Doc]):
        self._functions, self._messages = functions, []
        self._names = {str(doc["name"]) for doc in functions}

    def say(self, messages: Sequence[Message], added: Sequence[Doc] = ()) -> None:
        if not self._messages:
            messages = prompting_system(messages, self._functions)
        self._names |= {str(doc["name"]) for doc in added}
        self._messages += [more_functions(added)] if added else messages

    def request(self) -> Request:
        return Request(tuple(self._messages), prompt=prompting_prompt(self._messages))

    def hear(self, reply: Reply) -> Decoded:
        self._messages.append(prompting_message(reply.text))
        return decode_python(reply.text, self._names, reply.truncated)

    def answer(self, decoded: Decoded, results: Sequence[str]) -> None:
        self._messages += [
            {"role": "tool", "name": call.source, "content": result}
            for call, result in zip(decoded.calls, results, strict=True)
        ]

    def tell(self, error: str) -> None:
        self._messages.append({"role": "tool", "name": "error", "content": json.dumps({"error": error})})

    def single(self, reply: Reply) -> list[dict[str, Any]]:
        return python_ast(answer_text(reply.text))


class Chat:
    """Messages and tool schemas, for any chat model."""

    def __init__(self, functions: Sequence[Doc]):
        self._tools, self._messages = [schema_of(doc) for doc in functions], []
        self._official = {tool["name"]: doc["name"] for tool, doc in zip(self._tools, functions, strict=True)}
        self._ids: list[str] = []

    def say(self, messages: Sequence[Message], added: Sequence[Doc] = ()) -> None:
        from bfcl_eval.constants.default_prompts import DEFAULT_USER_PROMPT_FOR_ADDITIONAL_FUNCTION_FC as MORE

        self._tools += [schema_of(doc) for doc in added]
        self._messages += [{"role": "user", "content": MORE}] if added else messages

    def request(self) -> Request:
        return Request(tuple(self._messages), tuple(self._tools))

    def hear(self, reply: Reply) -> Decoded:
        turn = parse(reply.text, reply.truncated)
        message: dict[str, Any] = {"role": "assistant", "content": reply.text}
        self._ids, self._structured = [], bool(reply.tool_calls)
        if turn.error is None and len(turn.calls) == len(reply.tool_calls) > 0:
            message["tool_calls"] = list(reply.tool_calls)  # each has its answer; endpoints refuse others
            self._ids = [str(call.get("id", "")) for call in reply.tool_calls]
        self._messages.append(message)
        calls = [OfficialCall(call.name, clean(dict(call.arguments)), write_call(call)) for call in turn.calls]
        return Decoded(tuple(calls), turn.error)

    def answer(self, decoded: Decoded, results: Sequence[str]) -> None:
        for i, (call, result) in enumerate(zip(decoded.calls, results, strict=True)):
            own_id = {"tool_call_id": self._ids[i]} if self._ids else {}
            self._messages.append({"role": "tool", "name": call.name, "content": result, **own_id})

    def tell(self, error: str) -> None:
        content = json.dumps({"error": error})
        if self._structured:  # a tool message would need the id of a call that was never read
            self._messages.append({"role": "user", "content": content})
        else:
            self._messages.append({"role": "tool", "name": "error", "content": content})

    def single(self, reply: Reply) -> list[dict[str, Any]]:
        turn = parse(reply.text, reply.truncated)
        if turn.error is not None or not turn.calls:
            raise Undecodable(turn.error or "no tool call")
        return [{self._official.get(call.name, call.name): dict(call.arguments)} for call in turn.calls]


_TYPES = {"dict": "object", "float": "number", "tuple": "array"}


def schema_of(doc: Doc) -> dict[str, Any]:
    """A function's doc as `{"name", "description", "parameters"}` in proper JSON schema.

    Example:
        The type "dict" becomes "object", "float" "number", "tuple" "array"; "any" is no constraint at all.
    """
    name = str(doc["name"]).replace(".", "_")
    return {"name": name, "description": doc["description"], "parameters": _schema(doc["parameters"])}


def _schema(field: Mapping[str, Any]) -> dict[str, Any]:
    schema = dict(field)
    if schema.get("type") == "any":
        del schema["type"]
    elif isinstance(schema.get("type"), str):
        schema["type"] = _TYPES.get(schema["type"], schema["type"])
    if isinstance(schema.get("properties"), Mapping):
        schema["properties"] = {name: _schema(inner) for name, inner in schema["properties"].items()}
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), Mapping):
            schema[key] = _schema(schema[key])
    if schema.get("default", "") is None:
        del schema["default"]
    return schema
