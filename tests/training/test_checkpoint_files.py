"""Checkpoints are whole or not there: what a kill leaves at any moment, and what is said of a damaged one."""

import json
import os
import subprocess
import sys
from functools import partial

import pytest

from fission_grpo.training.checkpoint_files import (
    MANIFEST,
    STAGING,
    clean_staging,
    commit,
    find_corruption,
    last_complete_checkpoint,
    numbered,
    require_complete,
    rotate,
)

VERSIONS = {"trl": "1.16.0"}


def written(run, step, text="weights", place=STAGING):
    """A checkpoint's files, as transformers leaves them."""
    folder = run / place / f"checkpoint-{step}"
    (folder / "inner").mkdir(parents=True)
    (folder / "model.safetensors").write_text(text)
    (folder / "inner" / "state.json").write_text("{}")
    return folder


def saved(run, step, text="weights"):
    commit(written(run, step, text), run / f"checkpoint-{step}", VERSIONS)
    return run / f"checkpoint-{step}"


def names(run):
    return sorted(path.name for path in run.iterdir())


def test_a_committed_checkpoint_lists_its_files_and_is_complete(tmp_path):
    checkpoint = saved(tmp_path, 4)
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    assert (manifest["format"], manifest["step"], manifest["versions"]) == (1, 4, VERSIONS)
    digest = "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c"  # printf weights | sha256sum
    assert manifest["files"]["model.safetensors"] == {"bytes": 7, "sha256": digest}
    assert sorted(manifest["files"]) == ["inner/state.json", "model.safetensors"]
    assert find_corruption(checkpoint) is None
    assert names(tmp_path) == ["checkpoint-4"]


def cut(path):
    path.write_text(path.read_text()[:-1])


def flip(path):
    path.write_text(path.read_text()[:-1] + "~")


