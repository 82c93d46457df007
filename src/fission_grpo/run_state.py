"""What a checkpoint holds beside TRL's: the buffer, the phase, and rows that wait to be explored. Plain JSON."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fission_grpo.task_json import faithful, task_to_json
from fission_grpo.trajectory import Task

FILE = "fission_state.json"
VERSION = 3
"""Of the file: 2 had no sources, no trainer's counts and no journal's length."""


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
    except (ValueError, RecursionError) as error:
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
