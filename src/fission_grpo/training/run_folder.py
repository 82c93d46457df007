"""The folder of a run: one process writes it, and a resume finds the checkpoints of one run in it."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fission_grpo.core.checkpoints import MANIFEST, numbered, step_of
from fission_grpo.core.errors import RunDirectoryError
from fission_grpo.core.files import check_writable, write_file, writing
from fission_grpo.core.model_readme import EVALUATIONS, README
from fission_grpo.core.terminal import get_logger, printable
from fission_grpo.fission.event_log import LOG
from fission_grpo.training.checkpoint_files import (
    STAGING,
    TRAINER_STATE,
    flush,
    remove_empty_staging,
)

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK = "_run.lock"  # names with an underscore are left out when a run's folder is uploaded to the hub
RUN = "fission_run.json"  # "run": id of the run that the folder's checkpoints belong to; and its description
EARLIER = re.compile(r"_earlier-(\d+)")
_WEIGHTS = re.compile(r"(adapter_)?model.*\.(safetensors|bin)(\.index\.json)?|adapter_config\.json")

_log = get_logger(__name__)


@dataclass
class _Held:
    descriptor: int
    thread: int


_held: dict[Path, _Held] = {}  # this process's locks


def _forget_locks() -> None:
    """Close a forked child's copies of the locks, which would hold them after the death of the parent."""
    for held in _held.values():
        os.close(held.descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_locks)


@contextmanager
def lock_run(run: Path) -> Iterator[None]:
    """Be the only process that writes a run's folder. Inside another `lock_run` of this thread it does nothing.

    The system gives the lock back when the process ends, however it ends. Where there are no locks (Windows, some
    network file systems) a warning says so.

    Raises:
        RunDirectoryError: another process has the lock (the message says which), or the folder cannot be written.
    """
    check_writable(run)
    path = run.resolve() / LOCK
    if path in _held and _held[path].thread == threading.get_ident():
        yield
        return
    descriptor = _take(path)
    _held[path] = _Held(descriptor, threading.get_ident())
    try:
        yield
    finally:
        del _held[path]
        with suppress(OSError):
            path.unlink()  # before the lock is free: see `_take`
        os.close(descriptor)


def _take(path: Path) -> int:
    """Open and lock a file; returns its descriptor."""
    while True:
        with writing(path, advice="Correct that, or give another output_dir"):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NONBLOCK", 0), 0o666)
        try:
            _lock(descriptor, path.parent)
            if os.path.samestat(path.stat(), os.fstat(descriptor)):
                return descriptor
        except FileNotFoundError:  # removed by the process that had it
            pass
        except RunDirectoryError:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the file of this name is another one now


def _lock(descriptor: int, run: Path) -> None:
    if fcntl is None:
        _log.warning("this system has no file locks: make sure that no other process trains into %s", run)
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:  # the second is that of some network file systems
        raise RunDirectoryError(
            f"output_dir {run} is in use by another training run ({_holder(descriptor)}). Wait until it ends, stop "
            "it, or give another output_dir"
        ) from error
    except OSError as error:
        _log.warning(
            "%s: its file system has no locks (%s): make sure that no other process trains into it", run, error
        )
        return
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    with suppress(OSError):  # for the message only
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)


def _holder(descriptor: int) -> str:
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
        return printable(f"process {holder['pid']} on {holder['host']}, since {holder['since']}")
    except (OSError, ValueError, KeyError, TypeError):
        return "its process is not known"


