"""`fission-grpo simulator data`: where failures come from, how they are labelled, filtered, split and written."""

import json
import random
from collections import Counter

import pytest

from fission_grpo.evaluation.play import Reply
from fission_grpo.journal import Journal
from fission_grpo.recovery import recovery_id
from fission_grpo.run_files import read_run
from fission_grpo.simulator.collect import Found, Situation, api_of, failure_in, sampled_failures
from fission_grpo.simulator.data_command import data_command
from fission_grpo.simulator.filters import Limits, filtered, template
from fission_grpo.simulator.instances import Instance, load_instances
from fission_grpo.simulator.run_failures import journal_failures, transcript_failures
from fission_grpo.simulator.specificity import is_specific, named_by
from fission_grpo.simulator.split import chosen_apis, split_by_api, thinned
from fission_grpo.simulator.teacher import DEFAULT, as_error, label, pointed_rules, teachers
from fission_grpo.trajectory import ErrorKind, Failure, Task, ToolCall, ToolResult, Turn

CLOSE = {
    "name": "close",
    "description": "Close a ticket.",
    "parameters": {"type": "object", "properties": {"ticket_id": {"type": "integer"}}, "required": ["ticket_id"]},
}
ASK = {"role": "user", "content": "Close ticket 7."}
TASK = Task("t1", (ASK,), (CLOSE,), (ToolCall("close", {"ticket_id": 7}),))
RIGHT = '<tool_call>\n{"name": "close", "arguments": {"ticket_id": 7}}\n</tool_call>'
WRONG = RIGHT.replace("7", "8")


def refuses(calls):
    return tuple(ToolResult(call, "{'error': 'no such ticket'}", "no such ticket") for call in calls)


def accepts(calls):
    return tuple(ToolResult(call, "closed") for call in calls)


def found(name="a", api="A", origin="corruption:wrong_value", root="r", diagnosis="error: `ticket_id` is not right"):
    text = f'<tool_call>\n{{"name": "close", "arguments": {{"ticket_id": "{name}"}}}}\n</tool_call>'
    turn = Turn(text, calls=(ToolCall("close", {"ticket_id": name}),))
    task = Task(name, (ASK,), (CLOSE,), TASK.reference)
    return Found(Instance(Failure(task, (turn,), ErrorKind.WRONG_CALL), api, origin, diagnosis, "rules"), root)


# --- a failure in a situation


def test_a_right_call_is_no_failure_and_a_wrong_one_is_judged_by_the_reference():
    assert failure_in(Situation(TASK), RIGHT) is None
    assert failure_in(Situation(TASK), WRONG).kind is ErrorKind.WRONG_CALL


def test_what_the_environment_says_of_a_wrong_call_is_its_detail():
    failure = failure_in(Situation(TASK, refuses), WRONG)
    assert (failure.kind, failure.detail, failure.call_index) == (ErrorKind.RAISED, "no such ticket", 0)


def test_where_the_environment_accepts_a_call_the_schema_and_the_reference_decide():
    assert failure_in(Situation(TASK, accepts), WRONG).kind is ErrorKind.WRONG_CALL
    typed = failure_in(Situation(TASK, accepts), RIGHT.replace("7", '"7"'))
    assert (typed.kind, typed.detail) == (ErrorKind.BAD_ARGUMENTS, "`ticket_id` must be an integer, got '7'")


def test_an_unknown_tool_is_never_put_to_the_environment():
    failure = failure_in(Situation(TASK, refuses), RIGHT.replace("close", "shut"))
    assert (failure.kind, failure.detail) == (ErrorKind.UNKNOWN_TOOL, "unknown tool 'shut'; available: close")


def test_a_call_that_the_same_user_turn_needs_later_is_no_failure():
    assert failure_in(Situation(TASK, refuses, (ToolCall("close", {"ticket_id": 8}),)), WRONG) is None


class Scripted:
    """A policy that replies in turn what it is told to."""

    def __init__(self, *texts):
        self.texts = list(texts)

    def reply(self, requests):
        return [Reply(text, truncated=not text) for text in (self.texts.pop(0) for _ in requests)]


def test_of_a_policy_only_the_failures_are_kept_and_attempts_are_counted():
    came = sampled_failures([Situation(TASK, refuses)], Scripted(RIGHT, WRONG, "Done.", ""), "mine", samples=4)
    assert (came.attempts, came.lost, len(came.found)) == (3, 1, 2)  # the empty reply did not fit the context
    assert {one.instance.origin for one in came.found} == {"sampled:mine"}
    assert [str(one.instance.failure.kind) for one in came.found] == ["raised", "no_call"]


# --- what runs left


