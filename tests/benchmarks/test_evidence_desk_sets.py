"""The desk's evaluation sets of issue 8: solvable, as strange as they say, and paired by task."""

import json
import re
import sys
from pathlib import Path

import pytest

from fission_grpo.core.chat import render_call
from fission_grpo.core.errors import InfrastructureError
from fission_grpo.core.types import ToolCall
from fission_grpo.envs.desk.env import CONTACTS, FOLDERS, Desk
from fission_grpo.envs.desk.tasks import make_rows, solution, solutions_by_request
from fission_grpo.envs.restore import make_call
from fission_grpo.envs.wrapper import tool_methods
from fission_grpo.evaluation.metrics import compute_metrics
from fission_grpo.evaluation.task_sets import TaskSpec, task_set
from fission_grpo.feedback.sources import FIXED_TEXT
from fission_grpo.inference.base import Reply

FOLDER = Path(__file__).parent.parent.parent / "benchmarks" / "evidence"
sys.path.insert(0, str(FOLDER))
from desk_sets import ERRORS, SETS, TRANSFER, categories, desk_plays, world  # noqa: E402
from desk_worlds import POOR_TEXT, WORDINGS, other_words, unfamiliar  # noqa: E402

COUNT, SEED = 64, 3
ROWS = make_rows(COUNT, SEED, "held_out")
NO_FAULTS = [name for name in SETS if "faults" not in name]


def played(name, write, count=COUNT):
    """Records of a set by task id; `write(row, dialogue)` gives the calls of the next turn, [] to end."""
    records = {}
    rows = make_rows(count, SEED, "held_out")
    for row, begin in zip(rows, desk_plays(name, count, SEED).values(), strict=True):
        play = begin()
        request = next(play)
        while row["id"] not in records:
            calls = write(row, request.messages)
            try:
                request = play.send(Reply("\n".join(map(render_call, calls)) or "Done."))
            except StopIteration as end:
                records[end.value.id] = end.value
    return records


def translated(name, calls):
    return [unfamiliar(call) for call in calls] if name == "unseen_tools" else list(calls)


def replies(dialogue):
    return sum(message["role"] == "assistant" for message in dialogue)


def wrong_first(row, dialogue):
    """What the request alone suggests; if that is not all of it, then the solution."""
    then = [] if solution(row) == (solutions_by_request(row)[0][0],) else list(solution(row))
    return ([solutions_by_request(row)[0][0]], then, [])[min(replies(dialogue), 2)]


def results(dialogue):
    return [message["content"] for message in dialogue if message["role"] == "tool"]


@pytest.mark.parametrize("name", NO_FAULTS)
def test_every_task_of_a_set_is_solved_by_its_reference_calls(name):
    records = played(name, lambda row, dialogue: [] if results(dialogue) else translated(name, solution(row)))
    assert len(records) == COUNT
    assert all(record.success for record in records.values())
    assert all(call.error is None for record in records.values() for call in record.calls)


@pytest.mark.parametrize("name", ["held_out", "other_texts", "poor_texts", "better_errors", "no_errors"])
def test_what_a_policy_gets_wrong_at_first_is_its_own_error_in_every_wording(name):
    rates = compute_metrics(list(played(name, wrong_first).values()))
    half = sum(row["kind"] not in ("plain", "formats") for row in ROWS)
    assert (rates.recovery.of, rates.injected_errors, rates.missing) == (half, 0, 0)
    assert rates.success.hits == COUNT  # and the solution after it still does


def test_the_sets_are_the_same_tasks_in_the_same_order():
    official = list(task_set(TaskSpec(tasks="desk", count=COUNT, seed=SEED)).cases)
    assert all(list(desk_plays(name, COUNT, SEED)) == official for name in SETS)
    kinds = [record.category for record in played("unseen_tools", lambda row, dialogue: []).values()]
    assert kinds == categories(COUNT, SEED) == [row["kind"] for row in ROWS]
    assert (*TRANSFER, *ERRORS) == SETS


def test_an_unknown_set_is_refused_with_the_names_there_are():
    with pytest.raises(ValueError, match=r"no set 'unseen' of desk tasks; there are held_out, unseen_tools"):
        desk_plays("unseen", 1, 0)


def test_unseen_tools_have_other_names_in_schemas_and_the_old_names_are_gone():
    names = "add_event drop_event move_event move_file remove_file rename_file share_file unlock_file"
    desk = world("unseen_tools", 0)()
    assert " ".join(sorted(tool_methods(desk))) == names
    play = desk_plays("unseen_tools", 1, SEED)
    request = next(next(iter(play.values()))())
    shown = {tool["name"]: list(tool["parameters"]["properties"]) for tool in request.tools}
    assert (shown["share_file"], shown["remove_file"]) == (["name", "contact"], ["name"])
    assert make_call(tool_methods(desk), ToolCall("delete_file", {"name": "a"})).error == "Tool delete_file not found."


