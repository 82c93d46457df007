"""The desk environment, its tasks, and the reference policy."""

import contextlib
import copy
import json
import random

import pytest

from fission_grpo.envs.desk.env import Desk, ToolError
from fission_grpo.envs.desk.tasks import (
    KINDS,
    make_rows,
    solution,
    solutions_by_request,
)
from fission_grpo.envs.wrapper import tool_methods
from fission_grpo.recipes.starter_policy.desk_demos import MIXED, SKILLED, demonstrations

HOSTILE = [
    None, True, -1, 10**5000, 1.5, float("nan"), "", " ", "\x00", "\ud800", "é" * 5000, "/etc/passwd",
    "__class__", [], [[]], {}, {"name": "x"}, "24:00", "9:5", "2026-02-30", "2026-1-1", "E0", "E99999999999", "٢٢:٣٠",
]  # fmt: skip


def desk_with(files=(), events=(), goal=None) -> Desk:
    """A desk holding unlocked files in the inbox, and events given as (id, title, date, time)."""
    scenario = {
        "files": {name: {"folder": "inbox", "locked": False, "shared": []} for name in files},
        "events": {each: {"title": title, "date": date, "time": time} for each, title, date, time in events},
        "goal": goal or {"files": {}, "events": {}},
    }
    desk = Desk()
    desk.reset(scenario=json.dumps(scenario))
    return desk


def test_eight_public_methods_are_the_tools():
    names = "add_event cancel_event delete_file move_event move_file rename_file share_file unlock_file"
    assert " ".join(sorted(tool_methods(Desk()))) == names


def test_every_task_is_solved_by_its_reference_calls_and_by_nothing_before_them():
    for row in [*make_rows(160, 0, "train"), *make_rows(160, 1, "held_out")]:
        desk = Desk()
        assert desk.reset(**row) is None
        calls = solution(row)
        assert 1 <= len(calls) <= 2
        for call in calls:
            assert desk.get_reward() == 0.0, row["id"]
            tool_methods(desk)[call.name](**call.arguments)
        assert desk.get_reward() == 1.0, row["id"]


def test_the_first_call_of_the_kinds_that_need_it_meets_an_error_and_then_the_solution_takes_at_most_three_calls():
    for row in make_rows(120, 2, "train"):
        desk = Desk()
        desk.reset(**row)
        call = solutions_by_request(row)[0][0]
        if row["kind"] in ("plain", "formats"):
            assert solution(row) == (call,)
            continue
        with pytest.raises(ToolError):
            tool_methods(desk)[call.name](**call.arguments)
        assert 1 + len(solution(row)) <= 3


def test_rows_depend_on_seed_split_and_number_only():
    assert make_rows(30, 5, "train") == make_rows(60, 5, "train")[:30]
    assert make_rows(30, 5, "train") != make_rows(30, 6, "train")
    assert {row["kind"] for row in make_rows(8, 5, "train")} == set(KINDS)
    assert len({row["id"] for row in make_rows(100, 5, "train")}) == 100


def test_the_splits_share_no_combination_of_word_and_number():
    train, held_out = (
        {each for row in make_rows(count, 0, split) for each in json.loads(row["scenario"])["combinations"]}
        for split, count in (("train", 1200), ("held_out", 400))
    )
    assert len(train) > 500
    assert len(held_out) > 100
    assert not train & held_out


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="train, held_out"):
        make_rows(1, 0, "test")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (("move_file", {"name": "plan.txt", "folder": "home"}), "no file 'plan.txt'; similar: plan_7.txt"),
        (("move_file", {"name": "plan_7.txt", "folder": "Home"}), "no folder 'Home'; folders: inbox"),
        (("move_file", {"name": "plan_7.txt", "folder": "inbox"}), "plan_7.txt is in inbox already"),
        (("share_file", {"name": "plan_7.txt", "person": "ana"}), "no contact 'ana'; contacts: Ana, Ben"),
        (("rename_file", {"name": "plan_7.txt", "new_name": "memo"}), "new_name must be a full name"),
        (("rename_file", {"name": "plan_7.txt", "new_name": "memo_1.md"}), "memo_1.md exists already"),
        (("unlock_file", {"name": "plan_7.txt"}), "plan_7.txt is not locked"),
        (("cancel_event", {"event_id": "lunch"}), "no event 'lunch'; lunch is E17"),
        (("cancel_event", {"event_id": "E5"}), "no event 'E5'; lunch is E17, exam is E20"),
        (("move_event", {"event_id": "E17", "time": "2 pm"}), "time must be 24h HH:MM, got '2 pm'"),
        (("move_event", {"event_id": "E17", "time": 1430}), "time must be 24h HH:MM, got 1430"),
        (
            ("add_event", {"title": "x", "date": "5 March 2026", "time": "10:00"}),
            "date must be YYYY-MM-DD, got '5 March",
        ),
        (("add_event", {"title": "x", "date": "2026-03-05", "time": "10:00"}), "10:00 is taken; next free 11:00"),
    ],
)
def test_errors_say_what_to_do(call, message):
    events = [("E17", "lunch", "2026-03-05", "10:00"), ("E20", "exam", "2026-03-05", "10:30")]
    desk = desk_with(["plan_7.txt", "memo_1.md"], events)
    with pytest.raises(ToolError) as caught:
        tool_methods(desk)[call[0]](**call[1])
    assert message in str(caught.value)


