"""What all pictures share: names and colours of arms, axes, the file. matplotlib is imported when one is drawn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.results import FIRST
from fission_grpo.report.charts import (
    GRID,
    INK,
    MORE_COLORS,
    MUTED,
    arm_colors,
    family,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SOFT = "#475569"
TINTS = {"base": "#94a3b8", "grpo": "#7aa2f0", "fission": "#eb9a72", "": "#94a3b8"}
"""Lighter colours of the families, for arms that only a label tells apart. [ours]"""

NAMES = {
    "untrained": "untrained",
    "grpo": "GRPO",
    "grpo_large_g": "GRPO, large G",
    "fission": "Fission",
    "fission_fixed": "Fission, fixed text",
    "fission_shuffled": "Fission, shuffled",
    "paper": "Fission, paper's updates",
    "shuffled": "control: others' errors",
    "fixed": "control: fixed text",
    "rules": "control: rules",
    "simulator": "Fission, simulator",
    "offline_guess": "GRPO + known errors",
    "offline_other": "GRPO + sampled errors",
    "live_grpo": "GRPO, live episodes",
}
"""Names of the main arms in pictures; others are shown without underscores, and with these words of WORDS."""

WORDS = {"fission": "Fission", "grpo": "GRPO", "dapo": "DAPO", "dr": "Dr.", "fifo": "FIFO", "g": "G", "kl": "KL"}


def shown_name(arm: str) -> str:
    """Example: `shown_name("fission_depth_2")` is "Fission, depth 2"."""
    if arm in NAMES:
        return NAMES[arm]
    first, *others = (WORDS.get(word, word) for word in arm.split("_"))
    comma = "," if first in ("Fission", "GRPO") and others else ""
    return f"{first}{comma} {' '.join(others)}".rstrip()


def colors_of(arms: Iterable[str]) -> dict[str, str]:
    """The main arms' colours are those of the reports and the same in every picture: untrained grey like a base model,
    GRPO blue, Fission orange. Up to three others take spare colours, more than that a tint of their family's.
    """
    arms = list(arms)
    fixed = arm_colors(["base" if arm == "untrained" else arm for arm in FIRST])
    fixed["untrained"] = fixed["base"]
    others = [arm for arm in arms if arm not in FIRST]
    spare = [color for color in MORE_COLORS if color not in fixed.values()]
    if len(others) <= len(spare):
        fixed |= dict(zip(others, spare, strict=False))
    else:
        fixed |= {arm: TINTS[family(arm)] for arm in others}
    return {arm: fixed[arm] for arm in arms}


def new_figure(width: float, height: float) -> Figure:
    """Inches, of which 9 are shown as 900 pixels."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=160, layout="constrained", facecolor="white")


def tidy(axes: Axes, grid: str) -> None:
    """The project's axes: no frame, a grid along one axis, soft labels."""
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color("#94a3b8")
    axes.grid(axis=grid, color=GRID, linewidth=0.8)  # pyright: ignore[reportArgumentType]
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, labelsize=10, length=0, labelcolor=SOFT)


def titled(figure: Figure, title: str, below: str = "") -> None:
    """A title on the left, and perhaps a caption below all axes, which may have several lines."""
    figure.suptitle(title, x=0.012, ha="left", fontsize=13, fontweight="bold", color=INK)
    if below:
        figure.supxlabel(below, fontsize=9, color=SOFT, x=0.012, ha="left")


def panel_title(axes: Axes, title: str, size: float = 11.5) -> None:
    axes.set_title(title, loc="left", fontsize=size, fontweight="bold", color=INK)


def legend_below(figure: Figure, arms: Sequence[str], colors: Mapping[str, str]) -> None:
    """The arms by name, below all axes."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=colors[arm], marker="o", linewidth=2, markersize=5) for arm in arms]
    figure.legend(
        handles, [shown_name(arm) for arm in arms], loc="outside lower center", ncols=min(5, len(arms)), frameon=False,
        fontsize=10, labelcolor=INK, handlelength=1.4, columnspacing=1.6,
    )  # fmt: skip


def capital(title: str) -> str:
    """Example: `capital("error recovery rate")` is "Error recovery rate"."""
    return title[0].upper() + title[1:]


def save(figure: Figure, path: Path) -> Path:
    """Write a PNG of 256 colours, which is a third of the size."""
    from PIL import Image

    drawn = BytesIO()
    figure.savefig(drawn, format="png", metadata={"Software": None})
    Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    return path
