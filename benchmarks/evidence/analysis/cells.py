"""Cells and tables of markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from analysis.intervals import Difference, Estimate
from analysis.verdicts import bracket, direction, points

NONE = "–"
"""A cell with nothing in it."""


def name(arm: str) -> str:
    """An arm as code, so that underscores stay."""
    return f"`{arm}`"


def shown(found: Estimate | None, scale: float = 100.0, digits: int = 1) -> str:
    """A mean with its interval, in percent unless scaled otherwise. Example: "54.3 [51.0, 57.6]"."""
    if found is None or found.mean is None:
        return NONE
    text = f"{scale * found.mean:.{digits}f}"
    if found.interval is None:
        return text
    low, high = (f"{scale * end:.{digits}f}" for end in found.interval)
    return f"{text} [{low}, {high}]"


def gap(found: Difference | None) -> str:
    """A difference in points with its interval, bold where it counts as shown."""
    if found is None or found.mean is None:
        return NONE
    text = points(found.mean) if found.interval is None else f"{points(found.mean)} {bracket(found.interval)}"
    return f"**{text}**" if direction(found) else text


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A markdown table; the first column is left-aligned, the others right."""
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def by_points(points_of: Mapping[int, str], columns: Iterable[int]) -> list[str]:
    """A row's cells by point, a dash where there is none."""
    return [points_of.get(point, NONE) for point in columns]
