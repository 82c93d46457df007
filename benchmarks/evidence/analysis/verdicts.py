"""Differences in words: what an interval shows, and what must be doubted."""

from __future__ import annotations

from collections.abc import Mapping

from analysis.intervals import Difference, Interval
from analysis.measures import MEASURES
from analysis.results import SetResult

FEW = 5
"""Seeds below which a verdict says so: of 4 seeds the sign-flip test cannot give less than p = 0.125. [ours]"""

JUDGED = ("success", "recovery", "success_after_needed_error", "flawless")
"""Measures that get a verdict."""


def verdicts(result: SetResult) -> list[str]:
    """A sentence per arm and measure of JUDGED: the difference, its intervals, and whether they exclude 0."""
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
        mean 0.04, interval (0.01, 0.07), t-interval (0.005, 0.075): "+4.0 points [+1.0, +7.0], t [+0.5, +7.5], 10
        seeds: both exclude 0, higher"
    """
    if found.mean is None:
        return "nothing to compare"
    head = f"{points(found.mean)} points"
    if found.interval is None or found.t is None:
        return f"{head}, {_seeds(found.seeds)}: no interval (one seed, or no spread), so nothing is shown"
    text = f"{head} {bracket(found.interval)}, t {bracket(found.t)}, {_seeds(found.seeds)}: "
    side = direction(found)
    if side == 0:
        hold = [name for name, one in (("the bootstrap", found.interval), ("t", found.t)) if not _side(one)]
        return f"{text}{' and '.join(hold)} hold{'s' if len(hold) == 1 else ''} 0, no difference shown"
    text += f"both exclude 0, {'higher' if side > 0 else 'lower'}"
    doubts = [f"only {_seeds(found.seeds)}"] if found.seeds < FEW else []
    if found.both is not None and not _side(found.both):
        doubts.append(f"over seeds and tasks {bracket(found.both)} holds it")
    return text + (f" (but {'; '.join(doubts)})" if doubts else "")


def direction(found: Difference) -> int:
    """What counts as shown by the protocol (with its amendment): 1 higher, -1 lower, 0 nothing.

    Both the bootstrap over seeds and the paired t-interval must lie on that side of 0: a bootstrap over few seeds
    knows few values, and is too narrow.
    """
    if found.interval is None or found.t is None:
        return 0
    side = _side(found.interval)
    return side if side == _side(found.t) else 0


def _side(interval: Interval) -> int:
    """1: above 0, -1: below, 0: holds it."""
    return int(interval[0] > 0) - int(interval[1] < 0)


def points(share: float) -> str:
    """A share as signed percentage points. Example: `points(0.041)` is "+4.1"."""
    return f"{round(100 * share, 1) + 0.0:+.1f}"


def bracket(interval: tuple[float, float]) -> str:
    return f"[{points(interval[0])}, {points(interval[1])}]"


def _seeds(count: int) -> str:
    return f"{count} seed{'' if count == 1 else 's'}"
