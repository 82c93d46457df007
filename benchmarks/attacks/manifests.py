"""Edge: files of a run folder, damaged or forged: manifest and state of a checkpoint, logs, evaluations.

A real run of a few steps and a real evaluation are made first; each case changes one file of a copy and reads it as
the commands do: resume, `report`, `compare`, and the evaluation that is begun again.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from values import STRANGE, changed, damaged, dumps, strange, text

BATCH = {"per_device_train_batch_size": 4, "num_generations": 2, "num_recovery_generations": 2}
TRAIN = ["--model_name_or_path", "starter", "--tasks", "desk", "--num_tasks", "8", "--save_steps", "1", "--use_cpu"]
TRAIN += ["true", "--max_steps", "2", "--report_to", "none", "--max_completion_length", "32", "--logging_steps", "1"]
TRAIN += ["--save_strategy", "steps", "--bf16", "false", "--gradient_checkpointing", "false"]
EVAL = ["--model", "starter", "--tasks", "desk", "--num_tasks", "3", "--max_new_tokens", "8"]
IN_CHECKPOINT = ("fission_manifest.json", "fission_state.json", "trainer_state.json")
OF_RUN = ("fission.jsonl", "eval.jsonl", "trainer_state.json")
OF_EVALUATION = ("cases.jsonl", "manifest.json")
REAL_RESUME = 0.03
"""Share of the cases that go through the whole command, which takes seconds. [ours]"""


def quietly(argv: list[str]) -> tuple[int, str]:
    """Exit status and output of a command. A traceback is an exception here."""
    from fission_grpo.cli.main import main

    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            status = main(argv)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
    return int(status or 0), output.getvalue()


def prepare(folder: Path) -> Callable[[Random], str]:
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    folder = Path(tempfile.mkdtemp(dir=folder))
    run = folder / "run"
    batch = [word for name, size in BATCH.items() for word in (f"--{name}", str(size))]
    train = ["train", *TRAIN, *batch, "--output_dir"]
    for command in ([*train, str(run)], ["eval", *EVAL, "--output", str(folder)]):
        status, output = quietly(command)
        assert status == 0, output
    shutil.copy(folder / "eval.jsonl", run / "eval.jsonl")
    return lambda rng: attack(rng, folder, train)


def attack(rng: Random, folder: Path, train: list[str]) -> str:
    """Change one file of a copy and read it: it is read, or refused by an error that names a file in the folder."""
    copy = folder / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    kind = rng.choice((_checkpoint, _checkpoint, _checkpoint, _report, _compare))
    shutil.copytree(folder / ("eval-starter" if kind is _compare else "run"), copy, copy_function=_link)
    return kind(rng, folder, copy, train)


def _link(source: str, target: str) -> str:
    """Large files are linked; those that are changed here are written anew."""
    return (
        os.link(source, target) or target
        if source.endswith((".safetensors", ".pt", ".pth"))
        else shutil.copy(source, target)
    )


def _spoil(path: Path, rng: Random) -> None:
    """Write a file anew: changed as JSON, damaged as bytes, or something else in its place."""
    old = path.read_bytes()
    path.unlink()
    match rng.randrange(12):
        case 0:
            path.write_bytes(damaged(old, rng))
        case 1:
            path.write_bytes(text(rng).encode("utf-8", "surrogatepass"))
        case 2:
            _in_its_place(path, rng)
        case _ if path.suffix == ".jsonl":
            lines = old.splitlines() or [b"{}"]
            for at in {rng.randrange(len(lines)) for _ in range(rng.choice((1, 1, 3)))}:
                given = changed(json.loads(lines[at]), rng) if _is_json(lines[at]) else {}
                lines[at] = dumps(given).encode("utf-8", "surrogatepass")
            path.write_bytes(b"\n".join(lines) + b"\n" * rng.randint(0, 1))
        case _:
            given = changed(json.loads(old), rng, rng.choice((1, 1, 2, 4)))
            path.write_bytes(dumps(given).encode("utf-8", "surrogatepass"))


def _is_json(line: bytes) -> bool:
    with contextlib.suppress(ValueError, RecursionError):
        json.loads(line)
        return True
    return False


def _in_its_place(path: Path, rng: Random) -> None:
    match rng.randrange(5):
        case 0:
            os.mkfifo(path)
        case 1:
            path.symlink_to("/dev/zero")
        case 2:
            path.mkdir()
        case 3:
            path.symlink_to(path)
        case _:
            path.symlink_to(rng.choice(("/etc/passwd", "nowhere", "/dev/null", "/proc/self/environ")))


def _checkpoint(rng: Random, folder: Path, copy: Path, train: list[str]) -> str:
    checkpoint = copy / f"checkpoint-{rng.choice((1, 2, 2))}"
    name = rng.choice(IN_CHECKPOINT)
    before = (checkpoint / name).read_text(encoding="utf-8")
    _spoil(checkpoint / name, rng)
    if name == "fission_state.json":
        _keep_snapshots(checkpoint / name, before)
    if name == "fission_manifest.json":
        if rng.random() < 0.3:
            _forge(checkpoint, rng)
    elif rng.random() < 0.8:  # a forger writes the manifest anew
        _list_again(checkpoint, name)
    wanted = rng.choice(("true", str(checkpoint)))
    if rng.random() < REAL_RESUME:
        steps = ["--max_steps", "3"]
        status, output = quietly([*train, str(copy), *steps, "--resume_from_checkpoint", wanted])
        assert status in (0, 1, 2), output
        assert status == 0 or "error:" in output, output
        return f"{name}: resumed, status {status}"
    from fission_grpo.training.resume import find_checkpoint

    try:
        found = find_checkpoint(wanted, copy, fission=True)
    except ValueError as error:
        return _named(error, copy, name)
    return f"{name}: {'nothing' if found is None else 'found'}"


def _keep_snapshots(path: Path, before: str) -> None:
    """Undo changes of environments' own snapshots, whose content only the environment could judge."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        if path.is_file() and not path.is_symlink() and isinstance(state := json.loads(path.read_text()), dict):
            old = json.loads(before)["snapshots"]
            if isinstance(state.get("snapshots"), list) and len(state["snapshots"]) == len(old):
                path.write_text(json.dumps({**state, "snapshots": old}))


