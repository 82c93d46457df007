"""BFCL's simulators, called safely: documented functions and JSON arguments only, no `eval`, no shared instances."""

from __future__ import annotations

import copy
import importlib
import inspect
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from fission_grpo.core.chat import read_result
from fission_grpo.core.types import ToolCall, ToolResult
from fission_grpo.envs.bfcl.functions import FILES, class_of

STATELESS = ("MathAPI",)


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
        return method(**copy.deepcopy({**defaults, **call.arguments}))

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
