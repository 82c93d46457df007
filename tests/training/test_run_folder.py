"""The final model appears whole, and a start keeps what an earlier run left."""

import json
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from fission_grpo.core.errors import RunDirectoryError
from fission_grpo.training.checkpoint_files import numbered
from fission_grpo.training.resume import find_checkpoint
from fission_grpo.training.run_folder import LOCK, RUN, claim, lock_run, model_staging, publish_model, run_of


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        path = folder / name.replace("__", ".").replace("_in_", "/")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_model_is_moved_file_by_file_weights_last(tmp_path, monkeypatch):
    write(tmp_path, config__json="old", model__safetensors="old", notes__txt="mine")
    staged = model_staging(tmp_path)
    write(staged, config__json="new", model__safetensors="new", tokenizer__json="new", ref_in_adapter__json="new")
    order, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda *paths: (order.append(os.path.basename(paths[1])), replace(*paths)))
    publish_model(staged, tmp_path)
    assert order == ["config.json", "adapter.json", "tokenizer.json", "model.safetensors"]
    new = dict.fromkeys(("config.json", "model.safetensors", "tokenizer.json", "ref/adapter.json"), "new")
    assert content(tmp_path) == {"notes.txt": "mine", **new}
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("model.safetensors", "adapter_model.safetensors"),
        ("adapter_config.json", "model.safetensors"),
        ("model.safetensors", "model-00001-of-00002.safetensors"),
        ("model.safetensors.index.json", "model.safetensors"),
    ],
)
def test_weights_of_an_earlier_model_that_would_be_loaded_instead_are_set_aside(tmp_path, caplog, old, new):
    (tmp_path / old).write_text("old")
    staged = model_staging(tmp_path)
    staged.mkdir(parents=True)
    (staged / new).write_text("new")
    publish_model(staged, tmp_path)
    assert content(tmp_path) == {new: "new", f"_earlier-1/{old}": "old"}
    assert f"{old} moved to _earlier-1" in caplog.text


def test_a_model_card_is_not_replaced_by_the_one_of_the_staged_model(tmp_path):
    for card, kept in ((None, "peft"), ("ours", "ours")):
        run = tmp_path / kept
        write(run, **({} if card is None else {"README__md": card}))
        write(model_staging(run), README__md="peft", adapter_model__safetensors="new")
        publish_model(model_staging(run), run)
        assert content(run) == {"README.md": kept, "adapter_model.safetensors": "new"}


def test_evaluations_go_with_the_model_of_the_earlier_run_and_stay_where_there_was_none(tmp_path):
    base, trained = tmp_path / "base", tmp_path / "trained"
    for run in (base, trained):
        write(run, eval__jsonl="{}", **{"eval-mine_in_cases__jsonl": "{}"})
    write(trained, model__safetensors="old")  # saved by a run without checkpoints
    assert all(claim(run, None, 0) for run in (base, trained))
    assert set(content(base)) == {RUN, "eval.jsonl", "eval-mine/cases.jsonl"}
    aside = {"_earlier-1/eval.jsonl", "_earlier-1/eval-mine/cases.jsonl"}
    assert set(content(trained)) == {RUN, "model.safetensors", *aside}
    saved(base, 2, run_of(base / RUN))
    claim(base, base / "checkpoint-2", 2)  # goes on
    assert (base / "eval.jsonl").is_file()
    claim(base, None, 0)
    assert set(content(base)) > {"_earlier-1/checkpoint-2/fission_manifest.json", *aside}
    assert not (base / "eval.jsonl").exists()


def test_a_start_numbers_its_folders_and_touches_nothing_else(tmp_path, caplog):
    names = set()
    for number in (1, 2):
        for step in (2, 10):
            write(tmp_path / f"checkpoint-{step}", x__json=str(number))
        write(tmp_path / "checkpoint-best", x__json="mine")
        names.add(claim(tmp_path, None, 0))
    assert len(names) == 2
    assert run_of(tmp_path / RUN) in names
    assert sorted(path for path in content(tmp_path) if path != RUN) == [
        "_earlier-1/checkpoint-10/x.json",
        "_earlier-1/checkpoint-2/x.json",
        "_earlier-2/checkpoint-10/x.json",
        "_earlier-2/checkpoint-2/x.json",
        "checkpoint-best/x.json",
    ]
    assert "checkpoint-2, checkpoint-10 moved to _earlier-1, as this run begins anew" in caplog.text


