"""Scripted replies to BFCL's single-turn cases: a right answer, or one with a mistake."""

import json

KINDS = (
    "right",
    "wrong_value",
    "wrong_name",
    "extra_call",
    "missing_call",
    "words",
    "nothing",
    "broken",
    "text_arguments",
)


def reply(case, form, kind):
    """One reply. Cases without possible answers get a call of their first function instead."""
    calls = _right(case)
    if kind in ("words", "nothing"):
        return {"words": "I cannot do that.", "nothing": ""}[kind]
    if kind == "wrong_value":
        calls = [(name, dict.fromkeys(arguments, "no such value")) for name, arguments in calls]
    elif kind == "wrong_name":
        calls = [(name + "_x", arguments) for name, arguments in calls]
    elif kind == "extra_call":
        calls = [*calls, *calls[:1]]
    elif kind == "missing_call":
        calls = calls[1:]
    if form == "qwen-fc":
        objects = [{"name": n, "arguments": json.dumps(a) if kind == "text_arguments" else a} for n, a in calls]
        text = "\n".join(f"<tool_call>\n{json.dumps(one, ensure_ascii=False)}\n</tool_call>" for one in objects)
    else:
        text = ", ".join(
            f"{name}({', '.join(f'{k}={v!r}' for k, v in arguments.items())})" for name, arguments in calls
        )
        text = f"[{text}]"
    return text.replace("}", "", 1).replace(")", "", 1) if kind == "broken" else text


def _right(case):
    if case.answer is None:
        return [(doc["name"], {}) for doc in case.functions[:1]]
    return [
        (name, {key: _value(values[0]) for key, values in arguments.items() if "" not in values})
        for one in case.answer
        for name, arguments in one.items()
    ]


def _value(value):
    """A possible answer's value: in mappings each field lists what is possible."""
    if isinstance(value, dict):
        return {k: _value(v[0]) if isinstance(v, list) else v for k, v in value.items() if "" not in v}
    return [_value(one) for one in value] if isinstance(value, list) else value
