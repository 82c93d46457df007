"""Charts as PNG bytes: metrics of training runs, error kinds, and the comparison of two evaluations.

Each run keeps its color in every chart. matplotlib is imported for the first chart, without pyplot's global state.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

from fission_grpo.core.types import ErrorKind
from fission_grpo.evaluation.compare import Comparison, Difference
from fission_grpo.report.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Line = tuple[str, str, Sequence[Mapping[str, float]], str]  # label, color, log rows, key of the log
STYLE = Path(__file__).with_name("charts.mplstyle")
TOKENS = "fission/generated_tokens"
KIND = "fission/kind/"
INK, SOFT, MUTED, GRID = "#1e293b", "#475569", "#64748b", "#e2e8f0"
FAMILIES = ("base", "grpo", "fission", "")  # in the order of tables and legends
FAMILY_COLORS = {"base": "#64748b", "grpo": "#2563eb", "fission": "#d9480f"}
MORE_COLORS = ("#0d9488", "#7c3aed", "#be185d", "#a16207", "#0369a1", "#4d7c0f")
KIND_COLORS = ("#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#b07aa1", "#edc948", "#76b7b2", "#9c755f", "#bab0ac")
BETTER, WORSE, OPEN = "#0d9488", FAMILY_COLORS["fission"], MUTED  # OPEN: the interval contains 0
MIN_SMOOTHED = 12  # points; shorter curves are drawn without a moving average [ours]
MAX_NAME = 60  # characters of a run's name in the comparison [ours]


@dataclass(frozen=True)
class Curve:
    """A logged metric, the file and title of its chart, and its definition as a caption.

    `explore_only` leaves out recovery cycles, whose prompts are harder. A share is in [0, 1] and drawn in percent.
    `weight` is the key of the count that weights the moving average.
    """

    key: str
    stem: str
    title: str
    caption: str
    explore_only: bool = False
    is_share: bool = False
    weight: str | None = None


CURVES = (
    Curve("fission/success", "success", "Success while training", "Share of explore rollouts that succeed.",
          explore_only=True, is_share=True),
    Curve("fission/error_recovery_rate", "error_recovery_rate", "Error recovery while training",
          "Of the explore rollouts with at least one tool error, the share that succeeds.",
          explore_only=True, is_share=True, weight="fission/error_cases"),
    Curve("reward", "reward", "Reward", "Mean reward in cycles that explore; in mixed batches of recoveries, too.",
          explore_only=True),
    *(Curve(f"reward_parts/{part}", f"reward_{part}", f"Reward term: {part}",
            f"Mean of the {part} term in cycles that explore, before weighting.", explore_only=True)
      for part in ("format", "correctness", "length")),
    Curve("recovery/rate", "recovery_rate", "Success in recovery cycles", "Share of recovery rollouts that succeed.",
          is_share=True),
    Curve("recovery/frac_zero_std", "zero_std", "Recovery groups with equal rewards",
          "Share of recovery groups whose rewards are all equal. Their advantages are 0.", is_share=True),
    Curve("fission/buffer", "buffer_size", "Size of the buffer", "Corrective instances that wait for a retry."),
    Curve("fission/age", "buffer_age", "Age of retried instances", "Mean optimizer steps from failure to retry."),
)  # fmt: skip


@dataclass(frozen=True)
class Chart:
    """A chart as PNG bytes. `stem` is its file name without suffix."""

    stem: str
    title: str
    caption: str
    png: bytes


def arm_colors(names: Iterable[str]) -> dict[str, str]:
    """Assign a color to each name: gray to the base policy, blue to GRPO, orange to Fission-GRPO, then others."""
    colors: dict[str, str] = {}
    spare = cycle(MORE_COLORS)
    for name in dict.fromkeys(names):
        color = FAMILY_COLORS.get(family(name))
        colors[name] = color if color and color not in colors.values() else next(spare)
    return colors


def family(name: str) -> str:
    """Return the method in a run's name: "Fission-GRPO, seed 1" is `fission`, "no_fission" `grpo`, "x" is empty."""
    name = name.lower().replace("-", "_")
    if "no_fission" in name or ("grpo" in name and "fission" not in name):
        return "grpo"
    return "fission" if "fission" in name else "base" if "base" in name else ""


def draw_curves(runs: Sequence[Run]) -> list[Chart]:
    """Draw a chart of each of CURVES that at least one run logged, with all runs in it."""
    x_key = _x_key(runs)
    colors = arm_colors(run.name for run in runs)
    charts = []
    for curve in CURVES:
        rows = {run.name: [row for row in _rows(run, x_key, curve.explore_only) if curve.key in row] for run in runs}
        lines = [(name, colors[name], rows[name], curve.key) for name in rows if rows[name]]
        if lines:
            charts.append(_draw(curve, lines, x_key))
    return charts


def draw_error_kinds(runs: Sequence[Run]) -> list[Chart]:
    """Draw the failures per explore cycle by error kind, one chart for each run that logged them."""
    x_key = _x_key(runs)
    colors = dict(zip(map(str, ErrorKind), cycle(KIND_COLORS), strict=False))
    charts = []
    for run in runs:
        rows = _rows(run, x_key, explore_only=True)
        kinds = dict.fromkeys(key for row in rows for key in row if key.startswith(KIND))
        rows = [row for row in rows if "fission/success" in row or kinds.keys() & row.keys()]
        rows = [{**dict.fromkeys(kinds, 0.0), **row} for row in rows]  # a kind that is missing in a row did not occur
        lines = []
        for key in sorted(kinds, key=lambda key: -sum(row[key] for row in rows)):
            kind = key.removeprefix(KIND)
            lines.append((kind.replace("_", " "), colors.get(kind, MUTED), rows, key))
        title, stem = "Failures by error kind", "error_kinds"
        if len(runs) > 1:
            title, stem = f"{title}: {run.name}", f"{stem}_" + re.sub(r"\W", "_", run.name)
        if lines:
            charts.append(_draw(Curve("", stem, title, "Failed rollouts per explore cycle."), lines, x_key))
    return charts


