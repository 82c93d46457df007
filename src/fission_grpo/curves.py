"""Which numbers of the training log the report draws as curves, in its order."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Curve:
    """A number of the log and how to draw it.

    Args:
        key: the log's key.
        explore_only: leave out recover cycles, whose prompts are other prompts.
        share: the number is in [0, 1] and drawn in percent.
        weight: key of the count the number is a mean over; smoothing weighs by it.
    """

    key: str
    stem: str
    title: str
    unit: str
    caption: str
    explore_only: bool = False
    share: bool = False
    smooth: bool = True
    weight: str | None = None


LEARNING = (
    Curve(
        "fission/success", "success", "Success while training", "explore rollouts that succeed",
        "Share of explore rollouts that succeed, on training tasks.", explore_only=True, share=True,
    ),
    Curve(
        "fission/error_recovery_rate", "error_recovery_rate", "Error recovery rate while training",
        "error cases that still succeed",
        "Of the explore rollouts with at least one tool error, the share that still succeeds.",
        explore_only=True, share=True, weight="fission/error_cases",
    ),
)  # fmt: skip
BUFFER = (
    Curve(
        "fission/buffer", "buffer_size", "Instances waiting in the buffer", "corrective instances",
        "Failures waiting for a recover cycle.", smooth=False,
    ),
    Curve(
        "fission/age", "buffer_age", "Age of retried instances", "age (optimizer steps)",
        "How long the instances of a recover cycle had waited; younger is closer to on-policy.",
    ),
)  # fmt: skip
RECOVERY = (
    Curve(
        "recovery/rate", "recovery_rate", "Recovery rate in recover cycles", "recoveries that succeed",
        "Share of the rollouts of a recover cycle that succeed.", share=True,
    ),
    Curve(
        "recovery/zero_variance", "zero_variance", "Recovery groups without variance", "recovery groups",
        "Share of recovery groups whose rewards are all equal: they teach nothing.", share=True,
    ),
)  # fmt: skip
REWARD = Curve(
    "reward", "reward", "Reward of explore rollouts", "mean reward",
    "Mean reward in explore cycles; recover cycles ask harder prompts and are left out.", explore_only=True,
)  # fmt: skip
REWARDS = (
    REWARD,
    *(Curve(
        f"reward_parts/{part}", f"reward_{part}", f"Reward part: {part}", f"mean {part} reward",
        f"The {part} part of the reward, before weighting, in explore cycles.", explore_only=True,
    )
    for part in ("format", "correctness", "length")),
)  # fmt: skip
