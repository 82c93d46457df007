"""`fission-grpo simulator data`: where failures come from, and what the command writes."""

import json
import random
from collections import Counter
from dataclasses import replace

import pytest
from openai_server import OpenAIServer
from simulator_support import ASK, CLOSE, RIGHT, TASK, WRONG, accepts, refuses

from fission_grpo.cli.simulator import simulator_command
from fission_grpo.core.chat import dialogue_results
from fission_grpo.core.serialization import recovery_id
from fission_grpo.core.types import (
    ErrorKind,
    Failure,
    Task,
    ToolCall,
    Turn,
)
from fission_grpo.envs.desk.env import Desk
from fission_grpo.envs.desk.steps import make_steps
from fission_grpo.envs.restore import make_call
from fission_grpo.envs.wrapper import tool_methods
from fission_grpo.feedback.dataset import load_examples
from fission_grpo.feedback.prompt import PromptSettings
from fission_grpo.feedback.runtime_messages import message_of
from fission_grpo.fission.event_log import EventLog
from fission_grpo.inference.base import Reply
from fission_grpo.recipes.error_simulator.failures import (
    StepContext,
    api_of,
    judge_reply,
    read_run_failures,
    read_sources,
    read_transcript_failures,
    sample_failures,
)
from fission_grpo.recipes.error_simulator.labels import is_specific
from fission_grpo.report.run import read_run

# --- a failure in a situation


def test_a_right_call_is_no_failure_and_a_wrong_one_is_judged_by_the_reference():
    assert judge_reply(StepContext(TASK), RIGHT) is None
    assert judge_reply(StepContext(TASK), WRONG).kind is ErrorKind.WRONG_CALL


def test_what_the_environment_says_of_a_wrong_call_is_its_detail():
    failure = judge_reply(StepContext(TASK, refuses), WRONG)
    assert (failure.kind, failure.detail, failure.call_index) == (ErrorKind.RAISED, "no such ticket", 0)


def test_where_the_environment_accepts_a_call_the_schema_and_the_reference_decide():
    assert judge_reply(StepContext(TASK, accepts), WRONG).kind is ErrorKind.WRONG_CALL
    typed = judge_reply(StepContext(TASK, accepts), RIGHT.replace("7", '"7"'))
    assert (typed.kind, typed.detail) == (ErrorKind.BAD_ARGUMENTS, "`ticket_id` must be an integer, got '7'")


def test_an_unknown_tool_is_never_executed():
    failure = judge_reply(StepContext(TASK, refuses), RIGHT.replace("close", "shut"))
    assert (failure.kind, failure.detail) == (ErrorKind.UNKNOWN_TOOL, "unknown tool 'shut'; available: close")


def test_a_call_that_the_same_user_turn_needs_later_is_no_failure():
    assert judge_reply(StepContext(TASK, refuses, (ToolCall("close", {"ticket_id": 8}),)), WRONG) is None


class Scripted:
    """A policy that replies in turn what it is told to."""

    def __init__(self, *texts):
        self.texts = list(texts)

    def reply(self, requests):
        return [Reply(text, truncated=not text) for text in (self.texts.pop(0) for _ in requests)]


def test_of_a_policy_only_the_failures_are_kept_and_attempts_are_counted():
    policy = Scripted(RIGHT, WRONG, "Done.", "")
    failures, counts = sample_failures([StepContext(TASK, refuses)], policy, "mine", samples=4)
    assert counts == {"replies": 3, "failures": 2, "lost": 1}  # the empty reply did not fit the context
    assert {one.example.origin for one in failures} == {"sampled:mine"}
    assert [str(one.example.failure.kind) for one in failures] == ["raised", "no_call"]


# --- what runs left


def test_a_failure_in_the_event_log_is_read_back_and_the_report_still_reads_the_file(tmp_path):
    failure = judge_reply(StepContext(TASK, refuses), WRONG)
    log = EventLog(tmp_path / "fission.jsonl")
    log.failed(failure, recovery_id(failure), 3)
    log.failed(failure, "other", 9)
    log.resumed(5)
    unused = Counter()
    (one,) = read_run_failures(tmp_path / "fission.jsonl", unused, [])
    read = one.example.failure
    assert (read.kind, read.detail, read.call_index) == (ErrorKind.RAISED, "no such ticket", 0)
    assert (read.reference, read.task.tools, read.turns[-1].text) == (TASK.reference, (CLOSE,), WRONG)
    assert (one.example.id, one.example.origin, one.root) == (recovery_id(failure), "fission", "t1")
    assert sum('"tools", "key"' in line for line in (tmp_path / "fission.jsonl").read_text().splitlines()) == 1
    assert read_run(tmp_path).instances == ()