def test_a_locked_file_can_be_neither_moved_renamed_shared_nor_deleted_until_it_is_unlocked():
    row = next(row for row in make_rows(8, 0, "train") if row["kind"] == "locked")
    desk = Desk()
    desk.reset(**row)
    name = solutions_by_request(row)[0][0].arguments["name"]
    for call in (lambda: desk.delete_file(name), lambda: desk.share_file(name, "Ana")):
        with pytest.raises(ToolError, match="is locked; call unlock_file first"):
            call()
    desk.unlock_file(name)
    assert desk.delete_file(name) == "ok"


def test_event_ids_do_not_matter_for_the_reward():
    goal = {"files": {}, "events": {"E1": {"title": "gym", "date": "2026-01-02", "time": "09:00"}}}
    desk = desk_with(goal=goal)
    desk.add_event("lunch", "2026-01-02", "09:00")
    desk.cancel_event("E1")
    desk.add_event("walk", "2026-01-02", "10:00")
    desk.add_event("gym", "2026-01-02", "09:00")
    assert desk.get_reward() == 0.0
    desk.cancel_event("E1")
    assert desk.get_reward() == 1.0


@pytest.mark.parametrize("value", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_arguments_raise_a_tool_error_or_type_error_and_change_nothing(value):
    good = {"name": "plan_7.txt", "folder": "home", "new_name": "memo_2.md", "person": "Ana", "title": "gym",
            "date": "2026-03-05", "time": "12:00", "event_id": "E17"}  # fmt: skip
    desk = desk_with(["plan_7.txt"], [("E17", "lunch", "2026-03-05", "10:00")])
    before = desk._snapshot()
    for tool in tool_methods(desk).values():
        names = list(tool.__annotations__)[:-1]
        for bad in (name for name in names if name != "title" or not isinstance(value, str) or not value.strip()):
            arguments = {name: value if name == bad else good[name] for name in names}
            with pytest.raises((ToolError, TypeError)) as caught:
                tool(**arguments)
            assert len(str(caught.value)) < 400
            assert desk._snapshot() == before
        with pytest.raises(TypeError):
            tool(**{name: good[name] for name in names}, surprise=value)
        with pytest.raises(TypeError):
            tool()
    assert desk._snapshot() == before


def test_random_calls_never_raise_anything_else():
    rng = random.Random(0)
    for row in make_rows(24, 3, "train"):
        desk = Desk()
        desk.reset(**row)
        state = desk._snapshot()
        values = [*HOSTILE, *state["files"], *state["events"], "home", "Ana", "2026-03-05", "10:00", "new_1.txt"]
        for _ in range(30):
            tool = rng.choice(list(tool_methods(desk).values()))
            with contextlib.suppress(ToolError, TypeError):
                tool(**{name: rng.choice(values) for name in list(tool.__annotations__)[:-1]})
            assert desk.get_reward() in (0.0, 1.0)


def test_a_snapshot_is_independent_and_can_be_restored_twice():
    row = make_rows(1, 4, "train")[0]
    desk = Desk()
    desk.reset(**row)
    snapshot = desk._snapshot()
    kept = copy.deepcopy(snapshot)
    for _ in range(2):
        call = solution(row)[0]
        tool_methods(desk)[call.name](**call.arguments)
        assert desk.get_reward() == 1.0
        assert snapshot == kept
        desk._restore(snapshot)
        assert desk._snapshot() == kept
        assert desk.get_reward() == 0.0


@pytest.mark.parametrize("scenario", ["", "[]", "{}", None, 3, '{"files": {}, "events": {"x": {}}, "goal": {}}'])
def test_a_row_without_a_scenario_is_refused_by_name(scenario):
    with pytest.raises(ValueError, match="row 'r1': column 'scenario'"):
        Desk().reset(id="r1", scenario=scenario)


def test_demonstrations_repeat_and_mixed_ones_recover_seldom():
    def recovery_rate(quality):
        dialogues = demonstrations(200, 0, quality)
        erred = [d for d in dialogues if any("'error'" in message["content"] for message in d)]
        return sum(d[-1]["content"] == "Done." for d in erred) / len(erred)

    assert demonstrations(20, 3, MIXED) == demonstrations(20, 3, MIXED)
    assert recovery_rate(MIXED) < 0.3 < 0.6 < recovery_rate(SKILLED)
