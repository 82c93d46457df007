"""What one cycle did, in numbers: pure functions from rollouts to the metrics logged as fission/* and recovery/*."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fission_grpo.core.types import Failure, Rollout
from fission_grpo.fission.recovery import CorrectiveInstance


@dataclass(frozen=True)
class Outcome:
    """One recovery rollout: of which context, its reward (None: not judged), whether it failed, what was said."""

    context: str
    reward: float | None
    failed: bool
    text: str


def flat_groups(rewards: Sequence[float], group_size: int) -> list[bool]:
    """For each group, whether all its judged rewards are equal, so that every advantage is 0.

    >>> flat_groups([1.0, 1.0, 0.0, 1.0], group_size=2)
    [True, False]
    """
    groups = [rewards[i : i + group_size] for i in range(0, len(rewards), group_size)]
    return [len({round(reward, 6) for reward in group if not math.isnan(reward)}) <= 1 for group in groups]


def group_success(succeeded: Sequence[bool], group_size: int) -> list[float]:
    """Share of successes in each group.

    >>> group_success([True, False, True, True], group_size=2)
    [0.5, 1.0]
    """
    groups = [succeeded[i : i + group_size] for i in range(0, len(succeeded), group_size)]
    return [sum(group) / len(group) for group in groups]


def count(rollouts: Iterable[Rollout], failures: Iterable[Failure]) -> Counter[str]:
    """Counts that add up over ranks. `recovered` are rollouts that met a tool error and still succeeded."""
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


def explore_metrics(counts: Counter[str], flat: Sequence[bool]) -> dict[str, float]:
    """Metrics of an explore cycle from the counts of all ranks."""
    metrics = {
        "fission/success": counts["succeeded"] / max(1, counts["judged"]),
        "fission/error_cases": float(counts["erred"]),
        "fission/zero_variance": sum(flat) / max(1, len(flat)),
    }
    if counts["erred"]:
        metrics["fission/error_recovery_rate"] = counts["recovered"] / counts["erred"]
    return metrics | {f"fission/{name}": float(n) for name, n in counts.items() if name.startswith("kind/")}


def by_context(contexts: Sequence[CorrectiveInstance], outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    """The outcomes of each recovery group, in the order of `contexts`."""
    groups: dict[str, list[Outcome]] = {item.task.id: [] for item in contexts}
    for outcome in outcomes:
        groups[outcome.context].append(outcome)
    return groups


def recover_metrics(
    contexts: Sequence[CorrectiveInstance], outcomes: Sequence[Outcome], flat: Sequence[bool], step: int
) -> dict[str, float]:
    """Metrics of a recover cycle.

    Args:
        contexts: the corrective instances used, one per recovery group.
        outcomes: all recovery rollouts of all ranks.
        flat: per recovery group, whether its rewards are all equal.
        step: optimizer step of this cycle.
    """
    rewards = [outcome.reward for outcome in outcomes if outcome.reward is not None]
    judged = [outcome for outcome in outcomes if outcome.reward is not None]
    rescued = sum(item.zero_variance and not same for item, same in zip(contexts, flat, strict=True))
    return {
        "recovery/reward": sum(rewards) / max(1, len(rewards)),
        "recovery/rate": sum(not outcome.failed for outcome in judged) / max(1, len(judged)),
        "recovery/zero_variance": sum(flat) / max(1, len(flat)),
        "recovery/depth": sum(item.task.depth for item in contexts) / max(1, len(contexts)),
        "fission/rescued_groups": float(rescued),
        "fission/age": sum(step - item.step for item in contexts) / max(1, len(contexts)),
    }