def run_of(path: Path) -> str | None:
    """The id of the run in a file `RUN` or a manifest; None if it has none (of an earlier release, or damaged)."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))["run"] if path.is_file() else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return value if isinstance(value, str) else None


def is_of_other_run(checkpoint: Path, run: Path) -> bool:
    """Whether a checkpoint is known to be of another run than that to which a folder belongs."""
    ids = {run_of(checkpoint / MANIFEST), run_of(run / RUN)}
    return None not in ids and len(ids) == 2


def claim(run: Path, checkpoint: Path | None, step: int, description: Mapping[str, Any] | None = None) -> str:
    """Give a folder to the run that starts, or goes on from a checkpoint of this step, and return the run's id.

    What a later resume or report would take for this run's is moved to a new folder `_earlier-N` in it: checkpoints
    of other runs and of later steps, and the trainer state, log and evaluations of another run. Nothing is deleted.
    Evaluations alone, as of the base model before the first run, stay. The `description` of the run, see
    `settings.describe_run`, is written beside its id.
    """
    own = None if checkpoint is None else run_of(checkpoint / MANIFEST)
    known, is_other = {own} - {None}, checkpoint is None
    if checkpoint is not None:
        if is_other := is_of_other_run(checkpoint, run):
            _log.warning(
                "%s was saved by another run (%s) than that in %s (%s)", checkpoint, own, run, run_of(run / RUN)
            )
        if checkpoint.resolve().parent == run.resolve():
            known = {own, None}
    mistaken = [path for path in numbered(run) if run_of(path / MANIFEST) not in known or step_of(path) > step]
    mistaken += [path for path in (run / TRAINER_STATE, run / LOG) if is_other and path.is_file()]
    if is_other and (mistaken or any(_WEIGHTS.fullmatch(path.name) for path in run.glob("*"))):
        mistaken += [path for path in sorted(run.glob("eval-*")) if path.is_dir()]
        mistaken += [path for path in (run / EVALUATIONS,) if path.is_file()]
    name = own or secrets.token_hex(4)
    # first: if this process is killed now, nobody resumes from what is to be moved
    write_file(run / RUN, json.dumps({"run": name, **(description or {})}, indent=1) + "\n")
    if mistaken:
        _set_aside(run, mistaken, "this run " + (f"goes on from {checkpoint.name}" if checkpoint else "begins anew"))
    return name


def _set_aside(run: Path, paths: list[Path], why: str) -> None:
    numbers = [int(match[1]) for path in run.iterdir() if (match := EARLIER.fullmatch(path.name))]
    aside = run / f"_earlier-{max(numbers, default=0) + 1}"
    with writing(aside, advice="Correct that, or give another output_dir"):
        aside.mkdir()
        for path in paths:
            if path.is_symlink():  # it may be relative to its folder
                (aside / path.name).symlink_to(path.resolve())
                path.unlink()
            else:
                path.rename(aside / path.name)
    names = ", ".join(path.name for path in paths[:5]) + (f" and {len(paths) - 5} more" if len(paths) > 5 else "")
    _log.warning("%s: %s moved to %s, as %s; delete that folder if you do not need it", run, names, aside.name, why)


def publish_model(staged: Path, run: Path) -> None:
    """Move a model that was written into a folder of `STAGING` to the run's folder, file by file, weights last.

    All files are on the disk before the first one moves. Weights of an earlier model under other names, which would
    be loaded instead of the new ones, are set aside. A README.md that is there stays: PEFT writes one without content.
    """
    if (run / README).is_file():
        (staged / README).unlink(missing_ok=True)
    files = sorted(path for path in staged.rglob("*") if path.is_file())
    files.sort(key=lambda path: (bool(_WEIGHTS.fullmatch(path.name)), path.name.endswith(".index.json")))
    for path in files:
        flush(path)
    names = {path.relative_to(staged).as_posix() for path in files}
    if any(_WEIGHTS.fullmatch(name) for name in names):
        stale = [path for path in run.iterdir() if _WEIGHTS.fullmatch(path.name) and path.name not in names]
        if stale:
            _set_aside(run, stale, "the new model has its weights in other files")
    for path in files:
        target = run / path.relative_to(staged)
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
    for folder in {run, *((run / name).parent for name in names)}:
        flush(folder)
    shutil.rmtree(staged, ignore_errors=True)
    remove_empty_staging(run)


def model_staging(run: Path) -> Path:
    """The folder in which the final model is written."""
    return run / STAGING / "model"


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON object of a checkpoint. Raises ValueError, naming the file, if it is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} is damaged (it holds no JSON object)")
    return value
