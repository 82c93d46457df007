"""Charts as SVG: metrics of training runs, error kinds, and the comparison of two evaluations.

Each run keeps its color in every chart. Text stays text, and every color is one of the hexadecimal forms that `themed`
replaces. matplotlib is imported for the first chart, without pyplot's global state.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

from fission_grpo.core.terminal import printable
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
MAX_POINTS = 400  # of one curve, evenly spaced; its moving average is over all [ours]
MAX_NAME = 44  # characters of a run's name in a chart [ours]
MAX_TITLE = 30  # of one in the bold title of a comparison [ours]


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
    """A chart as an SVG document. `stem` is its file name without suffix."""

    stem: str
    title: str
    caption: str
    svg: str


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


def draw_curves(runs: Sequence[Run], colors: Mapping[str, str]) -> list[Chart]:
    """Draw a chart of each of CURVES that at least one run logged, with all runs in it, in their colors by name."""
    x_key = _x_key(runs)
    charts = []
    for curve in CURVES:
        rows = {run.name: [row for row in _rows(run, x_key, curve.explore_only) if curve.key in row] for run in runs}
        lines = [(name, colors[name], rows[name], curve.key) for name in rows if rows[name]]
        if lines:
            absent = ", ".join(name for name in rows if not rows[name])
            caption = f"{curve.caption} Not logged by {absent}." if absent else curve.caption
            charts.append(_draw(replace(curve, caption=caption), lines, x_key))
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
    from matplotlib.ticker import EngFormatter, MultipleLocator, PercentFormatter

    with rc_context(fname=STYLE):
        columns = max(1, min(3, 60 // (4 + max(len(_short(label)) for label, *_ in lines))))
        figure = Figure(figsize=(4.6, 2.8 + 0.2 * math.ceil(len(lines) / columns)))
        axes = figure.add_subplot(title=_literal(curve.title))
        for label, color, rows, key in lines:
            xs, ys = [row[x_key] for row in rows], [row[key] for row in rows]
            weights = [row.get(curve.weight, 0.0) if curve.weight else 1.0 for row in rows]
            means = smoothed(ys, weights) if len(ys) >= MIN_SMOOTHED else ys
            shown = slice(None, None, -(-len(xs) // MAX_POINTS))
            # dots as strokes without length: one path instead of an element for each
            dots = ([part for value in values[shown] for part in (value, value, math.nan)] for values in (xs, ys))
            axes.plot(*dots, color=color, alpha=0.45, linewidth=4, solid_capstyle="round")
            axes.plot(xs[shown], means[shown], color=color, label=_literal(_short(label)))
        if curve.is_share:
            axes.set_ylim(-0.02, 1.02)
            axes.yaxis.set_major_locator(MultipleLocator(0.25))
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        elif axes.dataLim.ymin >= 0:
            axes.set_ylim(0, max(1.1 * axes.dataLim.ymax, 0.1))
        if x_key == TOKENS:
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_xlabel("generated tokens" if x_key == TOKENS else "optimizer step")
        figure.legend(loc="outside lower center", ncols=columns)
        return Chart(curve.stem, curve.title, curve.caption, _svg(figure))


def draw_comparison(comparison: Comparison) -> str:
    """Draw the differences of two evaluations (success, error recovery, errors per call) with their intervals, as SVG.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    names = [comparison.name_a, comparison.name_b]
    name_a, name_b = (_literal(_short(name, MAX_TITLE)) for name in names)
    caption = (
        f"{comparison.judged} judged in both: {comparison.both:,} solved by both, {comparison.only_a:,} by A "
        f"alone, {comparison.only_b:,} by B alone, {comparison.neither:,} by neither; p = {comparison.p:.3g} "
        f"({comparison.test}). Teal: better in B, orange: worse, gray: the interval contains 0. Paired bootstrap over "
        "tasks; other training runs may differ."
    )
    with rc_context({"axes.grid.axis": "x"}, fname=STYLE):
        figure = Figure(figsize=(4.6, 4.1))
        axes = figure.add_subplot(xlabel="difference in percentage points, with its 95% interval")
        figure.suptitle(f"{name_b} (B)\nminus {name_a} (A)", x=0.012, ha="left", color=INK)
        for row, difference in enumerate(comparison.differences):
            _draw_difference(axes, -row, difference)
        ends = [100 * end for item in comparison.differences for end in (*(item.interval or ()), item.change or 0.0)]
        reach = max(1.0, *map(abs, ends)) * 1.1
        axes.set(xlim=(-reach, reach), ylim=(0.35 - len(comparison.differences), 0.75), yticks=[])
        axes.axvline(0, color=INK, linewidth=1)
        figure.supxlabel(textwrap.fill(caption, 62), color=SOFT, x=0.01, ha="left")
        return _svg(figure)


