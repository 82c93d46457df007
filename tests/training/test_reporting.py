"""The model card of a real trainer, and tables of recoveries."""

import json
import sys
from types import SimpleNamespace

import pytest
from trainer_support import desk_trainer
from trl import GRPOTrainer

from fission_grpo.core.types import ErrorKind, Task
from fission_grpo.fission.metrics import RecoveryOutcome
from fission_grpo.fission.recovery import CorrectiveInstance
from fission_grpo.training.reporting import COLUMNS, RecoveryTables, recovery_rows

PROMPT = (
    {"role": "user", "content": "Delete plan.txt."},
    {"role": "assistant", "content": "delete plam.txt"},
    {"role": "user", "content": "no such file"},
)


def instance(prompt=PROMPT):
    return CorrectiveInstance(Task("x", prompt), 3, ErrorKind.RAISED, "rules", "no such file", "delete plam.txt", 0.0)


def outcome(reward, text):
    return RecoveryOutcome("x", reward, reward != 1.0, text)


OUTCOMES = [outcome(0.5, "nearly"), outcome(None, "broke"), outcome(0.0, "no"), outcome(1.0, "yes")]
ROW = [4, "Delete plan.txt.", "raised", "delete plam.txt", "no such file", "0.5 - 0 1", "yes", "no"]


def test_the_model_card_names_paper_evaluations_settings_and_a_local_base_model(tmp_path):
    trainer = desk_trainer(tmp_path, beta=0.04, max_steps=1, error_pattern="^(Error|Failed)")
    trainer.train()
    trainer.create_model_card(model_name="mine")
    text = (tmp_path / "README.md").read_text()
    assert "trained with Fission-GRPO, a method introduced in [Robust Tool Use via Fission-GRPO:" in text
    assert "huggingface.co/papers/2601.15625" in text
    assert "eprint = {arXiv:2601.15625}" in text
    assert "DeepSeekMath" not in text
    assert "a fine-tuned version of `starter_policy` (a local model)." in text
    assert f'model="{tmp_path.name}"' in text
    assert "None](" not in text
    assert '"None"' not in text
    for line in (
        "| num_recovery_generations | 8 |",
        "| beta | 0.04 |",
        "| feedback | rules |",
        "| environment | Desk |",
        r"| error_pattern | ^(Error\|Failed) |",
        "- fission-grpo",
    ):
        assert line in text.splitlines()
    assert text.index("## Evaluation") < text.index("## Settings") < text.index("## Quick start")
    assert "None yet." in text


def test_the_model_card_of_an_adapter_stays_when_the_adapter_is_saved(tmp_path):
    peft = pytest.importorskip("peft")
    trainer = desk_trainer(tmp_path, max_steps=1, more={"peft_config": peft.LoraConfig(target_modules="all-linear")})
    trainer.create_model_card(model_name="mine")
    trainer.save_model()
    assert (tmp_path / "adapter_model.safetensors").is_file()
    assert "2601.15625" in (tmp_path / "README.md").read_text()


def test_the_model_card_of_plain_grpo_cites_what_trl_cites(tmp_path):
    desk_trainer(tmp_path, fission=False, num_recovery_generations=None).create_model_card(model_name="mine")
    text = (tmp_path / "README.md").read_text()
    assert f"This model was trained with {GRPOTrainer._name}, a method introduced in" in text
    assert GRPOTrainer._paper["id"] in text
    assert "2601.15625" not in text
    assert "- grpo" in text.splitlines()
    for absent in ("- fission-grpo", "| recovery", "recovery_generations", "failure_threshold", "| feedback"):
        assert absent not in text


def test_a_table_has_one_row_for_each_failure_with_its_best_and_worst_recovery():
    assert recovery_rows([instance()], OUTCOMES, step=4) == [ROW]
    assert len(COLUMNS) == len(ROW)
    [row] = recovery_rows([instance("as one text")], OUTCOMES[1:2], step=4)
    assert row[1:2] + row[5:] == ["as one text", "-", "", ""]


def test_tables_are_logged_at_the_first_and_every_nth_recover_cycle(monkeypatch):
    """With a stand-in, as the test environment has neither package; the real ones are in the test below."""
    logged = []
    table = lambda columns, data: (columns, data)  # noqa: E731
    for name, run in (("trackio", None), ("wandb", None)):
        backend = SimpleNamespace(Table=table, log=lambda values, name=name: logged.append((name, values)), run=run)
        monkeypatch.setitem(sys.modules, name, backend)
    tables = RecoveryTables(2, ["trackio", "wandb"])  # without a run, W&B takes no values
    for step in range(4):
        tables.log([instance()], OUTCOMES, step)
    assert [(name, values["recoveries"][1][0][0]) for name, values in logged] == [("trackio", 0), ("trackio", 2)]
    assert logged[0][1]["recoveries"][0] == list(COLUMNS)
    RecoveryTables(0, ["trackio"]).log([instance()], OUTCOMES, 4)
    assert len(logged) == 2


def test_wandb_takes_the_table(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    with wandb.init(project="test"):
        RecoveryTables(1, ["wandb"]).log([instance()], OUTCOMES, 4)
    [file] = tmp_path.rglob("*.table.json")
    assert "Delete plan.txt." in file.read_text()


def test_a_run_that_ends_by_its_tokens_leaves_a_checkpoint_and_a_card_of_its_end(tmp_path, monkeypatch):
    from fission_grpo.cli.main import main

    monkeypatch.chdir(tmp_path)
    command = "train --tasks desk --num_tasks 8 --model_name_or_path starter --output_dir run --report_to none"
    command += " --max_steps 50 --max_generated_tokens 300 --per_device_train_batch_size 8 --max_completion_length 32"
    assert main(command.split()) == 0
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    assert 0 < state["global_step"] < 50
    assert (tmp_path / "run" / f"checkpoint-{state['global_step']}").is_dir()
    assert f"{state['global_step']} steps" in (tmp_path / "run" / "README.md").read_text()
