"""What a checkpoint holds beside TRL's: the buffer, the phase, and rows that wait to be explored. Plain JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from fission_grpo.task_json import task_to_json
from fission_grpo.trajectory import Task

FILE = "fission_state.json"

PackedRows = list[tuple[dict[str, Any], int]]
"""Rows with how often each is repeated in a row."""


def pack_rows(rows: Sequence[dict[str, Any]]) -> PackedRows:
    """Equal neighbours become one row and a count (a group's G rows are equal).

    >>> pack_rows([{"prompt": "a"}, {"prompt": "a"}, {"prompt": "b"}])
    [({'prompt': 'a'}, 2), ({'prompt': 'b'}, 1)]
    """
    return [(row, len(list(run))) for row, run in groupby(rows)]


def unpack_rows(packed: Iterable[tuple[dict[str, Any], int]]) -> list[dict[str, Any]]:
    """The rows again, each its own dict."""
    return [dict(row) for row, count in packed for _ in range(count)]


def split_batches(displaced: Sequence[Sequence[PackedRows]], process_index: int, processes: int) -> list[PackedRows]:
    """This rank's share of the displaced batches, which may come from another number of ranks.

    Args:
        displaced: per rank of the saving run, its batches in order.
    """
    batches = []
    for parts in zip(*displaced, strict=True):
        rows = [row for part in parts for row in unpack_rows(part)]
        size = len(rows) // processes
        batches.append(pack_rows(rows[process_index * size : (process_index + 1) * size]))
    return batches


def check_batches(displaced: Sequence[Sequence[PackedRows]], size: int, group_size: int) -> None:
    """Make sure that batches saved by another run fill generation batches of this one.

    Args:
        displaced: per rank of the saving run, its batches in order.
        size: rows of a generation batch of all ranks together.
        group_size: rows of equal prompt that stand one after the other in it (G).

    Raises:
        ValueError: they do not; the message tells what to set. With nothing displaced any size will do.

    Example:
        Two ranks that saved 4 rows each fit a `size` of 8, however many ranks share it, and no other.
    """
    for parts in zip(*displaced, strict=True):
        rows = [row for part in parts for row in unpack_rows(part)]
        if len(rows) != size:
            raise ValueError(
                f"the checkpoint holds {len(displaced[0])} generation batches of {len(rows)} rows that wait to be "
                f"explored, but a generation batch of this run has {size} (per_device_train_batch_size x processes x "
                f"steps_per_generation). When the number of processes changes, keep this product at {len(rows)}: "
                "change per_device_train_batch_size or steps_per_generation."
            )
        groups = [rows[start : start + group_size] for start in range(0, size, group_size)]
        if any(row != group[0] for group in groups for row in group):
            raise ValueError(
                "the checkpoint holds generation batches that wait to be explored, whose prompts are not repeated "
                f"num_generations = {group_size} times as this run's are. Keep the checkpoint's num_generations."
            )


def check_columns(dataset: Any) -> None:
    """Raise ValueError if the first row cannot be kept in a JSON checkpoint; the message names the column."""
    if not len(dataset):
        raise ValueError("train_dataset is empty: it needs at least one row.")
    try:
        task_to_json(Task("row 0", "", columns=dict(dataset[0])))
    except ValueError as error:
        raise ValueError(
            f"train_dataset, {error} (with fission=True the buffer keeps rows as JSON; fission=False does without)"
        ) from error


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Write the state into a checkpoint folder, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / (FILE + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump({"version": 2, **state}, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / FILE)


def has_state(folder: Path) -> bool:
    """Whether a checkpoint folder holds fission's state (plain GRPO can do without it)."""
    return (folder / FILE).exists()


def load_state(folder: Path) -> dict[str, Any]:
    """Read it back. Raises ValueError naming the file if it is missing, cut off or of another version."""
    path = folder / FILE
    if not has_state(folder):
        raise ValueError(
            f"{path} does not exist: this checkpoint has no fission buffer, so it was not saved by "
            "FissionGRPOTrainer. Resume from one of its checkpoints, or load the model alone (model=CHECKPOINT) and "
            "train without resume_from_checkpoint."
        )
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}). Resume from an earlier checkpoint.") from error
    if not isinstance(state, dict) or state.get("version") != 2:
        raise ValueError(f"{path} is not a fission state of version 2. Resume from another checkpoint.")
    return state