def smoothed(values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """Return the centered weighted moving average over a tenth of the values, at least 5."""
    half = max(5, len(values) // 10) // 2
    means = []
    for i in range(len(values)):
        window = slice(max(0, i - half), i + half + 1)
        total = sum(weights[window])
        pairs = zip(values[window], weights[window], strict=True)
        means.append(sum(value * weight for value, weight in pairs) / total if total else values[i])
    return means


def _x_key(runs: Sequence[Run]) -> str:
    """Return generated tokens as the x axis if all runs with a log have them, else the step."""
    logs = [run.log_history for run in runs if any("step" in row for row in run.log_history)]
    return TOKENS if logs and all(any(TOKENS in row for row in log) for log in logs) else "step"


def _rows(run: Run, x_key: str, explore_only: bool) -> list[Mapping[str, float]]:
    rows = [row for row in run.log_history if x_key in row]
    return [row for row in rows if row.get("fission/phase", 0.0) < 1.0] if explore_only else rows


def _draw(curve: Curve, lines: Sequence[Line], x_key: str) -> Chart:
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, PercentFormatter

    with rc_context(fname=STYLE):
        figure = Figure()
        axes = figure.add_subplot(title=_literal(curve.title))
        for label, color, rows, key in lines:
            xs, ys = [row[x_key] for row in rows], [row[key] for row in rows]
            weights = [row.get(curve.weight, 0.0) if curve.weight else 1.0 for row in rows]
            axes.plot(xs, ys, ".", color=color, alpha=0.4, markersize=8, markeredgewidth=0)
            ys = smoothed(ys, weights) if len(ys) >= MIN_SMOOTHED else ys
            axes.plot(xs, ys, color=color, label=_literal(label))
        if axes.dataLim.ymin >= 0:
            axes.set_ylim(0, max(1.1 * axes.dataLim.ymax, 0.1))
        if curve.is_share:
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        if x_key == TOKENS:
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_xlabel("generated tokens" if x_key == TOKENS else "optimizer step")
        figure.legend(loc="outside lower center", ncols=3)
        return Chart(curve.stem, curve.title, curve.caption, _png(figure))


def comparison_png(comparison: Comparison) -> bytes:
    """Draw the differences of two evaluations (success, error recovery, errors per call) with their intervals.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    names = [comparison.name_a, comparison.name_b]
    name_a, name_b = (_literal(name[:MAX_NAME] + "..." * (len(name) > MAX_NAME)) for name in names)
    caption = (
        f"{comparison.pairs:,} cases judged in both: {comparison.both:,} solved by both, {comparison.only_a:,} by A "
        f"alone, {comparison.only_b:,} by B alone, {comparison.neither:,} by neither.\n"
        f"McNemar's exact test of equal success: p = {comparison.p:.3g}.\n"
        "Teal: better in B, orange: worse in B, gray: the interval contains 0. Paired bootstrap over cases."
    )
    with rc_context({"axes.grid.axis": "x"}, fname=STYLE):
        figure = Figure(figsize=(8.0, 4.2))
        axes = figure.add_subplot(xlabel="difference in percentage points, with its 95% interval")
        figure.suptitle(f"{name_b} (B)\nminus {name_a} (A)", x=0.012, ha="left", color=INK)
        labels = [_draw_difference(axes, -row, item) for row, item in enumerate(comparison.differences)]
        ends = [100 * end for item in comparison.differences for end in (*(item.interval or ()), item.change or 0.0)]
        reach = max(1.0, *map(abs, ends)) * 1.25
        axes.set(xlim=(-reach, reach), ylim=(0.5 - len(labels), 0.5))
        axes.set_yticks([-row for row in range(len(labels))], labels)
        axes.axvline(0, color=INK, linewidth=1)
        figure.supxlabel(caption, color=SOFT, x=0.01, ha="left")
        return _png(figure)


def _draw_difference(axes: Axes, y: float, difference: Difference) -> str:
    """Draw a difference as a row of the chart. Returns the row's label."""
    text = "nothing to compare"
    if difference.change is not None:
        color, change = OPEN, 100 * difference.change
        text = f"{change:+.1f}"
        if difference.interval is not None:
            low, high = (100 * end for end in difference.interval)
            text += f"\n[{low:+.1f}, {high:+.1f}]"
            if not low <= 0 <= high:
                color = BETTER if (low > 0) != difference.lower_is_better else WORSE
            axes.plot([low, high], [y, y], color=color, linewidth=3, solid_capstyle="round")
        axes.plot(change, y, "o", color=color, markersize=9)
    axes.annotate(text, (1.02, y), xycoords=("axes fraction", "data"), va="center", color=INK, annotation_clip=False)
    note = " (less is better)" if difference.lower_is_better else ""
    (hits_a, of_a), (hits_b, of_b) = difference.a, difference.b
    return f"{difference.name}{note}\nA {hits_a:,} of {of_a:,}, B {hits_b:,} of {of_b:,}"


def _literal(text: str) -> str:
    """Escape a text for matplotlib: `$` starts no formula, and a leading underscore does not hide a label."""
    return ("\u200a" if text.startswith("_") else "") + text.replace("$", r"\$")


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
