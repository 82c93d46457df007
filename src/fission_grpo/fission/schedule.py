"""When to recover, and from what: the share of recover cycles, and the odds that a recovery succeeds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fission_grpo.fission.recovery import CorrectiveInstance

DECAY = 0.9
"""What a cycle's counts weigh after another cycle of the same sort. [ours]"""


LEAST = 0.1
"""Least part of the share that the adaptive one keeps, so that it notices when recovery starts to pay. [ours]"""


class RecoverShare:
    """Decides whether the next cycle recovers: never twice in a row, and at most a given share of all cycles.

    Args:
        share: largest share of recover cycles, above 0 to 0.5.
        adaptive: recover less often when recover groups have gradient (rewards that differ) less often than explore
            groups have: the cycles per explore cycle are scaled by the ratio of the two, between `LEAST` and 1.

    Example:
        `share` 1/3 recovers after every second explore cycle.
    """

    def __init__(self, share: float = 0.5, adaptive: bool = False):
        self.share, self.adaptive = share, adaptive
        self.credit = 0.0  # recover cycles that are due
        self.signal = {"explore": 1.0, "recover": 1.0}  # running share of groups with gradient

    @property
    def rate(self) -> float:
        """Recover cycles per explore cycle, at present."""
        rate = self.share / (1 - self.share)
        if not self.adaptive:
            return rate
        return rate * min(1.0, max(LEAST, self.signal["recover"] / max(self.signal["explore"], 1e-6)))

    def due(self) -> bool:
        """Whether the next cycle may recover."""
        return self.credit >= 1 - 1e-9

    def explored(self, flat_share: float) -> None:
        """An explore cycle is done; `flat_share` of its groups had no gradient."""
        self._note("explore", flat_share)
        self.credit = min(1.0, self.credit + self.rate)

    def recovered(self, flat_share: float) -> None:
        """A recover cycle is done."""
        self._note("recover", flat_share)
        self.credit = 0.0

    def _note(self, phase: str, flat_share: float) -> None:
        self.signal[phase] += (1 - DECAY) * (1 - flat_share - self.signal[phase])

    def state(self) -> dict[str, Any]:
        return {"credit": self.credit, "signal": dict(self.signal)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.credit, self.signal = state["credit"], dict(state["signal"])


class RecoveryOdds:
    """Running counts from which the chance of a recovery is estimated, per kind of failure.

    The odds of an instance are the odds of its kind of failure, times how much better or worse than average its own
    group did when it explored. With nothing known all odds are even. [ours]
    """

    def __init__(self):
        self.kinds: dict[str, list[float]] = {}  # kind: recoveries that succeeded, and that were judged
        self.explore = [0.0, 0.0]

    def explored(self, succeeded: float, judged: float) -> None:
        """An explore cycle's rollouts."""
        self.explore = [DECAY * old + new for old, new in zip(self.explore, (succeeded, judged), strict=True)]

    def recovered(self, kind: str, succeeded: float, judged: float) -> None:
        """One recovery group's rollouts."""
        old = self.kinds.get(kind, [0.0, 0.0])
        self.kinds[kind] = [DECAY * old[0] + succeeded, DECAY * old[1] + judged]

    def chance(self, item: CorrectiveInstance) -> float:
        """Estimated chance that one recovery rollout of the instance succeeds, in (0, 1)."""
        group = _odds(item.group_success * 8, 8) / _odds(*self.explore)
        odds = _odds(*self.kinds.get(str(item.kind), (0.0, 0.0))) * group
        return odds / (1 + odds)

    def variance(self, item: CorrectiveInstance) -> float:
        """Expected variance of the recovery group's 0/1 rewards, p(1 - p), at most 0.25."""
        chance = self.chance(item)
        return chance * (1 - chance)

    def state(self) -> dict[str, Any]:
        return {"kinds": {kind: list(counts) for kind, counts in self.kinds.items()}, "explore": list(self.explore)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.kinds = {kind: list(counts) for kind, counts in state["kinds"].items()}
        self.explore = list(state["explore"])


def _odds(succeeded: float, judged: float) -> float:
    return (succeeded + 1) / (judged - succeeded + 1)
