"""Data set rows whose place recoveries took: they wait in a queue, and are explored in their order.

Also what is checked of a data set's rows before training: that there are enough, and that a checkpoint can keep them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from fission_grpo.core.serialization import task_to_json
from fission_grpo.core.types import Task
from fission_grpo.data.rows import reset_problem

MAX_STREAMED_BATCHES = 256  # [ours] longest queue if the dataset has no length

_BEYOND_JSON = ("timestamp", "date", "time", "duration", "decimal", "binary", "large_binary")  # Arrow's names begin so
_WHY_JSON = "(with fission=True the buffer keeps rows as JSON; fission=False does not need it)"

PackedRows = list[tuple[dict[str, Any], int]]
"""Rows, and how often each is repeated."""


def pack_rows(rows: Sequence[dict[str, Any]]) -> PackedRows:
    """Replace equal neighbours by one row and a count: a, a, b becomes (a, 2), (b, 1). A group's G rows are equal."""
    return [(row, len(list(run))) for row, run in groupby(rows)]


def unpack_rows(packed: PackedRows) -> list[dict[str, Any]]:
    return [dict(row) for row, count in packed for _ in range(count)]


def check_rows(dataset: Any, size: int, group_size: int) -> None:
    """Raise ValueError if a data set has too few rows for one generation batch, of which nothing would be trained.

    Args:
        dataset: with rows, or a stream or None, of which nothing is known.
        size: rollouts of a generation batch of all ranks together.
        group_size: number of rollouts of each row (G).
    """
    needed = size // group_size
    if hasattr(dataset, "__len__") and len(dataset) < needed:
        raise ValueError(
            f"train_dataset has {len(dataset)} rows, but a generation batch of this run takes {needed} "
            f"(generation_batch_size {size} = per_device_train_batch_size x processes x steps_per_generation, over "
            f"num_generations {group_size}). Give more rows, lower one of the first three, or raise num_generations."
        )


class DeferredRows:
    """Queue of data set rows that wait to be explored, the same on all ranks.

    Every recovery group takes the place of rows. When as many wait as the data set has, each of them will come again
    anyway, and the newest are skipped: so memory and checkpoints stay bounded.

    Args:
        rows: number of rows of the data set; None if it is streamed.
        batch: number of different rows in a generation batch of all ranks.
    """

    def __init__(self, rows: int | None, batch: int):
        self.limit = batch * (MAX_STREAMED_BATCHES if rows is None else max(1, -(-rows // max(1, batch))))
        self.rows: deque[dict[str, Any]] = deque()

    def add(self, rows: Iterable[dict[str, Any]]) -> None:
        self.rows.extend(rows)

    def take(self, count: int) -> list[dict[str, Any]]:
        return [self.rows.popleft() for _ in range(count)]

    def skip_newest(self) -> int:
        """Drop the newest rows if the queue is too long; returns how many were dropped."""
        excess = max(0, len(self.rows) - self.limit)
        for _ in range(excess):
            self.rows.pop()
        return excess


def check_columns(dataset: Any, environments: Any = None) -> None:
    """Check, from its column types and its first row, that a JSON checkpoint can keep a data set's rows.

    Raises:
        ValueError: it cannot, there is no row, or `reset` of one of the environments does not take the columns; the
            message names the column.
    """
    first = next(iter(dataset), {}) if environments is not None and getattr(dataset, "column_names", None) else {}
    if isinstance(first.get("prompt"), str):
        raise ValueError(
            "train_dataset: column 'prompt' holds texts, but environments need chat messages, as in TRL. "
            "Dataset.from_list(fission_grpo.load_rows(FILE)) makes them."
        )
    makes: Iterable[Any] = environments.values() if isinstance(environments, Mapping) else [environments]
    for make in makes if getattr(dataset, "column_names", None) else ():
        if problem := reset_problem(make, dataset.column_names):
            raise ValueError(f"train_dataset: {problem}")
    for name, feature in (getattr(dataset, "features", None) or {}).items():
        if (kind := _type_beyond_json(feature)) is not None:
            raise ValueError(
                f"train_dataset, column {name!r} holds values of type {kind}, which JSON cannot give back. Convert it "
                f"to strings or numbers, or remove it {_WHY_JSON}"
            )
    if hasattr(dataset, "__len__"):
        if not len(dataset):
            raise ValueError("train_dataset is empty: it needs at least one row.")
        check_row(dataset[0], "row 0")


def check_row(row: Mapping[str, Any], name: str) -> None:
    """Raise ValueError if a JSON checkpoint cannot keep a row; the message names the column."""
    try:
        task_to_json(Task(name, "", columns=dict(row)))
    except ValueError as error:
        raise ValueError(f"train_dataset, {error} {_WHY_JSON}") from error


def _type_beyond_json(feature: Any) -> str | None:
    """The first type in a column's `datasets` feature whose values JSON cannot give back, None if there is none."""
    if isinstance(feature, Mapping | list | tuple):
        parts = list(feature.values() if isinstance(feature, Mapping) else feature)
    elif hasattr(feature, "feature"):  # Sequence, List, LargeList
        parts = [feature.feature]
    else:
        kind = str(getattr(feature, "dtype", ""))
        beyond = kind.startswith(_BEYOND_JSON) or type(feature).__name__ in ("Image", "Audio", "Video", "Pdf")
        return (kind if kind.startswith(_BEYOND_JSON) else type(feature).__name__) if beyond else None
    return next((kind for part in parts if (kind := _type_beyond_json(part)) is not None), None)
