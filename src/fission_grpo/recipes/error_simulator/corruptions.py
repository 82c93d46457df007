"""Typed corruptions of a reference call: each makes the turn that a policy would write if it made one mistake.

A corruption takes a `CallContext`, the call and a random generator, and returns the wrong call, the failed turn's
text, or None where it does not apply. `corrupt` checks that the result fails, and in a way the corruption may fail.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fission_grpo.core.chat import parse, render_call
from fission_grpo.core.rewards import same_value, step_verdict
from fission_grpo.core.tool_schema import tool_names
from fission_grpo.core.types import ErrorKind, Failure, Task, ToolCall, Trajectory, Verdict
from fission_grpo.fission.failures import find_failure
from fission_grpo.recipes.error_simulator.values import (
    CallContext,
    change_value,
    invent_value,
    json_type,
    neighbours,
    reformat,
    shape_of,
)

Corruption = Callable[[CallContext, ToolCall, random.Random], ToolCall | str | None]

MAX_TRIES = 4  # draws of one corruption of one call before it is given up [ours]

REPLIES_WITHOUT_CALL = (  # [ours]
    "Done.",
    "I have done that for you.",
    "Could you give me more details, please?",
    "I'm sorry, I cannot do that.",
    "I will use {tool} for this.",
    "Let me look into it.",
    "All set: {tool} was successful.",
    "To do this I need to call {tool} first. Shall I go on?",
)

COMMON_EXTRAS: Sequence[tuple[str, Any]] = (  # arguments that models like to add [ours]
    ("limit", 10),
    ("verbose", True),
    ("confirm", True),
    ("format", "json"),
    ("force", False),
    ("timeout", 30),
    ("note", "as asked"),
    ("dry_run", True),
    ("language", "en"),
    ("user", "me"),
)


def corrupt(name: str, context: CallContext, rng: random.Random) -> str | None:
    """Apply a corruption by its name in `CORRUPTIONS`. Deterministic given `rng`.

    Returns:
        str | None: the failed turn's text; None if the corruption does not apply to the call.

    Raises:
        ValueError: there is no such corruption.
    """
    if name not in CORRUPTIONS:
        raise ValueError(f"no corruption {name!r}; there are {', '.join(CORRUPTIONS)}")
    change, kinds = CORRUPTIONS[name]
    if (context.call is None) != (change is needless_call):
        return None
    for _ in range(MAX_TRIES):
        changed = change(context, context.call or ToolCall(""), rng)
        if changed is None:
            return None
        text = changed if isinstance(changed, str) else render_call(changed)
        failure = find_step_failure(context.task, text)
        if failure is not None and failure.kind in kinds:
            return text
    return None


def find_step_failure(task: Task, text: str) -> Failure | None:
    """The failure of a step task's turn by its form, the schemas and the reference alone; None if it is right."""
    turn = parse(text)
    failed = step_verdict(task, turn, length=0).failed
    return find_failure(Trajectory(task, (turn,)), Verdict(0.0, failed)) if failed else None


def wrong_value(context: CallContext, call: ToolCall, rng: random.Random) -> ToolCall | None:
    """Another value of the same type."""
    name = _choose_argument(call, rng)
    if name is None:
        return None
    schema = context.schemas(call.name).get(name, {})
    return _with_argument(call, name, change_value(call.arguments[name], schema, context.values, rng))


def wrong_type(context: CallContext, call: ToolCall, rng: random.Random) -> ToolCall | None:
    """The right value in a JSON type that the schema rejects."""
    name = _choose_argument(call, rng)
    if name is None:
        return None
    return _with_argument(call, name, rng.choice(_in_other_types(call.arguments[name])))


def wrong_format(context: CallContext, call: ToolCall, rng: random.Random) -> ToolCall | None:
    """The right value in a wrong format; see `reformat`."""
    name = _choose_argument(call, rng, lambda value: bool(reformat(value)))
    return None if name is None else _with_argument(call, name, rng.choice(reformat(call.arguments[name])))