def test_an_environments_tools_are_written_where_the_task_has_none(tmp_path):
    turn = Turn(WRONG, calls=(ToolCall("close", {"ticket_id": 8}),))
    bare = Failure(Task("e", (ASK,)), (turn,), ErrorKind.RAISED, tools=(CLOSE,))
    EventLog(tmp_path / "fission.jsonl").failed(bare, "x", 1)
    (one,) = read_run_failures(tmp_path / "fission.jsonl", Counter(), [])
    assert (one.example.failure.task.tools, one.example.failure.reference) == ((CLOSE,), None)


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
    (one,) = read_transcript_failures(path, Counter(), [])
    failure = one.example.failure
    assert (failure.detail, failure.reference, failure.task.prompt) == ("no ticket 8", None, (ASK,))
    assert failure.calls == (ToolCall("close", {"ticket_id": 8}),)


# --- the command


def read_record(folder):
    """The JSON block of the README that the command writes."""
    return json.loads((folder / "README.md").read_text().split("```json\n")[1].split("```")[0])


def test_a_step_task_file_becomes_data_with_a_readme(tmp_path, capsys):
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
    assert simulator_command(["data", *argv]) == 0
    assert "training and" in capsys.readouterr().out
    train, test = load_examples(out / "train.jsonl"), load_examples(out / "test.jsonl")
    assert not {one.api for one in train} & {one.api for one in test}
    assert not {one.failure.turns[-1].text for one in train} & {one.failure.turns[-1].text for one in test}
    assert all(is_specific(one.diagnosis, one.failure) for one in (*train, *test))
    record = read_record(out)
    assert (record["train.jsonl"]["examples"], record["test.jsonl"]["examples"]) == (len(train), len(test))
    assert sum(record["train.jsonl"]["kind"].values()) == len(train)
    assert "Apache-2.0" in (out / "README.md").read_text()
    first = (out / "train.jsonl").read_text()
    assert simulator_command(["data", *argv]) == 0
    assert (out / "train.jsonl").read_text() == first


def test_failures_of_the_built_in_steps_get_the_desks_own_words_which_their_prompts_do_not_hold(tmp_path):
    argv = ["--tasks", "desk:steps", "--cases", "16", "--count", "0", "--test_share", "0", "--output", str(tmp_path)]
    assert simulator_command(["data", *argv, "--seed", "5"]) == 0
    tasks = {task.prompt: task for task in map(as_key, make_steps(16, 5, "train"))}
    examples = load_examples(tmp_path / "train.jsonl")
    raised = [one for one in examples if one.failure.kind is ErrorKind.RAISED and one.teacher == "environment"]
    assert len(raised) > 10
    for one in raised:
        desk = Desk()
        desk.reset(**tasks[as_key(one.failure.task).prompt].columns)
        for past in dialogue_results(one.failure.task.prompt):
            getattr(desk, past.call.name)(**past.call.arguments)
        results = [make_call(tool_methods(desk), call) for call in one.failure.calls]
        assert one.diagnosis == f"error: {next(result.error for result in results if result.error)}"
    for one in examples:
        if one.failure.calls and one.teacher == "environment" and one.failure.kind is not ErrorKind.UNKNOWN_TOOL:
            assert message_of(one.diagnosis) not in PromptSettings().messages(one.failure)[-1]["content"]
    assert read_record(tmp_path)["executed"]["env/step_calls"] > 10


def as_key(task):
    """The task with a prompt that can be looked up."""
    return replace(task, prompt=tuple(json.dumps(dict(message)) for message in task.prompt))


def test_a_task_whose_environment_cannot_be_used_is_named_with_the_field(tmp_path, capsys):
    row = {"id": "t", "messages": [ASK], "tools": [CLOSE], "reference": [], "environment": "no_module:Env"}
    (tmp_path / "tasks.jsonl").write_text(json.dumps(row) + "\n")
    argv = ["--tasks", str(tmp_path / "tasks.jsonl"), "--output", str(tmp_path / "out")]
    assert simulator_command(["data", *argv]) == 1
    error = capsys.readouterr().err
    assert "tasks.jsonl, row 1, field 'environment': no_module: cannot be imported" in error


def policy_failures(tmp_path, *policy):
    row = {"messages": [ASK], "tools": [CLOSE], "reference": [{"name": "close", "arguments": {"ticket_id": 7}}]}
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps({"id": f"t{i}", **row}) + "\n" for i in range(4)))
    own = ["--no_corruptions", "--test_share", "1", "--count", "0", "--samples", "3", "--max_new_tokens", "40"]
    argv = ["--tasks", str(tmp_path / "tasks.jsonl"), "--output", str(tmp_path), *own, *policy]
    assert simulator_command(["data", *argv]) == 0
    return load_examples(tmp_path / "test.jsonl"), read_record(tmp_path)["sampled"]


