"""Calls that a reply writes as JSON without `<tool_call>` tags, read only where an evaluation asks for it.

Qwen2.5-Coder was not trained on the tags that its chat template asks for: it writes the JSON alone or in a Markdown
code block (vLLM's issue 32926, Ollama's 12174). Servers read such replies in different ways; this is the strictest.
"""

from __future__ import annotations

import re
from dataclasses import replace

from fission_grpo.core.chat import parse
from fission_grpo.core.json_io import NotJson, read_json
from fission_grpo.core.types import ToolCall, Turn
from fission_grpo.inference.base import Reply

_FENCED = re.compile(r"```(?:json)?[ \t]*\n(.*)```", re.DOTALL)
_SPACE = re.compile(r"\s*")


def read_turn(reply: Reply, bare_json_calls: bool = False) -> Turn:
    """The reply as `parse` reads it; with `bare_json_calls`, one that has neither calls nor an error by
    `calls_in_bare_json`."""
    turn = parse(reply.text, truncated=reply.truncated)
    if not bare_json_calls or turn.calls or turn.error or not (calls := calls_in_bare_json(turn.content)):
        return turn
    return replace(turn, content="", calls=calls)


def calls_in_bare_json(text: str) -> tuple[ToolCall, ...]:
    """The calls of a text that is nothing but calls in JSON; () for any other text.

    It is one object, several with white space between them, or a list of them, all of it in one Markdown code block or
    not. Each has `name`, `arguments` and no other key. Whether the tool exists is for the environment to say.

    Example: '{"name": "ls", "arguments": {}}' is a call of `ls`; 'I call {"name": "ls", "arguments": {}}' is none.
    """
    text = text.strip()
    fenced = _FENCED.fullmatch(text)
    body = fenced[1].strip() if fenced else text
    values, at = [], 0
    try:
        while at < len(body):
            value, at = read_json(body, at)
            values.append(value)
            at = _SPACE.match(body, at).end()  # pyright: ignore[reportOptionalMemberAccess] - it matches everywhere
    except NotJson:
        return ()
    if len(values) == 1 and isinstance(values[0], list):
        values = values[0]
    return tuple(ToolCall(one["name"], one["arguments"]) for one in values) if all(map(_is_call, values)) else ()


def _is_call(value: object) -> bool:
    if not isinstance(value, dict) or value.keys() != {"name", "arguments"}:
        return False
    return isinstance(value["name"], str) and value["name"] != "" and isinstance(value["arguments"], dict)
