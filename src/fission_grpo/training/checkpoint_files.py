"""Checkpoint folders that are either complete or not there.

A checkpoint is written into `output_dir/.saving/checkpoint-N`. Its manifest is written last, all files are flushed to
disk, and one rename makes it `output_dir/checkpoint-N`; only then are old ones deleted. So there is a complete
checkpoint at any moment at which a process can be killed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from fission_grpo.core.checkpoints import MANIFEST, file_digest, find_corruption, numbered, step_of
from fission_grpo.core.terminal import get_logger

STAGING = ".saving"  # folder in `output_dir` for what is being written or deleted
TRAINER_STATE = "trainer_state.json"  # file of transformers
FILE = "fission_state.json"  # file of what a run adds to TRL's state
VERSION = 4  # format of `FILE`; others are refused

_log = get_logger(__name__)


def commit(staged: Path, final: Path, versions: Mapping[str, str], run: str | None = None) -> None:
    """Write a checkpoint's manifest, flush its files, and move it from `final.parent / STAGING` to its place at once.

    A checkpoint that is there (of an earlier part of the run) is replaced. `versions`, and the id of the run, go into
    the manifest.

    Raises:
        OSError: the disk is full, or cannot be written. Nothing has changed at `final` then.
    """
    manifest = staged / MANIFEST
    manifest.unlink(missing_ok=True)
    paths = sorted(path for path in staged.rglob("*") if path.is_file())
    with ThreadPoolExecutor(4) as pool:
        digests = list(pool.map(file_digest, paths))
    files = {
        path.relative_to(staged).as_posix(): {"bytes": path.stat().st_size, "sha256": digest}
        for path, digest in zip(paths, digests, strict=True)
    }
    content = {"format": 1, "step": step_of(final), "run": run, "versions": dict(versions), "files": files}
    temporary = staged / (MANIFEST + ".tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    for path in (*paths, temporary):
        flush(path)
    temporary.replace(manifest)
    for folder in {staged, *(path.parent for path in paths)}:
        flush(folder)
    _move_into_place(staged, final)


def _move_into_place(staged: Path, final: Path) -> None:
    old = _move_aside(final) if os.path.lexists(final) else None
    staged.rename(final)  # from here on this checkpoint exists
    flush(final.parent)
    if old is not None:
        _remove(old)
    remove_empty_staging(final.parent)


def _move_aside(checkpoint: Path) -> Path:
    """Move a checkpoint that is to be deleted into `STAGING`; returns its new place."""
    place = checkpoint.parent / STAGING / f"deleted-{checkpoint.name}"
    place.parent.mkdir(exist_ok=True)
    _remove(place)
    return checkpoint.rename(place)


def _remove(path: Path) -> None:
    """Remove a file or folder, and of a link the link alone, as we did not make what it leads to; never raises."""
    if path.is_symlink():
        _log.warning("%s is a link: only the link is removed, %s is left as it is", path, os.path.realpath(path))
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        _log.warning("%s could not be removed (%s); remove it by hand", path, error)


def remove_empty_staging(run: Path) -> None:
    """Remove `STAGING` if there is nothing in it."""
    with suppress(OSError):  # it is not there, not empty, or a link
        (run / STAGING).rmdir()


def rotate(run: Path, limit: int | None, keep: Path, best: str | None) -> None:
    """Delete a run's oldest checkpoints (by step), but not `keep` and `best`, until `limit` are left.

    Args:
        limit: `save_total_limit`; 0 or None: keep all.

    Example:
        Of 2, 4 and 6 with limit 2, just written 6, best 2: 4 is deleted. With limit 1 too, as two are protected.
    """
    if not limit or limit < 0:
        return
    protected = {keep.name} | ({Path(best).name} if best else set())
    oldest_first = numbered(run)
    surplus = max(0, len(oldest_first) - max(limit, len(protected)))
    for path in [path for path in oldest_first if path.name not in protected][:surplus]:
        _remove(_move_aside(path))
    remove_empty_staging(run)


def clean_staging(run: Path) -> None:
    """Empty `STAGING` after a kill: a complete checkpoint is moved to its place, everything else is removed.

    Only the process that writes the run's folder may do so. What cannot be moved or removed is logged and stays.
    """
    staging = run / STAGING
    if not staging.is_dir():
        return
    for path in sorted(staging.iterdir()):
        if step_of(path) >= 0 and find_corruption(path) is None:
            _log.warning("%s is complete, but was not in its place when the run ended: moved there", path)
            try:
                _move_into_place(path, run / path.name)
            except OSError as error:
                _log.warning("%s could not be moved (%s)", path, error)
            continue
        if not path.name.startswith("deleted-"):
            what = "checkpoint" if step_of(path) >= 0 else "folder"
            _log.warning("%s is a %s that the run was killed while writing: removed", path, what)
        _remove(path)
    remove_empty_staging(run)


def save_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Write the run's state into a checkpoint folder that is being staged."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_text(json.dumps({"version": VERSION, **state}), encoding="utf-8")


def load_state(folder: Path) -> dict[str, Any]:
    """Read what `save_state` wrote. Raises ValueError if the file is missing, damaged or of another version."""
    path = folder / FILE
    if not path.is_file():
        raise ValueError(
            f"{path} does not exist: this checkpoint has no fission buffer, so it was not saved by "
            "FissionGRPOTrainer. Resume from one of its checkpoints, or load the model alone (model=CHECKPOINT) and "
            "train without resume_from_checkpoint."
        )
    try:
        state = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}). Resume from an earlier checkpoint.") from error
    saved = state.get("version") if isinstance(state, dict) else None
    if saved != VERSION:
        release = "an earlier" if isinstance(saved, int) and saved < VERSION else "another"
        raise ValueError(
            f"{path} is of version {saved}, written by {release} release, and this one reads version {VERSION}. "
            "Continue with that release, or load the model alone (model=CHECKPOINT) and train without "
            "resume_from_checkpoint."
        )
    return state


def last_complete_checkpoint(run: Path, find_problem: Callable[[Path], str | None]) -> Path | None:
    """The checkpoint of the highest step without a problem, None if there is no checkpoint; logs those it skips.

    Raises:
        ValueError: there are checkpoints, but all have problems; the message names the newest one's.
    """
    problems = []
    for checkpoint in reversed(numbered(run)):
        problem = find_problem(checkpoint)
        if problem is None:
            return checkpoint
        problems.append(problem)
        _log.warning("%s is NOT resumed from: %s. Looking for the one before it.", checkpoint, problem)
    if problems:
        raise ValueError(f"no checkpoint in {run} can be resumed from. Of the newest: {problems[0]}")
    return None


def require_complete(checkpoint: Path, find_problem: Callable[[Path], str | None]) -> None:
    """Raise ValueError if a checkpoint has a problem; the message names the newest one before it without."""
    if (problem := find_problem(checkpoint)) is None:
        return
    earlier = [path for path in numbered(checkpoint.parent) if step_of(path) < step_of(checkpoint)]
    usable = next((path for path in reversed(earlier) if find_problem(path) is None), None)
    hint = f"The newest complete one before it is {usable}." if usable else "There is no complete one before it."
    raise ValueError(f"{problem.rstrip('.')}. {hint}")


def flush(path: Path) -> None:
    """Bring a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
