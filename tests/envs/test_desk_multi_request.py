"""Tasks of several requests at the desk, their demonstrations, and the names under which commands take them."""

import json

import pytest

from fission_grpo.envs.desk.env import Desk, ToolError
from fission_grpo.envs.desk.tasks import (
    KINDS,
    make_rows,
    requests_of,
    solution,
    solutions_by_request,
    turns_for,
)
from fission_grpo.envs.wrapper import tool_methods
from fission_grpo.evaluation.task_sets import TaskSpec, sha256_of, task_set
from fission_grpo.recipes.starter_policy.desk_demos import (
    MIXED,
    MIXED_MULTI_REQUEST,
    SKILLED,
    demonstrations,
)


def desk_of(row):
    desk = Desk()
    desk.reset(**row)
    return desk, tool_methods(desk)


@pytest.mark.parametrize("requests", [2, 3, 4])
def test_the_reference_calls_solve_every_task_and_it_takes_the_last_of_them(requests):
    for row in [*make_rows(64, 0, "train", requests), *make_rows(64, 1, "held_out", requests)]:
        desk, tools = desk_of(row)
        calls = solution(row)
        assert requests <= len(calls) < turns_for(requests)
        for call in calls:
            assert desk.get_reward() == 0.0, row["id"]
            tools[call.name](**call.arguments)
        assert desk.get_reward() == 1.0, row["id"]


def test_requests_may_be_done_in_any_order():
    for row in make_rows(128, 2, "train", 2):
        desk, tools = desk_of(row)
        for _, calls in reversed(solutions_by_request(row)):
            for call in calls:
                tools[call.name](**call.arguments)
        assert desk.get_reward() == 1.0, row["id"]


def test_what_one_request_speaks_of_no_other_has_so_that_none_is_ambiguous():
    for row in make_rows(600, 4, "train", 3):
        scenario = json.loads(row["scenario"])
        arguments = [
            [item for call in (first, *calls) for item in call.arguments.items()]
            for first, calls in solutions_by_request(row)
        ]
        words = [
            {value.split("_")[0].split(".")[0] for key, value in items if key in ("name", "new_name", "title", "date")}
            for items in arguments
        ]
        assert sum(map(len, words)) == len(set().union(*words)), row["prompt"]
        titles = [event["title"] for event in scenario["events"].values()]
        titles += [call.arguments["title"] for call in solution(row) if call.name == "add_event"]
        said = [first.arguments["event_id"] for first, _ in solutions_by_request(row) if "event_id" in first.arguments]
        assert [titles.count(title) for title in said] == [1] * len(said), row["prompt"]


def test_each_request_meets_the_error_of_its_kind_and_no_other():
    for row in make_rows(128, 3, "train", 2):
        _, tools = desk_of(row)
        for kind, (first, calls) in zip(row["kind"].split("+"), solutions_by_request(row), strict=True):
            if kind in ("plain", "formats"):
                assert calls == (first,)
            else:
                with pytest.raises(ToolError) as caught:
                    tools[first.name](**first.arguments)
                said = {
                    "names": lambda call: f"similar: {call.arguments['name']}" in str(caught.value),
                    "ids": lambda call: str(caught.value).endswith(f" is {call.arguments['event_id']}"),
                    "locked": lambda call: "call unlock_file first" in str(caught.value),
                    "conflicts": lambda call: str(caught.value).endswith(f"next free {call.arguments['time']}"),
                }
                # the file of one person is told together with another's: "the memo of Ana"
                assert said[kind](calls[0]) or " of " in row["prompt"][0]["content"], (row["id"], str(caught.value))
            for call in calls:
                tools[call.name](**call.arguments)


def test_one_message_holds_the_requests_and_the_row_tells_their_kinds_and_calls():
    rows = make_rows(256, 0, "train", 2)
    for row in rows:
        (message,) = row["prompt"]
        assert message["content"].count(". ") == 1
        assert message["content"].endswith(".")
        (first, one), (_, two) = solutions_by_request(row)
        assert (solutions_by_request(row)[0][0], solution(row)) == (first, one + two)
    assert {kind for row in rows for kind in row["kind"].split("+")} == set(KINDS)
    assert {row["kind"].split("+")[1] for row in rows if row["kind"].startswith("ids+")} == set(KINDS)


def test_rows_depend_on_seed_split_number_and_requests_only():
    assert make_rows(10, 5, "train", 2) == make_rows(20, 5, "train", 2)[:10]
    assert make_rows(10, 5, "train", 2) != make_rows(10, 6, "train", 2)
    ids = [row["id"] for requests in (1, 2, 3) for row in make_rows(20, 5, "train", requests)]
    assert len(set(ids)) == 60


