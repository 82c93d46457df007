"""GRPO's advantages in plain Python, as an independent reference for the tests."""

import math
from collections.abc import Sequence


def group_advantages(rewards: Sequence[float | None], group_size: int, epsilon: float = 1e-4) -> list[float]:
    """GRPO's advantages: each reward less its group's mean, over the group's standard deviation plus epsilon.

    As TRL's `scale_rewards="group"`, `multi_objective_aggregation="sum_then_normalize"` (trl 1.16,
    `GRPOTrainer._generate_and_score_completions`): the deviation is the unbiased one (over n - 1), epsilon 1e-4.
    A reward that is None or NaN (infrastructure) is left out of its group's statistics and gets advantage 0.

    Args:
        rewards: group after group, `group_size` each.

    Returns:
        list[float]: one advantage per reward.

    Raises:
        ValueError: `group_size` does not divide the number of rewards.

    Example:
        [1, 0, 0, 1] in one group: mean 0.5, deviation sqrt(4 * 0.25 / 3) = 0.57735; advantages
        +-0.5 / 0.57745 = +-0.86588.
    """
    if group_size < 1 or len(rewards) % group_size:
        raise ValueError(f"{len(rewards)} rewards cannot be split into groups of {group_size}")
    advantages = []
    for start in range(0, len(rewards), group_size):
        group = [math.nan if reward is None else float(reward) for reward in rewards[start : start + group_size]]
        known = [reward for reward in group if not math.isnan(reward)]
        mean = math.fsum(known) / len(known) if known else 0.0
        deviation = math.sqrt(math.fsum((r - mean) ** 2 for r in known) / (len(known) - 1)) if len(known) > 1 else 0.0
        advantages += [0.0 if math.isnan(r) else (r - mean) / (deviation + epsilon) for r in group]
    return advantages
