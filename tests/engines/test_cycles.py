"""Explore and recover cycles without a trainer; that they are the trainer's is tested in tests/contracts."""

import json
import math
from concurrent.futures import Future

import pytest

pytest.importorskip("transformers")

from engine_contract import SETTINGS, Script, episode_rows, make_cycles, run_cycle, run_cycles

from fission_grpo.feedback.sources import Diagnosis, FeedbackSource
from fission_grpo.inference.pretrained import load_starter


@pytest.fixture(scope="module")
def tokenizer():
    return load_starter()[1]


def test_a_checkpoint_goes_on_with_the_same_buffer_rows_and_snapshots(tokenizer):
    cycles, rows = make_cycles(tokenizer), episode_rows()
    for step in range(3):
        run_cycle(cycles, Script(tokenizer), rows[4 * step : 4 * step + 4], step)
    state = json.dumps(cycles.state())
    resumed = make_cycles(tokenizer)
    resumed.load_state(json.loads(state))
    assert json.dumps(resumed.state()) == state
    plans = [one.next(rows[12:16], 3)[0] for one in (cycles, resumed)]
    assert plans[0].contexts
    assert [group.row for group in plans[0].groups] == [group.row for group in plans[1].groups]
    assert resumed.fission.snapshots == cycles.fission.snapshots != {}


def test_rows_that_gave_their_place_to_recoveries_come_later(tokenizer):
    cycles, rows, script = make_cycles(tokenizer), episode_rows(), Script(tokenizer)
    explored = []
    for step in range(4):
        plan, _ = run_cycle(cycles, script, rows[4 * step : 4 * step + 4], step)
        explored += [group.row["id"] for group in plan.groups if group.context is None]
    assert explored == [row["id"] for row in rows[: len(explored)]]
    assert len(explored) + len(cycles.deferred.rows) == 16


def test_feedback_that_comes_later_is_collected_by_the_next_cycle(tokenizer):
    class Late(FeedbackSource):
        """Answers when the test lets it."""

        name, asynchronous = "late", True

        def start(self, failures):
            self.futures = [Future() for _ in failures]
            return self.futures

    source = Late()
    cycles, rows = make_cycles(tokenizer, sources=[source]), episode_rows()
    run_cycle(cycles, Script(tokenizer), rows[:4], 0)
    assert len(cycles.fission.buffer) == 0
    for future in source.futures:
        future.set_result(Diagnosis("look at the error"))
    _, metrics = cycles.next(rows[4:8], 1)
    assert metrics["fission/pushed"] == len(source.futures) > 0


def test_a_cycle_of_another_size_is_refused(tokenizer):
    with pytest.raises(ValueError, match="3 rows for a cycle of 4"):
        make_cycles(tokenizer).next(episode_rows()[:3], 0)


def test_advantages_are_each_groups_own_and_0_for_what_was_not_judged(tokenizer):
    groups = make_cycles(tokenizer).advantages([[1.0, 0.0], [0.5, 0.5, math.nan], [1.0, 1.0, 1.0, 0.0]])
    assert groups[0] == pytest.approx([0.7070, -0.7070], abs=1e-4)
    assert groups[1] == [0.0, 0.0, 0.0]
    assert groups[2] == pytest.approx([0.4999, 0.4999, 0.4999, -1.4997], abs=1e-4)


def test_plain_grpo_never_recovers(tokenizer):
    records = run_cycles(tokenizer, episode_rows(), count=3, fission=False)
    assert not any(one.contexts or one.buffer for one in records)
    assert SETTINGS["num_generations"] == len(records[0].groups[0])