@pytest.mark.parametrize(
    ("name", "harm", "message"),
    [
        ("model.safetensors", cut, "is damaged: it has 6 bytes instead of 7"),
        ("model.safetensors", flip, "is damaged: its content is not what was written"),
        ("inner/state.json", lambda path: path.unlink(), f"is missing: {MANIFEST} lists it"),
        (MANIFEST, cut, "is damaged"),
        (MANIFEST, lambda path: path.write_text("[]"), "is damaged"),
        (MANIFEST, lambda path: path.write_text('{"files": {"model.safetensors": 3}}'), "is damaged"),
        (MANIFEST, lambda path: path.unlink(), "is missing, so the checkpoint is unfinished"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, caplog, name, harm, message):
    before, damaged = saved(tmp_path, 2), saved(tmp_path, 4)
    if name == MANIFEST and harm is cut:
        (damaged / name).write_text((damaged / name).read_text().rstrip())  # else only a line's end is cut
    harm(damaged / name)
    assert last_complete_checkpoint(tmp_path, find_corruption) == before
    assert f"{damaged / name} " in caplog.text
    assert "NOT resumed from" in caplog.text
    with pytest.raises(
        ValueError, match=rf"checkpoint-4/{name} {message}.*newest complete one before it is .*checkpoint-2"
    ):
        require_complete(damaged, find_corruption)
    require_complete(before, find_corruption)


def test_without_a_complete_checkpoint_the_error_is_the_newest_ones(tmp_path):
    for step in (2, 10):
        flip(saved(tmp_path, step) / "model.safetensors")
    with pytest.raises(ValueError, match=r"no checkpoint in .* Of the newest: .*checkpoint-10/model.safetensors"):
        last_complete_checkpoint(tmp_path, find_corruption)
    with pytest.raises(ValueError, match="There is no complete one before it"):
        require_complete(tmp_path / "checkpoint-2", find_corruption)
    assert last_complete_checkpoint(tmp_path / "nowhere", find_corruption) is None


def test_checkpoints_are_sorted_by_number(tmp_path):
    for name in ("checkpoint-10", "checkpoint-9", "checkpoint-x", "checkpoint-11-old", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-12").write_text("a file")
    assert [path.name for path in numbered(tmp_path)] == ["checkpoint-9", "checkpoint-10"]


def test_an_earlier_checkpoint_of_the_same_step_is_replaced(tmp_path):
    saved(tmp_path, 4, "old")
    assert (saved(tmp_path, 4, "new") / "model.safetensors").read_text() == "new"
    assert names(tmp_path) == ["checkpoint-4"]


def test_what_a_kill_left_while_writing_is_removed_and_logged(tmp_path, caplog):
    written(tmp_path, 4)
    saved(tmp_path, 2)
    (tmp_path / STAGING / "checkpoint-4" / (MANIFEST + ".tmp")).write_text("{")
    clean_staging(tmp_path)
    assert names(tmp_path) == ["checkpoint-2"]
    assert "checkpoint-4 is a checkpoint that the run was killed while writing: removed" in caplog.text


@pytest.mark.parametrize("replaced", [False, True])
def test_a_complete_checkpoint_that_only_lacked_the_rename_is_taken(tmp_path, replaced):
    """Also where the older one of that step had been moved aside already: then the new one is the only one."""
    whole = saved(tmp_path / "elsewhere", 4, "new")
    (tmp_path / STAGING).mkdir()
    whole.rename(tmp_path / STAGING / "checkpoint-4")
    if replaced:
        saved(tmp_path / "elsewhere", 4, "old").rename(tmp_path / STAGING / "deleted-checkpoint-4")
    (tmp_path / "elsewhere").rmdir()
    clean_staging(tmp_path)
    assert names(tmp_path) == ["checkpoint-4"]
    assert (tmp_path / "checkpoint-4" / "model.safetensors").read_text() == "new"


def test_rotation_keeps_the_newest_and_the_best(tmp_path):
    def rotated(run, limit, best=None):
        for step in (2, 4, 6):
            os.utime(saved(run, step), (step, step))
        rotate(run, limit, run / "checkpoint-6", best)
        return names(run)

    assert rotated(tmp_path / "a", None) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    assert rotated(tmp_path / "b", 2) == ["checkpoint-4", "checkpoint-6"]
    assert rotated(tmp_path / "c", 2, str(tmp_path / "c" / "checkpoint-2")) == ["checkpoint-2", "checkpoint-6"]
    assert rotated(tmp_path / "d", 1, str(tmp_path / "d" / "checkpoint-2")) == ["checkpoint-2", "checkpoint-6"]


def test_rotation_never_deletes_what_was_just_written_though_others_have_higher_steps(tmp_path):
    for step, time in ((8, 1), (10, 2), (4, 3)):  # the run went on from an old checkpoint, of step 2
        os.utime(saved(tmp_path, step), (time, time))
    rotate(tmp_path, 1, tmp_path / "checkpoint-4", None)
    assert names(tmp_path) == ["checkpoint-4"]


KILLED_AT = """
import os, sys
from pathlib import Path
from fission_grpo.training import checkpoint_files
run, kill = Path(sys.argv[1]), int(sys.argv[2])
calls = 0
def counted(name, real):
    def call(*args, **more):
        global calls
        if calls == kill:
            os.kill(os.getpid(), 9)
        calls += 1
        return real(*args, **more)
    return call
for owner, name in ((os, "fsync"), (os, "rename"), (os, "replace"), (os, "unlink"), (os, "rmdir"), (os, "open")):
    setattr(owner, name, counted(name, getattr(owner, name)))
checkpoint_files.commit(run / ".saving" / "checkpoint-4", run / "checkpoint-4", {})
checkpoint_files.rotate(run, 1, run / "checkpoint-4", None)
print(calls)
"""


def test_a_save_killed_at_any_system_call_leaves_a_complete_checkpoint(tmp_path):
    """Killed before each of the system calls that a save and the deletion of the older checkpoint consist of."""

    def killed_at(call):
        run = tmp_path / f"{call}"
        os.utime(saved(run, 2, "old"), (1, 1))
        saved(run, 4, "stale")
        written(run, 4, "new")
        code = [sys.executable, "-c", KILLED_AT, str(run), str(call)]
        return run, subprocess.run(code, capture_output=True, text=True, check=False)

    _, whole = killed_at(10_000)
    calls = int(whole.stdout)
    assert calls > 15
    newest_ones = set()
    for call in range(0, calls, 2):
        run, done = killed_at(call)
        assert done.returncode == -9
        clean_staging(run)
        assert all(find_corruption(path) is None for path in numbered(run))
        assert not (run / STAGING).exists()
        newest = last_complete_checkpoint(run, partial(find_corruption))
        assert newest is not None
        newest_ones.add((newest.name, (newest / "model.safetensors").read_text()))
    assert {("checkpoint-4", "stale"), ("checkpoint-4", "new")} <= newest_ones


def test_of_a_linked_checkpoint_rotation_removes_the_link_alone_and_later_starts_go_on(tmp_path, caplog):
    run, disk = tmp_path / "run", tmp_path / "bigger-disk"
    saved(run, 2).rename(disk)
    (run / "checkpoint-2").symlink_to(disk)
    for step in (4, 6):
        saved(run, step)
    rotate(run, 2, run / "checkpoint-6", None)
    assert names(run) == ["checkpoint-4", "checkpoint-6"]
    assert (disk / "model.safetensors").read_text() == "weights"
    assert f"only the link is removed, {disk} is left as it is" in caplog.text
    clean_staging(run)


@pytest.mark.parametrize("target", ["folder", "nowhere", "file"])
def test_a_link_in_the_staging_folder_does_not_fail_a_start(tmp_path, target):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / STAGING).mkdir()
    for name in ("deleted-checkpoint-2", "checkpoint-8"):
        (tmp_path / STAGING / name).symlink_to(tmp_path / target)
    clean_staging(tmp_path)
    assert names(tmp_path) == ["file", "folder"]


@pytest.mark.parametrize("target", ["folder", "nowhere"])
def test_a_checkpoint_replaces_a_link_of_its_name(tmp_path, target):
    run = tmp_path / "run"
    run.mkdir()
    (tmp_path / "folder").mkdir()
    (run / "checkpoint-4").symlink_to(tmp_path / target)
    assert find_corruption(saved(run, 4)) is None
    assert not (run / "checkpoint-4").is_symlink()
    assert (tmp_path / "folder").is_dir()


def test_what_cannot_be_removed_is_logged_and_does_not_fail_a_start(tmp_path, monkeypatch, caplog):
    written(tmp_path, 4)

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("fission_grpo.training.checkpoint_files.shutil.rmtree", refuse)
    clean_staging(tmp_path)
    assert "could not be removed" in caplog.text


def test_rotation_goes_by_step_whatever_the_clock_says(tmp_path):
    for step, time in ((2, 4_000_000_000), (4, 3), (6, 2), (8, 1)):
        os.utime(saved(tmp_path, step), (time, time))
    rotate(tmp_path, 2, tmp_path / "checkpoint-8", None)
    assert names(tmp_path) == ["checkpoint-6", "checkpoint-8"]


def test_a_manifest_names_the_run(tmp_path):
    commit(written(tmp_path, 4), tmp_path / "checkpoint-4", VERSIONS, "0a1b2c3d")
    assert json.loads((tmp_path / "checkpoint-4" / MANIFEST).read_text())["run"] == "0a1b2c3d"
