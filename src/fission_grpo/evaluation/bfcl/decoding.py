"""BFCL's official decode rules: which calls a handler reads in a reply, as Python source, without executing anything.

The rules of `QwenFCHandler` (`<tool_call>` blocks) and of the prompting handlers (Python calls) are followed exactly:
blocks that are not JSON and positional arguments are dropped, bare names are strings, any sign of a number is a minus.
One difference: arithmetic in arguments (officially by `eval`) is computed for numbers and texts of moderate size only.
"""

from __future__ import annotations

import ast
import json
import operator
import re
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from fission_grpo.core.json_io import MAX_DEPTH

_MAX_SIZE = 10_000  # most digits or characters that arithmetic in arguments may give [ours]
_MAX_BITS = 14_000  # of an integer: 4,215 digits, below Python's limit of 4,300 for writing one as text [ours]
_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_OPEN, _CLOSE = "<tool_call>\n", "\n</tool_call>"
_CALLED = re.compile(r"(?<![\w.])([\w.]++)\s*+\(")


class Undecodable(ValueError):
    """No calls can be read in a reply; the message says why, for the policy to read."""


@dataclass(frozen=True)
class OfficialCall:
    """A call as the official executor receives it."""

    name: str  # as the policy wrote it
    arguments: Mapping[str, Any]  # converted to JSON values
    source: str  # Python source, which officially is given to `eval`


@dataclass(frozen=True)
class Decoded:
    """What is read in a reply: `calls` (none end the turn), and why something in it is `unread`, else None."""

    calls: tuple[OfficialCall, ...] = ()
    unread: str | None = None


def answer_text(text: str) -> str:
    """A reply without its thoughts, as the official Qwen handlers keep it in result files."""
    return text.split("</think>")[-1].lstrip("\n") if "</think>" in text else text


def decode_hermes(text: str, truncated: bool = False) -> Decoded:
    """Decode a reply by the rule of `QwenFCHandler`. `unread` says what was dropped; a cut-off end is not an error."""
    answer = answer_text(text)
    try:
        calls = hermes_calls(answer)
    except Undecodable as error:
        return Decoded(unread=str(error))
    unread, outside = hermes_objects(answer)[1], _blocks(answer)[1]
    if unread is None and "<tool_call>" in outside and not (truncated and "</tool_call>" not in outside):
        unread = "a tool call must be <tool_call>, one JSON object and </tool_call>, each on a line of its own"
    return Decoded(tuple(calls), unread)


def decode_python(text: str, functions: Collection[str], truncated: bool = False) -> Decoded:
    """Decode a reply by the rule of the prompting handlers.

    One that cannot be decoded is `unread` if it calls one of the documented `functions` and was not cut off; otherwise
    it is an answer in words.
    """
    answer = answer_text(text)
    try:
        return Decoded(tuple(python_calls(answer)))
    except Undecodable as error:
        names = set(_CALLED.findall(answer))
        return Decoded(unread=str(error) if names & set(functions) and not truncated else None)


def hermes_objects(text: str) -> tuple[list[Any], str | None]:
    """The JSON values in `<tool_call>` blocks, and what is wrong with the first block that is not JSON."""
    values, problem = [], None
    for block in _blocks(text)[0]:
        try:
            values.append(json.loads(block))
        except (ValueError, RecursionError) as error:
            problem = problem or f"tool call is not valid JSON: {error}"
    return values, problem


def hermes_ast(text: str) -> list[dict[str, Any]]:
    """`QwenFCHandler.decode_ast`: `[{name: arguments}]`. Raises Undecodable."""
    items = _hermes_mappings(text)
    if any(not isinstance(item["arguments"], dict) for item in items):
        raise Undecodable('a tool call\'s "arguments" is not a JSON object')
    return [{item["name"]: item["arguments"]} for item in items]


