"""BFCL's simulators, called safely: documented functions only, JSON arguments, never `eval`, no shared instances."""

from __future__ import annotations

import copy
import importlib
import inspect
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from fission_grpo.core.types import ToolCall
from fission_grpo.envs.bfcl.functions import FILES, class_of

STATELESS = ("MathAPI",)


@dataclass
class World:
    """One instance of each class of a case.

    Args:
        instances: by class name, all this world's own.
        error: what the last call raised, None if it answered.
    """

    instances: dict[str, Any] = field(default_factory=dict)
    error: Exception | None = None

    def call(self, call: ToolCall) -> str:
        """Make a call; returns the text the official executor would give, "Error during execution: ..." included.

        Arguments are copied; a name that is no documented function of this world's classes is never looked up.
        """
        self.error = None
        try:
            return _text(self.value(call))
        except Exception as error:  # noqa: BLE001 - the simulator's own error is its answer, as in the official executor
            self.error = error
            return f"Error during execution: {error}"

    def value(self, call: ToolCall) -> Any:
        """What the function returns, before it is made text. Raises whatever the simulator raises."""
        class_name = _owner(call.name, self.instances)
        method = getattr(self.instances[class_name], call.name)
        defaults = _mutable_defaults(type(method.__self__), call.name)
        return method(**copy.deepcopy({**defaults, **call.arguments}))

    def copy(self) -> World:
        """A world in the same state that shares nothing with this one, random generators included."""
        return World(copy.deepcopy(self.instances))


def new_world(classes: Iterable[str], config: Mapping[str, Any], long_context: bool = False) -> World:
    """A world as a case begins.

    Args:
        classes: names of the eight classes.
        config: official `initial_config`, by class; copied.
        long_context: as in BFCL's category of that name.

    Raises:
        ValueError: no such class.
    """
    instances = {}
    for name in classes:
        if name not in FILES:
            raise ValueError(f"no BFCL class {name!r}; there are {', '.join(FILES)}")
        module = importlib.import_module(f"bfcl_eval.eval_checker.multi_turn_eval.func_source_code.{FILES[name]}")
        instances[name] = getattr(module, name)()
        if name not in STATELESS:
            instances[name]._load_scenario(copy.deepcopy(config.get(name, {})), long_context=long_context)
    return World(instances)


@cache
def _mutable_defaults(owner: type, function: str) -> Mapping[str, Any]:
    """Defaults that a simulator would share between all its instances, such as `post_tweet(tags=[])`."""
    parameters = inspect.signature(getattr(owner, function)).parameters.values()
    return {p.name: p.default for p in parameters if isinstance(p.default, list | dict | set)}


def _owner(function: str, instances: Mapping[str, Any]) -> str:
    class_name = class_of(function)
    if class_name not in instances:
        raise ValueError(f"no function {function!r} here")
    return class_name


def _text(result: Any) -> str:
    if isinstance(result, str):
        return result
    if isinstance(result, dict):
        try:
            return json.dumps(result)
        except (TypeError, ValueError):
            return str(result)
    return str(result)