def every_message():
    """All that the desk can say of a wrong call, by making one of each."""
    files = {
        name: {"folder": "work", "locked": name == "memo_1.md", "shared": ["Ana"]}
        for name in ("plan_7.txt", "memo_1.md")
    }
    events = {f"E{n}": {"title": "walk", "date": "2026-01-02", "time": f"{n}:30"} for n in (18, 19)}
    desk = Desk()
    desk.reset(scenario=json.dumps({"files": files, "events": events, "goal": {"files": {}, "events": {}}}))
    plan, day = {"name": "plan_7.txt"}, {"title": "gym", "date": "2026-01-02"}
    calls = [
        ("move_file", {"name": "plan.txt", "folder": "home"}),
        ("move_file", {"name": "zebra", "folder": "home"}),
        ("move_file", {"name": "memo_1.md", "folder": "home"}),
        ("move_file", {**plan, "folder": "Home"}),
        ("move_file", {**plan, "folder": "work"}),
        ("rename_file", {**plan, "new_name": "memo"}),
        ("rename_file", {**plan, "new_name": "memo_1.md"}),
        ("share_file", {**plan, "person": "ana"}),
        ("share_file", {**plan, "person": "Ana"}),
        ("unlock_file", plan),
        ("add_event", {**day, "title": "", "time": "10:00"}),
        ("add_event", {**day, "date": "Friday", "time": "10:00"}),
        ("add_event", {**day, "time": "3 pm"}),
        ("add_event", {**day, "time": "18:30"}),
        ("add_event", {**day, "time": "19:30"}),
        ("cancel_event", {"event_id": "the walk"}),
        ("move_file", plan),
        ("delete_file", {"file": "plan_7.txt"}),
        ("delete_file", {**plan, "self": 1}),
    ]
    said = [make_call(tool_methods(desk), ToolCall(*call)).error for call in calls]
    make_call(tool_methods(desk), ToolCall("cancel_event", {"event_id": "E18"}))
    make_call(tool_methods(desk), ToolCall("cancel_event", {"event_id": "E19"}))
    return [*said, make_call(tool_methods(desk), ToolCall("cancel_event", {"event_id": "E1"})).error]


def test_every_message_of_the_desk_has_one_other_wording_with_the_same_names_and_values():
    said = every_message()
    matched = [[pattern for pattern in WORDINGS if re.fullmatch(pattern, text, re.DOTALL)] for text in said]
    assert [len(one) for one in matched] == [1] * len(said)
    assert {one for (one,) in matched} == set(WORDINGS)
    source = Path(sys.modules[Desk.__module__].__file__ or "").read_text()
    assert source.count("raise ToolError(") == 15  # a new one needs a wording, and a call above
    for text in said:
        facts = set(re.findall(r"E\d+|\d\d:\d\d|\w+_\d+\.\w+|'[^']*'|YYYY-MM-DD|HH:MM|24h", text))
        words = text.replace("is shared with", "")  # which is no folder
        facts |= {*FOLDERS, *CONTACTS, "unlock_file"} & set(re.findall(r"\w+", words))
        new = other_words(text)
        assert new != text
        assert facts
        assert [fact for fact in facts if fact not in new] == [], (text, new)


def test_worded_otherwise_by_hand():
    assert other_words("no file 'budget.txt'; similar: budget_7.txt") == (
        "cannot find 'budget.txt'; did you mean budget_7.txt?"
    )
    assert (
        other_words("no event 'lunch'; gym is E3, lunch is E12") == "cannot find 'lunch' among E3 (gym), E12 (lunch)"
    )
    assert other_words("11:30 is taken; next free 13:00") == "there is no room at 11:30, but at 13:00 there is"


def test_a_message_without_other_wording_makes_the_case_missing_instead_of_using_the_old_words():
    with pytest.raises(InfrastructureError, match="no other wording for 'no way'"):
        other_words("no way")


@pytest.mark.parametrize(
    ("name", "text"), [("poor_texts", POOR_TEXT), ("fixed_errors", FIXED_TEXT), ("no_errors", "ToolError")]
)
def test_errors_that_do_not_help_say_the_same_of_every_error(name, text):
    records = played(name, lambda row, dialogue: wrong_first(row, dialogue) or [ToolCall("move_file", {})])
    shown = {call.result for record in records.values() for call in record.calls if call.error is not None}
    assert shown == {str({"error": text})}