def off_by_one(context: CallContext, call: ToolCall, rng: random.Random) -> ToolCall | None:
    """A number, an id's number or a date that is off by one."""
    name = _choose_argument(call, rng, lambda value: bool(neighbours(value)))
    return None if name is None else _with_argument(call, name, rng.choice(neighbours(call.arguments[name])))


def stale_id(context: CallContext, call: ToolCall, rng: random.Random) -> ToolCall | None:
    """The id or name of another entity in the dialogue."""
    choices = [
        (name, other)
        for name, value in call.arguments.items()
        if isinstance(value, str | int) and not isinstance(value, bool)
        for _, other in context.values
        if shape_of(other) == shape_of(value) and not same_value(other, value)
    ]
    return _with_argument(call, *rng.choice(choices)) if choices else None


def swapped_arguments(context: CallContext, call: ToolCall, rng: random.Random) -> ToolCall | None:
    """Two arguments of one type with exchanged values."""
    items = list(call.arguments.items())
    pairs = [
        (name, other)
        for at, (name, value) in enumerate(items)
        for other, other_value in items[at + 1 :]
        if json_type(value) == json_type(other_value) and not same_value(value, other_value)
    ]
    if not pairs:
        return None
    name, other = rng.choice(pairs)
    return ToolCall(call.name, {**call.arguments, name: call.arguments[other], other: call.arguments[name]})


def missing_argument(context: CallContext, call: ToolCall, rng: random.Random) -> ToolCall | None:
    """A required argument is left out."""
    return _without_any([name for name in context.required(call.name) if name in call.arguments], call, rng)


def missing_option(context: CallContext, call: ToolCall, rng: random.Random) -> ToolCall | None:
    """An optional argument that the user requested is left out."""
    required = context.required(call.name)
    return _without_any([name for name in call.arguments if name not in required], call, rng)


def extra_argument(context: CallContext, call: ToolCall, rng: random.Random) -> ToolCall | None:
    """An extra argument: an optional one nobody requested, another tool's parameter, or one of `COMMON_EXTRAS`."""
    own = context.schemas(call.name)
    optional = [name for name in own if name not in call.arguments]
    if optional and rng.random() < 0.5:
        name = rng.choice(optional)
        value = invent_value(name, own[name], context.values, rng)
        return None if same_value(value, own[name].get("default")) else _with_argument(call, name, value)
    tools = tool_names(context.task.tools)
    others = [item for tool in tools for item in context.schemas(tool).items() if item[0] not in own]
    if others and rng.random() < 0.5:
        name, schema = rng.choice(others)
        return _with_argument(call, name, invent_value(name, schema, context.values, rng))
    return _with_argument(call, *rng.choice([pair for pair in COMMON_EXTRAS if pair[0] not in own]))


def wrong_tool(context: CallContext, call: ToolCall, rng: random.Random) -> ToolCall | None:
    """A valid call of another tool, preferably one with a similar name or the same parameters."""
    names = [name for name in tool_names(context.task.tools) if name != call.name]
    if not names:
        return None
    words = set(_words(call.name))
    weights = [
        1 + 3 * len(words & set(_words(name))) + len(set(context.schemas(name)) & set(call.arguments))
        for name in names
    ]
    return _valid_call(context, rng.choices(names, weights)[0], call.arguments, rng)


def needless_call(context: CallContext, call: ToolCall, rng: random.Random) -> ToolCall | None:
    """A call where none is needed."""
    names = tool_names(context.task.tools)
    return _valid_call(context, rng.choice(names), {}, rng) if names else None


def extra_call(context: CallContext, call: ToolCall, rng: random.Random) -> str | None:
    """The right call and a second one that nobody requested."""
    other = wrong_tool(context, call, rng)
    return None if other is None else f"{render_call(call)}\n{render_call(other)}"


def misspelt_tool(context: CallContext, call: ToolCall, rng: random.Random) -> ToolCall | None:
    """The right arguments for a tool name that does not exist."""
    words = _words(call.name)
    camel, snake = words[0] + "".join(word.title() for word in words[1:]), "_".join(words)
    middle = len(call.name) // 2
    names = [camel, snake, "-".join(words), call.name[:middle] + call.name[middle + 1 :], f"{call.name}_tool"]
    names += ["_".join(words[:-1]), "_".join(words[::-1])] if len(words) > 1 else [f"{call.name}s", f"do_{call.name}"]
    names = [name for name in names if name not in tool_names(context.task.tools)]
    return ToolCall(rng.choice(names), call.arguments) if names else None