def _draw_difference(axes: Axes, y: float, difference: Difference) -> None:
    """Draw a difference as a row of the chart: its name and numbers, and its interval below them."""
    text = "nothing to compare"
    if difference.change is not None:
        color, change = OPEN, 100 * difference.change
        text = f"{change:+.1f}"
        if difference.interval is not None:
            low, high = (100 * end for end in difference.interval)
            text += f" [{low:+.1f}, {high:+.1f}]"
            if not low <= 0 <= high:
                color = BETTER if (low > 0) != difference.lower_is_better else WORSE
            axes.plot([low, high], [y, y], color=color, linewidth=3, solid_capstyle="round")
        axes.plot(change, y, "o", color=color, markersize=8)
    note = " (less is better)" if difference.lower_is_better else ""
    (hits_a, of_a), (hits_b, of_b) = difference.a, difference.b
    counts = f"A {hits_a:,} of {of_a:,}, B {hits_b:,} of {of_b:,}"
    place = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "color": INK, "fontsize": 9.5}
    axes.annotate(f"{difference.name}{note}", (0, y), xytext=(0, 21), weight="bold", **place)
    axes.annotate(text, (1, y), xytext=(0, 21), ha="right", **place)
    axes.annotate(counts, (0, y), xytext=(0, 9), **{**place, "color": SOFT, "fontsize": 8.5})


def themed(svg: str) -> str:
    """Return the `<svg>` element for a page whose style sheet may set another color for each of the chart's.

    A color such as #1e293b becomes `var(--c-1e293b, #1e293b)`. The size is left to the page.
    """
    start, end = svg.index("<svg"), svg.index(">", svg.index("<svg"))
    head = re.sub(r' (width|height|version|xmlns(:xlink)?)="[^"]*"', "", svg[start:end])
    return head + re.sub(r"((?:fill|stroke): )#([0-9a-f]{6})", r"\1var(--c-\2, #\2)", svg[end:])


def _short(name: str, limit: int = MAX_NAME) -> str:
    return name if len(name) <= limit else f"{name[: limit // 2]}...{name[-limit // 2 :]}"


def _literal(text: str) -> str:
    """Escape a text for matplotlib: `$` starts no formula, and a leading underscore does not hide a label."""
    return ("\u200a" if text.startswith("_") else "") + printable(text).replace("$", r"\$")


def _svg(figure: Figure) -> str:
    """Write a figure without what no reader needs: metadata, names of groups, a hundredth of a pixel's parts."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue().decode("utf-8")
    svg = svg[svg.index("<svg") :].replace("<svg ", '<svg stroke-linejoin="round" ', 1)
    for start, end in (("<metadata>", "</metadata>"), ("<style", "</style>")):
        before, _, rest = svg.partition(start)
        svg = before + rest.partition(end)[2]
    svg = re.sub(r'<g id="[\w.]+"/>|(?<=<g) id="[\w.]+"', "", svg)
    svg = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), svg)
    svg = svg.replace("'DejaVu Sans'", "system-ui, 'DejaVu Sans', sans-serif")
    return " ".join(line.strip() for line in svg.splitlines()).strip() + "\n"
