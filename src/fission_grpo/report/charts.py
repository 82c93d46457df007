"""The report's charts: runs in, PNG bytes out. Arms are overlaid and keep their colour in every chart.

matplotlib is imported when the first chart is drawn; figures are made without pyplot, so nothing global is touched.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fission_grpo.core.types import ErrorKind
from fission_grpo.evaluation.compare import Comparison, Difference
from fission_grpo.report.run import Run


@dataclass(frozen=True)
class Curve:
    """A number of the log and how to draw it.

    Args:
        key: the log's key.
        explore_only: leave out recover cycles, whose prompts are other prompts.
        share: the number is in [0, 1] and drawn in percent.
        weight: key of the count the number is a mean over; smoothing weighs by it.
    """

    key: str
    stem: str
    title: str
    unit: str
    caption: str
    explore_only: bool = False
    share: bool = False
    smooth: bool = True
    weight: str | None = None


LEARNING = (
    Curve(
        "fission/success", "success", "Success while training", "explore rollouts that succeed",
        "Share of explore rollouts that succeed, on training tasks.", explore_only=True, share=True,
    ),
    Curve(
        "fission/error_recovery_rate", "error_recovery_rate", "Error recovery rate while training",
        "error cases that still succeed",
        "Of the explore rollouts with at least one tool error, the share that still succeeds.",
        explore_only=True, share=True, weight="fission/error_cases",
    ),
)  # fmt: skip


BUFFER = (
    Curve(
        "fission/buffer", "buffer_size", "Instances waiting in the buffer", "corrective instances",
        "Failures waiting for a recover cycle.", smooth=False,
    ),
    Curve(
        "fission/age", "buffer_age", "Age of retried instances", "age (optimizer steps)",
        "How long the instances of a recover cycle had waited; younger is closer to on-policy.",
    ),
)  # fmt: skip


RECOVERY = (
    Curve(
        "recovery/rate", "recovery_rate", "Recovery rate in recover cycles", "recoveries that succeed",
        "Share of the rollouts of a recover cycle that succeed.", share=True,
    ),
    Curve(
        "recovery/zero_variance", "zero_variance", "Recovery groups without variance", "recovery groups",
        "Share of recovery groups whose rewards are all equal: they teach nothing.", share=True,
    ),
)  # fmt: skip


REWARD = Curve(
    "reward", "reward", "Reward of explore rollouts", "mean reward",
    "Mean reward in explore cycles; recover cycles ask harder prompts and are left out.", explore_only=True,
)  # fmt: skip


REWARDS = (
    REWARD,
    *(Curve(
        f"reward_parts/{part}", f"reward_{part}", f"Reward part: {part}", f"mean {part} reward",
        f"The {part} part of the reward, before weighting, in explore cycles.", explore_only=True,
    )
    for part in ("format", "correctness", "length")),
)  # fmt: skip


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


TOKENS = "fission/generated_tokens"


KIND = "fission/kind/"


INK, MUTED, GRID = "#1e293b", "#64748b", "#e2e8f0"


FAMILIES = ("base", "grpo", "fission", "")  # in the order of tables and legends


FAMILY_COLORS = {"base": "#64748b", "grpo": "#2563eb", "fission": "#d9480f"}


MORE_COLORS = ("#0d9488", "#7c3aed", "#be185d", "#a16207", "#0369a1", "#4d7c0f")


KIND_COLORS = ("#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#b07aa1", "#edc948", "#76b7b2", "#9c755f", "#bab0ac")


BARS = 40  # most bars in the chart of error kinds


SMOOTH_FROM = 12  # points; shorter curves are drawn as they are


@dataclass(frozen=True)
class Chart:
    """A drawn chart: `stem` names its file, `caption` says how to read it (also the image's alternative text)."""

    stem: str
    title: str
    caption: str
    png: bytes


def arm_colors(names: Iterable[str]) -> dict[str, str]:
    """A colour for each name: base grey, GRPO blue, Fission orange, further ones from a list; stable in order."""
    colors: dict[str, str] = {}
    spare = 0
    for name in dict.fromkeys(names):
        color = FAMILY_COLORS.get(family(name), "")
        if not color or color in colors.values():
            color = MORE_COLORS[spare % len(MORE_COLORS)]
            spare += 1
        colors[name] = color
    return colors


def family(name: str) -> str:
    """`base`, `grpo`, `fission` or ``. `"Fission-GRPO, seed 1"` is `fission`, `"no_fission"` is `grpo`."""
    low = name.lower().replace("-", "_")
    if "no_fission" in low or ("grpo" in low and "fission" not in low):
        return "grpo"
    return "fission" if "fission" in low else "base" if "base" in low else ""


def draw_curves(runs: Sequence[Run], curves: Iterable[Curve], colors: Mapping[str, str]) -> list[Chart]:
    """One chart for every curve that at least one run logged."""
    in_tokens = _has_tokens(runs)
    return [chart for curve in curves if (chart := _curve_chart(runs, curve, colors, in_tokens)) is not None]


def draw_error_kinds(runs: Sequence[Run]) -> list[Chart]:
    """For every run that logged error kinds, failures per explore cycle, stacked by kind."""
    in_tokens = _has_tokens(runs)
    charts = [_kinds_chart(run, in_tokens, alone=len(runs) == 1) for run in runs]
    return [chart for chart in charts if chart is not None]


def _has_tokens(runs: Sequence[Run]) -> bool:
    """Whether every run with curves logged generated tokens; otherwise the x axis is the step."""
    logged = [run for run in runs if any("step" in row for row in run.log_history)]
    return bool(logged) and all(any(TOKENS in row for row in run.log_history) for run in logged)


def _points(run: Run, curve: Curve, in_tokens: bool) -> list[tuple[float, float, float]]:
    """(x, y, weight) of every log row that has the number."""
    points = []
    for row in run.log_history:
        x = row.get(TOKENS if in_tokens else "step")
        if x is None or curve.key not in row or (curve.explore_only and row.get("fission/phase", 0.0) >= 1.0):
            continue
        points.append((x, row[curve.key], row.get(curve.weight, 0.0) if curve.weight else 1.0))
    return points


def smoothed(values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """Centred weighted mean over a tenth of the curve, at least 5 points; shorter at both ends.

    With 5 points in the window, values (0, 0, 1, 1, 1) and weights (1, 1, 1, 1, 4): the middle one is 6/8 = 0.75.
    """
    half = max(5, len(values) // 10) // 2
    means = []
    for i in range(len(values)):
        window = slice(max(0, i - half), i + half + 1)
        total = sum(weights[window])
        pairs = zip(values[window], weights[window], strict=True)
        means.append(sum(v * w for v, w in pairs) / total if total else values[i])
    return means


def _curve_chart(runs: Sequence[Run], curve: Curve, colors: Mapping[str, str], in_tokens: bool) -> Chart | None:
    drawn = [(run, points) for run in runs if (points := _points(run, curve, in_tokens))]
    if not drawn:
        return None
    figure, axes = _axes(curve.title)
    scale, x_label = _x_scale([x for _, points in drawn for x, _, _ in points], in_tokens)
    any_smooth = False
    for run, points in drawn:
        xs, ys = [x / scale for x, _, _ in points], [y for _, y, _ in points]
        color, label = colors[run.name], _literal(run.name)
        if curve.smooth and len(points) >= SMOOTH_FROM:
            any_smooth = True
            axes.plot(xs, ys, ".", color=color, alpha=0.25, markersize=4, markeredgewidth=0)
            axes.plot(xs, smoothed(ys, [w for _, _, w in points]), color=color, linewidth=2.2, label=label)
        else:
            marker = "o" if len(points) < SMOOTH_FROM else ""
            axes.plot(xs, ys, color=color, linewidth=1.8, marker=marker, markersize=5, label=label)
    axes.set_xlabel(x_label)
    axes.set_ylabel(curve.unit + (" (%)" if curve.share else ""))
    _limit_y(axes, curve, [y for _, points in drawn for _, y, _ in points])
    if len(runs) > 1:
        _legend(figure, axes)
    caption = curve.caption
    if any_smooth:
        caption += " Dots: log rows; line: their moving average."
    absent = [run.name for run in runs if run.log_history and run not in [r for r, _ in drawn]]
    if absent:
        caption += f" Not logged by {', '.join(absent)}."
    return Chart(curve.stem, curve.title, caption, _png(figure))


def _kinds_chart(run: Run, in_tokens: bool, alone: bool) -> Chart | None:
    rows = [
        row
        for row in run.log_history
        if (TOKENS if in_tokens else "step") in row
        and row.get("fission/phase", 0.0) < 1.0
        and ("fission/success" in row or any(key.startswith(KIND) for key in row))
    ]
    totals: dict[str, float] = {}
    for row in rows:
        for key in row:
            if key.startswith(KIND):
                totals[key] = totals.get(key, 0.0) + row[key]
    kinds = [kind for kind in sorted(totals, key=lambda k: -totals[k]) if totals[kind] > 0]
    if not kinds:
        return None
    title = "Failures by error kind" + ("" if alone else f": {run.name}")
    figure, axes = _axes(_literal(title))
    xs = [row[TOKENS if in_tokens else "step"] for row in rows]
    scale, x_label = _x_scale(xs, in_tokens)
    per_bar = -(-len(rows) // BARS)
    chunks = [slice(i, i + per_bar) for i in range(0, len(rows), per_bar)]
    edges = [xs[c.start] / scale for c in chunks]
    last = (xs[-1] / scale - edges[0]) / max(1, len(rows) - 1) * len(rows[chunks[-1]])
    widths = [after - edge for edge, after in zip(edges, [*edges[1:], edges[-1] + (last or 1.0)], strict=True)]
    bars = [0.9 * width for width in widths]
    floor = [0.0] * len(chunks)
    for kind in kinds:
        heights = [sum(row.get(kind, 0.0) for row in rows[c]) / len(rows[c]) for c in chunks]
        name = kind.removeprefix(KIND)
        axes.bar(
            edges, heights, bars, align="edge", bottom=floor, color=_kind_color(name), label=_literal(_words(name))
        )
        floor = [low + height for low, height in zip(floor, heights, strict=True)]
    axes.set_xlabel(x_label)
    axes.set_ylabel("failed rollouts per explore cycle")
    _legend(figure, axes)
    each = f" Each bar is the mean of up to {per_bar} explore cycles." if per_bar > 1 else ""
    stem = "error_kinds" if alone else "error_kinds_" + "".join(c if c.isalnum() else "_" for c in run.name)
    return Chart(stem, title, f"Failed rollouts of an explore cycle by what went wrong.{each}", _png(figure))


def _kind_color(kind: str) -> str:
    order = [str(k) for k in ErrorKind]
    return KIND_COLORS[order.index(kind) % len(KIND_COLORS)] if kind in order else MUTED


def _words(kind: str) -> str:
    return kind.replace("_", " ")


def _literal(text: str) -> str:
    """Text that matplotlib shows as it is: no formulas, and a leading underscore does not hide a label."""
    return ("\u200a" if text.startswith("_") else "") + text.replace("$", r"\$")


def _axes(title: str) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.8, 3.7), dpi=160, layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=12.5, fontweight="bold", color=INK, pad=10)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color("#94a3b8")
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, labelsize=10, length=0, labelcolor="#475569")
    axes.xaxis.label.set(color="#475569", fontsize=10.5)
    axes.yaxis.label.set(color="#475569", fontsize=10.5)
    return figure, axes


def _x_scale(xs: Sequence[float], in_tokens: bool) -> tuple[float, str]:
    if not in_tokens:
        return 1.0, "optimizer step"
    if max(xs) >= 1e6:
        return 1e6, "generated tokens (millions)"
    return (1e3, "generated tokens (thousands)") if max(xs) >= 2e3 else (1.0, "generated tokens")


def _limit_y(axes: Axes, curve: Curve, ys: Sequence[float]) -> None:
    """Shares and counts start at 0; a share never shows more than 0 to 100%."""
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=not curve.smooth))
    if curve.share:
        axes.set_ylim(-0.015, min(1.03, max(0.1, max(ys) * 1.12)))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=""))
    elif min(ys) >= 0:
        axes.set_ylim(0, max(ys) * 1.12 or 1.0)


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(3, len(labels)), frameon=False, fontsize=10,
        labelcolor=INK, handlelength=1.2, columnspacing=1.4,
    )  # fmt: skip


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


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
