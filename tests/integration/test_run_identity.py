"""A folder holds one run: a finished one is not trained on, another one is not taken for it, and two do not mix."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("trl")
from peft import LoraConfig
from processes_support import launched
from resume_support import FOUR_UPDATES, as_it_was, differences, tiny_trainer, without_times
from transformers import TrainerCallback

from fission_grpo.cli.train import train_command
from fission_grpo.core.errors import CheckpointError, RunDirectoryError, UsageError
from fission_grpo.report.run import read_run
from fission_grpo.training.checkpoint_files import FILE, MANIFEST, numbered
from fission_grpo.training.run_folder import LOCK, RUN, lock_run, run_of

PLAIN = {"fission": False, "shared_prefix": False}
LORA = {"peft_config": LoraConfig(r=2, target_modules=["q_proj", "v_proj"])}
FINISHED = {
    "LoRA, part of an epoch": ({"num_train_epochs": 0.5, "count": 8}, LORA),
    "end within a cycle": ({"max_steps": 3, **FOUR_UPDATES}, {}),
    "tokens": ({"max_steps": 9, "max_generated_tokens": 150}, {}),
    "plain GRPO, saved by epoch": ({"num_train_epochs": 1, "count": 4, "save_strategy": "epoch", **PLAIN}, {}),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run with one checkpoint."""
    folder = tmp_path_factory.mktemp("saved") / "run"
    tiny_trainer(folder, max_steps=1).train()
    return folder


def finish(trainer):
    trainer.save_model()
    trainer.save_state()
    return trainer


def files(run):
    """What a run leaves beside its checkpoints, but times."""
    found = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file() and path.name != LOCK}
    for name in ("training_args.bin", "README.md"):  # they hold the folder's name
        found.pop(name, None)
    state = without_times(json.loads(found.pop("trainer_state.json")))
    return found | {f"trainer_state.json: {key}": value for key, value in state.items() if "best" not in key}


@pytest.mark.parametrize("name", FINISHED)
def test_a_finished_run_that_is_resumed_stays_as_it_is(tmp_path, name):
    fields, more = FINISHED[name]
    straight = tmp_path / "straight"
    trainer = finish(tiny_trainer(straight, more, **fields))  # saved before training: an older model is replaced
    trainer.train()
    finish(trainer)
    last = numbered(straight)[-1]
    for place in ("killed", "again"):
        resumed = tmp_path / place
        as_it_was(straight, trainer.state.global_step, resumed)
        for path in resumed.iterdir():
            if path.is_file() and path.name not in ("fission.jsonl", RUN):
                path.unlink()  # the kill came before the final save
        other = tiny_trainer(resumed, more, **fields)
        other.train(resume_from_checkpoint=True if place == "killed" else str(resumed / last.name))
        finish(other)
        assert other.was_finished
        assert other.state.global_step == trainer.state.global_step
        assert differences(straight, resumed, last.name) == []
        found, wanted = files(resumed), files(straight)
        assert found.keys() == wanted.keys()
        assert [key for key in found if found[key] != wanted[key]] == []
        assert [path.name for path in numbered(resumed)] == [path.name for path in numbered(straight)]


def test_a_finished_run_goes_on_if_it_gets_more_steps(tmp_path):
    straight, run = tmp_path / "straight", tmp_path / "run"
    constant = {"lr_scheduler_type": "constant"}
    tiny_trainer(straight, max_steps=2, **constant).train()
    trainer = tiny_trainer(run, max_steps=1, **constant)
    trainer.train()
    trainer.args.max_steps = 2  # in the same process, as a notebook does
    trainer.train(resume_from_checkpoint=True)
    assert (trainer.was_finished, trainer.state.global_step) == (False, 2)
    assert differences(straight, run, "checkpoint-2") == []