def _forge(checkpoint: Path, rng: Random) -> None:
    """A manifest with names and sizes that no save writes."""
    path = checkpoint / "fission_manifest.json"
    if path.is_dir():
        return
    path.unlink(missing_ok=True)
    places = ("../../../etc/passwd", "/dev/zero", "/etc/passwd", "\x00", "a" * 5000, "trainer_state.json/x", ".", "")
    entry = {"bytes": strange(rng), "sha256": strange(rng)}
    files = {rng.choice(places): rng.choice((entry, {"bytes": 0, "sha256": "x"}, strange(rng))) for _ in range(2)}
    content = {"format": 1, "step": rng.choice(STRANGE[:12]), "versions": {}, "files": files}
    path.write_bytes(dumps(content).encode("utf-8", "surrogatepass"))


def _list_again(checkpoint: Path, name: str) -> None:
    """Make the manifest agree with a changed file."""
    path, changed_file = checkpoint / "fission_manifest.json", checkpoint / name
    manifest: dict[str, Any] = json.loads(path.read_text())
    if not changed_file.is_file() or changed_file.is_symlink():
        return
    data = changed_file.read_bytes()
    manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    path.write_text(json.dumps(manifest))


def _report(rng: Random, folder: Path, copy: Path, train: list[str]) -> str:
    from fission_grpo.report.page import report_command

    name = rng.choice([name for name in OF_RUN if (copy / name).exists()])
    _spoil(copy / name, rng)
    return _command(lambda: report_command([str(copy)]), f"report, {name}")


def _compare(rng: Random, folder: Path, copy: Path, train: list[str]) -> str:
    from fission_grpo.cli.compare import compare_command

    name = rng.choice(OF_EVALUATION)
    _spoil(copy / name, rng)
    if rng.random() < REAL_RESUME:
        again = folder / "again"
        shutil.rmtree(again, ignore_errors=True)
        again.mkdir()
        copy.rename(again / "eval-starter")
        status, output = quietly(["eval", *EVAL, "--output", str(again)])
        assert status == 0 or "error:" in output, output
        return f"eval again, {name}: status {status}"
    return _command(lambda: compare_command([str(folder / "eval-starter"), str(copy)]), f"compare, {name}")


def _command(command: Callable[[], int], what: str) -> str:
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        status = command()
    assert status == 0 or "error:" in output.getvalue(), output.getvalue()
    assert len(output.getvalue()) < 100_000, "100,000 characters of output"
    return f"{what}: status {status}"


def _named(error: Exception, folder: Path, what: str) -> str:
    assert str(folder) in str(error), f"no file is named: {error}"
    assert len(str(error)) < 5000, "a message of more than 5,000 characters"
    return f"{what}: refused"
