"""What the protocol's rules make of the headline comparisons: computed, so that nobody words it by hope.

The rules are those of PROTOCOL.md, Analysis and Suite `static`: `fission` less `grpo` and less the controls of
its feedback, each for recovery and success. No other comparison is a finding.
"""

from __future__ import annotations

from collections.abc import Mapping

from analysis.intervals import Difference
from analysis.results import SetResult
from analysis.verdicts import FEW, direction, points, verdict

METHOD, BASELINE = "fission", "grpo"
CONTROLS = tuple(
    (METHOD, control) for control in ("fission_fixed", "fission_shuffled", "shuffled", "fixed", "rules", "silent")
)
"""Pairs that tell whether a diagnosis must be about the failure."""
SAME_CHANGE = (
    ("fission_dapo", "dapo"),
    ("fission_kl", "grpo_kl"),
    *((METHOD, other) for other in ("paper", "alternate", "graded", "continues", "depth_2", "fewer_recoveries")),
    *((METHOD, other) for other in ("simulator", "offline_guess", "offline_other", "live_grpo")),
    ("fission_offline", "offline_guess"),
)
"""Arms that differ in one change from each other, or that a reader would compare; no findings."""

PRIMARY = {"recovery": "error recovery rate", "success": "success"}
NEEDED, FIRST_TRY = "success_after_needed_error", "flawless_without_need"
PAPER_GAINS = {"recovery": 0.057, "success": 0.04}
"""What the paper's method gained over GRPO, shares. [paper]"""

ByMeasure = Mapping[str, Difference]
Controls = Mapping[tuple[str, str], ByMeasure]


def findings(main: SetResult, controls: Controls) -> list[str]:
    """Sentences: the headline comparisons, then for, against, against the diagnosis, and what is excluded.

    Returns:
        A single sentence saying why there are none, where the arms or their shared seeds are missing.
    """
    if main.reference != BASELINE or METHOD not in main.arms or BASELINE not in main.arms:
        return [f"no findings: they need the arms {METHOD} and {BASELINE}, the latter as reference"]
    gains = main.arms[METHOD].differences
    if any(gains[key].interval is None for key in PRIMARY):
        return [f"no findings: {METHOD} less {BASELINE} has no interval (too few shared seeds, or no spread)"]
    compared = {(METHOD, BASELINE): gains, **{pair: found for pair, found in controls.items() if pair in CONTROLS}}
    lines = [
        f"{arm} less {other}, {title}: {verdict(found[key])}"
        for (arm, other), found in compared.items()
        for key, title in PRIMARY.items()
    ]
    if FIRST_TRY in gains:
        lines.append(f"{METHOD} less {BASELINE}, first-try success where none is needed: {verdict(gains[FIRST_TRY])}")
    return [*lines, _for(gains), _against(gains), *_against_diagnosis(gains, controls), *_excluded_gains(gains)]


def _for(gains: ByMeasure) -> str:
    """One interval above 0 and the other not below it."""
    sides = [direction(gains[key]) for key in PRIMARY]
    holds = max(sides) > 0 and min(sides) >= 0
    seeds = min(gains[key].seeds for key in PRIMARY)
    few = f" (but only {seeds} seeds)" if holds and seeds < FEW else ""
    return f"For the method: {'yes' if holds else 'no'}{few}"


def _against(gains: ByMeasure) -> str:
    """An interval below 0, or recovery gained while success where an error is expected is not shown to rise."""
    reasons = [f"{title} fell" for key, title in PRIMARY.items() if direction(gains[key]) < 0]
    needed = gains.get(NEEDED)
    if direction(gains["recovery"]) > 0 and needed is not None and direction(needed) <= 0:
        reasons.append(f"recovery rose, but success where an error is expected did not: {verdict(needed)}")
    return f"Against the method: {'yes, ' + '; '.join(reasons) if reasons else 'no'}"


def _against_diagnosis(gains: ByMeasure, controls: Controls) -> list[str]:
    """For each primary number that rose over the baseline, the controls over which it did not."""
    risen = [key for key in PRIMARY if direction(gains[key]) > 0]
    there = [pair for pair in CONTROLS if pair in controls]
    if not risen:
        return ["Against the diagnosis: not asked, as nothing rose over GRPO"]
    if not there:
        return ["Against the diagnosis: not known, the controls are missing"]
    reasons = [
        f"{PRIMARY[key]} did not rise over {other}"
        for key in risen
        for arm, other in there
        if direction(controls[arm, other][key]) <= 0
    ]
    return [f"Against the diagnosis: {'yes, ' + '; '.join(reasons) if reasons else 'no'}"]


def _excluded_gains(gains: ByMeasure) -> list[str]:
    """For what is not shown: the gains above both intervals, and whether the paper's is among them."""
    lines = []
    for key, title in PRIMARY.items():
        one, paper = gains[key], PAPER_GAINS[key]
        if one.interval is not None and one.t is not None and direction(one) == 0:
            most = max(one.interval[1], one.t[1])
            said = "is excluded" if most < paper else "is not excluded"
            lines.append(
                f"Not shown for {title}: gains above {points(most)} points are excluded; the paper's, "
                f"{points(paper)}, {said}"
            )
    return lines
