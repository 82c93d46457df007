"""Pictures of arms side by side: the headline, all suites, transfer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.drawing import (
    SOFT,
    capital,
    colors_of,
    legend_below,
    new_figure,
    panel_title,
    save,
    shown_name,
    tidy,
    titled,
)
from analysis.intervals import Estimate
from analysis.measures import RECOVERY, SUCCESS
from analysis.results import SetResult
from analysis.verdicts import direction, points
from analysis.whole import Analysis
from fission_grpo.report.charts import INK, MUTED

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROW = 0.44
"""Inches per arm. [ours]"""

PANELS = (RECOVERY, SUCCESS)
X_LABELS = ("percent of tasks with an own error", "percent of held-out tasks")
SUITE_TITLES = {
    "static": "Static data",
    "static_bfcl": "Static data, SmolLM2-135M",
    "episode": "Live episodes",
    "step": "Step level",
    "confirm": "Two variants, fresh seeds and tasks",
    "smollm2": "SmolLM2-135M",
    "chain": "Chains",
}
HOW_TO_READ = (
    "Large point and bar: mean over seeds and its 95% interval (bootstrap over seeds). Small dots: the seeds.\n"
    "Right of each panel: the mean and, in points, the difference to {reference}, paired by seed; * its bootstrap "
    "and t-intervals exclude 0."
)


def headline_png(analysis: Analysis, path: Path, arms: Sequence[str]) -> Path:
    """Recovery rate and success of arms at the last point; the reference's means as lines."""
    figure = new_figure(9, 1.55 + ROW * len(arms))
    panels = figure.subplots(1, 2, sharey=True)
    _draw_pair(panels, analysis.main, arms)
    for axes, measure, label in zip(panels, PANELS, X_LABELS, strict=True):
        panel_title(axes, capital(measure.title))
        axes.set_xlabel(label, color=SOFT, fontsize=9.5)
    suite, held_out = SUITE_TITLES.get(analysis.suite, analysis.suite), f"{analysis.main.tasks} held-out tasks"
    title = f"{suite}: {held_out} after {analysis.point:,} generated tokens"
    titled(figure, title, HOW_TO_READ.format(reference=shown_name(analysis.reference)))
    return save(figure, path)


def all_suites_png(analyses: Sequence[Analysis], path: Path) -> Path:
    """A row of two panels per suite, with its main arms."""
    arms = [one.main_arms for one in analyses]
    heights = [len(names) + 1.4 for names in arms]
    figure = new_figure(9, 1.1 + ROW * sum(heights))
    rows = figure.subplots(len(analyses), 2, squeeze=False, sharey="row", height_ratios=heights)
    for panels, one, names in zip(rows, analyses, arms, strict=True):
        _draw_pair(panels, one.main, names)
        seeds = max((len(arm.seeds) for arm in one.main.arms.values()), default=0)
        what = f"{one.main.tasks} tasks, {one.point:,} generated tokens, up to {seeds} seeds"
        panel_title(panels[0], f"{SUITE_TITLES.get(one.suite, one.suite)} ({what})\n{capital(RECOVERY.title)}", 11)
        panel_title(panels[1], capital(SUCCESS.title), 11)
    references = " or ".join(dict.fromkeys(shown_name(one.reference) for one in analyses))
    titled(figure, "Error recovery rate and success on held-out tasks, %", HOW_TO_READ.format(reference=references))
    return save(figure, path)