def broken_json(context: CallContext, call: ToolCall, rng: random.Random) -> str | None:
    """The right call in text that cannot be parsed."""
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


def no_call(context: CallContext, call: ToolCall, rng: random.Random) -> str | None:
    """Plain text where a call is needed."""
    return rng.choice(REPLIES_WITHOUT_CALL).format(tool=call.name)


def _with_argument(call: ToolCall, name: str, value: Any) -> ToolCall:
    return ToolCall(call.name, {**call.arguments, name: value})


def _without_any(names: Sequence[str], call: ToolCall, rng: random.Random) -> ToolCall | None:
    """The call without one of the named arguments, None if there is none."""
    if not names:
        return None
    dropped = rng.choice(names)
    return ToolCall(call.name, {name: value for name, value in call.arguments.items() if name != dropped})


def _choose_argument(
    call: ToolCall, rng: random.Random, fits: Callable[[Any], bool] = lambda value: True
) -> str | None:
    names = [name for name, value in call.arguments.items() if fits(value)]
    return rng.choice(names) if names else None


def _valid_call(context: CallContext, name: str, given: Mapping[str, Any], rng: random.Random) -> ToolCall:
    """A valid call of a tool: keeps the given arguments of the same name and type, and invents other required ones."""
    arguments = {}
    for parameter, schema in context.schemas(name).items():
        if parameter in given and json_type(given[parameter]) == schema.get("type"):
            arguments[parameter] = given[parameter]
        elif parameter in context.required(name):
            kept = [value for value in given.values() if json_type(value) == schema.get("type")]
            arguments[parameter] = rng.choice(kept) if kept else invent_value(parameter, schema, context.values, rng)
    return ToolCall(name, arguments)


def _in_other_types(value: Any) -> list[Any]:
    if isinstance(value, bool):
        return [str(value).lower(), int(value)]
    if isinstance(value, int | float):
        return [str(value), [value]]
    if isinstance(value, str):
        return [int(value)] if re.fullmatch(r"[1-9]\d{0,14}", value) else [[value]]
    if isinstance(value, list | tuple):
        return [value[0] if value else "", json.dumps(value)]
    return ["null"] if value is None else [json.dumps(value, ensure_ascii=False)]


def _words(name: str) -> list[str]:
    """The words of an identifier in lower case. Example: "setCruise_control" is set, cruise, control."""
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])|[^\W_]+", name)] or [name.lower()]


_WRONG, _BAD = ErrorKind.WRONG_CALL, ErrorKind.BAD_ARGUMENTS

CORRUPTIONS: Mapping[str, tuple[Corruption, frozenset[ErrorKind]]] = {
    "wrong_value": (wrong_value, frozenset({_WRONG})),
    "wrong_type": (wrong_type, frozenset({_BAD})),
    "missing_argument": (missing_argument, frozenset({_BAD})),
    "missing_option": (missing_option, frozenset({_WRONG})),
    "extra_argument": (extra_argument, frozenset({_WRONG, _BAD})),
    "wrong_tool": (wrong_tool, frozenset({_WRONG})),
    "misspelt_tool": (misspelt_tool, frozenset({ErrorKind.UNKNOWN_TOOL})),
    "wrong_format": (wrong_format, frozenset({_WRONG, _BAD})),
    "stale_id": (stale_id, frozenset({_WRONG})),
    "off_by_one": (off_by_one, frozenset({_WRONG, _BAD})),
    "swapped_arguments": (swapped_arguments, frozenset({_WRONG})),
    "broken_json": (broken_json, frozenset({ErrorKind.UNPARSED})),
    "no_call": (no_call, frozenset({ErrorKind.NO_CALL})),
    "extra_call": (extra_call, frozenset({_WRONG})),
    "needless_call": (needless_call, frozenset({_WRONG})),
}
"""Every corruption, with the kinds of failure it may make before an environment has answered. [ours]"""