def test_a_new_run_sets_the_checkpoints_of_an_earlier_one_aside(saved, tmp_path, caplog):
    run = shutil.copytree(saved, tmp_path / "run")
    (run / "trainer_state.json").write_text("{}")
    first = run_of(run / RUN)
    tiny_trainer(run, max_steps=1, seed=7).train()
    assert [path.name for path in numbered(run)] == ["checkpoint-1"]
    aside = sorted(path.name for path in (run / "_earlier-1").iterdir())
    assert aside == ["checkpoint-1", "fission.jsonl", "trainer_state.json"]
    assert re.search("moved to _earlier-1, as this run begins anew; delete that folder", caplog.text)
    (run / "_earlier-1" / "trainer_state.json").unlink()
    assert read_run(run / "_earlier-1").instances  # it can still be reported
    states = [json.loads((one / "checkpoint-1" / FILE).read_text()) for one in (run / "_earlier-1", run)]
    assert states[0]["run"] == first != states[1]["run"] == run_of(run / RUN)
    trainer = tiny_trainer(run, max_steps=2, seed=7)
    trainer.train(resume_from_checkpoint=True)
    assert [entry["step"] for entry in trainer.state.log_history if "reward" in entry] == [2]


def test_true_takes_only_checkpoints_of_the_run_and_a_named_one_of_another_is_warned_of(saved, tmp_path, caplog):
    one, other = shutil.copytree(saved, tmp_path / "one"), tmp_path / "other"
    tiny_trainer(other, max_steps=2, seed=7).train()
    shutil.copytree(other / "checkpoint-2", one / "checkpoint-2")
    trainer = tiny_trainer(one, max_steps=1)
    trainer.train(resume_from_checkpoint=True)
    assert "checkpoint-2 was saved by another run" in caplog.text
    assert trainer.state.global_step == 1
    assert [path.name for path in numbered(one)] == ["checkpoint-1"]
    assert (one / "_earlier-1" / "checkpoint-2").is_dir()
    caplog.clear()
    trainer = tiny_trainer(one, max_steps=2, seed=7)
    trainer.train(resume_from_checkpoint=str(other / "checkpoint-2"))
    assert re.search(r"checkpoint-2 was saved by another run \(\w+\) than that in", caplog.text)
    assert sorted(path.name for path in (one / "_earlier-2").iterdir()) == ["checkpoint-1", "fission.jsonl"]
    assert numbered(one) == []  # else the next resume might take the other run's
    assert run_of(one / RUN) == run_of(other / RUN)


class Killed(TrainerCallback):
    """Ends the process, as far as a test can, at an event."""

    def __init__(self, event):
        setattr(self, event, self._end)

    def _end(self, *_, **__):
        raise KeyboardInterrupt


