"""Scripted replies to BFCL cases: the ground truth with one mistake (or merely another way of writing) somewhere."""

import json

from fission_grpo.core.chat import render_call
from fission_grpo.core.types import ToolCall
from fission_grpo.envs.bfcl.functions import class_docs
from fission_grpo.envs.bfcl.judge import write_call

DONE = "Done."
BOTH = (
    "none",
    "one_call_a_step",
    "drop",
    "repeat",
    "swap",
    "change_value",
    "wrong_type",
    "other_function",
    "unknown_tool",
    "dotted_tool",
    "unknown_argument",
    "missing_argument",
    "failing_then_right",
    "parentheses_in_text",
    "hidden_name_in_text",
    "refused_name",
    "empty_turn",
    "words_only",
    "thoughts",
    "forced_to_quit",
    "forced_to_quit_last_turn",
    "twenty_steps",
    "unicode",
)
KINDS = {
    "qwen-fc": (
        *BOTH,
        "no_line_breaks",
        "broken_json",
        "no_arguments_key",
        "half_broken",
        "arguments_as_text",
        "arguments_not_object",
        "not_a_number",
        "call_in_thought",
    ),
    "qwen-prompting": (
        *BOTH,
        "no_brackets",
        "backticks",
        "positional",
        "call_as_argument",
        "arithmetic",
        "bare_name",
        "broken_python",
        "empty_dictionary",
    ),
}


def write(calls, form):
    """A reply that makes these calls."""
    return "\n".join(map(render_call, calls)) if form == "qwen-fc" else f"[{', '.join(map(write_call, calls))}]"


def replies(case, form, kind, rng):
    """The replies of a whole case, in the order they are asked for; None where the kind does not apply."""
    turns = [[write(turn, form), DONE] if turn else [DONE] for turn in case.reference]
    places = [(t, i) for t, turn in enumerate(case.reference) for i in range(len(turn))]
    if kind == "forced_to_quit_last_turn":
        places = [place for place in places if place[0] == len(turns) - 1] or places
    t, i = rng.choice(places)
    changed = CHANGES[kind](list(case.reference[t]), i, form, rng, case) if kind in CHANGES else None
    if kind == "none":
        pass
    elif changed is None:
        return None
    else:
        turns[t] = changed
    return [reply for turn in turns for reply in turn]


def _functions(case):
    return sorted(name for class_name in case.classes for name in class_docs(class_name))


def _edit(calls, i, form, call):
    return [write([*calls[:i], call, *calls[i + 1 :]], form), DONE]


def _argument(calls, i, rng, texts=False):
    names = [n for n, v in calls[i].arguments.items() if isinstance(v, str) or not texts]
    return rng.choice(names) if names else None


def _with(calls, i, form, name, value):
    return None if name is None else _edit(calls, i, form, ToolCall(calls[i].name, calls[i].arguments | {name: value}))


def _change_value(calls, i, form, rng, case):
    name = _argument(calls, i, rng)
    value = calls[i].arguments.get(name)
    return _with(calls, i, form, name, value + 1 if isinstance(value, int | float) else f"{value}x")


def _wrong_type(calls, i, form, rng, case):
    name = _argument(calls, i, rng)
    value = calls[i].arguments.get(name)
    return _with(calls, i, form, name, str(value) if isinstance(value, int | float) else [value])


def _in_text(suffix):
    def change(calls, i, form, rng, case):
        name = _argument(calls, i, rng, texts=True)
        if name is None:
            return None
        return _with(calls, i, form, name, calls[i].arguments[name] + suffix.format(rng.choice(_functions(case))))

    return change


def _missing_argument(calls, i, form, rng, case):
    name = _argument(calls, i, rng)
    if name is None:
        return None
    return _edit(calls, i, form, ToolCall(calls[i].name, {k: v for k, v in calls[i].arguments.items() if k != name}))


def _before(make):
    """A step before the right ones."""
    return lambda calls, i, form, rng, case: [write([make(calls[i], rng, case)], form), write(calls, form), DONE]


def _quit(steps):
    def change(calls, i, form, rng, case):
        read = {"GorillaFileSystem": "pwd", "MathAPI": "mean", "TicketAPI": "logout"}.get(
            case.classes[0], "no_such_tool"
        )
        return [write([ToolCall(read)], form)] * steps + ([write(calls, form), DONE] if steps < 21 else [])

    return change


def _swap(calls, i, form, rng, case):
    rng.shuffle(calls)
    return [write(calls, form), DONE]


def _unread(text):
    """The whole turn is one reply that cannot be decoded officially, which ends it."""
    return lambda calls, i, form, rng, case: [text(calls, i, form)]


def _object(call, **fields):
    return {"name": call.name, "arguments": dict(call.arguments)} | fields


def _fc(calls, i, *objects):
    blocks = [json.dumps(value) for value in objects]
    rest = [render_call(call) for at, call in enumerate(calls) if at != i]
    return [*rest, *(f"<tool_call>\n{block}\n</tool_call>" for block in blocks)]


