"""Commands whose output nobody can read: a run ends as it would, and what only shows results ends with an error."""

import subprocess
import sys

import pytest
from broken_streams import BrokenStream, closed_stream

pytest.importorskip("trl")

from fission_grpo.cli.main import main

TRAIN = [
    *("train", "--tasks", "desk", "--model_name_or_path", "starter", "--use_cpu", "true", "--bf16", "false"),
    *("--max_steps", "1", "--report_to", "none", "--num_generations", "2", "--per_device_train_batch_size", "4"),
    *("--max_completion_length", "16", "--logging_steps", "1", "--save_strategy", "no"),
]
EVAL = ["eval", "--model", "starter", "--tasks", "desk", "--num_tasks", "2"]


STREAMS = {
    "dead pipe": lambda: BrokenStream(BrokenPipeError(32, "Broken pipe")),
    "full disk": lambda: BrokenStream(OSError(28, "No space left on device")),
    "closed": closed_stream,
    "none": lambda: None,
}


def run(words, folder, monkeypatch, out=None, error=None):
    """The exit status of a command with these streams in place of its own."""
    with monkeypatch.context() as patch:
        if out:
            patch.setattr(sys, "stdout", STREAMS[out]())
        if error:
            patch.setattr(sys, "stderr", STREAMS[error]())
        return main([*words, "--output_dir" if words is TRAIN else "--output", str(folder)])


@pytest.mark.parametrize("stream", STREAMS)
def test_training_goes_on_without_its_output_and_ends_well(stream, tmp_path, monkeypatch):
    assert run(TRAIN, tmp_path, monkeypatch, out=stream, error=stream) == 0
    assert (tmp_path / "model.safetensors").is_file()


@pytest.mark.parametrize("stream", STREAMS)
def test_an_evaluation_goes_on_without_its_progress_but_not_without_its_results(stream, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("fission_grpo.evaluation.run.SHOWN_EVERY", 0.0)
    assert run(EVAL, tmp_path, monkeypatch, error=stream) == 0
    assert run(EVAL, tmp_path, monkeypatch, out=stream) == 1
    assert "error: standard output could not be written (" in capfd.readouterr().err
    assert len((tmp_path / "eval-starter" / "cases.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(("ending", "status"), [(">/dev/full 2>&-", 1), (">&- 2>&-", 1), ("2>/dev/full", 0)])
def test_a_process_ends_with_the_status_of_its_command(ending, status):
    done = subprocess.run(["bash", "-c", f"{sys.executable} -m fission_grpo.cli --help {ending}"], check=False)
    assert done.returncode == status
