"""Corruptions of which tool is called, and of the text around the call. See `corruptions`."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping
from typing import Any

from fission_grpo.chat import render_call
from fission_grpo.schema import tool_names
from fission_grpo.simulator.ground import Ground
from fission_grpo.simulator.plausible import invented, kind_of
from fission_grpo.trajectory import ToolCall


def wrong_tool(ground: Ground, call: ToolCall, rng: random.Random) -> ToolCall | None:
    """Another tool of the task with arguments that fit it, most often one with a like name or like parameters."""
    names = [name for name in tool_names(ground.task.tools) if name != call.name]
    if not names:
        return None
    words = set(_words(call.name))
    likeness = {
        name: 1 + 3 * len(words & set(_words(name))) + len(set(ground.schemas(name)) & set(call.arguments))
        for name in names
    }
    return _call_of(ground, rng.choices(names, [likeness[name] for name in names])[0], call.arguments, rng)


def needless_call(ground: Ground, call: ToolCall, rng: random.Random) -> ToolCall | None:
    """A call where none is needed."""
    names = tool_names(ground.task.tools)
    return _call_of(ground, rng.choice(names), {}, rng) if names else None


def _call_of(ground: Ground, name: str, given: Mapping[str, Any], rng: random.Random) -> ToolCall:
    """A valid call of a tool: arguments of the same name and type are kept, the others invented."""
    arguments = {}
    for parameter, schema in ground.schemas(name).items():
        if parameter in given and kind_of(given[parameter]) == schema.get("type"):
            arguments[parameter] = given[parameter]
        elif parameter in ground.required(name):
            kept = [value for value in given.values() if kind_of(value) == schema.get("type")]
            arguments[parameter] = rng.choice(kept) if kept else invented(parameter, schema, ground.seen, rng)
    return ToolCall(name, arguments)


def misspelt_tool(ground: Ground, call: ToolCall, rng: random.Random) -> ToolCall | None:
    """The right tool under a name that does not exist."""
    words = _words(call.name)
    camel, snake = words[0] + "".join(word.title() for word in words[1:]), "_".join(words)
    middle = len(call.name) // 2
    names = [camel, snake, "-".join(words), call.name[:middle] + call.name[middle + 1 :], f"{call.name}_tool"]
    names += ["_".join(words[:-1]), "_".join(words[::-1])] if len(words) > 1 else [f"{call.name}s", f"do_{call.name}"]
    names = [name for name in names if name not in tool_names(ground.task.tools)]
    return ToolCall(rng.choice(names), call.arguments) if names else None


def _words(name: str) -> list[str]:
    """The words of an identifier in lower case. Example: "setCruise_control" is set, cruise, control."""
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])|[^\W_]+", name)] or [name.lower()]


def broken_json(ground: Ground, call: ToolCall, rng: random.Random) -> str | None:
    """The right call in text that cannot be read."""
    text = render_call(call)
    body = text.removeprefix("<tool_call>\n").removesuffix("\n</tool_call>")
    broken = [
        f"<tool_call>\n{body[:-1]}\n</tool_call>",
        f"<tool_call>\n{body}",
        f"<tool_call>\n{body[:-2]},}}}}\n</tool_call>",
        f"<tool_call>\n{dict(json.loads(body))}\n</tool_call>",
        f"<tool_call>\n{call.name}({', '.join(f'{k}={v!r}' for k, v in call.arguments.items())})\n</tool_call>",
        text.replace('"arguments"', '"args"', 1),
        text.replace('"name"', '"function"', 1),
        text.replace('"name": ', '"name" ', 1),
        f"<tool_call>\n```json\n{body}\n```\n</tool_call>",
        f"<tool_call>\n{body[: len(body) * 2 // 3]}\n</tool_call>",
    ]
    return rng.choice(broken)


SAID = (
    "Done.",
    "I have done that for you.",
    "Could you give me more details, please?",
    "I'm sorry, I cannot do that.",
    "I will use {tool} for this.",
    "Let me look into it.",
    "All set: {tool} was successful.",
    "To do this I need to call {tool} first. Shall I go on?",
)
"""What is said instead of a call. [ours]"""


def no_call(ground: Ground, call: ToolCall, rng: random.Random) -> str | None:
    """Words where a call is needed."""
    return rng.choice(SAID).format(tool=call.name)


def extra_call(ground: Ground, call: ToolCall, rng: random.Random) -> str | None:
    """The right call and one that nobody asked for."""
    other = wrong_tool(ground, call, rng)
    return None if other is None else f"{render_call(call)}\n{render_call(other)}"