def _source(call, extra):
    return f"{call.name}({', '.join([*(f'{k}={v!r}' for k, v in call.arguments.items()), *extra])})"


CHANGES = {
    "one_call_a_step": lambda calls, i, form, rng, case: [*(write([call], form) for call in calls), DONE],
    "drop": lambda calls, i, form, rng, case: [write(calls[:i] + calls[i + 1 :], form), DONE] if calls[1:] else [DONE],
    "repeat": lambda calls, i, form, rng, case: [write([*calls, calls[i]], form), DONE],
    "swap": _swap,
    "change_value": _change_value,
    "wrong_type": _wrong_type,
    "other_function": lambda calls, i, form, rng, case: _edit(
        calls, i, form, ToolCall(rng.choice(_functions(case)), calls[i].arguments)
    ),
    "unknown_tool": _before(lambda call, rng, case: ToolCall("no_such_tool", call.arguments)),
    "dotted_tool": lambda calls, i, form, rng, case: _edit(
        calls, i, form, ToolCall(f"{case.classes[0]}.{calls[i].name}", calls[i].arguments)
    ),
    "unknown_argument": _before(lambda call, rng, case: ToolCall(call.name, call.arguments | {"no_such": 1})),
    "missing_argument": _missing_argument,
    "failing_then_right": _before(
        lambda call, rng, case: ToolCall(rng.choice(_functions(case)), {"no_such_argument": rng.random()})
    ),
    "parentheses_in_text": _in_text(" {} (all)"),
    "hidden_name_in_text": _in_text(" {}(x) é(y)"),
    "unicode": _in_text("\u2028 ü 漢 \U0001f600 {} \\x \" ' \n"),
    "refused_name": _before(lambda call, rng, case: ToolCall(rng.choice(["kill", "run", "a.exit"]), {})),
    "empty_turn": lambda calls, i, form, rng, case: [""],
    "words_only": lambda calls, i, form, rng, case: [f"I called {calls[i].name} for you, and it went well."],
    "thoughts": lambda calls, i, form, rng, case: [
        f"<think>\nFirst {calls[i].name}.\n</think>\n\n{write(calls, form)}",
        "<think>\n\n</think>\n\nDone.",
    ],
    "forced_to_quit": _quit(21),
    "forced_to_quit_last_turn": _quit(21),
    "twenty_steps": _quit(19),
    "no_line_breaks": _unread(lambda calls, i, form: write(calls, form).replace("\n", "")),
    "broken_json": _unread(lambda calls, i, form: write(calls[i : i + 1], form).replace("}", "", 1)),
    "no_arguments_key": _unread(lambda calls, i, form: "\n".join(_fc(calls, i, {"name": calls[i].name}))),
    "arguments_not_object": _unread(lambda calls, i, form: "\n".join(_fc(calls, i, _object(calls[i], arguments=[1])))),
    "half_broken": lambda calls, i, form, rng, case: [
        write(calls, form) + "\n<tool_call>\n{'name': 'ls'}\n</tool_call>",
        DONE,
    ],
    "arguments_as_text": lambda calls, i, form, rng, case: [
        "\n".join(_fc(calls, i, _object(calls[i], arguments=json.dumps(dict(calls[i].arguments))))),
        DONE,
    ],
    "not_a_number": lambda calls, i, form, rng, case: [
        "\n".join(_fc(calls, i, _object(calls[i], arguments=calls[i].arguments | {"value": float("nan")}))),
        DONE,
    ],
    "call_in_thought": lambda calls, i, form, rng, case: [f"<think>\n{write(calls, form)}\n</think>\n\nDone."],
    "no_brackets": lambda calls, i, form, rng, case: [write(calls, form)[1:-1], DONE],
    "backticks": lambda calls, i, form, rng, case: [f"```\n{write(calls, form)}\n```", DONE],
    "positional": lambda calls, i, form, rng, case: [
        f"[{calls[i].name}({', '.join(map(repr, calls[i].arguments.values()))})]",
        DONE,
    ],
    "call_as_argument": lambda calls, i, form, rng, case: [
        f"[{_source(calls[i], ['extra=echo(content=1)'])}, {_source(calls[i], ['more=pwd()'])}]",
        write(calls, form),
        DONE,
    ],
    "arithmetic": lambda calls, i, form, rng, case: [
        f"[{_source(calls[i], ['n=2*3+1'])}]",
        "[mean(numbers=[2*3, 4-1, 10/4, 2**3]), round_number(number=-7//2, decimal_places=+1)]",
        write(calls, form),
        DONE,
    ],
    "bare_name": lambda calls, i, form, rng, case: [f"[{_source(calls[i], ['flag=true', 'x=a[1]'])}]", DONE],
    "broken_python": _unread(lambda calls, i, form: write(calls, form)[:-2]),
    "empty_dictionary": _unread(lambda calls, i, form: f"[{_source(calls[i], ['x={}'])}]"),
}
