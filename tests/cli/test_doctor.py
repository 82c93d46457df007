"""`fission-grpo doctor` and the warnings during training, on runs that were broken on purpose."""

import json

import pytest
from trainer_support import desk_trainer, history

from fission_grpo.cli.main import main
from fission_grpo.envs.desk.env import Desk


class Worthless(Desk):
    def get_reward(self) -> float:
        return 0.0


def test_a_reward_that_is_always_zero_is_found_during_training_and_after_it(tmp_path, caplog, capsys):
    trainer = desk_trainer(tmp_path, factory=Worthless, max_steps=11, learning_rate=0.0)
    trainer.train()
    trainer.save_state()
    assert history(trainer, "fission/success") == [0.0] * 6  # and five recover cycles
    [warning] = [record.message for record in caplog.records if "every explore rollout failed" in record.message]
    assert warning.startswith(
        "step 9: in the last 5 explore cycles (from step 1) every explore rollout failed, so that"
    )
    assert "Take easier tasks, give partial reward" in warning
    assert main(["doctor", str(tmp_path)]) == 1
    shown = capsys.readouterr().out
    assert "all_failed: in the last 6 explore cycles (from step 1)" in shown
    assert "-> Take easier tasks" in shown
    assert "no finding: loss and gradients, recoveries" in shown


def test_a_threshold_that_everything_passes_is_found(tmp_path, caplog):
    desk_trainer(tmp_path, max_steps=5, failure_threshold=-1.0, learning_rate=0.0).train()
    [warning] = [record.message for record in caplog.records if "no explore rollout failed" in record.message]
    assert "raise failure_threshold" in warning
    assert "each times its weight" in warning


def explore(step):
    return {"step": step, "fission/phase": 0.0, "fission/frac_zero_std": 0.5, "fission/success": 0.5}


@pytest.mark.parametrize(("count", "status"), [(3, 0), (8, 1)])
def test_a_folder_of_runs_is_read_run_by_run(tmp_path, capsys, count, status):
    for name, change in (("good", {}), ("flat", {"fission/frac_zero_std": 1.0})):
        (tmp_path / name).mkdir()
        rows = [explore(step) | change for step in range(count)]
        (tmp_path / name / "trainer_state.json").write_text(json.dumps({"log_history": rows}))
    assert main(["doctor", str(tmp_path)]) == status
    shown = capsys.readouterr().out
    assert f"good: {count} log rows, {count} with explored, 0 with recovery groups\n  no finding: loss" in shown
    assert ("no_variance" in shown) == bool(status)


def test_a_folder_without_a_log_is_a_mistake(tmp_path, capsys):
    (tmp_path / "eval.jsonl").write_text("")
    for folder in (tmp_path, tmp_path / "nowhere"):
        assert main(["doctor", str(folder)]) == 2
    assert "no training log in it" in capsys.readouterr().err
