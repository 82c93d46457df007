"""The reward of one episode outside of training: TRL's reward functions and the environment's own `get_reward`."""

from __future__ import annotations

import copy
import inspect
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fission_grpo.core.errors import UsageError
from fission_grpo.core.json_io import quoted
from fission_grpo.core.rewards import usable_reward
from fission_grpo.core.types import Message
from fission_grpo.envs.restore import run_awaitable

RewardFunction = Callable[..., Any]
_NOT_HERE = ("completion_ids",)  # arguments that TRL gives and that an endpoint's answers do not have


@dataclass(frozen=True)
class EpisodeReward:
    """The weighted sum of reward functions, called as TRL calls them, and of the environment's `get_reward`.

    A reward of None leaves its function out of the sum, as in TRL; without any other there is no reward. An
    environment without both may have `_reward()`, which TRL does not call.

    Args:
        functions: TRL reward functions; each gets `prompts`, `completions`, `environments` and the row's columns, as
            lists of one, and `trainer_state`, None. Async functions are run.
        weights: of the functions, 1 by default. `get_reward` has weight 1.
    """

    functions: Sequence[RewardFunction] = ()
    weights: Sequence[float] | None = None

    def __post_init__(self):
        for function in self.functions:
            if not callable(function) or hasattr(function, "state_dict"):
                raise UsageError(f"reward_funcs: {quoted(function)} is no function; reward models are not evaluated")
            try:
                needed = inspect.signature(function).parameters
            except (TypeError, ValueError):  # a builtin
                continue
            for name in _NOT_HERE:
                if name in needed and needed[name].default is inspect.Parameter.empty:
                    raise UsageError(f"reward_funcs: {name_of(function)} needs `{name}`, which evaluation has not")
        if self.weights is not None and len(self.weights) != len(self.functions):
            raise UsageError(
                f"{len(self.weights)} reward_weights for {len(self.functions)} reward_funcs; give as many"
            )

    @property
    def names(self) -> list[str]:
        """The functions' names."""
        return [name_of(function) for function in self.functions]

    def check(self, environment: Any) -> None:
        """Raise UsageError if nothing judges an episode of this environment."""
        if not self.functions and _own_reward(environment) is None:
            raise UsageError(
                f"nothing judges {name_of(environment)}: give reward functions (reward_funcs, --reward "
                "module:function), or add a method `get_reward(self) -> float`"
            )

    def __call__(self, environment: Any, row: Mapping[str, Any], completion: Sequence[Message]) -> float | None:
        """The reward of an episode; None if no function gave one.

        Args:
            environment: in its last state; None for a task without one.
            row: the data set's row, of which functions get a copy.
            completion: the assistant's and the tools' messages after the prompt.

        Raises:
            UsageError: a function raised an error, or gave no list of one reward.
            UnusableReward: a reward is no number.
        """
        weights = self.weights or [1.0] * len(self.functions)
        rewards: list[float] = []
        for function, weight in zip(self.functions, weights, strict=True):
            value = _call(function, environment, row, completion)
            if value is not None:
                rewards.append(weight * _number(value, name_of(function)))
        has_own = hasattr(environment, "get_reward") or not self.functions
        if has_own and (own := _own_reward(environment)) is not None:
            value = own()
            value = run_awaitable(value) if inspect.isawaitable(value) else value
            if value is not None:
                rewards.append(_number(value, "the environment"))
        return sum(rewards) if rewards else None


class UnusableReward(ValueError):
    """A reward that is no number; the message says whose."""


def name_of(function: Any) -> str:
    """The name of a reward function or an environment's class."""
    return str(getattr(function, "__name__", type(function).__name__))


def _own_reward(environment: Any) -> Callable[[], Any] | None:
    return getattr(environment, "get_reward", None) or getattr(environment, "_reward", None)


def _call(function: RewardFunction, environment: Any, row: Mapping[str, Any], completion: Sequence[Message]) -> Any:
    """What a function gives for one episode."""
    columns = {key: [value] for key, value in copy.deepcopy(dict(row)).items() if key != "prompt"}
    if environment is not None:
        columns["environments"] = [environment]
    silent: dict[str, Any] = {"trainer_state": None, "log_extra": _log_nothing, "log_metric": _log_nothing}
    try:
        values = function(prompts=[row.get("prompt")], completions=[list(completion)], **silent, **columns)
        values = run_awaitable(values) if inspect.isawaitable(values) else values
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(frame.filename).name}, line {frame.lineno}"
        raise UsageError(
            f"reward function {name_of(function)} raised {type(error).__name__}: {error} ({place})"
        ) from error
    if isinstance(values, str | bytes | Mapping) or not hasattr(values, "__len__") or len(values) != 1:
        what = f"gave {quoted(values)} for one episode; it must give a list with one reward for each completion"
        raise UsageError(f"reward function {name_of(function)} {what}")
    return values[0]


def _number(value: Any, source: str) -> float:
    number = usable_reward(value)
    if number is None:
        raise UnusableReward(f"{source} gave {quoted(value)} as its reward, which is no number")
    return number


def _log_nothing(*_: Any, **__: Any) -> None:
    """TRL's `log_extra` and `log_metric`: there is no log of training here."""
