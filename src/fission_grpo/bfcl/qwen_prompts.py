"""The prompts of BFCL's official Qwen handlers, byte for byte: `QwenFCHandler` and `QwenHandler`.

Both write ChatML by hand; they differ in the system message and in how they keep calls in the dialogue. The texts that
are constants of bfcl-eval are read from it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fission_grpo.bfcl.cases import Doc
from fission_grpo.trajectory import Message


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
