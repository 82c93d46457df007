"""The picture of usefulness: success of the next attempt by source, with 95% intervals. Needs matplotlib."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fission_grpo.recipes.error_simulator.usefulness import (
    FIXED,
    SHUFFLED,
    Gain,
    Usefulness,
)
from fission_grpo.report.charts import BETTER, GRID, INK, MUTED, OPEN, WORSE

if TYPE_CHECKING:
    from matplotlib.axes import Axes


COLUMNS = ((0.0, FIXED), (0.5, SHUFFLED))
"""Where the gains over other sources stand, in widths of their part of the picture."""


LONGEST_LINE = 30
"""Longest line of a source's name, in characters: the end of each link of its chain. [ours]"""


def usefulness_png(rows: Sequence[Usefulness], simulator: str, caption: str = "") -> bytes:
    """Draw the table: a row for each source with its success, and beside it the gains over fixed and shuffled.

    Args:
        rows: in the order in which they are drawn, from above.
        simulator: name of the source under test, drawn in bold.
        caption: a line about policy and failures.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 1.9 + 0.5 * len(rows)), dpi=160, layout="constrained", facecolor="white")
    axes, beside = figure.subplots(1, 2, width_ratios=(1, 0.5), sharey=True)
    beside.set_axis_off()
    figure.suptitle(
        "Next attempt succeeds, by what is said of the failure", x=0.012, ha="left", fontweight="bold", color=INK
    )
    for at, row in enumerate(rows):
        _draw(axes, -at, row)
        for where, other in COLUMNS:
            beside.text(where, -at, _gain(row.gains.get(other)), va="center", color=INK, fontsize=9)
    for where, other in COLUMNS:
        beside.text(where, 0.5, f"over {other}", va="bottom", color=MUTED, fontsize=9)
    fixed = next((row.success.rate for row in rows if row.source == FIXED), None)
    if fixed is not None:
        axes.axvline(100 * fixed, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    axes.set_ylim(-len(rows) + 0.5, 0.5)
    axes.set_yticks([-at for at in range(len(rows))], [_name(row.source) for row in rows])
    for label, row in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_fontweight("bold" if row.source == simulator else "normal")
    axes.set_xlabel("attempts that succeed, %, with 95% interval", color="#475569", fontsize=10)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color("#94a3b8")
    axes.tick_params(colors=MUTED, labelsize=10, length=0, labelcolor="#334155")
    note = "Teal: better than the fixed text (dashed), orange: worse, grey: the paired interval holds zero."
    figure.supxlabel(f"{caption}\n{note}".strip(), fontsize=9, color="#475569", x=0.01, ha="left")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _draw(axes: Axes, y: float, row: Usefulness) -> None:
    color = _color(row.gains.get(FIXED))
    if row.success.rate is not None:
        axes.plot(100 * row.success.rate, y, "o", color=color, markersize=9, zorder=3)
    if row.success.interval is not None:
        low, high = (100 * end for end in row.success.interval)
        axes.plot([low, high], [y, y], color=color, linewidth=3, solid_capstyle="round", zorder=2)


def _gain(gain: Gain | None) -> str:
    if gain is None:
        return "-"
    ends = "" if gain.interval is None else f"\n[{100 * gain.interval[0]:+.1f}, {100 * gain.interval[1]:+.1f}]"
    return f"{100 * gain.change:+.1f}{ends}"


def _color(gain: Gain | None) -> str:
    if gain is None or gain.interval is None or gain.interval[0] <= 0 <= gain.interval[1]:
        return OPEN
    return BETTER if gain.interval[0] > 0 else WORSE


def _name(name: str) -> str:
    """A chain's links on lines of their own, as matplotlib shows them verbatim."""
    links = [link if len(link) <= LONGEST_LINE else "..." + link[-LONGEST_LINE:] for link in name.split(",")]
    return ",\n".join(links).replace("$", r"\$")
