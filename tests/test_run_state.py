"""Checkpoint state: rows packed and split again, files whole or refused."""

import json

import pytest

from fission_grpo.run_state import (
    FILE,
    check_batches,
    check_columns,
    load_state,
    pack_rows,
    save_state,
    split_batches,
    unpack_rows,
)

A, B = {"prompt": "a"}, {"prompt": "b"}


def test_packed_rows_come_back_in_order():
    rows = [A, A, B, A]
    assert pack_rows(rows) == [(A, 2), (B, 1), (A, 1)]
    assert unpack_rows(pack_rows(rows)) == rows


def test_displaced_batches_are_split_anew_over_another_number_of_ranks():
    # one global batch a a a b saved by 2 ranks (a a | a b), read by 1 and by 4
    saved = json.loads(json.dumps([[pack_rows([A, A])], [pack_rows([A, B])]]))
    assert unpack_rows(split_batches(saved, 0, 1)[0]) == [A, A, A, B]
    assert [unpack_rows(split_batches(saved, rank, 4)[0]) for rank in range(4)] == [[A], [A], [A], [B]]


def test_displaced_batches_must_fill_the_batches_of_the_resumed_run():
    saved = [[pack_rows([A, A])], [pack_rows([B, B])]]  # one global batch a a b b, of 2 ranks
    check_batches(saved, size=4, group_size=2)
    check_batches(saved, size=4, group_size=1)
    check_batches([[], []], size=6, group_size=3)  # nothing waits
    with pytest.raises(ValueError, match=r"batches of 4 rows .* this run has 6 .* keep this product at 4"):
        check_batches(saved, size=6, group_size=2)
    with pytest.raises(ValueError, match="num_generations = 4"):
        check_batches(saved, size=4, group_size=4)


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


def test_column_that_is_no_json_is_named_before_training():
    with pytest.raises(ValueError, match="train_dataset, task 'row 0': column 'when'"):
        check_columns([{"prompt": "a", "when": object()}])
    with pytest.raises(ValueError, match="empty"):
        check_columns([])
