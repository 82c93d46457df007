"""What a checkpoint holds beside TRL's: the buffer, the phase, and rows that wait to be explored. Plain JSON."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from fission_grpo.task_json import faithful, task_to_json
from fission_grpo.trajectory import Task

FILE = "fission_state.json"
VERSION = 3
"""Of the file: 2 had no sources, no trainer's counts and no journal's length."""

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


def generator_state(generator: random.Random) -> list[Any]:
    """A random generator's state as JSON takes it."""
    version, internal, gauss = generator.getstate()
    return [version, list(internal), gauss]


def set_generator(generator: random.Random, state: Sequence[Any]) -> None:
    """Put a generator where `generator_state` was taken."""
    version, internal, gauss = state
    generator.setstate((version, tuple(internal), gauss))


def source_states(sources: Iterable[Any]) -> list[dict[str, Any]]:
    """What the sources of diagnoses remember, of those that have a `state()` (see `diagnose.Source`).

    Raises:
        ValueError: a source's state is not plain JSON; the message names the source.
    """
    states = []
    for source in sources:
        state = source.state() if callable(getattr(source, "state", None)) else None
        if faithful(state) is None:
            raise ValueError(
                f"source of diagnoses {source.name!r}: state() must return plain JSON (objects with string keys, "
                "lists, strings, numbers, booleans, null), else it cannot be kept in a checkpoint"
            )
        states.append({"name": source.name, "state": state})
    return states


def load_source_states(sources: Sequence[Any], states: Sequence[Mapping[str, Any]]) -> list[str]:
    """Give every source its state back; returns the names of those that the checkpoint knows nothing of."""
    strangers = []
    for i, source in enumerate(sources):
        saved = states[i] if i < len(states) and states[i]["name"] == source.name else None
        if saved is None:
            strangers.append(source.name)
        elif saved["state"] is not None and callable(getattr(source, "load_state", None)):
            source.load_state(saved["state"])
    return strangers


def packed_snapshots(states: Mapping[str, Any]) -> dict[str, Any]:
    """The snapshots of environments that JSON gives back as they are; the worlds of the others will be replayed."""
    return {name: state for name, state in states.items() if faithful(state) is not None}


def share_of(by_rank: Sequence[Any], process_index: int, processes: int) -> Any:
    """One rank's part of what all ranks saved; with another number of ranks the part of one of them."""
    return by_rank[process_index if processes == len(by_rank) else process_index % len(by_rank)]


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
        json.dump({"version": VERSION, **state}, file)
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
    version = state.get("version") if isinstance(state, dict) else None
    if version in (1, 2):
        raise ValueError(
            f"{path} is of version {version}, written by an earlier release, and this one reads version {VERSION}. Go "
            "on with that release, or load the model alone (model=CHECKPOINT) and do without resume_from_checkpoint."
        )
    if version != VERSION:
        raise ValueError(f"{path} is not a fission state of version {VERSION}. Resume from another checkpoint.")
    return state
