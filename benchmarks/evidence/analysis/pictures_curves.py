"""Pictures over training: learning curves, and what the training logs tell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from analysis.learning import CurvePoint
from analysis.measures import RECOVERY, SUCCESS, Measure
from analysis.training import LOGGED, QUARTERS, RECOVER
from analysis.whole import Analysis
from fission_grpo.core.types import ErrorKind
from fission_grpo.report.charts import INK, KIND_COLORS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MINUTES_FROM = 300
"""Seconds from which on wall-clock is shown in minutes. [ours]"""

X_LABELS = {
    "tokens": "tokens sampled by the policy, thousands",
    "all_tokens": "all tokens, extra ones included, thousands",
    "seconds": "training wall-clock, seconds",
    "minutes": "training wall-clock, minutes",
}
SCALE = {"tokens": 1e3, "all_tokens": 1e3, "seconds": 1.0, "minutes": 60.0}
IN_A_ROW = 4
"""Small multiples side by side. [ours]"""


def curves_png(analysis: Analysis, path: Path, arms: Sequence[str]) -> Path | None:
    """Recovery and success of the main arms against tokens and wall-clock; None without two points."""
    drawn = [arm for arm in arms if len(analysis.curves.get(arm, ())) > 1]
    if not drawn:
        return None
    extra = any(one.costs["all_tokens"] > one.costs["tokens"] for arm in drawn for one in analysis.curves[arm])
    longest = max(analysis.curves[arm][-1].costs["seconds"] for arm in drawn)
    units = ["tokens", *(["all_tokens"] if extra else []), "minutes" if longest >= MINUTES_FROM else "seconds"]
    colors = colors_of(["untrained", *arms])
    figure = new_figure(9 if not extra else 11.5, 6.4)
    grid = figure.subplots(2, len(units), sharex="col", sharey="row", squeeze=False)
    for row, measure in zip(grid, (RECOVERY, SUCCESS), strict=True):
        for axes, unit in zip(row, units, strict=True):
            tidy(axes, "y")
            for arm in drawn:
                draw_curve(axes, analysis.curves[arm], measure.key, unit, colors[arm])
        row[0].set_ylabel(f"{measure.title}, %", color=SOFT, fontsize=10.5)
    for axes, unit in zip(grid[-1], units, strict=True):
        axes.set_xlabel(X_LABELS[unit], color=SOFT, fontsize=10)
        axes.set_xlim(left=0)
        axes.locator_params(axis="x", nbins=6)
    legend_below(figure, drawn, colors)
    titled(figure, "Learning curves on held-out tasks (bands: 95% intervals over seeds)")
    return save(figure, path)


def draw_curve(axes: Axes, ones: Sequence[CurvePoint], key: str, unit: str, color: str, width: float = 2.0) -> None:
    """Mean over seeds, and its band where there is an interval."""
    known = [one for one in ones if one.estimates[key].mean is not None]
    xs = [one.costs["seconds" if unit == "minutes" else unit] / SCALE[unit] for one in known]
    axes.plot(
        xs, [100 * (one.estimates[key].mean or 0.0) for one in known], "o-", color=color, linewidth=width, markersize=4
    )
    _band(axes, xs, [one.estimates[key] for one in known], color)


def other_arms_png(analysis: Analysis, path: Path, measure: Measure) -> Path | None:
    """A small panel for each arm that is not among the main ones, with the reference's curve behind it."""
    others = [arm for arm in analysis.curves if arm not in analysis.main_arms and len(analysis.curves[arm]) > 1]
    if not others:
        return None
    rows = -(-len(others) // IN_A_ROW)
    figure = new_figure(9, 0.9 + 2.0 * rows)
    grid = figure.subplots(rows, IN_A_ROW, sharex=True, sharey=True, squeeze=False)
    reference = analysis.curves.get(analysis.reference, ())
    blue, color = colors_of(["grpo", "fission"]).values()
    for number, axes in enumerate(grid.flat):
        if number >= len(others):
            axes.set_axis_off()
            continue
        tidy(axes, "y")
        draw_curve(axes, reference, measure.key, "all_tokens", blue, 1.4)
        arm = others[number]
        draw_curve(axes, analysis.curves[arm], measure.key, "all_tokens", color)
        axes.set_title(_wrapped(shown_name(arm)), loc="left", fontsize=10, color=INK)
        if number + IN_A_ROW >= len(others):
            axes.tick_params(labelbottom=True)
    figure.supxlabel(X_LABELS["all_tokens"], color=SOFT, fontsize=10)
    behind = f"each arm (orange) and {shown_name(analysis.reference)} (blue)"
    titled(figure, f"{capital(measure.title)}, %: {behind}")
    return save(figure, path)


def training_png(analysis: Analysis, path: Path, arms: Sequence[str]) -> Path | None:
    """The numbers of LOGGED by quarters of training; None without logs."""
    drawn = [arm for arm in arms if arm in analysis.training]
    if not drawn:
        return None
    colors = colors_of(["untrained", *arms])
    figure = new_figure(9, 5.6)
    for axes, (key, words, phase) in zip(figure.subplots(2, 3, sharex=True).flat, LOGGED, strict=True):
        tidy(axes, "y")
        scale = 1.0 if key == "fission/age" else 100.0
        for arm in drawn:
            _draw_quarters(axes, analysis.training[arm].quarters[key], scale, colors[arm])
        axes.set_title(
            _wrapped(capital(words) + ("" if scale == 1.0 else ", %"), 35), loc="left", fontsize=9.5, color=INK
        )
        axes.set_xticks(range(1, QUARTERS + 1))
        axes.set_ylim(bottom=0)
        if phase == RECOVER:
            axes.set_xlabel("quarter of the run's tokens", color=SOFT, fontsize=9.5)
    legend_below(figure, drawn, colors)
    titled(figure, "What the training logs tell (means over seeds, 95% intervals)")
    return save(figure, path)


def _draw_quarters(axes: Axes, found: Sequence[Estimate], scale: float, color: str) -> None:
    known = [(quarter, one) for quarter, one in enumerate(found, 1) if one.mean is not None]
    axes.plot([q for q, _ in known], [scale * (one.mean or 0.0) for _, one in known], "o-", color=color, markersize=4)
    _band(axes, [q for q, _ in known], [one for _, one in known], color, scale)


def _band(axes: Axes, xs: Sequence[float], found: Sequence[Estimate], color: str, scale: float = 100.0) -> None:
    def end(one: Estimate, pick: Callable[[Sequence[float]], float]) -> float:
        return scale * (pick(one.interval) if one.interval else one.mean or 0.0)

    axes.fill_between(
        xs, [end(one, min) for one in found], [end(one, max) for one in found], color=color, alpha=0.13, linewidth=0
    )


def _wrapped(text: str, width: int = 22) -> str:
    import textwrap

    return textwrap.fill(text, width)


def error_kinds_png(analysis: Analysis, path: Path, arms: Sequence[str]) -> Path | None:
    """Failed rollouts per explore cycle by error kind in each quarter, a panel per arm; None without logs."""
    drawn = [arm for arm in arms if arm in analysis.training and analysis.training[arm].kinds]
    if not drawn:
        return None
    kinds = list(dict.fromkeys(kind for arm in drawn for kind in analysis.training[arm].kinds))
    order = [str(kind) for kind in ErrorKind]
    known = sorted(kinds, key=lambda kind: order.index(kind) if kind in order else len(order))
    colors = {kind: KIND_COLORS[number % len(KIND_COLORS)] for number, kind in enumerate(known)}
    columns = min(3, len(drawn))
    rows = -(-len(drawn) // columns)
    figure = new_figure(9, 1.2 + 2.1 * rows)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for number, axes in enumerate(grid.flat):
        if number >= len(drawn):
            axes.set_axis_off()
            continue
        tidy(axes, "y")
        panel_title(axes, shown_name(drawn[number]), 10.5)
        floor = [0.0] * QUARTERS
        for kind in known:
            heights = [count or 0.0 for count in analysis.training[drawn[number]].kinds.get(kind, [0.0] * QUARTERS)]
            axes.bar(range(1, QUARTERS + 1), heights, 0.8, bottom=floor, color=colors[kind])
            floor = [low + height for low, height in zip(floor, heights, strict=True)]
        axes.set_xticks(range(1, QUARTERS + 1))
        axes.set_xlabel(
            "quarter of the run's tokens" if number + columns >= len(drawn) else "", color=SOFT, fontsize=9.5
        )
        axes.tick_params(labelbottom=number + columns >= len(drawn))
    legend_below(
        figure, [kind.replace("_", " ") for kind in known], {k.replace("_", " "): c for k, c in colors.items()}
    )
    titled(figure, "Failed rollouts per explore cycle by error kind, over training")
    return save(figure, path)
