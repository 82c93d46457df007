"""What is shown of a run never ends it."""

import math
import sys
from types import SimpleNamespace

import pytest
from broken_streams import BrokenStream, closed_stream
from trainer_support import Desk, desk_trainer

from fission_grpo.core.errors import InfrastructureError
from fission_grpo.training.callbacks import PROGRESS_METRICS, LiveProgress, RunProgress, progress_line

METRICS = [metric for _, metric, _ in PROGRESS_METRICS]
STATE = SimpleNamespace(global_step=1, max_steps=4, is_world_process_zero=True)
ARGS = SimpleNamespace(max_generated_tokens=0)


@pytest.mark.parametrize("value", [None, math.nan, "0.5", [0.5], {}, object], ids=repr)
@pytest.mark.parametrize("metric", [*METRICS, "fission/phase"])
def test_a_value_that_is_no_number_is_left_out_of_the_progress_line(metric, value):
    line = progress_line(RunProgress(step=0, max_steps=4, seconds=0), {metric: value})
    assert line == "step 0/4"


def test_values_that_are_not_finite_are_shown():
    assert progress_line(RunProgress(step=0, max_steps=4, seconds=0), {"reward": math.inf}) == "step 0/4 · reward inf"


STREAMS = {
    "dead pipe": lambda: BrokenStream(BrokenPipeError(32, "Broken pipe"), False),
    "full disk": lambda: BrokenStream(OSError(28, "No space left on device"), False),
    "dead terminal": lambda: BrokenStream(OSError(5, "Input/output error"), True),
    "unforeseen": lambda: BrokenStream(RuntimeError("odd"), True),
    "closed": closed_stream,
    "none": lambda: None,
}


@pytest.mark.parametrize(
    "logs", [{"fission/generated_tokens": 8.0, "reward": 0.5}, {"fission/generated_tokens": None}]
)
@pytest.mark.parametrize("stream", STREAMS)
def test_progress_on_a_stream_that_cannot_be_written_raises_nothing(stream, logs, monkeypatch):
    monkeypatch.setattr(sys, "stderr", STREAMS[stream]())
    callback = LiveProgress()
    callback.on_train_begin(ARGS, STATE, None)
    for _ in range(2):
        callback.on_log(ARGS, STATE, None, logs=logs)
    callback.on_train_end(ARGS, STATE, None)


def test_an_error_while_showing_progress_is_logged_once(monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError("odd")

    monkeypatch.setattr("fission_grpo.training.callbacks.progress_line", fail)
    callback = LiveProgress()
    callback.on_train_begin(ARGS, STATE, None)
    for _ in range(3):
        callback.on_log(ARGS, STATE, None, logs={"fission/generated_tokens": 8.0})
    assert caplog.text.count("progress is not shown any more") == 1


class Down(Desk):
    """Its service is down, in the place that is given."""

    place = "reset"

    def reset(self, **row):
        if self.place == "reset":
            raise InfrastructureError("service down")
        return super().reset(**row)

    def get_reward(self):
        return {"none": None, "nan": math.nan}.get(self.place, 0.0)


@pytest.mark.parametrize("place", ["reset", "none", "nan"])
def test_a_run_in_which_no_rollout_is_judged_shows_its_progress_and_ends_well(place, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(Down, "place", place)
    trainer = desk_trainer(tmp_path, factory=Down, max_steps=2, max_completion_length=16)
    trainer.add_callback(LiveProgress())
    trainer.train()
    assert trainer.state.global_step == 2
    assert "step 2/2 · explore" in capfd.readouterr().err
