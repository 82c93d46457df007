"""The disk fills up, memory runs out, the clock jumps: what was saved stays, and the run goes on from there."""

import json
import os
import resource
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from resume_support import differences, tiny_trainer
from transformers import TrainerCallback

from fission_grpo.core.errors import RunDirectoryError
from fission_grpo.core.files import check_writable
from fission_grpo.envs.desk.env import Desk
from fission_grpo.training.checkpoint_files import last_complete_checkpoint, numbered
from fission_grpo.training.resume import why_unusable


class After(TrainerCallback):
    """Does something when a step has ended, before its checkpoint is saved."""

    def __init__(self, step, do):
        self.step, self.do = step, do

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.step:
            self.do()


@pytest.fixture
def small_files():
    """A function after which no file can grow beyond so many bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def train(folder, *callbacks, resume=None, **fields):
    trainer = tiny_trainer(folder, max_steps=3, **fields)
    for callback in callbacks:
        trainer.add_callback(callback)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The run that nothing happens to."""
    folder = tmp_path_factory.mktemp("straight")
    train(folder)
    return folder


def test_a_disk_that_is_full_while_saving_leaves_the_checkpoint_before_and_the_run_goes_on_from_it(
    tmp_path, small_files, straight
):
    with pytest.raises(RunDirectoryError, match=r"checkpoint-2 could not be written .*resume_from_checkpoint=True"):
        train(tmp_path, After(2, lambda: small_files(1_000_000)))  # the weights have 4.4 million bytes
    small_files(resource.RLIM_INFINITY)
    assert [path.name for path in numbered(tmp_path)] == ["checkpoint-1"]
    train(tmp_path, resume=True)
    assert differences(straight, tmp_path, "checkpoint-3") == []


def test_a_disk_that_is_full_while_logging_names_the_file(tmp_path, small_files, straight):
    with pytest.raises(RunDirectoryError, match=r"fission\.jsonl could not be written \(File too large\)"):
        train(tmp_path, After(1, lambda: small_files(1000)), save_strategy="no")
    small_files(resource.RLIM_INFINITY)
    train(tmp_path)  # there is no checkpoint: from the beginning, the journal of the first try set aside
    assert (tmp_path / "_earlier-1" / "fission.jsonl").exists()
    assert differences(straight, tmp_path, "checkpoint-3") == []


def test_a_disk_that_is_full_while_the_final_model_is_saved_leaves_the_old_one_and_a_resume_saves_it(
    tmp_path, small_files, straight
):
    trainer = train(tmp_path)
    (tmp_path / "model.safetensors").write_text("an older model")
    small_files(1_000_000)
    with pytest.raises(RunDirectoryError, match=r"model\.safetensors could not be written \(.*\)\. What was written"):
        trainer.save_model()
    small_files(1000)
    for name in ("model.safetensors", "trainer_state.json"):
        with pytest.raises(RunDirectoryError, match=rf"{name} could not be written \(.*File too large"):
            trainer.save_model() if "model" in name else trainer.save_state()
    small_files(resource.RLIM_INFINITY)
    assert (tmp_path / "model.safetensors").read_text() == "an older model"
    assert not (tmp_path / "trainer_state.json").exists()
    again = train(tmp_path, resume=True)
    again.save_model()
    weights = (tmp_path / "checkpoint-3" / "model.safetensors").read_bytes()
    assert (tmp_path / "model.safetensors").read_bytes() == weights
    assert not (tmp_path / ".saving").exists()
    assert differences(straight, tmp_path, "checkpoint-3") == []


def test_memory_that_runs_out_in_one_step_costs_no_more_than_the_steps_since_the_last_save(tmp_path, straight):
    asked = []

    def get_reward(world):
        return torch.empty(asked[0], dtype=torch.uint8) if asked else Desk.get_reward(world)

    factory = type("Desk", (Desk,), {"get_reward": get_reward})
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        train(tmp_path, After(1, lambda: asked.append(2**60)), factory=factory)  # more than any machine has
    assert [path.name for path in numbered(tmp_path)] == ["checkpoint-1"]
    train(tmp_path, resume=True)
    assert differences(straight, tmp_path, "checkpoint-3") == []


def test_a_clock_that_is_set_back_neither_loses_nor_confuses_checkpoints(tmp_path, straight):
    def from_tomorrow():
        later = (tmp_path / "checkpoint-1").stat().st_mtime + 86_400
        os.utime(tmp_path / "checkpoint-1", (later, later))

    train(tmp_path, After(2, from_tomorrow), save_total_limit=2)
    assert last_complete_checkpoint(tmp_path, lambda path: why_unusable(path, True)) == tmp_path / "checkpoint-3"
    assert differences(straight, tmp_path, "checkpoint-3") == []


def test_an_unwritable_run_directory_is_an_error_before_anything_is_computed(tmp_path):
    script = """
        import os, sys
        from pathlib import Path
        from fission_grpo.core.errors import RunDirectoryError
        from fission_grpo.core.files import check_writable
        if os.getuid() == 0:
            os.setuid(65534)  # root may write anywhere
        try:
            check_writable(Path(sys.argv[1]))
        except RunDirectoryError as error:
            print(error)
    """
    check_writable(tmp_path / "run")
    (tmp_path / "run").chmod(0o555)
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "run")]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "run cannot be written (Permission denied); correct that or give another" in said.stdout
    with pytest.raises(RunDirectoryError, match="cannot be written"):
        check_writable(Path("/proc/self/run"))
    trainer = tiny_trainer(tmp_path / "file", max_steps=1)
    (tmp_path / "file").rmdir()
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunDirectoryError, match="cannot be written"):
        trainer.train()


def test_ten_thousand_log_entries_and_events_are_read_in_seconds(tmp_path):
    from fission_grpo.report.run import read_run

    entries = [{"step": step, "reward": 0.5, "loss": 0.1} for step in range(10_000)]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": entries}))
    line = {"event": "pushed", "step": 1, "root": "r", "kind": "raised", "source": "rules", "feedback": "no"}
    line |= {"failed": "x", "prompt": "p", "depth": 1, "leaked": False}
    (tmp_path / "fission.jsonl").write_text("".join(json.dumps({**line, "id": str(i)}) + "\n" for i in range(10_000)))
    run = read_run(tmp_path)
    assert len(run.log_history) == len(run.instances) == 10_000