@pytest.mark.parametrize("text", ["", "[]", '{"run": 3}', "{", "null"])
def test_a_damaged_id_of_a_folder_is_no_id(tmp_path, text):
    (tmp_path / RUN).write_text(text)
    assert run_of(tmp_path / RUN) is None
    claim(tmp_path, None, 0)
    assert json.loads((tmp_path / RUN).read_text())["run"] == run_of(tmp_path / RUN)


def test_a_linked_checkpoint_that_is_set_aside_still_leads_to_its_files(tmp_path):
    run, disk = tmp_path / "run", tmp_path / "disk"
    write(disk, x__json="1")
    run.mkdir()
    (run / "checkpoint-1").symlink_to("../disk")
    claim(run, None, 0)
    assert content(run / "_earlier-1" / "checkpoint-1") == content(disk)
    assert not (run / "checkpoint-1").is_symlink()


def test_a_lock_whose_file_vanishes_while_it_is_taken_is_taken_anew(tmp_path, monkeypatch):
    removed = []

    def flock(descriptor, _):
        if not removed:  # the process that had it ends at this moment
            removed.append((tmp_path / LOCK).unlink())

    monkeypatch.setattr("fission_grpo.training.run_folder.fcntl.flock", flock)
    with lock_run(tmp_path):
        assert (tmp_path / LOCK).is_file()


def saved(run, step, name):
    """A checkpoint, as far as its run and step are asked for."""
    write(run / f"checkpoint-{step}", fission_manifest__json=json.dumps({"run": name, "files": {}}))
    return run / f"checkpoint-{step}"


def test_a_run_that_goes_back_to_an_earlier_checkpoint_does_not_resume_from_a_later_one(tmp_path):
    for step, name in ((1, "a"), (2, "a"), (3, None), (4, "a"), (1, "b")):
        saved(tmp_path / ("elsewhere" if name == "b" else ""), step, name)
    assert claim(tmp_path, tmp_path / "checkpoint-2", 2) == "a"
    assert [path.name for path in numbered(tmp_path)] == ["checkpoint-1", "checkpoint-2"]
    assert sorted(path.name for path in (tmp_path / "_earlier-1").iterdir()) == ["checkpoint-3", "checkpoint-4"]
    assert claim(tmp_path, tmp_path / "elsewhere" / "checkpoint-1", 1) == "b"
    assert numbered(tmp_path) == []


def test_a_start_that_is_killed_while_it_moves_an_earlier_run_does_not_become_that_run(tmp_path, monkeypatch):
    for step in (1, 2):
        saved(tmp_path, step, "earlier")
    (tmp_path / RUN).write_text('{"run": "earlier"}')

    def kill(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", kill)
    with pytest.raises(KeyboardInterrupt):
        claim(tmp_path, None, 0)
    with pytest.raises(ValueError, match="checkpoint-2 was saved by another run"):
        find_checkpoint(True, tmp_path, fission=False)


def test_a_forked_child_does_not_hold_the_lock_of_a_dead_parent(tmp_path):
    script = """
        import os, sys, time
        from pathlib import Path
        from fission_grpo.training.run_folder import lock_run
        with lock_run(Path(sys.argv[1])):
            if os.fork() == 0:
                print("forked", flush=True)
                time.sleep(60)
                os._exit(0)
            time.sleep(60)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "forked\n"
        with pytest.raises(RunDirectoryError, match="is in use"), lock_run(tmp_path):
            pass
        process.kill()
        process.wait()
        with lock_run(tmp_path), lock_run(tmp_path):
            pass
    finally:
        os.killpg(process.pid, 9)


def test_a_second_thread_does_not_get_the_lock(tmp_path):
    found = []

    def attempt():
        try:
            with lock_run(tmp_path):
                found.append("locked")
        except RunDirectoryError as error:
            found.append(str(error))

    with lock_run(tmp_path):
        thread = threading.Thread(target=attempt)
        thread.start()
        thread.join()
    assert f"process {os.getpid()} on " in found[0]
    attempt()
    assert found[1] == "locked"


@pytest.mark.parametrize("error", [OSError(95, "Operation not supported"), OSError(37, "No locks available")])
def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch, caplog, error):
    def refuse(*_):
        raise error

    monkeypatch.setattr("fission_grpo.training.run_folder.fcntl.flock", refuse)
    with lock_run(tmp_path):
        assert "its file system has no locks" in caplog.text
    monkeypatch.setattr("fission_grpo.training.run_folder.fcntl", None)
    with lock_run(tmp_path):
        assert "this system has no file locks" in caplog.text