def test_a_failure_written_to_the_journal_is_read_back_whole_and_the_report_still_reads_the_file(tmp_path):
    failure = failure_in(Situation(TASK, refuses), WRONG)
    journal = Journal(tmp_path / "fission.jsonl")
    journal.failed(failure, recovery_id(failure), 3)
    journal.failed(failure, "other", 9)
    journal.resumed(5)
    unused = Counter()
    (one,) = journal_failures(tmp_path / "fission.jsonl", unused, [])
    read = one.instance.failure
    assert (read.kind, read.detail, read.call_index) == (ErrorKind.RAISED, "no such ticket", 0)
    assert (read.reference, read.task.tools, read.turns[-1].text) == (TASK.reference, (CLOSE,), WRONG)
    assert (one.instance.id, one.instance.origin, one.root) == (recovery_id(failure), "fission", "t1")
    assert sum('"tools", "key"' in line for line in (tmp_path / "fission.jsonl").read_text().splitlines()) == 1
    assert read_run(tmp_path).instances == ()


def test_an_environments_tools_are_written_where_the_task_has_none(tmp_path):
    bare = Failure(Task("e", (ASK,)), (Turn(WRONG, calls=(ToolCall("close", {"ticket_id": 8}),)),), ErrorKind.RAISED)
    Journal(tmp_path / "fission.jsonl").failed(bare, "x", 1, (CLOSE,))
    (one,) = journal_failures(tmp_path / "fission.jsonl", Counter(), [])
    assert (one.instance.failure.task.tools, one.instance.failure.reference) == ((CLOSE,), None)


def test_a_foreign_transcript_gives_its_erring_calls_without_reference(tmp_path):
    call = {"id": "c", "function": {"name": "close", "arguments": '{"ticket_id": 8}'}}
    messages = [
        ASK,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": '{"error": "no ticket 8"}'},
        {"role": "assistant", "content": "Sorry."},
    ]
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps({"id": "a", "messages": messages, "tools": [CLOSE]}) + "\n")
    (one,) = transcript_failures(path, Counter(), [])
    failure = one.instance.failure
    assert (failure.detail, failure.reference, failure.task.prompt) == ("no ticket 8", None, (ASK,))
    assert failure.calls == (ToolCall("close", {"ticket_id": 8}),)


# --- labels


def test_the_environments_words_come_first_and_the_rules_point_where_they_are_unspecific():
    plain = failure_in(Situation(TASK, refuses), WRONG)
    one = Found(Instance(plain, "A", "fission"), "r")
    labelled = label([one], teachers(DEFAULT))
    (made,) = labelled.found
    assert made.instance.diagnosis == "error: no such ticket; `ticket_id` is not right, got 8"
    assert (made.instance.teacher, labelled.refused) == ("rules", Counter({"environment: unspecific": 1}))
    assert pointed_rules(plain) == made.instance.diagnosis


def test_a_message_beside_the_schemas_fault_is_left_for_the_rules():
    def says(calls):
        return tuple(ToolResult(call, "{'error': 'Ticket 700 not found.'}", "Ticket 700 not found.") for call in calls)

    task = Task("t1", (ASK,), (CLOSE,), (ToolCall("close", {"ticket_id": 700}),))
    one = Found(Instance(failure_in(Situation(task, says), RIGHT.replace("7", '"700"')), "A", "fission"), "r")
    labelled = label([one], teachers(DEFAULT))
    assert labelled.found[0].instance.diagnosis == "error: `ticket_id` must be an integer, got '700'"
    assert labelled.refused == Counter({"environment: beside the fault": 1})


def test_a_leaking_message_and_one_nobody_can_label_are_dropped_and_counted():
    def tells(calls):
        return tuple(ToolResult(call, "{'error': 'close 7'}", "close 7: use 7 for ticket_id") for call in calls)

    one = Found(Instance(failure_in(Situation(TASK, tells), WRONG), "A", "fission"), "r")
    labelled = label([one], teachers("environment"))
    assert (labelled.found, labelled.dropped) == ((), Counter({"leak": 1}))


def test_a_label_begins_with_error_once():
    assert [as_error(text) for text in ("no file", "Error: no file", "error no file")] == ["error: no file"] * 2 + [
        "error: error no file"
    ]


def test_an_unknown_teacher_is_refused_with_the_names_there_are():
    with pytest.raises(ValueError, match="no teacher 'oracle'; give environment, rules, endpoint:MODEL"):
        teachers("oracle")
    with pytest.raises(ValueError, match="at least one"):
        teachers(" ,")


# --- specificity


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("error: close failed", "tool"),
        ("error: `ticket_id` is not right", "parameter"),
        ("error: Ticket ID is not known", "parameter"),
        ("error: 8 is not known", "value"),
        ("error: something is wrong", None),
        ("error: the closed door, 18 of 88", None),
        ("error: you made a mistake. please try again.", None),
    ],
)
def test_a_diagnosis_names_tool_parameter_value_or_nothing(text, named):
    failure = failure_in(Situation(TASK), WRONG)
    assert named_by(text, failure) == named
    assert is_specific(text, failure) == (named is not None)


