"""A resumed run is the run that was never stopped: to the last bit, whatever the options and the checkpoint."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("trl")
from peft import LoraConfig
from resume_support import COMMON, FOUR_UPDATES, as_it_was, differences, tiny_trainer
from transformers import TrainerControl, TrainerState
from trl import GRPOConfig, GRPOTrainer

from fission_grpo.inference.pretrained import load_starter
from fission_grpo.training.checkpoint import CycleEnds
from fission_grpo.training.checkpoint_files import FILE, MANIFEST, find_corruption, numbered
from fission_grpo.training.resume import find_checkpoint

"""A cycle is 4 optimizer steps: 2 micro-batches, each used twice, one a step."""

OPTIONS = {
    "several epochs, random order, logs every 2nd step": ({"max_steps": 7, "buffer_order": "random"}, {}, (3, 4)),
    "2 x 2 updates a cycle": ({**FOUR_UPDATES, "max_steps": 9, "save_steps": 3, "logging_steps": 3}, {}, (4, 8)),
    "mixed batches": (
        {"max_steps": 7, "recovery_batches": "mixed", "recovery_reward": "strict", "buffer_order": "random"},
        {},
        (3, 6),
    ),
    "mixed batches with groups of two sizes": (
        {"max_steps": 4, "recovery_batches": "mixed", "num_recovery_generations": 2, "min_buffered": 2},
        {},
        (2, 3),
    ),
    "plain GRPO": ({"max_steps": 4, "fission": False, "shared_prefix": False, "count": 4}, {}, (3,)),
    "a reference model that moves": (
        {"max_steps": 3, "logging_steps": 3, "beta": 0.1, "sync_ref_model": True, "ref_model_sync_steps": 2},
        {},
        (2,),
    ),
    "LoRA": (
        {"max_steps": 3, "logging_steps": 3},
        {"peft_config": LoraConfig(r=2, target_modules=["q_proj", "v_proj"])},
        (2,),
    ),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_resumed_run_is_the_straight_run_to_the_last_bit(tmp_path, name, caplog):
    fields, more, checkpoints = OPTIONS[name]
    straight, last = tmp_path / "straight", f"checkpoint-{fields['max_steps']}"
    tiny_trainer(straight, more, **fields).train()
    log = json.loads((straight / last / "trainer_state.json").read_text())["log_history"]
    assert any(entry.get("grad_norm") for entry in log if entry["step"] > checkpoints[0])  # something is learned
    if "per_device_train_batch_size" in fields:
        assert [path.name for path in numbered(straight)] == ["checkpoint-4", "checkpoint-8", last]
        assert caplog.text.count("within a cycle") == 1
    for step in checkpoints:
        resumed = tmp_path / f"from-{step}"
        as_it_was(straight, step, resumed)
        trainer = tiny_trainer(resumed, more, **fields)
        trainer.train(resume_from_checkpoint=True)
        assert differences(straight, resumed, last) == []
        finished = trainer.state.log_history[-1]
        assert finished["train_loss"] == trained_loss(log, fields["max_steps"])


def trained_loss(log, steps):
    """The mean loss of a run, from its log: each entry is the mean since the one before."""
    total, before = 0.0, 0
    for entry in log:
        total, before = total + entry["loss"] * (entry["step"] - before), entry["step"]
    return pytest.approx(total / steps, rel=1e-5) if before == steps else pytest.approx(total / steps, abs=1)


def test_a_damaged_checkpoint_is_skipped_with_a_warning_and_refused_by_name(tmp_path, caplog):
    run = tmp_path / "run"
    tiny_trainer(run, max_steps=3).train()
    weights = run / "checkpoint-3" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"~")
    (run / "checkpoint-2" / "trainer_state.json").unlink()
    trainer = tiny_trainer(run, max_steps=3)
    with pytest.raises(ValueError, match=r"checkpoint-3/model\.safetensors is damaged.* before it is .*checkpoint-1"):
        trainer.train(resume_from_checkpoint=str(run / "checkpoint-3"))
    assert find_checkpoint("true", run, fission=True) == run / "checkpoint-1"
    trainer.train(resume_from_checkpoint=True)
    assert "checkpoint-3/model.safetensors is damaged" in caplog.text
    assert "checkpoint-2/trainer_state.json is missing" in caplog.text
    assert trainer.state.global_step == 3
    assert [find_corruption(path) for path in numbered(run)] == [None] * 3  # 2 and 3 were written anew


def test_the_best_checkpoint_is_kept_and_loaded_from_its_place(tmp_path):
    best = {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 4, "save_total_limit": 1}
    more = {"eval_dataset": tiny_trainer(tmp_path, count=2).train_dataset, "reward_funcs": falling()}
    fields = best | {"metric_for_best_model": "reward", "load_best_model_at_end": True, "max_steps": 3}
    trainer = tiny_trainer(tmp_path, more, fission=False, shared_prefix=False, **fields)
    trainer.train()
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-1")
    assert [path.name for path in numbered(tmp_path)] == ["checkpoint-1"]  # 3 was the newest, and is not the best
    assert find_corruption(tmp_path / "checkpoint-1") is None
    state = json.loads((tmp_path / "checkpoint-1" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(tmp_path / "checkpoint-1")


def falling():
    """A reward that is lower every time it is asked for."""
    asked = iter(range(100))
    return lambda completions, **_: [-float(next(asked))] * len(completions)


def test_checkpoints_of_trl_and_of_earlier_releases_serve_plain_grpo(tmp_path, caplog):
    model, tokenizer = load_starter()
    more = {"num_recovery_generations", "feedback"}
    args = GRPOConfig(output_dir=str(tmp_path), **{k: v for k, v in COMMON.items() if k not in more}, max_steps=1)
    ours = tiny_trainer(tmp_path, max_steps=2, fission=False)
    GRPOTrainer(
        model, lambda completions, **_: [0.0] * len(completions), args, ours.train_dataset, None, tokenizer
    ).train()
    checkpoint = tmp_path / "checkpoint-1"
    assert not (checkpoint / MANIFEST).exists()
    assert find_checkpoint(True, tmp_path, fission=False) == checkpoint
    with pytest.raises(ValueError, match=r"checkpoint-1/fission_state\.json does not exist"):
        find_checkpoint(True, tmp_path, fission=True)
    (checkpoint / FILE).write_text('{"version": 2}')
    with pytest.raises(ValueError, match="is of version 2, written by an earlier release"):
        find_checkpoint(str(checkpoint), tmp_path, fission=True)
    ours.train(resume_from_checkpoint=True)
    assert ours.state.global_step == 2
    (checkpoint / FILE).write_text('{"version": 4}')
    assert find_checkpoint(True, tmp_path, fission=False) == tmp_path / "checkpoint-2"
    with pytest.raises(ValueError, match=rf"checkpoint-1/{MANIFEST} is missing"):
        find_checkpoint(str(checkpoint), tmp_path, fission=False)
    (checkpoint / FILE).unlink()
    (checkpoint / "trainer_state.json").unlink()
    with pytest.raises(ValueError, match=r"checkpoint-1/trainer_state\.json is missing"):
        find_checkpoint(str(checkpoint), tmp_path, fission=False)


def control_at(ends, step, steps=9, strategy="steps", **asked):
    """What is left of what was asked for at a step; the cycle has 4."""
    control = TrainerControl(**{f"should_{name}": True for name in asked})
    state = TrainerState(global_step=step, max_steps=steps)
    ends.on_step_end(SimpleNamespace(save_strategy=strategy), state, control)
    names = ("save", "evaluate", "training_stop", "log")
    return {name for name in names if getattr(control, f"should_{name}")}


def cycles_of_4():
    now = SimpleNamespace(step=0)
    ends = CycleEnds(lambda: now.step % 4 != 0, lambda: None)

    def at(step, *asked, **more):
        now.step = step
        return control_at(ends, step, **dict.fromkeys(asked, True), **more)

    return ends, at


def test_saves_in_mid_cycle_wait_for_its_end():
    _, at = cycles_of_4()
    assert at(1, "log", "save") == {"log"}
    assert at(2, "save", "evaluate") == set()
    assert at(3) == set()
    assert at(4) == {"save", "evaluate"}
    assert at(5, "evaluate") == {"evaluate"}  # nobody saves
    assert at(6, "evaluate", strategy="best") == set()
    assert at(7, "save", "training_stop") == set()  # a signal
    assert at(8) == {"save", "evaluate", "training_stop"}


def test_the_last_step_saves_as_asked_and_a_run_that_stops_early_saves_what_was_due():
    ends, at = cycles_of_4()
    assert at(9, "save", "training_stop") == {"save", "training_stop"}
    assert at(5, "save") == set()
    assert at(6, "training_stop") == {"training_stop"}  # the token budget: it does not wait
    control = TrainerControl(should_training_stop=True)
    ends.on_epoch_end(None, None, control)
    assert control.should_save


SIGTERM = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from resume_support import tiny_trainer
from resume_support import FOUR_UPDATES
from fission_grpo import StopAndSave
trainer = tiny_trainer(Path(sys.argv[1]), max_steps=400, save_steps=400, logging_steps=1, **FOUR_UPDATES)
with StopAndSave() as stop:
    trainer.add_callback(stop)
    trainer.train()
print("stopped by", stop.signal, "at", trainer.state.global_step)
"""


def test_sigterm_ends_the_cycle_saves_and_stops_when_the_trainer_is_used_from_python(tmp_path):
    code = SIGTERM.format(tests=str(Path(__file__).parents[1] / "support"))
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    next(line for line in process.stdout if "'loss'" in line)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=120)
    (checkpoint,) = numbered(tmp_path)
    step = int(checkpoint.name.split("-")[1])
    assert f"stopped by 15 at {step}\n" in out
    assert step % 4 == 0
    assert find_corruption(checkpoint) is None
    assert process.returncode == 0
