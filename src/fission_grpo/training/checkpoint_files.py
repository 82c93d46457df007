"""Checkpoints that are whole or not there: written aside, listed file by file with hashes, then renamed into place.

A checkpoint is written into `output_dir/.saving/checkpoint-N`. Its manifest comes last, everything is brought to the
disk, and one rename makes it `output_dir/checkpoint-N`. Only then are old ones deleted. So whenever a process is
killed there is a whole checkpoint, and what is half-written is told by its place or by its manifest.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

STAGING = ".saving"
"""Folder in `output_dir` for what is being written, and for what is being deleted."""


MANIFEST = "fission_manifest.json"
"""Lists a checkpoint's files: `{"format": 1, "step", "versions", "files": {path: {"bytes", "sha256"}}}`."""


TRAINER_STATE = "trainer_state.json"


_NAME = re.compile(r"checkpoint-(\d+)")


_log = logging.getLogger(__name__)


def numbered(run: Path) -> list[Path]:
    """The checkpoint folders of a run directory, by step, the lowest first; empty if there is no such directory."""
    found = [path for path in run.glob("checkpoint-*") if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The N of a folder `checkpoint-N`; -1 for another name."""
    name = _NAME.fullmatch(checkpoint.name)
    return int(name[1]) if name else -1


# -- writing ---------------------------------------------------------------------------------------------------------
def publish(staged: Path, final: Path, versions: Mapping[str, str]) -> None:
    """List the files of a checkpoint, bring them to the disk, and move it to its place in one step.

    Args:
        staged: what was written, in `final.parent / STAGING`.
        final: its place. What stands there (of an earlier part of the run) is replaced.
        versions: of the packages that wrote it, for the manifest.

    Raises:
        OSError: the disk is full, or cannot be written. Nothing has changed at `final` then.
    """
    (staged / MANIFEST).unlink(missing_ok=True)
    paths = sorted(path for path in staged.rglob("*") if path.is_file())
    with ThreadPoolExecutor(4) as pool:
        listed = list(pool.map(_listed, paths))
    files = {path.relative_to(staged).as_posix(): entry for path, entry in zip(paths, listed, strict=True)}
    manifest = {"format": 1, "step": step_of(final), "versions": dict(versions), "files": files}
    temporary = staged / (MANIFEST + ".tmp")
    temporary.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    for path in (*paths, temporary):
        _to_disk(path)
    temporary.replace(staged / MANIFEST)
    for folder in {staged, *(path.parent for path in paths)}:
        _to_disk(folder)
    _put_in_place(staged, final)


def _put_in_place(staged: Path, final: Path) -> None:
    old = _aside(final) if final.exists() else None
    staged.rename(final)  # the moment from which this checkpoint exists
    _to_disk(final.parent)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)
    if staged.parent.is_dir() and not any(staged.parent.iterdir()):
        staged.parent.rmdir()


def _aside(checkpoint: Path) -> Path:
    """Move a checkpoint to where nobody takes it for one; returns where it is now."""
    place = checkpoint.parent / STAGING / f"deleted-{checkpoint.name}"
    place.parent.mkdir(exist_ok=True)
    shutil.rmtree(place, ignore_errors=True)
    return checkpoint.rename(place)


def rotate(run: Path, limit: int | None, keep: Path, best: str | None) -> None:
    """Delete the oldest checkpoints (by time, then step) until `limit` are left; 0 or None: keep all.

    Args:
        run: the run directory.
        limit: `save_total_limit`.
        keep: the checkpoint just written; never deleted, nor is `best` (`best_model_checkpoint`).

    Example:
        Of 2, 4 and 6 with limit 2, just written 6, best 2: the 4 goes. With limit 1 the same, as two are protected.
    """
    if not limit or limit < 0:
        return
    protected = {keep.name} | ({Path(best).name} if best else set())
    found = sorted(numbered(run), key=lambda path: (path.stat().st_mtime, step_of(path)))
    surplus = len(found) - max(limit, len(protected))
    for path in [path for path in found if path.name not in protected][: max(0, surplus)]:
        shutil.rmtree(_aside(path), ignore_errors=True)
    if (run / STAGING).is_dir() and not any((run / STAGING).iterdir()):
        (run / STAGING).rmdir()


def tidy(run: Path) -> None:
    """Settle what a kill has left in `STAGING`, before a run begins; says so in the log.

    A checkpoint that has its manifest, and agrees with it, only lacked the rename, which is made up for. All else is
    removed.
    """
    staging = run / STAGING
    if not staging.is_dir():
        return
    for left in sorted(staging.iterdir()):
        if _NAME.fullmatch(left.name) and (left / MANIFEST).is_file() and fault_in(left) is None:
            _log.warning("%s was whole, only not in its place when the run ended: moved there", left)
            _put_in_place(left, run / left.name)
        else:
            if not left.name.startswith("deleted-"):
                _log.warning("%s is a checkpoint that the run was killed while writing: removed", left)
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    if staging.is_dir():
        staging.rmdir()


# -- reading ---------------------------------------------------------------------------------------------------------
def fault_in(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, by its manifest: the path of the first wrong file, and how; None if whole."""
    path = checkpoint / MANIFEST
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
        listed = {name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in files.items()}
    except FileNotFoundError:
        return f"{path} is missing, so the checkpoint is unfinished"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"{path} is damaged ({type(error).__name__}: {error})"
    for name, (size, _) in listed.items():  # quick, before gigabytes are read
        try:
            found = (checkpoint / name).stat().st_size
        except OSError as error:
            return f"{checkpoint / name} cannot be read ({error.strerror})"
        if found != size:
            return f"{checkpoint / name} is damaged: it has {found:,} bytes instead of {size:,}"
    with ThreadPoolExecutor(4) as pool:
        digests = pool.map(lambda name: _digest(checkpoint / name), listed)
        for (name, (_, wanted)), found in zip(listed.items(), digests, strict=True):
            if found != wanted:
                return f"{checkpoint / name} is damaged: its content is not what was written (sha256 differs)"
    return None


Unusable = Callable[[Path], str | None]
"""Why a checkpoint cannot be resumed from, None if it can."""


def newest_whole(run: Path, unusable: Unusable) -> Path | None:
    """The whole checkpoint of the highest step; every one that is left out is told of in the log.

    Raises:
        ValueError: there are checkpoints, but none is whole; the message names what is wrong with the newest.
    """
    first: str | None = None
    for checkpoint in reversed(numbered(run)):
        reason = unusable(checkpoint)
        if reason is None:
            return checkpoint
        first = first or reason
        _log.warning("%s is NOT resumed from: %s. Looking for the one before it.", checkpoint, reason)
    if first is not None:
        raise ValueError(f"no checkpoint in {run} can be resumed from. Of the newest: {first}")
    return None


def check_named(checkpoint: Path, unusable: Unusable) -> None:
    """Raise ValueError if a checkpoint asked for by name cannot be used; it names the newest whole one before it."""
    reason = unusable(checkpoint)
    if reason is None:
        return
    earlier = [path for path in numbered(checkpoint.parent) if path.name != checkpoint.name]
    before = [path for path in earlier if step_of(path) < step_of(checkpoint)]
    whole = next((path for path in reversed(before) if unusable(path) is None), None)
    hint = f"The newest whole one before it is {whole}." if whole else "There is no whole one before it."
    raise ValueError(f"{reason.rstrip('.')}. {hint}")


def _listed(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": _digest(path)}


def _digest(path: Path) -> str | None:
    """The file's sha256 in hex; None if it cannot be read."""
    try:
        state = path.stat()
        return _digest_of(str(path), state.st_ino, state.st_size, state.st_mtime_ns)
    except OSError:
        return None


@lru_cache(maxsize=4096)
def _digest_of(path: str, inode: int, size: int, changed: int) -> str:
    """Read once as long as the file stays the same, as a checkpoint is looked at by the command and by the trainer."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