def test_rows_of_one_request_are_those_there_always_were():
    """The digest was taken before chains were written; the shipped starter and its published numbers rest on it."""
    rows = [*make_rows(300, 7, "train"), *make_rows(300, 7, "held_out")]
    assert sha256_of(rows[:300]) == "d06f2ab2fe946e96104b850daf7500b2bbeca0b4dd0b36e942455bbb8408ad2c"
    assert sha256_of(rows[300:]) == "267c54cab528b594b85d68faa363171d2ec52d4e2be5e3d56059e08423c21612"
    dialogues = demonstrations(300, 5, MIXED)
    assert sha256_of(dialogues) == "98783174b34e0e034859ae2a6896e1e8f4336cc63a6ae35e94b3a8491a123d1b"


def test_the_splits_share_no_combination_neither_among_chains_nor_with_single_requests():
    def used(split, count):
        rows = [*make_rows(count, 0, split, 2), *make_rows(count, 0, split)]
        return {each for row in rows for each in json.loads(row["scenario"])["combinations"]}

    train, held_out = used("train", 600), used("held_out", 300)
    assert len(train) > 500
    assert len(held_out) > 100
    assert not train & held_out


@pytest.mark.parametrize(("tasks", "requests"), [("desk", 1), ("desk:1", 1), ("desk:4", 4), ("t.jsonl", None)])
def test_names_of_tasks_are_understood(tasks, requests):
    assert requests_of(tasks) == requests


@pytest.mark.parametrize("name", ["desk:", "desk:x", "desk:0", "desk:5", "desk:-1", "desk:2:2", "desk:²", "desk: 2"])
def test_faulty_names_are_refused_by_training_and_evaluation_with_the_form_to_write(name):
    load = pytest.importorskip("fission_grpo.data.load")
    with pytest.raises(load.UsageError, match="1 to 4, such as 'desk:2'"):
        load.load_training_data(name, None)
    with pytest.raises(ValueError, match="1 to 4, such as 'desk:2'"):
        task_set(TaskSpec(name))


@pytest.mark.parametrize(
    ("count", "split", "requests"), [(-1, "train", 2), (1, "test", 2), (1, "train", 0), (1, "train", 5)]
)
def test_rows_that_cannot_be_are_refused(count, split, requests):
    with pytest.raises(ValueError, match="must"):
        make_rows(count, 0, split, requests)


def test_training_and_evaluation_draw_from_their_own_split():
    load = pytest.importorskip("fission_grpo.data.load")
    assert load.load_training_data("desk:2", None, num_tasks=6, seed=3).rows == make_rows(6, 3, "train", 2)
    found = task_set(TaskSpec("desk:2", count=4, skip=2, seed=3))
    assert list(found.cases) == [f"held_out-2x-3-{number}" for number in range(2, 6)]
    assert (found.kind, task_set(TaskSpec("desk:1", count=1)).kind) == ("desk:2", "desk")


def test_the_limit_of_turns_fits_the_requests_unless_one_is_given():
    evaluate_options = pytest.importorskip("fission_grpo.cli.evaluate")

    def turns(*options):
        arguments = evaluate_options.eval_parser().parse_args(["--model", "starter", *options])
        return evaluate_options.make_task_spec(arguments).max_turns

    assert [turns(), turns("--tasks", "desk:2"), turns("--tasks", "desk:2", "--max_turns", "5")] == [4, 7, 5]


def test_demonstrations_do_one_request_after_the_other_and_the_better_they_are_the_more_often_both():
    assert demonstrations(20, 3, MIXED, 2) == demonstrations(20, 3, MIXED, 2)
    shares = []
    for quality in (MIXED, MIXED_MULTI_REQUEST, SKILLED):
        rewards = []
        for row, dialogue in zip(make_rows(200, 0, "train", 2), demonstrations(200, 0, quality, 2), strict=True):
            if dialogue[0] != row["prompt"][0]:
                continue  # one of those with a single request
            desk, tools = desk_of(row)
            calls = [json.loads(m["content"][12:-13]) for m in dialogue[1:-1] if m["role"] == "assistant"]
            asked = [call["name"] for call in calls]
            allowed = [{call.name for call in (first, *calls)} for first, calls in solutions_by_request(row)]
            halves = range(1, len(asked))
            assert any(set(asked[:k]) <= allowed[0] and set(asked[k:]) <= allowed[1] for k in halves), asked
            for call in calls:
                try:
                    tools[call["name"]](**call["arguments"])
                except (ToolError, TypeError):
                    continue
            rewards.append(desk.get_reward())
        assert len(rewards) == 150  # three in four
        shares.append(sum(rewards) / len(rewards))
    assert shares[0] < 0.25 < shares[1] < 0.5 < shares[2]
