"""Checkpoint state: rows packed and split again, files whole or refused."""

import json
import random

import pytest

from fission_grpo.core.serialization import generator_state, set_generator
from fission_grpo.data.deferred_rows import DeferredRows, check_columns, pack_rows, unpack_rows
from fission_grpo.feedback.sources import load_source_states, source_states
from fission_grpo.feedback.spec import make_chain
from fission_grpo.fission.algorithm import packed_snapshots
from fission_grpo.training.checkpoint import shard_for_rank
from fission_grpo.training.checkpoint_files import FILE, load_state, save_state

A, B = {"prompt": "a"}, {"prompt": "b"}


def test_packed_rows_come_back_in_order():
    rows = [A, A, B, A]
    assert pack_rows(rows) == [(A, 2), (B, 1), (A, 1)]
    assert unpack_rows(pack_rows(rows)) == rows


def test_no_more_rows_wait_than_the_data_set_has():
    waiting = DeferredRows(rows=5, batch=2)  # three batches of two rows hold them
    taken = []
    for cycle in range(9):  # every second cycle recovers
        waiting.add([{"prompt": f"{cycle}a"}, {"prompt": f"{cycle}b"}])
        if cycle % 2:
            assert waiting.skip_newest() == 2 * (cycle >= 7)  # the fourth of them would leave a fourth batch to wait
        else:
            taken += waiting.take(2)
    assert [row["prompt"] for row in taken] == ["0a", "0b", "1a", "1b", "2a", "2b", "3a", "3b", "4a", "4b"]
    assert len(waiting.rows) == 6
    assert DeferredRows(rows=None, batch=2).limit == 512


def test_single_rows_wait_where_recoveries_take_a_part_of_the_batch():
    waiting = DeferredRows(rows=4, batch=4)
    names = []
    for cycle in range(4):  # of four rows one gives way to a recovery
        waiting.add([{"prompt": f"{cycle}{i}"} for i in range(4)])
        names.append([row["prompt"] for row in waiting.take(3)])
        assert waiting.skip_newest() == 0
    assert names == [["00", "01", "02"], ["03", "10", "11"], ["12", "13", "20"], ["21", "22", "23"]]
    waiting.add([{"prompt": "x"}])
    assert waiting.skip_newest() == 1
    assert [row["prompt"] for row in waiting.rows] == ["30", "31", "32", "33"]


def test_state_is_read_back(tmp_path):
    save_state(tmp_path / "checkpoint-3", {"share": True})
    assert load_state(tmp_path / "checkpoint-3")["share"] is True
    assert [path.name for path in (tmp_path / "checkpoint-3").iterdir()] == [FILE]


def test_checkpoint_without_a_buffer_is_refused_with_a_way_out(tmp_path):
    with pytest.raises(ValueError, match=r"fission_state\.json does not exist.*train without resume_from_checkpoint"):
        load_state(tmp_path)


@pytest.mark.parametrize("text", ['{"version": 1, "buf', "[]", '{"version": 7}'])
def test_damaged_state_names_its_file(tmp_path, text):
    (tmp_path / FILE).write_text(text)
    with pytest.raises(ValueError, match=FILE):
        load_state(tmp_path)


def test_a_state_of_an_earlier_release_says_so(tmp_path):
    (tmp_path / FILE).write_text('{"version": 2, "fission": {}}')
    with pytest.raises(ValueError, match=r"fission_state\.json is of version 2, written by an earlier release"):
        load_state(tmp_path)


def test_a_generator_goes_on_where_its_state_was_taken():
    generator, other = random.Random(3), random.Random(4)
    generator.gauss(0, 1)  # leaves a second number behind
    state = json.loads(json.dumps(generator_state(generator)))
    set_generator(other, state)
    assert [other.gauss(0, 1), other.random()] == [generator.gauss(0, 1), generator.random()]


class Counting:
    """A user's diagnosis that depends on how often it was asked."""

    def __init__(self):
        self.asked = 0

    def __call__(self, failure):
        self.asked += 1
        return f"error number {self.asked}"

    def state(self):
        return {"asked": self.asked}

    def load_state(self, state):
        self.asked = state["asked"]


def test_sources_get_their_states_back_and_unknown_ones_are_named():
    asked = Counting()
    chain = make_chain([asked, "rules"])
    for _ in range(3):
        asked(None)
    saved = json.loads(json.dumps(source_states(chain)))
    fresh = Counting()
    assert load_source_states(make_chain([fresh, "rules"]), saved) == []
    assert fresh(None) == "error number 4"
    assert load_source_states(make_chain(["fixed", "rules", "none"]), saved) == ["fixed", "none"]


def test_a_source_whose_state_is_no_json_is_named():
    asked = Counting()
    asked.asked = {1, 2}
    with pytest.raises(ValueError, match=r"'Counting': state\(\) must return plain JSON"):
        source_states(make_chain(asked))


def test_only_snapshots_that_json_gives_back_are_packed():
    assert packed_snapshots({"a": {"files": [1]}, "b": (1, 2), "c": object()}) == {"a": {"files": [1]}}


def test_every_rank_takes_its_own_part_or_one_of_them():
    assert [shard_for_rank("ab", rank, 2) for rank in range(2)] == ["a", "b"]
    assert [shard_for_rank("ab", rank, 4) for rank in range(4)] == ["a", "b", "a", "b"]


def test_column_that_is_no_json_is_named_before_training():
    with pytest.raises(ValueError, match="train_dataset, task 'row 0': column 'when'"):
        check_columns([{"prompt": "a", "when": object()}])
    with pytest.raises(ValueError, match="empty"):
        check_columns([])


def test_a_column_that_reset_needs_is_missed_before_the_model_is_loaded():
    from datasets import Dataset

    class Lamp:
        def reset(self, room: str, **_): ...

    class Bare:
        def reset(self): ...

    dataset = Dataset.from_list([{"prompt": "a", "hall": "x"}])
    with pytest.raises(ValueError, match=r"'prompt' holds texts.*load_rows"):
        check_columns(dataset, Lamp)
    dataset = Dataset.from_list([{"prompt": [{"role": "user", "content": "a"}], "hall": "x"}])
    with pytest.raises(ValueError, match=r"train_dataset: Lamp\.reset needs room; add the column"):
        check_columns(dataset, Lamp)
    with pytest.raises(ValueError, match=r"Bare\.reset does not take hall, prompt"):
        check_columns(dataset, {"a": Bare})
