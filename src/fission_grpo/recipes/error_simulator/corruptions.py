"""Typed corruptions of a reference call: each makes the turn that a policy would write if it made one mistake.

A corruption takes a `CallContext` and a random generator, and returns the wrong call, the failed turn's text, or None
where it does not apply. `corrupt` checks that the result fails, and in a way the corruption may fail.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from fission_grpo.core.chat import parse, render_call
from fission_grpo.core.rewards import same_value, step_verdict
from fission_grpo.core.types import ErrorKind, Failure, Task, ToolCall, Trajectory, Verdict
from fission_grpo.fission.failures import find_failure
from fission_grpo.recipes.error_simulator.values import (
    CallContext,
    change_value,
    invent_value,
    json_type,
    neighbours,
    other_types,
    reformat,
    shape_of,
)

Corruption = Callable[[CallContext, random.Random], ToolCall | str | None]

NEEDLESS = "needless_call"  # the only corruption of a task that needs no call
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
    """The failed turn's text that a corruption makes, by its name in `CORRUPTIONS`; None if it does not apply.

    Deterministic given `rng`. Raises ValueError for an unknown name.
    """
    if name not in CORRUPTIONS:
        raise ValueError(f"no corruption {name!r}; there are {', '.join(CORRUPTIONS)}")
    change, kinds = CORRUPTIONS[name]
    if (context.task.reference == ()) != (change is needless_call):
        return None
    for _ in range(MAX_TRIES):
        changed = change(context, rng)
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
    return find_failure(Trajectory(task, (turn,)), Verdict(0.0, True)) if failed else None


def _changed(call: ToolCall, changes: Mapping[str, Any]) -> ToolCall:
    """The call with other or further arguments."""
    return ToolCall(call.name, {**call.arguments, **changes})


def wrong_value(context: CallContext, rng: random.Random) -> ToolCall | None:
    """Another value of the same type."""
    call = context.call
    if not call.arguments:
        return None
    name = rng.choice(list(call.arguments))
    schema = context.schemas(call.name).get(name, {})
    return _changed(call, {name: change_value(call.arguments[name], schema, context.values, rng)})


def rewritten(forms: Callable[[Any], list[Any]], context: CallContext, rng: random.Random) -> ToolCall | None:
    """An argument in one of the forms that `forms` gives for its value."""
    others = {name: forms(value) for name, value in context.call.arguments.items()}
    names = [name for name, values in others.items() if values]
    if not names:
        return None
    name = rng.choice(names)
    return _changed(context.call, {name: rng.choice(others[name])})


def stale_id(context: CallContext, rng: random.Random) -> ToolCall | None:
    """The id or name of another entity in the dialogue."""
    choices = [
        {name: other}
        for name, value in context.call.arguments.items()
        if isinstance(value, str | int) and not isinstance(value, bool)
        for _, other in context.values
        if shape_of(other) == shape_of(value) and not same_value(other, value)
    ]
    return _changed(context.call, rng.choice(choices)) if choices else None


def swapped_arguments(context: CallContext, rng: random.Random) -> ToolCall | None:
    """Two arguments of one type with exchanged values."""
    items = list(context.call.arguments.items())
    swaps = [
        {name: other_value, other: value}
        for at, (name, value) in enumerate(items)
        for other, other_value in items[at + 1 :]
        if json_type(value) == json_type(other_value) and not same_value(value, other_value)
    ]
    return _changed(context.call, rng.choice(swaps)) if swaps else None


def left_out(is_required: bool, context: CallContext, rng: random.Random) -> ToolCall | None:
    """A required argument, or an optional one that the user requested, is left out."""
    call, required = context.call, context.required(context.call.name)
    if is_required:
        names = [name for name in required if name in call.arguments]
    else:
        names = [name for name in call.arguments if name not in required]
    if not names:
        return None
    dropped = rng.choice(names)
    return ToolCall(call.name, {name: value for name, value in call.arguments.items() if name != dropped})


def extra_argument(context: CallContext, rng: random.Random) -> ToolCall | None:
    """An extra argument: an optional one nobody requested, another tool's parameter, or one of `COMMON_EXTRAS`."""
    call, own = context.call, context.schemas(context.call.name)
    optional = [name for name in own if name not in call.arguments]
    if optional and rng.random() < 0.5:
        name = rng.choice(optional)
        value = invent_value(name, own[name], context.values, rng)
        return None if same_value(value, own[name].get("default")) else _changed(call, {name: value})
    others = [item for tool in context.tools for item in context.schemas(tool).items() if item[0] not in own]
    if others and rng.random() < 0.5:
        name, schema = rng.choice(others)
        return _changed(call, {name: invent_value(name, schema, context.values, rng)})
    name, value = rng.choice([pair for pair in COMMON_EXTRAS if pair[0] not in own])
    return _changed(call, {name: value})


