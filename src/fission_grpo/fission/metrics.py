"""Metrics of one cycle: pure functions from rollouts to `fission/*` and `recovery/*`."""

from __future__ import annotations

import itertools
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from fission_grpo.core.rewards import same_call
from fission_grpo.core.types import Failure, Rollout, ToolCall
from fission_grpo.fission.recovery import CorrectiveInstance

Value = TypeVar("Value")


@dataclass(frozen=True)
class RecoveryOutcome:
    """One recovery rollout."""

    context: str  # id of the corrective instance it was sampled from
    reward: float | None  # weighted, None if it could not be judged
    failed: bool  # whether it failed again
    text: str  # what the policy wrote and the tools returned
    repeats: bool = False  # whether its first turn makes the failed turn's calls again

    @staticmethod
    def of(rollout: Rollout) -> RecoveryOutcome:
        verdict, task = rollout.verdict, rollout.trajectory.task
        calls = rollout.trajectory.turns[0].calls if rollout.trajectory.turns else ()
        repeats = bool(calls and task.failed) and same_calls(calls, task.failed[-1])
        return RecoveryOutcome(task.id, verdict.reward, verdict.failed, rollout.text, repeats)


def same_calls(calls: Sequence[ToolCall], others: Sequence[ToolCall]) -> bool:
    """Whether two turns make equal calls in the same order."""
    return len(calls) == len(others) and all(map(same_call, calls, others))


def groups_of(values: Sequence[Value], sizes: Sequence[int]) -> list[Sequence[Value]]:
    """Split the values of rollouts, group after group, into groups of these sizes.

    >>> groups_of("abcde", [2, 3])
    ['ab', 'cde']
    """
    return [values[end - size : end] for size, end in zip(sizes, itertools.accumulate(sizes), strict=True)]


def zero_std_groups(rewards: Sequence[float], sizes: Sequence[int]) -> list[bool]:
    """Return for each group whether all its judged rewards are equal, so that every advantage is 0.

    Args:
        rewards: one per rollout, group after group; NaN where a rollout could not be judged.
        sizes: rollouts of each group.

    >>> zero_std_groups([1.0, 1.0, 0.0, 1.0], [2, 2])
    [True, False]
    """
    groups = groups_of(rewards, sizes)
    return [len({round(reward, 6) for reward in group if not math.isnan(reward)}) <= 1 for group in groups]


def group_advantages(rewards: Sequence[float], sizes: Sequence[int], scale: str = "group") -> list[float]:
    """The advantages of rollouts, normalised in each group by itself, as TRL computes them for groups of one size.

    Args:
        rewards: weighted, group after group; NaN where a rollout could not be judged, whose advantage is 0.
        sizes: rollouts of each group.
        scale: what rewards less their group's mean are divided by, TRL's `scale_rewards`: "group" (the standard
            deviation of the group, plus 1e-4), "batch" (that of all rewards) or "none".

    >>> [round(one, 3) for one in group_advantages([1.0, 0.0, 0.5, 0.5], [2, 2])]
    [0.707, -0.707, 0.0, 0.0]
    """
    batch, advantages = _judged(rewards), []
    for group in groups_of(rewards, sizes):
        judged = _judged(group)
        mean = sum(judged) / max(1, len(judged))
        divisor = {"group": _deviation(judged) + 1e-4, "batch": _deviation(batch) + 1e-4}.get(scale, 1.0)
        advantages += [0.0 if math.isnan(reward) else (reward - mean) / divisor for reward in group]
    return advantages


def _judged(rewards: Sequence[float]) -> list[float]:
    return [reward for reward in rewards if not math.isnan(reward)]


def _deviation(rewards: Sequence[float]) -> float:
    """The standard deviation with Bessel's correction; 0 for one reward."""
    return statistics.stdev(rewards) if len(rewards) > 1 else 0.0


def fraction(flags: Sequence[bool]) -> float:
    """Return the fraction of true values, 0 if there are none at all."""
    return sum(flags) / max(1, len(flags))


def count_rollouts(rollouts: Iterable[Rollout], failures: Iterable[Failure]) -> Counter[str]:
    """Count rollouts by outcome and failures by kind, so that the counts of all ranks can be added.

    `recovered` counts rollouts with a tool error that still succeeded.
    """
    counts: Counter[str] = Counter()
    for rollout in rollouts:
        if rollout.verdict.reward is None:
            counts["infrastructure"] += 1
            continue
        counts["judged"] += 1
        counts["succeeded"] += not rollout.verdict.failed
        counts["erred"] += rollout.erred
        counts["recovered"] += rollout.erred and not rollout.verdict.failed
    counts.update(f"kind/{failure.kind}" for failure in failures)
    return counts


def explore_metrics(counts: Counter[str], zero_std: Sequence[bool]) -> dict[str, float]:
    """Return the metrics of an explore cycle from the counts of all ranks; a rate of nothing is left out."""
    metrics = {
        "fission/error_cases": float(counts["erred"]),
        "fission/frac_zero_std": fraction(zero_std),
    }
    if counts["judged"]:
        metrics["fission/success"] = counts["succeeded"] / counts["judged"]
        metrics["fission/first_try_success"] = (counts["succeeded"] - counts["recovered"]) / counts["judged"]
    if counts["erred"]:
        metrics["fission/error_recovery_rate"] = counts["recovered"] / counts["erred"]
    return metrics | {f"fission/{name}": float(n) for name, n in counts.items() if name.startswith("kind/")}


def outcomes_by_context(
    contexts: Sequence[CorrectiveInstance], outcomes: Sequence[RecoveryOutcome]
) -> dict[str, list[RecoveryOutcome]]:
    """Group the outcomes by corrective instance, in the order of `contexts`."""
    groups: dict[str, list[RecoveryOutcome]] = {item.task.id: [] for item in contexts}
    for outcome in outcomes:
        groups[outcome.context].append(outcome)
    return groups


def recovery_metrics(
    contexts: Sequence[CorrectiveInstance],
    outcomes: Sequence[RecoveryOutcome],
    zero_std: Sequence[bool],
    step: int,
) -> dict[str, float]:
    """Return the metrics of a recover cycle (optimizer step `step`) from the rollouts of all ranks.

    `contexts` are the corrective instances used, one per recovery group; `zero_std` tells of each group whether its
    rewards are all equal. Reward and rate are left out if no rollout could be judged.
    """
    judged = [(outcome.reward, outcome.failed) for outcome in outcomes if outcome.reward is not None]
    rescued = [item.zero_std and not same for item, same in zip(contexts, zero_std, strict=True)]
    metrics = {
        "recovery/frac_zero_std": fraction(zero_std),
        "recovery/depth": sum(item.task.depth for item in contexts) / max(1, len(contexts)),
        "fission/rescued_groups": float(sum(rescued)),
        "fission/age": sum(step - item.step for item in contexts) / max(1, len(contexts)),
    }
    if judged:
        metrics["recovery/reward"] = sum(reward for reward, _ in judged) / len(judged)
        metrics["recovery/rate"] = fraction([not failed for _, failed in judged])
        metrics["recovery/repeats"] = fraction([outcome.repeats for outcome in outcomes if outcome.reward is not None])
    return metrics
