"""Differences in words: what an interval shows, and what must be doubted."""

from __future__ import annotations

from collections.abc import Mapping

from analysis.intervals import Difference
from analysis.measures import MEASURES
from analysis.results import SetResult

FEW = 5
"""Seeds below which a verdict says so: of 4 seeds the sign-flip test cannot give less than p = 0.125. [ours]"""

JUDGED = ("success", "recovery", "success_after_needed_error", "flawless")
"""Measures that get a verdict."""


def verdicts(result: SetResult) -> list[str]:
    """A sentence per arm and measure of JUDGED: the difference, its interval, and whether that excludes 0."""
    found = {(arm, result.reference): one.differences for arm, one in result.arms.items()}
    return control_verdicts(found)


def control_verdicts(found: Mapping[tuple[str, str], Mapping[str, Difference]]) -> list[str]:
    """The same for any pairs of arms, on the main set."""
    titles = {one.key: one.title for one in MEASURES}
    return [
        f"{arm} against {other}, {titles[key]}: {verdict(by_measure[key])}"
        for (arm, other), by_measure in found.items()
        for key in JUDGED
        if key in by_measure
    ]


def verdict(found: Difference) -> str:
    """In words what a difference shows.

    Example:
        mean 0.04, interval (0.01, 0.07): "+4.0 points [+1.0, +7.0], 10 seeds: the interval excludes 0, higher"
    """
    if found.mean is None:
        return "nothing to compare"
    head = f"{points(found.mean)} points"
    if found.interval is None:
        return f"{head}, {_seeds(found.seeds)}: no interval (one seed, or no spread), so nothing is shown"
    side = excluded(found)
    text = f"{head} {bracket(found.interval)}, {_seeds(found.seeds)}: the interval "
    text += {1: "excludes 0, higher", -1: "excludes 0, lower", 0: "holds 0: no difference shown"}[side]
    doubts = [f"only {_seeds(found.seeds)}"] if found.seeds < FEW else []
    if side and found.t is not None and found.t[0] <= 0 <= found.t[1]:
        doubts.append(f"the t-interval {bracket(found.t)} holds it")
    if side and found.both is not None and found.both[0] <= 0 <= found.both[1]:
        doubts.append(f"over seeds and tasks {bracket(found.both)} it is held")
    return text + (f" (but {'; '.join(doubts)})" if doubts else "")


def excluded(found: Difference) -> int:
    """1: the bootstrap interval over seeds lies above 0, -1: below, 0: it holds 0 or there is none."""
    if found.interval is None:
        return 0
    return int(found.interval[0] > 0) - int(found.interval[1] < 0)


def marked(found: Difference) -> bool:
    """Whether tables and pictures mark a difference: its interval excludes 0 and it has at least FEW seeds."""
    return found.seeds >= FEW and excluded(found) != 0


def points(share: float) -> str:
    """A share as signed percentage points. Example: `points(0.041)` is "+4.1"."""
    return f"{round(100 * share, 1) + 0.0:+.1f}"


def bracket(interval: tuple[float, float]) -> str:
    return f"[{points(interval[0])}, {points(interval[1])}]"


def _seeds(count: int) -> str:
    return f"{count} seed{'' if count == 1 else 's'}"