def wrong_tool(context: CallContext, rng: random.Random) -> ToolCall | None:
    """A valid call of another tool, preferably one with a similar name or the same parameters."""
    call = context.call
    names = [name for name in context.tools if name != call.name]
    if not names:
        return None
    words = set(_words(call.name))
    weights = [
        1 + 3 * len(words & set(_words(name))) + len(set(context.schemas(name)) & set(call.arguments))
        for name in names
    ]
    return _valid_call(context, rng.choices(names, weights)[0], rng)


def needless_call(context: CallContext, rng: random.Random) -> ToolCall | None:
    """A call where none is needed."""
    return _valid_call(context, rng.choice(list(context.tools)), rng) if context.tools else None


def extra_call(context: CallContext, rng: random.Random) -> str | None:
    """The right call and a second one that nobody requested."""
    other = wrong_tool(context, rng)
    return None if other is None else f"{render_call(context.call)}\n{render_call(other)}"


def misspelt_tool(context: CallContext, rng: random.Random) -> ToolCall | None:
    """The right arguments for a tool name that does not exist."""
    right = context.call.name
    words = _words(right)
    camel, snake = words[0] + "".join(word.title() for word in words[1:]), "_".join(words)
    middle = len(right) // 2
    names = [camel, snake, "-".join(words), right[:middle] + right[middle + 1 :], f"{right}_tool"]
    names += ["_".join(words[:-1]), "_".join(words[::-1])] if len(words) > 1 else [f"{right}s", f"do_{right}"]
    names = [name for name in names if name not in context.tools]
    return ToolCall(rng.choice(names), context.call.arguments) if names else None


def broken_json(context: CallContext, rng: random.Random) -> str:
    """The right call in text that cannot be parsed."""
    call, text = context.call, render_call(context.call)
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


def no_call(context: CallContext, rng: random.Random) -> str:
    """Plain text where a call is needed."""
    return rng.choice(REPLIES_WITHOUT_CALL).format(tool=context.call.name)


def _valid_call(context: CallContext, name: str, rng: random.Random) -> ToolCall:
    """A valid call of a tool: keeps the reference's arguments of the same name and type, invents required ones."""
    given, arguments = context.call.arguments, {}
    for parameter, schema in context.schemas(name).items():
        if parameter in given and json_type(given[parameter]) == schema.get("type"):
            arguments[parameter] = given[parameter]
        elif parameter in context.required(name):
            kept = [value for value in given.values() if json_type(value) == schema.get("type")]
            arguments[parameter] = rng.choice(kept) if kept else invent_value(parameter, schema, context.values, rng)
    return ToolCall(name, arguments)


def _words(name: str) -> list[str]:
    """The words of an identifier in lower case. Example: "setCruise_control" is set, cruise, control."""
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])|[^\W_]+", name)] or [name.lower()]


_WRONG, _BAD = ErrorKind.WRONG_CALL, ErrorKind.BAD_ARGUMENTS

CORRUPTIONS: Mapping[str, tuple[Corruption, set[ErrorKind]]] = {
    "wrong_value": (wrong_value, {_WRONG}),
    "wrong_type": (partial(rewritten, other_types), {_BAD}),
    "missing_argument": (partial(left_out, True), {_BAD}),
    "missing_option": (partial(left_out, False), {_WRONG}),
    "extra_argument": (extra_argument, {_WRONG, _BAD}),
    "wrong_tool": (wrong_tool, {_WRONG}),
    "misspelt_tool": (misspelt_tool, {ErrorKind.UNKNOWN_TOOL}),
    "wrong_format": (partial(rewritten, reformat), {_WRONG, _BAD}),
    "stale_id": (stale_id, {_WRONG}),
    "off_by_one": (partial(rewritten, neighbours), {_WRONG, _BAD}),
    "swapped_arguments": (swapped_arguments, {_WRONG}),
    "broken_json": (broken_json, {ErrorKind.UNPARSED}),
    "no_call": (no_call, {ErrorKind.NO_CALL}),
    "extra_call": (extra_call, {_WRONG}),
    NEEDLESS: (needless_call, {_WRONG}),
}
"""Every corruption, with the kinds of failure it may make before an environment has answered. [ours]"""