def hermes_calls(text: str) -> list[OfficialCall]:
    """`QwenFCHandler.decode_execute`. Raises Undecodable."""
    return [hermes_call(item["name"], item["arguments"]) for item in _hermes_mappings(text)]


def python_ast(text: str) -> list[dict[str, Any]]:
    """`default_decode_ast_prompting`: `[{name: arguments}]`. Raises Undecodable."""
    text = text.strip("`\n ")
    text = text if text.startswith("[") else "[" + text
    text = text if text.endswith("]") else text + "]"
    try:
        body = parse_expression(text.strip().strip("'"))
        if isinstance(body, ast.Call):  # "[f](x=1) # ]"
            return [_resolved_call(body)]
        if not isinstance(body, ast.List | ast.Tuple | ast.Set):
            raise Undecodable("the reply is no list of function calls")
        if not all(isinstance(item, ast.Call) for item in body.elts):
            raise Undecodable("an item of the list is no function call")
        return [_resolved_call(item) for item in body.elts if isinstance(item, ast.Call)]
    except SyntaxError as error:
        raise Undecodable(f"the reply is no list of function calls: {error.msg}") from None
    except (ValueError, TypeError, ArithmeticError, RecursionError, MemoryError) as error:
        raise Undecodable(str(error) or "the reply is no list of function calls") from None


def python_calls(text: str) -> list[OfficialCall]:
    """`default_decode_execute_prompting`. Raises Undecodable."""
    calls = []
    for item in python_ast(text):
        for name, arguments in item.items():
            try:
                source = _call_source(name, arguments)
            except RecursionError:
                raise Undecodable("the arguments are nested too deeply") from None
            calls.append(OfficialCall(name, clean(arguments), source))
    return calls


def clean(value: Any, depth: int = 0) -> Any:
    """A value as JSON for a record: tuples become lists; other types, and deep nesting, become their repr."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float) and value - value == 0:
        return value
    if depth < MAX_DEPTH and isinstance(value, dict):
        return {str(clean(key)): clean(inner, depth + 1) for key, inner in value.items()}
    if depth < MAX_DEPTH and isinstance(value, list | tuple):
        return [clean(inner, depth + 1) for inner in value]
    try:
        return repr(value)
    except RecursionError:
        return f"a {type(value).__name__}"


def _blocks(text: str) -> tuple[list[str], str]:
    """The contents of the blocks, and the text without the blocks.

    As `re.findall(r"<tool_call>\\n(.*?)\\n</tool_call>", text, re.DOTALL)`, in linear time for any text.
    """
    found, outside, at = [], [], 0
    while (start := text.find(_OPEN, at)) >= 0 and (end := text.find(_CLOSE, start + len(_OPEN))) >= 0:
        found.append(text[start + len(_OPEN) : end])
        outside.append(text[at:start])
        at = end + len(_CLOSE)
    return found, "".join([*outside, text[at:]])


def _hermes_mappings(text: str) -> list[dict[str, Any]]:
    items = hermes_objects(text)[0]
    for item in items:
        if not isinstance(item, dict):
            raise Undecodable("a tool call is not a JSON object")
        for key in ("name", "arguments"):
            if key not in item:
                raise Undecodable(f'a tool call has no "{key}"')
        if isinstance(item["name"], dict | list):
            raise Undecodable('a tool call\'s "name" is not a string')
    return items


def hermes_call(name: Any, arguments: Any) -> OfficialCall:
    """A call whose arguments may be JSON text. Raises Undecodable."""
    try:
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
        if not isinstance(arguments, dict):
            raise Undecodable('a tool call\'s "arguments" is not a JSON object')
        source = f"{name}({','.join(f'{key}={value!r}' for key, value in arguments.items())})"
    except (json.JSONDecodeError, RecursionError) as error:
        raise Undecodable(f'a tool call\'s "arguments" is a string that is not valid JSON: {error}') from None
    return OfficialCall(clean(str(name)), clean(arguments), source)


def parse_expression(text: str) -> ast.expr:
    """The syntax tree of a Python expression. Raises SyntaxError, and whatever else `ast.parse` raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about invalid escapes in the text
        return ast.parse(text, "<string>", "eval").body


