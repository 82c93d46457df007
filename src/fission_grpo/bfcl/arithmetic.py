"""Arithmetic on literals in the arguments of Python calls, computed within limits and without `eval`."""

from __future__ import annotations

import ast
import operator
from typing import Any

_LARGEST = 10_000
"""Most digits or characters that arithmetic in arguments may give. [ours]"""

_MOST_BITS = 14_000
"""Longest whole number, in bits: 4,215 digits, a little less than Python's own limit. [ours]"""


def writable(value: Any) -> Any:
    """A value, unless it is a whole number of more digits than Python writes out (4,300): nobody could record it."""
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        raise ValueError("a number in an argument is too large")
    return value


_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}


def arithmetic(node: ast.expr) -> Any:
    """The value of arithmetic on literals. Raises ValueError for anything else, or for what would grow too large."""
    match node:
        case ast.BinOp() if type(node.op) in _OPERATORS:
            left, right = arithmetic(node.left), arithmetic(node.right)
            if _size(node.op, left, right) > _LARGEST:
                raise ValueError("arithmetic in an argument is too large")
            return _OPERATORS[type(node.op)](left, right)
        case ast.UnaryOp(op=ast.USub()):
            return -arithmetic(node.operand)
        case ast.UnaryOp(op=ast.UAdd()):
            return +arithmetic(node.operand)
        case ast.Constant(value=int() | float() | str() as value):
            return value
    raise ValueError("an argument is no plain value")


def _size(op: ast.operator, left: Any, right: Any) -> float:
    """At most how many digits or characters the result has. Raises TypeError where the operator does not apply."""
    if isinstance(op, ast.Pow):
        return len(str(left)) * max(1, abs(right))
    if isinstance(op, ast.Mult) and str in (type(left), type(right)):
        text, number = (left, right) if isinstance(left, str) else (right, left)
        return len(text) * max(0, number)
    return len(str(left)) + len(str(right))
