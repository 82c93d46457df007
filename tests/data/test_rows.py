"""Files of rows for an own environment, and what is wrong with them."""

import json

import pytest

from fission_grpo.core.errors import TaskFileError, UsageError
from fission_grpo.data.rows import load_rows, own_task, reset_columns

SOURCE = '''
class Lamp:
    def reset(self, on: bool, room="hall", **_):
        self.on = on

    def switch(self) -> str:
        """Switch it."""
        self.on = not self.on
        return str(self.on)


class Judged(Lamp):
    def get_reward(self):
        return float(self.on)


class Strict(Judged):
    def reset(self, on: bool):
        self.on = on


def is_on(environments, **_):
    return [float(one.on) for one in environments]
'''
MESSAGES = [{"role": "user", "content": "Light, please."}]
ROW = {"prompt": "Light, please.", "on": False}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_lamp.py").write_text(SOURCE)
    return tmp_path


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def load(folder, *rows, environment="Judged", rewards=()):
    path = write(folder / "rows.jsonl", *rows)
    return own_task(f"own_lamp.py:{environment}", path, [f"own_lamp.py:{one}" for one in rewards], None)


def test_a_text_as_prompt_is_one_user_message_and_the_columns_stay(folder):
    (row,) = load(folder, ROW).rows
    assert row == {"prompt": MESSAGES, "on": False}


def test_rows_are_the_same_from_every_kind_of_file(folder):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"prompt": MESSAGES, "on": True}, {"prompt": MESSAGES, "on": False}]
    write(folder / "a.jsonl", *rows)
    (folder / "b.json").write_text(json.dumps(rows, indent=1))
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "c.parquet")
    assert load_rows("a.jsonl") == load_rows("b.json") == load_rows("c.parquet") == rows
    (folder / "one.json").write_text(json.dumps(rows[0], indent=1))
    assert load_rows("one.json") == rows[:1]


def test_reward_functions_are_loaded_in_their_order(folder):
    own = load(folder, ROW, environment="Lamp", rewards=["is_on"])
    assert [one.__name__ for one in own.rewards] == ["is_on"]
    assert load(folder, ROW).rewards == []


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"on": True}, "row 1, field 'prompt': is missing"),
        ({"on": True, "prompt": ""}, "row 1, field 'prompt'"),
        ({"on": True, "prompt": [{"role": "you", "content": "x"}]}, "field 'prompt[0]'"),
        ({"on": True, "prompt": [*MESSAGES, {"role": "assistant", "content": "x"}]}, "end with the user's"),
        ({"prompt": MESSAGES}, "row 1: Judged.reset needs on"),
        ({"messages": MESSAGES, "tools": [], "reference": []}, "give such a file as --tasks"),
    ],
)
def test_a_row_that_cannot_be_used_is_named_with_its_field(folder, row, words):
    with pytest.raises(TaskFileError) as caught:
        load(folder, row)
    assert words in str(caught.value)
    assert "rows.jsonl" in str(caught.value)


def test_a_column_that_reset_does_not_take_is_named(folder):
    with pytest.raises(TaskFileError, match=r"Strict\.reset does not take prompt.*\*\*_"):
        load(folder, ROW, environment="Strict")


def test_an_environment_that_nothing_judges_is_refused_with_the_fix(folder):
    with pytest.raises(UsageError, match=r"nothing judges Lamp.*--reward module:function"):
        load(folder, ROW, environment="Lamp")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("own_lamp.py:Judged", None, [], None), "rows is missing"),
        ((None, "rows.jsonl", [], None), "environment is missing"),
        ((None, None, ["own_lamp.py:is_on"], None), "environment is missing"),
        (("own_lamp.py:Judged", "rows.jsonl", [], "desk"), "two kinds of tasks"),
        (("own_lamp.py:Judged", "nowhere.jsonl", [], None), "nowhere.jsonl"),
        (("own_lamp.py:Torch", "rows.jsonl", [], None), "it has Lamp, Judged, Strict"),
        (("own_lamp.py:Judged", "rows.jsonl", ["own_lamp.py:none"], None), "it has is_on"),
        (("own_lamp.py:Judged", "rows.jsonl", ["is_on"], None), "write module:function"),
    ],
)
def test_options_that_name_no_own_task_are_one_clear_error(folder, given, words):
    write(folder / "rows.jsonl", ROW)
    with pytest.raises((UsageError, TaskFileError)) as caught:
        own_task(*given)
    assert words in str(caught.value)


def test_no_option_of_an_own_task_is_no_own_task():
    assert own_task(None, None, [], "desk") is None


def test_of_step_tasks_reset_gets_the_columns_of_its_environment():
    step = {"messages": MESSAGES, "tools": [], "reference": []}
    first = {**step, "id": "a", "environment": "x:X", "on": 1, "following": []}
    rows = [first, {**step, "environment": "y:Y", "on": 2}]
    assert reset_columns(rows, "x:X") == [{"on": 1}]
    assert reset_columns(rows, "z:Z") == [{"on": 1}, {"on": 2}]
    assert reset_columns([{"prompt": "a", "on": 1}], "x:X") == [{"prompt": "a", "on": 1}]
