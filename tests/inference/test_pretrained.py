"""Which model a name means, and what a run directory tells of its training."""

import json
import os
import subprocess
import sys
import time

import pytest

from fission_grpo.core.checkpoints import MANIFEST
from fission_grpo.core.errors import RunFileError
from fission_grpo.evaluation.policies import read_training_progress
from fission_grpo.inference.pretrained import model_path, starter_path


def test_starter_folder_and_hub_id_are_models(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert model_path("starter") == str(starter_path())
    assert model_path(str(tmp_path)) == str(tmp_path)
    assert model_path("Qwen/Qwen3-1.7B") == "Qwen/Qwen3-1.7B"


def test_folder_that_is_missing_or_holds_no_model_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"holds no config\.json and no checkpoint-\*.*give its `fission-grpo train`"):
        model_path(str(tmp_path))
    with pytest.raises(ValueError, match="nowhere does not exist"):
        model_path(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("name", ["models/smollm2_warm", "runs/mine", "here/mine"])
def test_a_name_that_begins_with_a_folder_of_ours_or_one_that_exists_is_no_hub_id(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    with pytest.raises(ValueError, match=f"the folder {name} does not exist"):
        model_path(name)


def test_of_a_stopped_run_the_newest_complete_checkpoint_is_taken_and_named(tmp_path, caplog):
    for step in (2, 10, 9, 11):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "config.json").write_text("{}")
    (tmp_path / "checkpoint-10" / MANIFEST).write_text('{"files": {"model.safetensors": {"bytes": 1, "sha256": ""}}}')
    (tmp_path / "checkpoint-11" / "config.json").unlink()
    assert model_path(str(tmp_path)) == str(tmp_path / "checkpoint-9")
    assert f"newest complete checkpoint is used: {tmp_path / 'checkpoint-9'}" in caplog.text


def test_a_stopped_run_without_a_complete_checkpoint_is_refused_with_the_newest_ones_problem(tmp_path):
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-3" / MANIFEST).write_text("{")
    with pytest.raises(ValueError, match=f"no complete checkpoint: .*checkpoint-3.{MANIFEST} is damaged"):
        model_path(str(tmp_path))


def test_a_hub_that_cannot_be_found_is_not_retried(tmp_path):
    code = "from fission_grpo.inference.pretrained import load_model; load_model('nobody/model')"
    environment = {**os.environ, "HF_ENDPOINT": "https://hub.invalid", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert time.monotonic() - started < 25  # the hub's client alone waits 24 seconds for each of three files
    assert "hub.invalid cannot be found" in done.stderr
    assert "ValueError: model: nobody/model cannot be loaded (OSError: " in done.stderr


def test_steps_and_tokens_come_from_the_training_log(tmp_path):
    assert read_training_progress(tmp_path) == (0, 0)
    rows = [{"step": 1, "fission/generated_tokens": 70.0}, {"step": 2, "fission/generated_tokens": 150.0}, {"step": 2}]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": rows}))
    assert read_training_progress(tmp_path) == (2, 150)


def test_damaged_training_log_is_no_zero_but_an_error(tmp_path):
    (tmp_path / "trainer_state.json").write_text('{"log_history": [')
    with pytest.raises(RunFileError, match=r"trainer_state\.json"):
        read_training_progress(tmp_path)
