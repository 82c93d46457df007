"""Typed mutations of a reference call: what a policy would have written, had it made just this mistake.

Every corruption takes a `Ground` and a random generator and gives the text of the failed turn, or None where it does
not apply. `corrupted` makes sure that the result fails and is the kind of failure that the corruption claims.
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
from fission_grpo.core.types import (
    ErrorKind,
    Failure,
    Task,
    ToolCall,
    Trajectory,
    Verdict,
)
from fission_grpo.fission.failures import find_failure
from fission_grpo.recipes.error_simulator.values import (
    Ground,
    invented,
    kind_of,
    neighbours,
    other_formats,
    other_value,
    shape,
)


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


TRIES = 4
"""Attempts at one corruption of one call before it is given up. [ours]"""


Change = Callable[[Ground, ToolCall, random.Random], ToolCall | str | None]


def corrupted(name: str, ground: Ground, rng: random.Random) -> str | None:
    """A failed turn's text by the corruption of that name, None where it does not apply. Deterministic given `rng`.

    Raises:
        ValueError: no such corruption.
    """
    if name not in CORRUPTIONS:
        raise ValueError(f"no corruption {name!r}; there are {', '.join(CORRUPTIONS)}")
    change, kinds = CORRUPTIONS[name]
    if (ground.call is None) != (change is needless_call):
        return None
    for _ in range(TRIES):
        made = change(ground, ground.call or ToolCall(""), rng)
        if made is None:
            return None
        text = made if isinstance(made, str) else render_call(made)
        failure = failure_of(ground.task, text)
        if failure is not None and failure.kind in kinds:
            return text
    return None


def failure_of(task: Task, text: str) -> Failure | None:
    """The failure of a step task's turn by structure and reference alone, None if the turn is right."""
    turn = parse(text)
    failed = step_verdict(task, turn, length=0).failed
    return find_failure(Trajectory(task, (turn,)), Verdict(0.0, failed)) if failed else None


def _changed(call: ToolCall, name: str, value: Any) -> ToolCall:
    return ToolCall(call.name, {**call.arguments, name: value})


def _pick(call: ToolCall, rng: random.Random, fits: Callable[[Any], bool] = lambda value: True) -> str | None:
    names = [name for name, value in call.arguments.items() if fits(value)]
    return rng.choice(names) if names else None


def wrong_value(ground: Ground, call: ToolCall, rng: random.Random) -> ToolCall | None:
    """Another value of the same type."""
    name = _pick(call, rng)
    if name is None:
        return None
    schema = ground.schemas(call.name).get(name, {})
    return _changed(call, name, other_value(call.arguments[name], schema, ground.seen, rng))


def wrong_type(ground: Ground, call: ToolCall, rng: random.Random) -> ToolCall | None:
    """The right value in another JSON type, against the schema."""
    name = _pick(call, rng)
    if name is None:
        return None
    value = call.arguments[name]
    forms: Mapping[str, list[Any]] = {
        "boolean": [str(value).lower(), int(value) if isinstance(value, bool) else 1],
        "integer": [str(value), [value]],
        "number": [str(value), [value]],
        "string": [int(value)] if isinstance(value, str) and re.fullmatch(r"[1-9]\d{0,14}", value) else [[value]],
        "array": [value[0] if value else "", json.dumps(value)] if isinstance(value, list | tuple) else [],
        "object": [json.dumps(value, ensure_ascii=False)],
        "null": ["null"],
    }
    found = forms[kind_of(value)]
    return _changed(call, name, rng.choice(found)) if found else None


def missing_argument(ground: Ground, call: ToolCall, rng: random.Random) -> ToolCall | None:
    """A required argument left out."""
    names = [name for name in ground.required(call.name) if name in call.arguments]
    if not names:
        return None
    left_out = rng.choice(names)
    return ToolCall(call.name, {name: value for name, value in call.arguments.items() if name != left_out})


def missing_option(ground: Ground, call: ToolCall, rng: random.Random) -> ToolCall | None:
    """An optional argument left out that the user asked for."""
    required = ground.required(call.name)
    names = [name for name in call.arguments if name not in required]
    if not names:
        return None
    left_out = rng.choice(names)
    return ToolCall(call.name, {name: value for name, value in call.arguments.items() if name != left_out})


INVENTED: Sequence[tuple[str, Any]] = (
    *(("limit", 10), ("verbose", True), ("confirm", True), ("format", "json"), ("force", False), ("timeout", 30)),
    *(("note", "as asked"), ("dry_run", True), ("language", "en"), ("user", "me")),
)
"""Arguments that models like to add. [ours]"""


def extra_argument(ground: Ground, call: ToolCall, rng: random.Random) -> ToolCall | None:
    """One argument too many: an option nobody asked for, another tool's parameter, or an invented one."""
    own = ground.schemas(call.name)
    optional = [name for name in own if name not in call.arguments]
    if optional and rng.random() < 0.5:
        name = rng.choice(optional)
        value = invented(name, own[name], ground.seen, rng)
        return None if same_value(value, own[name].get("default")) else _changed(call, name, value)
    others = [
        (name, schema) for tool in tool_names(ground.task.tools) for name, schema in ground.schemas(tool).items()
    ]
    others = [(name, schema) for name, schema in others if name not in own]
    if others and rng.random() < 0.5:
        name, schema = rng.choice(others)
        return _changed(call, name, invented(name, schema, ground.seen, rng))
    name, value = rng.choice([pair for pair in INVENTED if pair[0] not in own])
    return _changed(call, name, value)


def wrong_format(ground: Ground, call: ToolCall, rng: random.Random) -> ToolCall | None:
    """The right value written otherwise: dates, times, numbers with units, ids with marks, case, joined lists."""
    name = _pick(call, rng, lambda value: bool(other_formats(value)))
    return None if name is None else _changed(call, name, rng.choice(other_formats(call.arguments[name])))


def stale_id(ground: Ground, call: ToolCall, rng: random.Random) -> ToolCall | None:
    """An id or name of another entity, which the dialogue showed before."""
    fits: list[tuple[str, Any]] = []
    for name, value in call.arguments.items():
        if isinstance(value, bool) or not isinstance(value, str | int):
            continue
        for _, other in ground.seen:
            if shape(other) == shape(value) and not same_value(other, value):
                fits.append((name, other))
    if not fits:
        return None
    name, value = rng.choice(fits)
    return _changed(call, name, value)


def off_by_one(ground: Ground, call: ToolCall, rng: random.Random) -> ToolCall | None:
    """A number, an id's number, or a date that is one off."""
    name = _pick(call, rng, lambda value: bool(neighbours(value)))
    return None if name is None else _changed(call, name, rng.choice(neighbours(call.arguments[name])))


def swapped_arguments(ground: Ground, call: ToolCall, rng: random.Random) -> ToolCall | None:
    """Two arguments of one type that have changed places."""
    items = list(call.arguments.items())
    pairs = [
        (one, other)
        for at, (one, value) in enumerate(items)
        for other, against in items[at + 1 :]
        if kind_of(value) == kind_of(against) and not same_value(value, against)
    ]
    if not pairs:
        return None
    one, other = rng.choice(pairs)
    changed = {**call.arguments, one: call.arguments[other], other: call.arguments[one]}
    return ToolCall(call.name, changed)


_WRONG, _BAD = ErrorKind.WRONG_CALL, ErrorKind.BAD_ARGUMENTS


CORRUPTIONS: Mapping[str, tuple[Change, frozenset[ErrorKind]]] = {
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
"""Every corruption with the kinds of failure it is by structure alone, before an environment has answered. [ours]"""