def test_of_a_turn_without_calls_the_form_is_what_is_named():
    unread = failure_in(Situation(TASK), WRONG[:-20])
    assert named_by("error: tool call is not valid JSON", unread) == "form"
    silent = failure_in(Situation(TASK), "Done.")
    assert named_by("error: a tool call is needed here, but none was made", silent) == "form"
    assert named_by("error: that is wrong", silent) is None


# --- filters and split


def test_each_filter_drops_what_it_is_for():
    many = [
        found("a"),
        found("a"),  # the same turn
        found("b", diagnosis="error: use 7 for `ticket_id`"),
        found("c", diagnosis="error: that is wrong"),
        found("d", diagnosis="`ticket_id`"),
        found("e", diagnosis="error: `ticket_id` " + "x" * 500),
        found("A"),  # the same call but for case, the same diagnosis
        found("f"),
        found("g"),
    ]
    kept, dropped = filtered(many, Limits(alike=2))
    assert [one.instance.id for one in kept] == ["a", "f"]
    assert dropped == Counter(
        {
            "duplicate": 1,
            "leak": 1,
            "unspecific": 1,
            "too short": 1,
            "too long": 1,
            "near duplicate": 1,
            "template": 1,
        }
    )


def test_a_template_leaves_out_quoted_values_and_numbers():
    assert template("error: `a` is 'x' or 7, got \"y\"") == "error: `a` is _ or _, got _"


def test_apis_roots_and_texts_are_in_one_side_only():
    many = [found("a", "A", root="1"), found("b", "B", root="1"), found("c", "A", root="2"), found("d", "B", root="3")]
    many.append(found("d", "A", root="4"))  # the same text as in B
    split = split_by_api(many, ("B",), 0, 0.5, 0)
    assert [one.instance.id for one in split.train] == ["c"]
    assert [one.instance.id for one in split.test] == ["b", "d"]
    assert split.dropped == Counter({"its case is tested on": 1, "its failed turn is tested on": 1})


def test_thinning_is_even_over_apis():
    many = [found(str(i), "A") for i in range(5)] + [found("x", "B")]
    assert Counter(one.instance.api for one in thinned(many, 4, 0)) == {"A": 3, "B": 1}


def test_apis_are_drawn_by_the_seed_never_all_of_them():
    many = [found(f"{api}{i}", api) for api in "ABCD" for i in range(5)]
    assert len(chosen_apis(many, 0.2, 0)) == 1
    assert len({chosen_apis(many, 0.2, seed) for seed in range(20)}) > 1
    assert len(chosen_apis(many, 0.99, 0)) == 3
    assert (chosen_apis(many, 0, 0), chosen_apis(many, 1, 0)) == ((), ("A", "B", "C", "D"))


# --- the command


def test_a_step_task_file_becomes_data_with_a_card(tmp_path, capsys):
    rows = [
        {
            "id": f"t{i}",
            "messages": [{"role": "user", "content": f"Close ticket {i}."}],
            "tools": [CLOSE, {"name": f"open{i % 4}", "description": "", "parameters": CLOSE["parameters"]}],
            "reference": [{"name": f"open{i % 4}", "arguments": {"ticket_id": i + 100}}],
        }
        for i in range(24)
    ]
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out"
    argv = ["--tasks", str(tasks), "--output", str(out), "--count", "60", "--each", "8", "--alike", "40"]
    assert data_command(argv) == 0
    assert "training and" in capsys.readouterr().out
    train, test = load_instances(out / "train.jsonl"), load_instances(out / "test.jsonl")
    assert not {one.api for one in train} & {one.api for one in test}
    assert not {one.failure.turns[-1].text for one in train} & {one.failure.turns[-1].text for one in test}
    assert all(is_specific(one.diagnosis, one.failure) for one in (*train, *test))
    card = json.loads((out / "card.json").read_text())
    assert (card["train"]["instances"], card["test"]["instances"]) == (len(train), len(test))
    assert sum(card["train"]["kind"].values()) == len(train)
    assert "Apache-2.0" in (out / "card.md").read_text()
    first = (out / "train.jsonl").read_text()
    assert data_command(argv) == 0
    assert (out / "train.jsonl").read_text() == first


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--no_corruptions"], "--no_corruptions leaves nothing"),
        (["--test_share", "2"], "--test_share must be from 0 to 1, got 2.0"),
        (["--skip_cases", "3"], "--skip_cases needs --tasks"),
        (["--teacher", "me"], "no teacher 'me'"),
        (["--each", "0"], "--each must be at least 1"),
        (["--shortest", "9", "--longest", "3"], "0 <= shortest <= longest"),
        (["--tasks", "missing.jsonl"], "missing.jsonl: cannot be read"),
    ],
)
def test_bad_options_are_one_line_that_says_what_to_mend(argv, said, tmp_path, capsys):
    assert data_command([*argv, "--output", str(tmp_path / "out")]) in (1, 2)
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert error.count("\n") == 1