def test_a_policy_behind_an_endpoint_fails_in_its_own_words(tmp_path):
    replies = iter([RIGHT, *[WRONG.replace("8", str(number)) for number in range(10, 20)], "Done."] * 2)
    with OpenAIServer(lambda body: next(replies)) as server:
        made, sampled = policy_failures(tmp_path, "--policy", "small", "--policy_url", server.url)
    assert sampled["replies"] == 12
    assert sampled["lost"] == 0
    assert sampled["failures"] >= 10
    assert {one.origin for one in made} == {"sampled:small"}
    assert all(one.failure.reference == TASK.reference for one in made)


def test_a_local_policys_failures_are_kept_with_what_it_wrote(tmp_path):
    made, sampled = policy_failures(tmp_path, "--policy", "starter")
    assert sampled["replies"] == 12
    assert len(made) > 0  # a policy of another environment gets none of these tickets right
    assert {one.origin for one in made} == {"sampled:starter"}


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--no_corruptions"], "--no_corruptions leaves nothing"),
        (["--test_share", "2"], "--test_share must be from 0 to 1, got 2.0"),
        (["--skip_cases", "3"], "--skip_cases needs --tasks"),
        (["--teacher", "me"], "no feedback source is called 'me'"),
        (["--tasks", "desk:steps", "--cases", "200000"], "of desk:steps at most 100,000 tasks can be drawn"),
        (["--each", "0"], "--each must be at least 1"),
        (["--shortest", "9", "--longest", "3"], "0 <= shortest <= longest"),
        (["--tasks", "missing.jsonl"], "missing.jsonl: cannot be read"),
    ],
)
def test_bad_options_are_one_line_that_says_what_to_correct(argv, said, tmp_path, capsys):
    assert simulator_command(["data", *argv, "--output", str(tmp_path / "out")]) in (1, 2)
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert error.count("\n") == 1


def test_a_file_of_another_kind_is_refused_with_the_kinds_there_are(tmp_path, capsys):
    (tmp_path / "x.jsonl").write_text('{"a": 1}\n')
    assert simulator_command(["data", "--tasks", str(tmp_path / "x.jsonl"), "--output", str(tmp_path / "out")]) == 1
    assert "row 1: fields a are of no known file; give one of: case file" in capsys.readouterr().err


# --- over BFCL's environments


def test_all_eight_classes_fail_with_real_messages_and_the_held_out_ones_are_the_test_set(tmp_path):
    pytest.importorskip("bfcl_eval", reason="pip install --no-deps bfcl-eval==2026.3.23 mpmath==1.3.0 filelock")
    assert simulator_command(["data", "--output", str(tmp_path), "--cases", "32", "--count", "240"]) == 0
    train, test = load_examples(tmp_path / "train.jsonl"), load_examples(tmp_path / "test.jsonl")
    assert {one.api for one in train} == {"TravelAPI", "TradingBot", "TicketAPI", "MessageAPI"}
    assert {one.api for one in test} == {"GorillaFileSystem", "VehicleControlAPI", "TwitterAPI", "MathAPI"}
    raised = [one for one in train if one.failure.kind is ErrorKind.RAISED]
    assert len(raised) > 20
    assert all(one.failure.detail and not one.failure.turns[-1].results for one in raised)
    assert any("not found" in one.failure.detail for one in raised)


def test_a_bfcl_step_has_the_real_results_before_it_and_its_own_environment(monkeypatch):
    pytest.importorskip("bfcl_eval", reason="pip install --no-deps bfcl-eval==2026.3.23 mpmath==1.3.0 filelock")
    from fission_grpo.envs.bfcl.tasks import all_rows, steps_of_case
    from fission_grpo.recipes.bfcl_tasks.generate import SPLITS, Mix, generate

    for case in generate("train", 12, 3, Mix()):
        steps, rows = list(steps_of_case(case)), all_rows([case])
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
    from fission_grpo.evaluation.records import (
        CallRecord,
        CaseRecord,
        StepRecord,
        TurnRecord,
        to_line,
    )
    from fission_grpo.recipes.bfcl_tasks.generate import Mix, generate

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
    sources = read_sources([folder, tmp_path / "cases.jsonl"])
    (one,) = sources.failures
    assert one.example.failure.detail == "Ticket not found."
    assert one.example.failure.task.prompt[-1]["content"] == case.turns[0].request
    assert one.example.failure.reference == case.turns[0].reference
    assert (one.example.origin, one.root) == ("trace", case.id)
    assert sources.unused == {"evaluation: case without its task file (a record holds no request and no tools)": 1}
