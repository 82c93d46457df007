"""Calls given as Python source, made in our worlds with the results of BFCL's official executor, which uses `eval`.

Here the source is parsed, its arguments are read as literals, and only documented functions are looked up. The quirks
that change results are kept: a documented function's name before a "(" *anywhere* in the source, texts included, gets
the name of a hidden variable put before it; eight names are refused; calls may be arguments of calls. One difference:
Python's builtins (`round(number=1.5)`) are unknown names here, and are run officially.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Mapping
from typing import Any

from fission_grpo.bfcl.docs import class_docs
from fission_grpo.bfcl.worlds import World
from fission_grpo.trajectory import ToolCall

MODEL = "Qwen_Qwen3_8B"
"""Part of the hidden variables' names, as when Qwen3-8B is evaluated officially."""

_REFUSED = ("kill", "exit", "quit", "remove", "unlink", "popen", "Popen", "run")
_NAME_BEFORE_BRACKET = re.compile(r"\b([a-zA-Z_]\w*)\s*(?=\()")


def hidden_names(world: World, case_id: str) -> Mapping[str, str]:
    """The official executor's variable for each documented function of a world.

    Example:
        "ls" has "Qwen_Qwen3_8B_multi_turn_base_0_GorillaFileSystem_instance" in "multi_turn_base_0".
    """
    return {
        name: re.sub(r"[-./:]", "_", f"{MODEL}_{case_id}_{class_name}_instance")
        for class_name in world.instances
        for name in class_docs(class_name)
    }


def execute(world: World, source: str, hidden: Mapping[str, str]) -> str:
    """Make one call; returns the official result text, and sets `world.error` as `World.call` does.

    Args:
        world: changed by the call.
        source: as decoded from a reply, such as "cd(folder='a')".
        hidden: of `hidden_names`.
    """
    world.error = None
    try:
        rewritten = _NAME_BEFORE_BRACKET.sub(lambda found: _prefixed(found[1], hidden), source)
        _refuse(rewritten)
        node = _parsed(rewritten)
        if isinstance(node, ast.Call):
            return world.call(_call(world, node, hidden))
        raise ValueError(f"not a call: {source}")
    except Exception as error:  # noqa: BLE001 - as in the official executor, every error is the call's answer
        world.error = error
        return f"Error during execution: {error}"


def _prefixed(name: str, hidden: Mapping[str, str]) -> str:
    return f"{hidden[name]}.{name}" if name in hidden else name


def _refuse(source: str) -> None:
    name = source.split("(")[0]
    name = name.split(".")[1] if "." in name else name
    if name in _REFUSED:
        raise ValueError(f"Function call {name} is not allowed.")


def _parsed(source: str) -> ast.expr:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in the text are not our code's
        return ast.parse(source.lstrip(" \t"), "<string>", "eval").body


def _call(world: World, node: ast.Call, hidden: Mapping[str, str]) -> ToolCall:
    """The call with its arguments evaluated. Raises NameError for anything but a documented function, as `eval`."""
    function = node.func
    match function:
        case ast.Attribute(value=ast.Name(id=variable), attr=name) if hidden.get(name) == variable:
            pass
        case _:
            while isinstance(function, ast.Attribute | ast.Call):
                function = function.value if isinstance(function, ast.Attribute) else function.func
            raise NameError(f"name '{ast.unparse(function)}' is not defined")
    if node.args:
        raise TypeError(f"{name}() takes keyword arguments here")
    return ToolCall(name, {str(one.arg): _value(world, one.value, hidden) for one in node.keywords})


def _value(world: World, node: ast.expr, hidden: Mapping[str, str]) -> Any:
    match node:
        case ast.Constant():
            return node.value
        case ast.Call():
            return world.value(_call(world, node, hidden))
        case ast.Name():
            raise NameError(f"name '{node.id}' is not defined")
        case ast.List():
            return [_value(world, item, hidden) for item in node.elts]
        case ast.Tuple():
            return tuple(_value(world, item, hidden) for item in node.elts)
        case ast.Dict():
            pairs = zip(node.keys, node.values, strict=True)
            return {_value(world, key, hidden): _value(world, value, hidden) for key, value in pairs if key}
    return ast.literal_eval(node)
