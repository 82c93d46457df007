"""Ctrl-C during a real training run, and the resume that it promises."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("trl")
CONFIG = Path(__file__).parent.parent.parent / "configs" / "desk_fission.yaml"


def test_a_run_stopped_by_ctrl_c_can_be_evaluated_and_the_printed_command_resumes_it(tmp_path):
    folder = tmp_path / "it's mine"  # a name that a shell would take apart
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    options = ["--max_steps", "6", "--per_device_train_batch_size", "16", "--output_dir", str(folder)]
    start = [sys.executable, "-m", "fission_grpo.cli"]
    process = subprocess.Popen(
        [*start, "train", "--config", str(CONFIG), *options],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("step 1/6 · explore"):
            break
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGINT
    stopped = re.search(r"stopped at step (\d) of 6, checkpoint saved\. Resume:\n  fission-grpo (.*)\n", out)
    assert stopped is not None
    assert (folder / f"checkpoint-{stopped[1]}").is_dir()

    evaluation = ["eval", "--model", str(folder), "--tasks", "desk", "--num_tasks", "2", "--output", str(tmp_path)]
    done = subprocess.run([*start, *evaluation], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    checkpoint = folder / f"checkpoint-{stopped[1]}"
    line = f"{folder} holds no finished model; its newest complete checkpoint is used: {checkpoint}"
    assert done.stderr.splitlines() == [line], "libraries are quiet"
    manifest = json.loads(next(tmp_path.glob("eval-*/manifest.json")).read_text())
    assert manifest["policy"]["step"] == int(stopped[1])

    again = subprocess.run(
        [*start, *shlex.split(stopped[2])], env=environment, capture_output=True, text=True, timeout=180, check=True
    )
    assert {line.split()[0] for line in again.stderr.splitlines()} <= {"step", f"{folder / 'fission.jsonl'}:"}
    steps = re.findall(r"^step (\d)/6", again.stderr, re.M)
    assert steps == [str(step) for step in range(int(stopped[1]) + 1, 7)]
    state = json.loads((folder / "trainer_state.json").read_text())
    assert [entry["step"] for entry in state["log_history"] if "reward" in entry] == [1, 2, 3, 4, 5, 6]
    assert f"fission-grpo report {shlex.quote(str(folder))}" in again.stdout