def told(name, calls):
    """What the results say after one turn of `calls` in the first "names" task: as shown, and as recorded."""
    seen = []

    def write(row, dialogue):
        if row["id"] == "held_out-3-1" and results(dialogue):
            seen.extend(results(dialogue))
        return [] if results(dialogue) else calls

    record = played(name, write, 2)["held_out-3-1"]
    return seen, [call.result for call in record.calls]


def test_better_errors_add_what_rules_know_beyond_the_message_as_a_recovery_prompt_does():
    seen, recorded = told("better_errors", [ToolCall("move_file", {"name": 7, "folder": "home"})])
    assert seen == recorded
    message, diagnosis = seen[0].split("\n")
    assert message == str({"error": "no file 7; similar: none"})
    assert diagnosis == "error: `name` must be a string, got 7"
    raised, _ = told("better_errors", [ToolCall("move_file", {"name": "zebra", "folder": "home"})])
    assert raised == [str({"error": "no file 'zebra'; similar: none"})]  # the message says all that Fission would


def test_of_several_failing_calls_the_first_is_diagnosed_and_earlier_turns_keep_what_was_shown():
    bad = ToolCall("unlock_file", {"name": "zebra"})
    seen, recorded = told("fixed_behind", [bad, bad])
    plain = str({"error": "no file 'zebra'; similar: none"})
    assert seen == recorded == [f"{plain}\n{FIXED_TEXT}", plain]
    dialogues = []

    def write(row, dialogue):
        dialogues.append(results(dialogue))
        return [bad] if replies(dialogue) < 2 else []

    played("fixed_behind", write, 1)
    assert dialogues == [[], [f"{plain}\n{FIXED_TEXT}"], [f"{plain}\n{FIXED_TEXT}"] * 2]


def test_reference_errors_name_the_argument_that_is_off_and_never_its_value():
    shown = {}

    def write(row, dialogue):
        if results(dialogue):
            shown[row["id"]] = results(dialogue)[0]
        return [] if results(dialogue) else [solutions_by_request(row)[0][0]]

    played("reference_errors", write)
    texts = {row["id"]: shown[row["id"]].partition("\n")[2] for row in ROWS}
    for row in ROWS:
        if row["kind"] == "names":
            given = solutions_by_request(row)[0][0].arguments["name"]
            assert f"`name` is not right, got '{given}'" in texts[row["id"]].replace('"', "'")
        if row["kind"] == "locked":
            assert texts[row["id"]] == "error: at least one more tool call is needed"
        if row["kind"] in ("names", "ids", "conflicts"):
            new = set(solution(row)[0].arguments.values()) - set(solutions_by_request(row)[0][0].arguments.values())
            assert not any(str(value) in texts[row["id"]] for value in new)
        if row["kind"] in ("plain", "formats"):
            assert texts[row["id"]] == ""


@pytest.mark.parametrize("name", ["better_errors", "reference_errors"])
def test_replies_that_cannot_be_read_keep_their_own_answer_and_count(name):
    play = desk_plays(name, 1, SEED)["held_out-3-0"]()
    next(play)
    request = play.send(Reply("<tool_call>{</tool_call>"))
    (answer,) = results(request.messages)
    assert answer.startswith("{'error': ")
    assert "\n" not in answer
    with pytest.raises(StopIteration) as end:
        play.send(Reply("Sorry."))
    assert compute_metrics([end.value.value]).own_errors == 1


def test_transient_faults_hit_a_seventh_of_the_calls_are_injected_and_are_worked_past_by_calling_again():
    def again(row, dialogue):
        """The solution, one call a turn; one that failed is made again."""
        done = sum("error" not in one for one in results(dialogue))
        return list(solution(row))[done : done + 1]

    records = list(played("faults", again, 256).values())
    rates = compute_metrics(records)
    calls = sum(len(record.calls) for record in records)
    assert 0.09 < rates.injected_errors / calls < 0.19
    assert (rates.own_errors, rates.missing) == (0, 0)
    assert rates.success.rate > 0.95
    once = played("faults", lambda row, dialogue: [] if results(dialogue) else solution(row), 256)
    assert compute_metrics(list(once.values())).success.hits < rates.success.hits
    assert list(played("faults", again).values())[9].calls == records[9].calls  # whatever the count


def test_implicit_faults_say_nothing_undo_some_calls_and_are_worked_past_by_making_every_call_twice():
    def times(count):
        return lambda row, dialogue: (
            [] if results(dialogue) else [call for call in solution(row) for _ in range(count)]
        )

    once, doubled = (list(played("implicit_faults", times(count), 256).values()) for count in (1, 2))
    first, second = compute_metrics(once), compute_metrics(doubled)
    assert first.injected_errors == second.injected_errors == 0
    assert {call.result for record in once for call in record.calls} >= {"ok", ""}
    assert 0.75 < first.success.rate < 1
    assert second.success.rate > max(0.97, first.success.rate)
