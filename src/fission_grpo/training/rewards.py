"""The rewards of a cycle: what reward functions give, made usable, and what TRL computes with them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from accelerate.utils import gather_object
from torch.nn import Module

from fission_grpo.core.errors import CallStopped, ExitAttempt, InfrastructureError
from fission_grpo.core.json_io import QUOTE_LENGTH, quoted
from fission_grpo.core.rewards import is_nan, usable_reward
from fission_grpo.core.terminal import get_logger
from fission_grpo.core.timing import contained, contained_async
from fission_grpo.envs.wrapper import EpisodeMonitor
from fission_grpo.fission.metrics import group_advantages
from fission_grpo.training.cycle import Cycle, CycleScores

_log = get_logger(__name__)


def judge_stopped(rewards: Any, monitors: Sequence[EpisodeMonitor]) -> None:
    """Set, in place, the rewards of episodes that did not end by themselves: at most 0, NaN if the environment broke.

    Args:
        rewards: tensor of all ranks' rollouts x reward functions.
        monitors: of this rank's environments.
    """
    stopped = gather_object([monitor.stopped is not None for monitor in monitors])
    rewards[stopped] = rewards[stopped].nan_to_num(0.0).clamp(max=0.0)
    rewards[gather_object([monitor.infrastructure_error is not None for monitor in monitors])] = math.nan


def set_judgements(rewards: Any, weights: Any, judgements: Mapping[int, float]) -> None:
    """Replace the rewards of rollouts, in place, so that their weighted sums are these judgements.

    Args:
        rewards: tensor of all ranks' rollouts x reward functions.
        weights: of the reward functions; the first that counts gets the judgement, the others give none.
        judgements: by index of the rollout.
    """
    counted = int(weights.nonzero()[0])
    for i, judgement in judgements.items():
        rewards[i] = math.nan
        rewards[i, counted] = judgement / weights[counted].item()


def strict_judgements(
    cycle: Cycle, rewards: Any, weights: Any, verdicts: Sequence[bool | None], threshold: float
) -> dict[int, float]:
    """1 or 0 for each recovery of all ranks, by index: whether it is no failure. Rollouts without a reward have none.

    `verdicts` are those of the step reward, None where another reward below `threshold` is a failure.
    """
    sums = CycleScores((), (), (), rewards, weights).weighted
    return {
        i: float(sums[i] >= threshold if verdict is None else verdict)
        for i, verdict in enumerate(verdicts)
        if cycle.is_recovery(i) and not math.isnan(sums[i])
    }


def correct_advantages(advantages: Any, cycle: Cycle, scale: str, skips_flat: bool | None) -> None:
    """Correct, in place, what TRL computed for this rank: groups of two sizes, and of groups without variance 0."""
    if cycle.scores is None:
        return
    if len(set(cycle.sizes)) > 1:
        right = group_advantages(cycle.scores.weighted, cycle.sizes, scale)
        advantages[:] = advantages.new_tensor(right[cycle.offset : cycle.offset + len(cycle.rows)])
    if skips_flat:
        advantages[cycle.flat_rows()] = 0.0


def calculate_usable_rewards(trainer: Any, calculate: Callable[..., Any], *inputs: Any) -> Any:
    """Call TRL's `_calculate_rewards`, and set NaN for rollouts to which a reward function gave what is no number.

    `torch.tensor` would end training at an integer of 400 digits, and infinity would make every advantage of its group
    NaN. Such a rollout is not judged, whatever other functions say of it. They are counted and logged. None and NaN
    stay what they are in TRL: this function does not judge this rollout.
    """
    unusable: set[int] = set()

    def check(name: str, values: Iterable[Any]) -> list[float | None]:
        numbers = []
        for i, value in enumerate(values):
            number = None if value is None else usable_reward(value)
            numbers.append(number)
            if value is not None and number is None and not is_nan(value):
                if not unusable:
                    shown = quoted(value if isinstance(value, str | int | float) else repr(value)[:QUOTE_LENGTH])
                    _log.warning("%s gave %s as a reward; rollouts with such a reward are not judged", name, shown)
                unusable.add(i)
        return numbers

    @contextmanager
    def excused(name: str) -> Iterator[None]:
        try:
            yield
        except (ExitAttempt, CallStopped, InfrastructureError) as error:  # the last two: of isolated environments
            _log.warning("%s: %s; its rollouts are not judged", name, error)
            unusable.update(range(len(inputs[0])))

    def checked(function: Any) -> Any:
        name = getattr(function, "__name__", type(function).__name__)
        unjudged: list[float | None] = [None] * len(inputs[0])
        if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__):

            async def judge_async(*args: Any, **kwargs: Any) -> list[float | None]:
                with excused(name):
                    return check(name, await contained_async(function(*args, **kwargs), name))
                return unjudged

            return judge_async

        def judge(*args: Any, **kwargs: Any) -> list[float | None]:
            with excused(name):
                return contained(lambda: check(name, function(*args, **kwargs)), name)
            return unjudged

        return judge

    functions = trainer.reward_funcs
    trainer.reward_funcs = [one if isinstance(one, Module) else checked(one) for one in functions]
    try:
        rewards = calculate(*inputs)
    finally:
        trainer.reward_funcs = functions
    flags = gather_object([i in unusable for i in range(len(inputs[0]))])
    if any(flags):
        rewards[flags] = math.nan
        mode = "train" if trainer.model.training else "eval"
        trainer._metrics[mode]["fission/unusable_rewards"].append(float(sum(flags)))
    return rewards
