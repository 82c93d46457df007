"""When to recover."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class RecoverySchedule:
    """Decides whether the next cycle recovers: never twice in a row, and at most a given ratio of all cycles.

    Args:
        ratio: largest ratio of recover cycles to all cycles, above 0 to 0.5.

    Example:
        A ratio of 1/3 recovers after every second explore cycle.
    """

    def __init__(self, ratio: float = 0.5):
        self.ratio = ratio
        self.credit = 0.0  # recover cycles that are due

    @property
    def rate(self) -> float:
        """Number of recover cycles per explore cycle."""
        return self.ratio / (1 - self.ratio)

    def recovery_due(self) -> bool:
        """Return whether the next cycle may recover."""
        return self.credit >= 1 - 1e-9

    def record_explore(self) -> None:
        """Count an explore cycle."""
        self.credit = min(1.0, self.credit + self.rate)

    def record_recovery(self) -> None:
        """Count a recover cycle."""
        self.credit = 0.0

    def state(self) -> dict[str, Any]:
        return {"credit": self.credit}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.credit = state["credit"]
