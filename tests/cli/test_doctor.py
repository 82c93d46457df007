"""`fission-grpo doctor` and the warnings during training, on runs that were broken on purpose."""

import json
import math

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
    assert "no finding: loss and gradients, feedback" in shown
    assert "too few cycles to say: recoveries (needs 10), first-try success (needs 20), lengths (needs 10)" in shown


def test_a_run_that_logs_seldom_is_looked_at_cycle_by_cycle_and_goes_on_so_when_it_is_resumed(
    tmp_path, caplog, capsys
):
    flat = {"factory": Worthless, "learning_rate": 0.0, "logging_steps": 4, "fission": False, "save_strategy": "steps"}
    desk_trainer(tmp_path, max_steps=3, save_steps=3, **flat).train()
    assert "every explore rollout failed" not in caplog.text
    [state] = tmp_path.glob("checkpoint-3/trainer_state.json")
    assert json.loads(state.read_text())["log_history"] == []  # the rows per cycle are in the trainer's state
    assert main(["doctor", str(tmp_path)]) == 0
    assert "3 logged cycles" in capsys.readouterr().out
    trainer = desk_trainer(tmp_path, max_steps=6, save_steps=3, **flat)
    trainer.train(resume_from_checkpoint=True)
    assert [row["step"] for row in trainer.health.cycles] == [1, 2, 3, 4, 5, 6]
    assert "step 5: in the last 5 explore cycles (from step 1) every explore rollout failed" in caplog.text
    assert main(["doctor", str(tmp_path)]) == 1
    assert "6 logged cycles" in capsys.readouterr().out


def test_a_run_whose_loss_was_never_a_number_is_found(tmp_path, capsys):
    rows = [explore(step) | {"learning_rate": 1.0, "loss": math.nan, "grad_norm": math.nan} for step in range(6)]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": rows}))
    assert main(["doctor", str(tmp_path)]) == 1
    assert "not_finite: in the last 6 updates (from step 0)" in capsys.readouterr().out


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
    assert f"good: {count} logged cycles, {count} with explored, 0 with recovery groups\n  no finding:" in shown
    assert ("no_variance" in shown) == bool(status)


def test_a_folder_without_a_log_is_a_mistake(tmp_path, capsys):
    (tmp_path / "eval.jsonl").write_text("")
    for folder in (tmp_path, tmp_path / "nowhere"):
        assert main(["doctor", str(folder)]) == 2
    assert "no training log in it" in capsys.readouterr().err
