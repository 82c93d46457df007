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
    """One instance of each class of a case.

    Args:
        instances: by class name, not shared with other states.
        error: what the last call raised, None if it returned.
    """

    instances: dict[str, Any] = field(default_factory=dict)
    error: Exception | None = None

    def call(self, call: ToolCall) -> str:
        """Make a call and record its exception in `error`.

        Returns:
            The text of the official executor, for an exception "Error during execution: ...".
        """
        self.error = None
        try:
            return _to_text(self.value(call))
        except Exception as error:  # noqa: BLE001 - the simulator's own error is its answer, as in the official executor
            self.error = error
            return f"Error during execution: {error}"

    def answer(self, call: ToolCall) -> ToolResult:
        """Make a call as an environment does: an exception becomes TRL's `{'error': '...'}`.

        Example:
            `close_ticket(ticket_id=99)` without such a ticket has the error "Ticket with ID 99 not found."
        """
        content = self.call(call)
        if self.error is not None:
            return ToolResult(call, str({"error": str(self.error)}), str(self.error))
        return read_result(call, content)

    def value(self, call: ToolCall) -> Any:
        """Make a call and return its value. Raises ValueError for an undocumented name, else what the function raises.

        Arguments are copied, and so are mutable default values, which the simulator would share between instances.
        """
        class_name = class_of(call.name)
        if class_name not in self.instances:
            raise ValueError(f"no function {call.name!r} here")
        method = getattr(self.instances[class_name], call.name)
        defaults = _mutable_defaults(type(method.__self__), call.name)
        return method(**copy.deepcopy({**defaults, **call.arguments}))

    def copy(self) -> BfclState:
        """An independent copy in the same state, including random generators."""
        return BfclState(copy.deepcopy(self.instances))


def new_state(classes: Iterable[str], config: Mapping[str, Any], long_context: bool = False) -> BfclState:
    """The state at the start of a case.

    Args:
        classes: names out of the eight classes.
        config: official `initial_config`, by class; copied.
        long_context: as in BFCL's category of that name.

    Raises:
        ValueError: unknown class.
    """
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
    """Mutable default values of a function's parameters, such as those of `post_tweet(tags=[])`."""
    parameters = inspect.signature(getattr(owner, function)).parameters.values()
    return {p.name: p.default for p in parameters if isinstance(p.default, list | dict | set)}


def _to_text(result: Any) -> str:
    if isinstance(result, dict):
        try:
            return json.dumps(result)
        except (TypeError, ValueError):
            pass  # the official executor then uses `str`, too
    return str(result)
