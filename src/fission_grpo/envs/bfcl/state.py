"""BFCL's simulators, called safely: documented functions and JSON arguments only, no `eval`, no shared instances."""

from __future__ import annotations

import copy
import importlib
import inspect
import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from decimal import localcontext
from functools import cache
from typing import Any

from fission_grpo.core.chat import read_result
from fission_grpo.core.json_io import quoted
from fission_grpo.core.types import ToolCall, ToolResult
from fission_grpo.envs.bfcl.functions import FILES, class_of

STATELESS = ("MathAPI",)
MAX_BITS = round(math.log2(10) * sys.int_info.default_max_str_digits)  # of an integer that Python writes as text
MAX_PRECISION = 1_000  # digits of `logarithm` and `square_root` [ours]; the official cases have at most 10
MAX_ENTRIES = 10_000  # that `find` and `du` walk through [ours]; the official cases have 124 at most


@dataclass
class BfclState:
    """One instance of each class of a case."""

    instances: dict[str, Any] = field(default_factory=dict)  # by class name, not shared with other states
    error: Exception | None = None  # what the last call raised

    def call(self, call: ToolCall) -> str:
        """Make a call and record its exception in `error`; returns the official executor's text of either."""
        self.error = None
        try:
            return _to_text(self.value(call))
        except Exception as error:  # noqa: BLE001 - the simulator's own error is its answer, as in the official executor
            self.error = error
            return f"Error during execution: {error}"

    def answer(self, call: ToolCall) -> ToolResult:
        """Make a call as an environment does: an exception becomes TRL's `{'error': '...'}`."""
        content = self.call(call)
        if self.error is not None:
            return ToolResult(call, str({"error": str(self.error)}), str(self.error))
        return read_result(call, content)

    def value(self, call: ToolCall) -> Any:
        """Make a call and return its value. Raises ValueError for undocumented names, or the function's error."""
        instance = self.instances.get(class_of(call.name))
        if instance is None:
            raise ValueError(f"no function {call.name!r} here")
        method, defaults = getattr(instance, call.name), _mutable_defaults(type(instance), call.name)
        arguments = _bounded(instance, call.name, copy.deepcopy({**defaults, **call.arguments}))
        with localcontext():  # `square_root` sets the precision of every Decimal in the process
            return method(**arguments)

    def copy(self) -> BfclState:
        """An independent copy in the same state, including random generators."""
        return BfclState(copy.deepcopy(self.instances))


def new_state(classes: Iterable[str], config: Mapping[str, Any], long_context: bool = False) -> BfclState:
    """The state at the start of a case, from its official `initial_config`. Raises ValueError for an unknown class."""
    instances = {}
    for name in classes:
        if name not in FILES:
            raise ValueError(f"no BFCL class {name!r}; there are {', '.join(FILES)}")
        module = importlib.import_module(f"bfcl_eval.eval_checker.multi_turn_eval.func_source_code.{FILES[name]}")
        instances[name] = getattr(module, name)()
        if name not in STATELESS:
            instances[name]._load_scenario(copy.deepcopy(config.get(name, {})), long_context=long_context)
    return BfclState(instances)


def _bounded(instance: Any, function: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call, changed where that saves time without changing the result.

    Raises ValueError for a call whose computation would not end within seconds, or would fill the memory.
    """
    get: Callable[..., Any] = arguments.get
    if function == "power":
        base, exponent = get("base"), get("exponent")
        is_integer = isinstance(base, int) and isinstance(exponent, int) and exponent > 0
        if is_integer and (abs(base).bit_length() - 1) * exponent > MAX_BITS:
            str(1 << 2 * MAX_BITS)  # raises the ValueError that the official executor meets when it writes the result
    elif function == "round_number":
        places = get("decimal_places")
        if isinstance(get("number"), int) and isinstance(places, int):
            arguments["decimal_places"] = max(places, -MAX_BITS)  # more than there are digits: the result is 0
    elif function in ("logarithm", "square_root"):
        try:
            precision = abs(int(get("precision", 0)))
        except (TypeError, ValueError, OverflowError):
            precision = 0  # the function's own error
        if precision > MAX_PRECISION:
            raise ValueError(f"precision must be at most {MAX_PRECISION}, got {quoted(get('precision'))}")
        for name in ("value", "base"):
            if isinstance(get(name), str) and _is_long_number(get(name)):
                raise ValueError(f"{name} must be a number, got {quoted(get(name))}")
    elif function in ("find", "du") and _count_entries(instance.root) > MAX_ENTRIES:
        raise ValueError(f"{function}: there are more than {MAX_ENTRIES} files and directories")
    return arguments


def _is_long_number(text: str) -> bool:
    """Whether mpmath may need long to read a number: it takes fractions, and exponents of any size."""
    _, has_exponent, exponent = text.lower().rpartition("e")
    return len(text) > MAX_PRECISION or "/" in text or (bool(has_exponent) and sum(map(str.isdigit, exponent)) > 4)


def _count_entries(directory: Any) -> int:
    """Entries below a directory, counted to just above `MAX_ENTRIES`: copies share contents, even with themselves."""
    count, open_directories = 0, [directory]
    while open_directories and count <= MAX_ENTRIES:
        contents = open_directories.pop().contents.values()
        count += len(contents)
        open_directories += [item for item in contents if hasattr(item, "contents")]
    return count


@cache
def _mutable_defaults(owner: type, function: str) -> Mapping[str, Any]:
    """Mutable default values of a function's parameters, which the simulator would share between instances."""
    parameters = inspect.signature(getattr(owner, function)).parameters.values()
    return {p.name: p.default for p in parameters if isinstance(p.default, list | dict | set)}


def _to_text(result: Any) -> str:
    try:
        return json.dumps(result) if isinstance(result, dict) else str(result)
    except (TypeError, ValueError):
        return str(result)  # as the official executor does
