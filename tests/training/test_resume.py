"""Forged and damaged checkpoints: one error that names file and field, before anything is trained, and no waiting."""

import hashlib
import json
import os
import shutil

import pytest

pytest.importorskip("trl")
from resume_support import tiny_trainer

from fission_grpo.core.errors import CheckpointError
from fission_grpo.training.checkpoint_files import FILE, MANIFEST
from fission_grpo.training.resume import why_unusable


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run with one checkpoint."""
    folder = tmp_path_factory.mktemp("saved") / "run"
    tiny_trainer(folder, max_steps=1, count=4).train()
    return folder


@pytest.fixture
def run(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


def sealed(checkpoint, **files):
    """Write files of a checkpoint, or remove them (None), with a manifest that is right."""
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    for name, text in files.items():
        path = checkpoint / name
        if text is None:
            path.unlink()
            del manifest["files"][name]
            continue
        path.write_text(text)
        manifest["files"][name] = {"bytes": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}
    (checkpoint / MANIFEST).write_text(json.dumps(manifest))


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    """One for all refusals, which come before it trains."""
    return tiny_trainer(tmp_path_factory.mktemp("trainer") / "run", max_steps=2, count=4)


def refused(trainer, run):
    """What the error says when the checkpoint is resumed from."""
    with pytest.raises(CheckpointError) as caught:
        trainer.train(resume_from_checkpoint=str(run / "checkpoint-1"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


LISTED = {
    "parent": "../outside",
    "absolute": "/dev/zero",
    "root": "/etc/hostname",
    "deep": "a/../../outside",
    "null": "a\0b",
    "long": "a" * 5000,
}


@pytest.mark.parametrize("name", LISTED)
def test_a_manifest_that_leads_out_of_the_checkpoint_is_refused(run, name):
    checkpoint = run / "checkpoint-1"
    (run / "outside").write_text("")
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    manifest["files"][LISTED[name]] = {"bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()}
    (checkpoint / MANIFEST).write_text(json.dumps(manifest))
    problem = why_unusable(checkpoint, fission=True)
    assert problem == f"{checkpoint}/{LISTED[name][:200]} is missing: {MANIFEST} lists it"


def test_links_and_pipes_in_a_checkpoint_are_refused_without_waiting(run):
    checkpoint = run / "checkpoint-1"
    os.mkfifo(checkpoint / "pipe")
    assert why_unusable(checkpoint, True) == f"{checkpoint / 'pipe'} is damaged: it is no file"
    (checkpoint / "pipe").unlink()
    (checkpoint / "loop").symlink_to("loop")
    assert "loop is damaged: it is no file" in str(why_unusable(checkpoint, True))
    (checkpoint / "loop").unlink()
    (checkpoint / "endless").symlink_to("/dev/zero")
    assert "endless is damaged: it is no file" in str(why_unusable(checkpoint, True))
    (checkpoint / "endless").unlink()
    (checkpoint / FILE).rename(run / FILE)
    (checkpoint / FILE).symlink_to(run / FILE)
    assert why_unusable(checkpoint, True) is None  # as in the cache of the hub: the content is what was written
    (run / FILE).write_text("other")
    assert f"{FILE} is damaged: it has 5 bytes instead of" in str(why_unusable(checkpoint, True))
    (checkpoint / FILE).unlink()
    (checkpoint / FILE).mkdir()
    assert f"{FILE} is missing" in str(why_unusable(checkpoint, True))
    (checkpoint / MANIFEST).unlink()
    os.mkfifo(checkpoint / MANIFEST)
    assert f"{MANIFEST} is damaged" in str(why_unusable(checkpoint, True))


@pytest.mark.parametrize("size", [-1, 1e400, 10**400, True, "7", None, 7.0])
def test_a_number_of_bytes_that_is_none_is_refused(run, size):
    checkpoint = run / "checkpoint-1"
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    manifest["files"][FILE]["bytes"] = size
    (checkpoint / MANIFEST).write_text(json.dumps(manifest))
    assert f"{MANIFEST} is damaged" in str(why_unusable(checkpoint, True)) or "bytes instead of" in str(
        why_unusable(checkpoint, True)
    )


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "model.safetensors"])
def test_a_manifest_without_a_part_that_training_needs_is_refused(trainer, run, name):
    checkpoint = run / "checkpoint-1"
    sealed(checkpoint, **{name: None})
    said = "the weights" if name == "model.safetensors" else name
    assert f"it does not list {said}, which every checkpoint has" in refused(trainer, run)


def test_a_checkpoint_saved_without_the_optimizer_is_taken(tmp_path):
    tiny_trainer(tmp_path, max_steps=1, save_only_model=True).train()
    assert not (tmp_path / "checkpoint-1" / "optimizer.pt").exists()
    for only in (True, False):
        trainer = tiny_trainer(tmp_path, max_steps=1 + (not only), save_only_model=only)
        trainer.train(resume_from_checkpoint=True)
        assert trainer.state.global_step == 1 + (not only)


def put(state, path, value):
    *parents, last = path.split(".")
    for parent in parents:
        state = state[int(parent) if parent.isdigit() else parent]
    if value == "remove":
        del state[last]
    else:
        state[int(last) if last.isdigit() else last] = value


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("trainer", []),
        ("trainer.step", "one"),
        ("trainer.step", -1),
        ("trainer.step", 10**30),
        ("trainer.metrics", [1]),
        ("trainer.metrics", {"reward": ["x"]}),
        ("trainer.loss", []),
        ("trainer.loss", ["x"]),
        ("trainer.total_loss", None),
        ("trainer.first_step", "remove"),
        ("trainer.settings", 3),
        ("fission", None),
        ("fission.buffer.items", [{"step": "x"}]),
        ("fission.buffer.items", [{"step": 1, "reward": 0.0, "task": "{}", "kind": "raised"}]),
        ("fission.buffer.random", [3, [1], None]),
        ("fission.buffer", "remove"),
        ("fission.schedule", {"credits": 1}),
        ("deferred", 3),
        ("deferred", [[{"prompt": "x"}]]),
        ("deferred", ["x"]),
        ("snapshots", {}),
        ("sources", [["x"]]),
        ("event_log", {"bytes": "x", "tail": ""}),
        ("event_log", []),
        ("generated_tokens", "many"),
        ("generated_tokens", 10**400),
        ("generated_tokens", "remove"),
    ],
)
def test_a_forged_state_is_one_error(trainer, run, path, value):
    checkpoint = run / "checkpoint-1"
    state = json.loads((checkpoint / FILE).read_text())
    put(state, path, value)
    sealed(checkpoint, **{FILE: json.dumps(state)})
    assert "checkpoint-1" in refused(trainer, run)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("global_step", "one"),
        ("global_step", 10**30),
        ("global_step", -1),
        ("global_step", None),
        ("epoch", "x"),
        ("epoch", 1e400),
        ("log_history", {}),
        ("log_history", [1]),
        ("stateful_callbacks", []),
        ("unknown_field", 3),
        ("train_batch_size", "x"),
        ("best_model_checkpoint", 3),
        ("total_flos", "x"),
        ("save_steps", "1"),
        ("max_steps", []),
    ],
)
def test_a_forged_trainer_state_is_one_error(trainer, run, path, value):
    checkpoint = run / "checkpoint-1"
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    put(state, path, value)
    sealed(checkpoint, **{"trainer_state.json": json.dumps(state)})
    assert "checkpoint-1/trainer_state.json is damaged" in refused(trainer, run)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "model.safetensors"])
def test_a_part_that_no_library_can_read_is_one_error(trainer, run, name):
    sealed(run / "checkpoint-1", **{name: "not what it should be"})
    assert "checkpoint-1 cannot be resumed from" in refused(trainer, run)
