"""Read checkpoint folders: which are there, and whether they are as they were written."""

from __future__ import annotations

import hashlib
import json
import re
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

MANIFEST = "fission_manifest.json"  # {"format": 1, "step", "versions", "files": {path: {"bytes", "sha256"}}}


def numbered(run: Path) -> list[Path]:
    """The checkpoint folders of a run directory in ascending order of steps; empty if it does not exist."""
    return sorted((path for path in run.glob("checkpoint-*") if step_of(path) >= 0 and path.is_dir()), key=step_of)


def step_of(checkpoint: Path) -> int:
    """The N of a folder `checkpoint-N`; -1 for another name."""
    name = re.fullmatch(r"checkpoint-(\d+)", checkpoint.name)
    return int(name[1]) if name else -1


def find_corruption(checkpoint: Path) -> str | None:
    """The first file that differs from the checkpoint's manifest, and how; None if it is complete."""
    manifest = checkpoint / MANIFEST
    if (odd := find_odd_file(checkpoint)) is not None:
        return odd
    if not manifest.is_file():
        return f"{manifest} is missing, so the checkpoint is unfinished"
    present = {path.relative_to(checkpoint).as_posix(): path for path in checkpoint.rglob("*") if path.is_file()}
    try:
        files = json.loads(manifest.read_text(encoding="utf-8-sig"))["files"]
        listed = [(str(name), entry["bytes"], entry["sha256"]) for name, entry in files.items()]
        for name, size, _ in listed:  # fast, before gigabytes are read
            if name not in present:
                return f"{checkpoint}/{name[:200]} is missing: {MANIFEST} lists it"
            if (actual := present[name].stat().st_size) != size:
                return f"{present[name]} is damaged: it has {actual} bytes instead of {str(size)[:40]}"
        with ThreadPoolExecutor(4) as pool:
            digests = pool.map(file_digest, [present[name] for name, *_ in listed])
            for (name, _, expected), digest in zip(listed, digests, strict=True):
                if digest != expected:
                    return f"{present[name]} is damaged: its content is not what was written (sha256 differs)"
    except OSError as error:
        return f"{error.filename} cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"{manifest} is damaged ({type(error).__name__}: {str(error)[:200]})"
    return None


def find_odd_file(checkpoint: Path) -> str | None:
    """The first pipe, device or broken link of a checkpoint, whose reading would wait or not end; None without one."""
    odd = (entry for entry in checkpoint.rglob("*") if not entry.is_file() and not entry.is_dir())
    return next((f"{entry} is damaged: it is no file" for entry in odd), None)


def file_digest(path: Path) -> str:
    state = path.stat()
    return _cached_digest(path, state.st_ino, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=4096)  # the command and the trainer both check a checkpoint
def _cached_digest(path: Path, *_: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
