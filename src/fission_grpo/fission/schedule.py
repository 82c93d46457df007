"""When to recover, and which recoveries are expected to teach most."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fission_grpo.fission.recovery import CorrectiveInstance

DECAY = 0.9
"""Weight that the counts of a cycle keep after each later cycle of the same phase. [ours]"""

MIN_ADAPTIVE = 0.1
"""Smallest part of the ratio that an adaptive schedule keeps, to notice when recovery starts to pay. [ours]"""


class RecoverySchedule:
    """Decides whether the next cycle recovers: never twice in a row, and at most a given ratio of all cycles.

    Args:
        ratio: largest ratio of recover cycles to all cycles, above 0 to 0.5.
        adaptive: recover less often while fewer recovery groups than explore groups have differing
            rewards. The recover cycles per explore cycle are scaled by the quotient of the two
            fractions, between `MIN_ADAPTIVE` and 1.

    Example:
        A ratio of 1/3 recovers after every second explore cycle.
    """

    def __init__(self, ratio: float = 0.5, adaptive: bool = False):
        self.ratio, self.adaptive = ratio, adaptive
        self.credit = 0.0  # recover cycles that are due
        self.gradient = {"explore": 1.0, "recover": 1.0}  # running fraction of groups whose rewards differ

    @property
    def rate(self) -> float:
        """Current number of recover cycles per explore cycle."""
        return self.ratio / (1 - self.ratio) * self.scale

    @property
    def scale(self) -> float:
        """By what the ratio is multiplied, `MIN_ADAPTIVE` to 1; 1 unless it is adaptive."""
        if not self.adaptive:
            return 1.0
        quotient = self.gradient["recover"] / max(self.gradient["explore"], 1e-6)
        return min(1.0, max(MIN_ADAPTIVE, quotient))

    def recovery_due(self) -> bool:
        """Return whether the next cycle may recover."""
        return self.credit >= 1 - 1e-9

    def record_explore(self, frac_zero_std: float) -> None:
        """Count an explore cycle in which this fraction of the groups had equal rewards."""
        self._update("explore", frac_zero_std)
        self.credit = min(1.0, self.credit + self.rate)

    def record_recovery(self, frac_zero_std: float) -> None:
        """Count a recover cycle in which this fraction of the groups had equal rewards."""
        self._update("recover", frac_zero_std)
        self.credit = 0.0

    def _update(self, phase: str, frac_zero_std: float) -> None:
        self.gradient[phase] += (1 - DECAY) * (1 - frac_zero_std - self.gradient[phase])

    def state(self) -> dict[str, Any]:
        return {"credit": self.credit, "gradient": dict(self.gradient)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.credit, self.gradient = state["credit"], dict(state["gradient"])


class RecoveryRateEstimator:
    """Estimates the success probability of a recovery from running counts per kind of failure.

    The odds of an instance are the odds of its kind of failure, times how much better or worse than
    average its own group did when it explored. Without data all odds are even. [ours]
    """

    def __init__(self):
        self.kinds: dict[str, list[float]] = {}  # by kind of failure: recoveries that succeeded, that were judged
        self.explore = [0.0, 0.0]  # explore rollouts that succeeded, that were judged

    def record_explore(self, succeeded: float, judged: float) -> None:
        """Count the rollouts of an explore cycle."""
        self.explore = [DECAY * old + new for old, new in zip(self.explore, (succeeded, judged), strict=True)]

    def record_recovery(self, kind: str, succeeded: float, judged: float) -> None:
        """Count the rollouts of one recovery group."""
        old = self.kinds.get(kind, [0.0, 0.0])
        self.kinds[kind] = [DECAY * old[0] + succeeded, DECAY * old[1] + judged]

    def success_probability(self, item: CorrectiveInstance) -> float:
        """Return the estimated probability that one recovery rollout of the instance succeeds, in (0, 1)."""
        group = _odds(item.group_success * 8, 8) / _odds(*self.explore)
        odds = _odds(*self.kinds.get(str(item.kind), (0.0, 0.0))) * group
        return odds / (1 + odds)

    def expected_variance(self, item: CorrectiveInstance) -> float:
        """Return the expected variance p(1 - p) of the recovery group's 0/1 rewards, at most 0.25."""
        probability = self.success_probability(item)
        return probability * (1 - probability)

    def state(self) -> dict[str, Any]:
        return {"kinds": {kind: list(counts) for kind, counts in self.kinds.items()}, "explore": list(self.explore)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.kinds = {kind: list(counts) for kind, counts in state["kinds"].items()}
        self.explore = list(state["explore"])


def _odds(succeeded: float, judged: float) -> float:
    return (succeeded + 1) / (judged - succeeded + 1)