def test_a_start_that_is_killed_before_training_leaves_the_earlier_run_as_it_was(saved, tmp_path):
    run = shutil.copytree(saved, tmp_path / "run")
    before = {path.relative_to(run): path.read_bytes() for path in run.rglob("*") if path.is_file()}
    trainer = tiny_trainer(run, max_steps=2, seed=7)
    trainer.add_callback(Killed("on_train_begin"))
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert {path.relative_to(run): path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_trainer_that_trains_twice_has_two_runs(tmp_path):
    trainer = tiny_trainer(tmp_path, max_steps=1, max_generated_tokens=900, failure_threshold=9.0)
    for _ in range(2):
        trainer.train()
        assert (trainer._step, trainer.generated_tokens) == (1, pytest.approx(170, abs=60))
    for run in (tmp_path / "_earlier-1", tmp_path):
        events = [json.loads(line) for line in (run / "fission.jsonl").read_text().splitlines()]
        assert [event["event"] for event in events].count("tools") == 1
        assert {event["step"] for event in events if "step" in event} == {0}
    assert [path.name for path in numbered(tmp_path)] == ["checkpoint-1"]


def test_the_best_checkpoint_of_a_run_whose_folder_was_moved_is_still_loaded_at_the_end(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    best = {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 4, "load_best_model_at_end": True}
    best |= {"metric_for_best_model": "reward", "learning_rate": 1e-2}
    asked = iter(range(100))
    more = {"reward_funcs": lambda completions, **_: [-float(next(asked))] * len(completions)}  # step 1 is the best
    more["eval_dataset"] = tiny_trainer(tmp_path, count=2).train_dataset
    tiny_trainer(first, more, max_steps=2, **PLAIN, **best).train()
    first.rename(second)
    trainer = tiny_trainer(second, more, max_steps=2, **PLAIN, **best)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.best_model_checkpoint == str(second / "checkpoint-1")
    trainer.save_model()
    weights = [(folder / "model.safetensors").read_bytes() for folder in (second, second / "checkpoint-1")]
    assert weights[0] == weights[1] != (second / "checkpoint-2" / "model.safetensors").read_bytes()


def test_checkpoints_of_an_earlier_release_have_no_run_and_are_taken(saved, tmp_path):
    run = shutil.copytree(saved, tmp_path / "run")
    (run / RUN).unlink()
    manifest = json.loads((run / "checkpoint-1" / MANIFEST).read_text())
    del manifest["run"]
    (run / "checkpoint-1" / MANIFEST).write_text(json.dumps(manifest))
    trainer = tiny_trainer(run, max_steps=1)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 1
    assert [path.name for path in numbered(run)] == ["checkpoint-1"]


HOLDER = """
import sys, time
from pathlib import Path
from fission_grpo.training.run_folder import lock_run
with lock_run(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that has the lock of `tmp_path / "run"`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_training_into_a_folder_is_refused_until_the_first_one_ends(tmp_path, holder, capsys):
    run = tmp_path / "run"
    half = run / ".saving" / "checkpoint-1"
    half.mkdir(parents=True)  # what the first one is writing
    trainer = tiny_trainer(run, max_steps=1)
    said = rf"run is in use by another training run \(process {holder.pid} on .+, since 20.+\). Wait until it ends"
    with pytest.raises(RunDirectoryError, match=said):
        trainer.train()
    with pytest.raises(RunDirectoryError, match=said):
        trainer.save_model()
    command = "--tasks desk --model_name_or_path starter --use_cpu true --bf16 false --report_to none --max_steps 1"
    for resume in ("none", "true"):
        status = train_command([*command.split(), "--output_dir", str(run), "--resume_from_checkpoint", resume])
        [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert (status, f"process {holder.pid} on " in line) == (1, True)
    assert half.is_dir()
    assert sorted(path.name for path in run.iterdir()) == [".saving", LOCK]
    link = tmp_path / "link"
    link.symlink_to(run)
    with pytest.raises(RunDirectoryError, match="is in use"), lock_run(link):
        pass
    holder.kill()  # without giving the lock back
    holder.wait()
    trainer = tiny_trainer(run, max_steps=1)
    trainer.train()
    assert trainer.state.global_step == 1


def test_a_tool_that_changes_the_working_directory_moves_nothing(tmp_path, monkeypatch):
    from fission_grpo.envs.desk.env import Desk

    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)

    def reset(self, **row):
        os.chdir(tmp_path / "elsewhere")
        return Desk.reset(self, **row)

    trainer = tiny_trainer(Path("runs/mine"), max_steps=2, factory=type("Desk", (Desk,), {"reset": reset}))
    finish(trainer).train()
    finish(trainer)
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert {"checkpoint-1", "checkpoint-2", "fission.jsonl", "model.safetensors", "trainer_state.json"} <= {
        path.name for path in (tmp_path / "runs" / "mine").iterdir()
    }


@pytest.mark.parametrize(
    ("fields", "more", "said"),
    [
        ({"seed": 7}, {}, ["seed: 42 -> 7"]),
        ({"num_generations": 2}, {}, ["num_generations: 4 -> 2"]),
        ({"num_recovery_generations": 2}, {}, ["num_recovery_generations: 4 -> 2"]),
        (
            {"temperature": 0.5, "learning_rate": 1e-3},
            {},
            ["learning_rate: 0.0001 -> 0.001", "temperature: 1.0 -> 0.5"],
        ),
        ({"count": 8}, {}, ['train_dataset: "6 rows, \\w+" -> "8 rows, \\w+"']),
        ({}, {"feedback": "rules"}, ["feedback: .*shuffled:environment.* -> "]),
        ({}, {"reward_funcs": lambda completions, **_: [0.0] * len(completions)}, ["reward_funcs: .*varied.* -> "]),
        ({"per_device_train_batch_size": 4}, {}, ["generation_batch_size: 8 -> 4", "rows_per_update: 8 -> 4"]),
    ],
)
def test_a_resume_under_other_settings_names_them(saved, tmp_path, caplog, fields, more, said):
    run = shutil.copytree(saved, tmp_path / "run")
    trainer = tiny_trainer(run, more, **{"max_steps": 1, **fields})
    trainer.train(resume_from_checkpoint=True)
    for words in said:
        assert re.search(f"saved under other settings, .*{words}", caplog.text), caplog.text
    assert caplog.text.count("under other settings") == 1


def test_what_may_change_on_a_resume_is_not_warned_of(saved, tmp_path, caplog):
    run = shutil.copytree(saved, tmp_path / "run")
    free = {"max_steps": 1, "num_train_epochs": 9, "logging_steps": 1, "save_total_limit": 3, "run_name": "x"}
    tiny_trainer(run, **free).train(resume_from_checkpoint=True)
    tiny_trainer(run, **free, **FOUR_UPDATES | {"num_iterations": 1, "gradient_accumulation_steps": 2}).train(
        resume_from_checkpoint=True
    )
    assert "under other" not in caplog.text


def test_other_versions_are_named(saved, tmp_path, caplog):
    run = shutil.copytree(saved, tmp_path / "run")
    path = run / "checkpoint-1" / MANIFEST
    path.write_text(path.read_text().replace('"trl": "', '"trl": "0.9+'))
    tiny_trainer(run, max_steps=1).train(resume_from_checkpoint=True)
    assert re.search(r"saved under other versions: trl: 0\.9\+[\d.]+ -> [\d.]+$", caplog.text, re.M)


@pytest.mark.parametrize(
    ("fields", "more", "said"),
    [
        ({"optim": "sgd"}, {}, "holds the state of the optimizer adamw_torch.*, which sgd cannot read; set optim to"),
        ({"optim": "adafactor"}, {}, "which adafactor cannot read"),
        ({}, LORA, "checkpoint-1 cannot be resumed from"),
    ],
)
def test_a_checkpoint_that_cannot_fit_is_refused_in_one_line_and_nothing_is_moved(saved, tmp_path, fields, more, said):
    run = shutil.copytree(saved, tmp_path / "run")
    shutil.copytree(run / "checkpoint-1", run / "checkpoint-9")
    trainer = tiny_trainer(run, more, max_steps=2, **fields)
    with pytest.raises(CheckpointError, match=said):
        trainer.train(resume_from_checkpoint=str(run / "checkpoint-1"))
    assert [path.name for path in numbered(run)] == ["checkpoint-1", "checkpoint-9"]


def test_two_ranks_hold_one_run_and_raise_what_the_first_one_finds(tmp_path):
    with lock_run(tmp_path / "locked"):
        launched(2, "run_on_ranks.py", tmp_path, timeout=120)
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert re.fullmatch(r"\(True, 1, '[0-9a-f]{8}'\)", first["finished"])
    assert "is in use by another training run (process" in first["locked"]
    assert first["locked"].startswith("RunDirectoryError: ")
    assert first["missing"].startswith("CheckpointError: no checkpoint-* in ")
    assert first["few"].startswith("ValueError: train_dataset has 1 rows, but a generation batch of this run takes 2 ")
    assert list((tmp_path / "locked").iterdir()) == []


def test_a_data_set_of_exactly_one_generation_batch_is_trained_on(tmp_path):
    tiny_trainer(tmp_path / "two", count=2, max_steps=1).train()
    with pytest.raises(ValueError, match=r"1 rows, but .* takes 2 \(generation_batch_size 8 = .*num_generations 4\)"):
        tiny_trainer(tmp_path / "one", count=1, max_steps=1)
    with pytest.raises(ValueError, match="1 rows"):
        tiny_trainer(tmp_path / "plain", count=1, max_steps=1, **PLAIN)


def test_a_training_without_a_step_is_an_error(tmp_path):
    trainer = tiny_trainer(tmp_path, count=2, num_train_epochs=0)
    with pytest.raises(UsageError, match="training ended without a step"):
        trainer.train()