def _draw_pair(panels: Sequence[Axes], result: SetResult, arms: Sequence[str]) -> None:
    """An arm a row, from the top; the panels of PANELS side by side."""
    colors = colors_of([*arms, result.reference])
    for axes, measure in zip(panels, PANELS, strict=True):
        tidy(axes, "x")
        ends: list[float] = []
        for row, arm in enumerate(arms):
            ends += _draw_estimate(axes, -row, result.arms[arm].estimates[measure.key], colors[arm])
            axes.annotate(
                _numbers(result, arm, measure.key), (1.015, -row), xycoords=("axes fraction", "data"), va="center",
                fontsize=9.5, color=INK, annotation_clip=False,
            )  # fmt: skip
        reference = result.arms.get(result.reference)
        if reference is not None and (mean := reference.estimates[measure.key].mean) is not None:
            axes.axvline(100 * mean, color=colors[result.reference], linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        _limit(axes, ends)
        axes.set_ylim(-len(arms) + 0.45, 0.55)
    panels[0].set_yticks([-row for row in range(len(arms))], [shown_name(arm) for arm in arms])
    panels[0].tick_params(axis="y", labelsize=10.5, labelcolor=INK)


def _draw_estimate(axes: Axes, y: float, found: Estimate, color: str) -> list[float]:
    """Seeds, interval and mean in percent on a row; returns all x of them."""
    if found.mean is None:
        where = (0.5, y), ("axes fraction", "data")
        axes.annotate(
            "no error cases", where[0], xycoords=where[1], color=MUTED, ha="center", va="center", fontsize=9.5
        )
        return []
    seeds = [100 * value for value in found.by_seed.values() if value is not None]
    axes.plot(seeds, [y + 0.24] * len(seeds), "o", color=color, alpha=0.35, markersize=3.6, markeredgewidth=0)
    ends = [100 * end for end in found.interval or ()]
    axes.plot(ends, [y] * len(ends), color=color, linewidth=2.6, solid_capstyle="round", zorder=3)
    axes.plot(100 * found.mean, y, "o", color=color, markersize=7.5, markeredgecolor="white", zorder=4)
    return [*seeds, *ends, 100 * found.mean]


def _limit(axes: Axes, ends: Sequence[float]) -> None:
    """Limits around all points, inside 0 to 100, at least 10 points wide."""
    low, high = min(ends, default=0.0), max(ends, default=100.0)
    middle, half = (low + high) / 2, max(5.0, (high - low) / 2 * 1.08)
    axes.set_xlim(max(-1.5, middle - half), min(101.5, middle + half))


def _numbers(result: SetResult, arm: str, key: str) -> str:
    one = result.arms[arm]
    mean, found = one.estimates[key].mean, one.differences.get(key)
    if mean is None:
        return "–"
    if found is None or found.mean is None:
        return f"{100 * mean:.1f}"
    return f"{100 * mean:.1f}  ({points(found.mean)}{'*' if direction(found) else ''})"


def transfer_png(analysis: Analysis, path: Path, arms: Sequence[str]) -> Path | None:
    """Differences to the reference on every set, a group of rows per set; None without other sets."""
    shared = {name: one for name, one in analysis.transfer.items() if analysis.reference in one.arms}
    results = {"held out": analysis.main, **{name.replace("_", " "): one for name, one in shared.items()}}
    arms = [arm for arm in arms if arm not in (analysis.reference, "untrained")]
    if len(results) < 2 or not arms:
        return None
    colors, reference = colors_of(arms), shown_name(analysis.reference)
    figure = new_figure(9, 1.5 + 0.27 * (len(arms) + 1) * len(results))
    panels = figure.subplots(1, 2, sharey=True)
    for axes, measure in zip(panels, PANELS, strict=True):
        tidy(axes, "x")
        axes.axvline(0, color=INK, linewidth=1)
        panel_title(axes, capital(measure.title))
        axes.set_xlabel(f"points more than {reference}", color=SOFT, fontsize=9.5)
        axes.locator_params(axis="x", nbins=6)
    ticks = _draw_transfer(panels, results, arms, colors)
    panels[0].set_yticks(list(ticks), list(ticks.values()))
    panels[0].tick_params(axis="y", labelsize=10.5, labelcolor=INK)
    panels[0].set_ylim(-(len(arms) + 1) * len(results) + 1.4, 0.6)
    legend_below(figure, arms, colors)
    titled(figure, f"Does it transfer? Differences to {reference}, 95% intervals over seeds")
    return save(figure, path)


def _draw_transfer(
    panels: Sequence[Axes], results: Mapping[str, SetResult], arms: Sequence[str], colors: Mapping[str, str]
) -> dict[float, str]:
    """Draw all differences; returns each set's name by the middle of its rows."""
    ticks, y = {}, 0.0
    for name, result in results.items():
        ticks[y - (len(arms) - 1) / 2] = name
        for arm in arms:
            for axes, measure in zip(panels, PANELS, strict=True):
                found = result.arms[arm].differences.get(measure.key) if arm in result.arms else None
                if found is not None and found.mean is not None:
                    ends = [100 * end for end in found.interval or ()]
                    axes.plot(ends, [y] * len(ends), color=colors[arm], linewidth=2.4, solid_capstyle="round")
                    axes.plot(100 * found.mean, y, "o", color=colors[arm], markersize=6, markeredgecolor="white")
            y -= 1
        y -= 1
    return ticks
