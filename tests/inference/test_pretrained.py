"""Which model a name means, and what a run directory tells of its training."""

import json

import pytest

from fission_grpo.core.errors import RunFileError
from fission_grpo.evaluation.policies import read_training_progress
from fission_grpo.inference.pretrained import model_path, starter_path


def test_starter_folder_and_hub_id_are_models(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert model_path("starter") == str(starter_path())
    assert model_path(str(tmp_path)) == str(tmp_path)
    assert model_path("Qwen/Qwen3-1.7B") == "Qwen/Qwen3-1.7B"


def test_folder_that_is_missing_or_holds_no_model_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"holds no config\.json"):
        model_path(str(tmp_path))
    with pytest.raises(ValueError, match="nowhere does not exist"):
        model_path(str(tmp_path / "nowhere"))


def test_steps_and_tokens_come_from_the_training_log(tmp_path):
    assert read_training_progress(tmp_path) == (0, 0)
    rows = [{"step": 1, "fission/generated_tokens": 70.0}, {"step": 2, "fission/generated_tokens": 150.0}, {"step": 2}]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": rows}))
    assert read_training_progress(tmp_path) == (2, 150)


def test_damaged_training_log_is_no_zero_but_an_error(tmp_path):
    (tmp_path / "trainer_state.json").write_text('{"log_history": [')
    with pytest.raises(RunFileError, match=r"trainer_state\.json"):
        read_training_progress(tmp_path)
