"""The picture of a comparison: B minus A with 95% intervals, in points. matplotlib is imported when it is drawn."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from fission_grpo.evaluation.compare import Comparison, Difference
from fission_grpo.plots import FAMILY_COLORS, GRID, INK, MUTED

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BETTER, WORSE, OPEN = "#0d9488", FAMILY_COLORS["fission"], MUTED
"""Colours: the interval lies on the better side of zero, on the worse side, or holds zero."""

LONGEST_NAME = 60
"""Longest run name in the picture, in characters. [ours]"""


def comparison_png(comparison: Comparison) -> bytes:
    """Draw a comparison: a row each for success, error recovery and errors per call; the 2x2 counts below.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    c = comparison
    figure = Figure(figsize=(8.0, 4.2), dpi=160, layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    title = f"{_name(c.name_b)} (B)\nminus {_name(c.name_a)} (A)"
    figure.suptitle(title, x=0.012, ha="left", fontsize=12.5, fontweight="bold", color=INK)
    for row, one in enumerate(c.differences):
        _draw(axes, -row, one)
    _frame(axes, c)
    figure.supxlabel(_caption(c), fontsize=9, color="#475569", x=0.01, ha="left")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _draw(axes: Axes, y: float, one: Difference) -> None:
    color = _color(one)
    text = "nothing to compare"
    if one.change is not None:
        change = 100 * one.change
        text = f"{change:+.1f}"
        axes.plot(change, y, "o", color=color, markersize=9, zorder=3)
        if one.interval is not None:
            low, high = (100 * end for end in one.interval)
            axes.plot([low, high], [y, y], color=color, linewidth=3, solid_capstyle="round", zorder=2)
            text += f"\n[{low:+.1f}, {high:+.1f}]"
    axes.annotate(
        text, (1.02, y), xycoords=("axes fraction", "data"), va="center", color=INK, fontsize=10, annotation_clip=False
    )


def _frame(axes: Axes, c: Comparison) -> None:
    """Axes around zero, wide enough for every interval, labels with counts."""
    ends = [100 * end for one in c.differences for end in (*(one.interval or ()), one.change or 0.0)]
    reach = max(1.0, *map(abs, ends)) * 1.25
    axes.set_xlim(-reach, reach)
    axes.set_ylim(-len(c.differences) + 0.5, 0.5)
    axes.axvline(0, color=INK, linewidth=1)
    axes.set_yticks([-row for row in range(len(c.differences))], [_label(one) for one in c.differences])
    axes.set_xlabel("difference in percentage points, with its 95% interval", color="#475569", fontsize=10)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color("#94a3b8")
    axes.tick_params(colors=MUTED, labelsize=10, length=0, labelcolor="#334155")


def _label(one: Difference) -> str:
    better = " (less is better)" if one.lower_is_better else ""
    (hits_a, of_a), (hits_b, of_b) = one.a, one.b
    return f"{one.name}{better}\nA {hits_a:,} of {of_a:,}, B {hits_b:,} of {of_b:,}"


def _caption(c: Comparison) -> str:
    left_out = len({*c.left_out_a, *c.left_out_b})
    beside = f" Cases left out: {left_out:,}." if left_out else ""
    return (
        f"{c.pairs:,} cases judged in both: {c.both:,} solved by both, {c.only_a:,} by A alone, "
        f"{c.only_b:,} by B alone, {c.neither:,} by neither.\n"
        f"McNemar's exact test of equal success: p = {c.p:.3g}.{beside}\n"
        "Teal: better in B, orange: worse in B, grey: the interval holds zero. Paired bootstrap over cases."
    )


def _color(one: Difference) -> str:
    if one.interval is None or one.interval[0] <= 0 <= one.interval[1]:
        return OPEN
    return BETTER if (one.interval[0] > 0) != one.lower_is_better else WORSE


def _name(name: str) -> str:
    """A run's name as matplotlib shows it verbatim: cut, and no formulas."""
    return (name if len(name) <= LONGEST_NAME else name[:LONGEST_NAME] + "...").replace("$", r"\$")
