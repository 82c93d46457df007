"""One line about a run in progress, from what the trainer logs. The callbacks that show it: `training_callbacks`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

PHASES = {0.0: "explore", 1.0: "recover"}


@dataclass(frozen=True)
class Moment:
    """Where a run stands.

    `step` and `max_steps` are optimizer steps; `seconds` is the time since training began or was resumed, at
    `first_step`. `tokens` counts all the policy has sampled so far, `first_tokens` at the beginning (None: unknown),
    `max_tokens` is the budget (0: none).
    """

    step: int
    max_steps: int
    seconds: float
    first_step: int = 0
    tokens: float = 0.0
    first_tokens: float | None = 0.0
    max_tokens: int = 0

    @property
    def tokens_per_second(self) -> float | None:
        """Sampled tokens over wall-clock time, training included; None before anything is known."""
        if self.first_tokens is None or self.seconds <= 0 or self.tokens <= self.first_tokens:
            return None
        return (self.tokens - self.first_tokens) / self.seconds

    @property
    def seconds_left(self) -> float | None:
        """Until the last step or the end of the token budget, whichever comes first; None before the first step.

        Example:
            4 of 10 steps in 20 s: 6 * 20 / 4 = 30 s. With 900 of 1,000 tokens spent, at 45 tokens/s: 100 / 45 = 2.2 s.
        """
        done = self.step - self.first_step
        if done <= 0:
            return None
        by_steps = max(0, self.max_steps - self.step) * self.seconds / done
        rate = self.tokens_per_second
        if not self.max_tokens or not rate:
            return by_steps
        return min(by_steps, max(0.0, self.max_tokens - self.tokens) / rate)


def progress_line(moment: Moment, logs: Mapping[str, float]) -> str:
    """What to show after a logged step; values that were not logged are left out.

    Args:
        logs: the trainer's log entry (means over its logged steps, so a phase in between is "mixed").

    Example:
        "step 4/10 · explore · reward 0.61 · success 0.33 · recovered 0.25 · buffer 3 · 45 tokens/s · 0:30 left"
    """
    parts = [f"step {moment.step}/{moment.max_steps}"]
    if "fission/phase" in logs:
        parts.append(PHASES.get(logs["fission/phase"], "mixed"))
    for label, key, form in (
        ("reward", "reward", ".3f"),
        ("success", "fission/success", ".2f"),
        ("recovered", "fission/error_recovery_rate", ".2f"),
        ("recoveries right", "recovery/rate", ".2f"),
        ("buffer", "fission/buffer", ".0f"),
    ):
        if key in logs:
            parts.append(f"{label} {logs[key]:{form}}")
    if moment.tokens_per_second is not None:
        parts.append(f"{moment.tokens_per_second:,.0f} tokens/s")
    if moment.seconds_left is not None:
        parts.append(f"{clock(moment.seconds_left)} left")
    return " · ".join(parts)


def clock(seconds: float) -> str:
    """Minutes and seconds, with hours where there are any. Example: `clock(3725)` is "1:02:05"."""
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