def test_a_file_of_another_kind_is_refused_with_the_kinds_there_are(tmp_path, capsys):
    (tmp_path / "x.jsonl").write_text('{"a": 1}\n')
    assert data_command(["--tasks", str(tmp_path / "x.jsonl"), "--output", str(tmp_path / "out")]) == 1
    assert "row 1: fields a are of no file known here; give one of: case file" in capsys.readouterr().err


# --- over BFCL's environments


def test_all_eight_classes_fail_with_real_messages_and_the_held_out_ones_are_the_test_set(tmp_path):
    pytest.importorskip("bfcl_eval", reason="pip install --no-deps bfcl-eval==2026.3.23 mpmath==1.3.0 filelock")
    assert data_command(["--output", str(tmp_path), "--cases", "60", "--count", "400"]) == 0
    train, test = load_instances(tmp_path / "train.jsonl"), load_instances(tmp_path / "test.jsonl")
    assert {one.api for one in train} == {"TravelAPI", "TradingBot", "TicketAPI", "MessageAPI"}
    assert {one.api for one in test} == {"GorillaFileSystem", "VehicleControlAPI", "TwitterAPI", "MathAPI"}
    raised = [one for one in train if one.failure.kind is ErrorKind.RAISED]
    assert len(raised) > 20
    assert all(one.failure.detail and not one.failure.turns[-1].results for one in raised)
    assert any("not found" in one.failure.detail for one in raised)


def test_a_bfcl_step_has_the_real_results_before_it_and_asks_its_own_world(monkeypatch):
    pytest.importorskip("bfcl_eval", reason="pip install --no-deps bfcl-eval==2026.3.23 mpmath==1.3.0 filelock")
    from fission_grpo.bfcl.generate import SPLITS, Mix, generate
    from fission_grpo.bfcl.steps import steps_of_case
    from fission_grpo.bfcl.tasks import rows_of_case

    for case in generate("train", 12, 3, Mix()):
        steps, rows = list(steps_of_case(case)), rows_of_case(case)
        begun = [step.task for step in steps if step.task.id.endswith(".0")]
        assert [task.id for task in begun] == [f"{row['id']}.0" for row in rows]
        assert [list(task.prompt) for task in begun] == [row["prompt"] for row in rows]
        for step in steps:
            before = [step.answers(step.task.reference) for _ in range(2)]
            assert before[0] == before[1]  # the step's own world is not changed
            assert all(result.error is None for result in before[0])
            assert api_of(Failure(step.task, (Turn(""),), ErrorKind.NO_CALL)) in SPLITS["train"]


def test_an_evaluations_errors_are_joined_with_their_case_file(tmp_path):
    pytest.importorskip("bfcl_eval", reason="pip install --no-deps bfcl-eval==2026.3.23 mpmath==1.3.0 filelock")
    from fission_grpo.bfcl.generate import Mix, generate
    from fission_grpo.evaluation.records import CallRecord, CaseRecord, StepRecord, TurnRecord, to_line
    from fission_grpo.simulator.sources import read_sources

    (case,) = generate("train", 1, 0, Mix(miss_func=0, miss_param=0, classes=("TicketAPI",)))
    (tmp_path / "cases.jsonl").write_text(case.to_json() + "\n")
    arguments = {"ticket_id": random.Random(0).randint(10**6, 10**7)}
    call = CallRecord("get_ticket", arguments, "{'error': 'Ticket not found.'}", "Ticket not found.", ErrorKind.RAISED)
    text = f"<tool_call>\n{json.dumps({'name': 'get_ticket', 'arguments': arguments})}\n</tool_call>"
    steps = (StepRecord(text, (call,)), StepRecord("Sorry."))
    folder = tmp_path / "eval"
    folder.mkdir()
    records = [CaseRecord(name, "cases", (TurnRecord(steps, False),), False) for name in (f"{case.id}#0", "other")]
    (folder / "cases.jsonl").write_text("".join(to_line(record) + "\n" for record in records))
    material = read_sources([folder, tmp_path / "cases.jsonl"])
    (one,) = material.found
    assert one.instance.failure.detail == "Ticket not found."
    assert one.instance.failure.task.prompt[-1]["content"] == case.turns[0].request
    assert one.instance.failure.reference == case.turns[0].reference
    assert (one.instance.origin, one.root) == ("trace", case.id)
    assert material.unused == {"evaluation: case without its task file (a record holds no request and no tools)": 1}