def _resolved_call(node: ast.Call) -> dict[str, Any]:
    parts, function = [], node.func
    while isinstance(function, ast.Attribute):
        parts.append(function.attr)
        function = function.value
    if isinstance(function, ast.Name):
        parts.append(function.id)
    return {".".join(reversed(parts)): {keyword.arg: _resolved(keyword.value) for keyword in node.keywords}}


def _resolved(node: ast.expr | None) -> Any:
    match node:
        case ast.Constant():
            return "..." if node.value is Ellipsis else _check_size(node.value)
        case ast.UnaryOp(operand=ast.Constant(value=int() | float() | complex() as value)):
            return -_check_size(value)  # officially so, whatever the sign
        case ast.List():
            return [_resolved(item) for item in node.elts]
        case ast.Tuple():
            return tuple(_resolved(item) for item in node.elts)
        case ast.Dict():
            return {_resolved(key): _resolved(value) for key, value in zip(node.keys, node.values, strict=True)}
        case ast.BinOp():
            return _check_size(_arithmetic(node))
        case ast.Name():
            return node.id
        case ast.Call():
            return _resolved_call(node) if node.keywords else ast.unparse(node)
        case ast.Subscript():
            return f"{ast.unparse(node.value)}[{ast.unparse(node.slice)}]"
    raise Undecodable("an argument is no plain value")


def _check_size(value: Any) -> Any:
    """The value. Raises ValueError for an integer that cannot be written as text."""
    if isinstance(value, int) and value.bit_length() > _MAX_BITS:
        raise ValueError("a number in an argument is too large")
    return value


def _arithmetic(node: ast.expr) -> Any:
    """The value of arithmetic on literals. Raises ValueError for anything else, or if the value is too large."""
    match node:
        case ast.BinOp() if type(node.op) in _OPERATORS:
            left, right = _arithmetic(node.left), _arithmetic(node.right)
            if _size(node.op, left, right) > _MAX_SIZE:
                raise ValueError("arithmetic in an argument is too large")
            return _OPERATORS[type(node.op)](left, right)
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign):
            value = _arithmetic(node.operand)
            return -value if isinstance(sign, ast.USub) else +value
        case ast.Constant(value=int() | float() | str() as value):
            return value
    raise ValueError("an argument is no plain value")


def _size(op: ast.operator, left: Any, right: Any) -> float:
    """Upper bound of the result's digits or characters. Raises TypeError where the operator does not apply."""
    if isinstance(op, ast.Pow):
        return len(str(left)) * max(1, abs(right))
    if isinstance(op, ast.Mult) and str in (type(left), type(right)):
        text, number = (left, right) if isinstance(left, str) else (right, left)
        return len(text) * max(0, number)
    if isinstance(op, ast.Mod) and isinstance(left, str):  # widths and precisions in a format
        return len(left) + left.count("%") * len(str(right)) + sum(map(int, re.findall(r"\d+", left)))
    return len(str(left)) + len(str(right))


def _call_source(name: str, arguments: Mapping[str, Any]) -> str:
    return f"{name}({', '.join(f'{key}={_source(value)}' for key, value in arguments.items())})"


def _source(value: Any) -> str:
    """A resolved value as source: a dictionary of dictionaries is a nested call, as officially."""
    if not isinstance(value, dict):
        return repr(value)
    if all(isinstance(inner, dict) for inner in value.values()):
        if not value:
            raise Undecodable("an argument is an empty dictionary, which BFCL's decoder cannot read")
        return _call_source(*next(iter(value.items())))
    return "{" + ", ".join(f"'{key}': {_source(inner)}" for key, inner in value.items()) + "}"
