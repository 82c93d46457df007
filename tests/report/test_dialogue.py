"""Rollouts as dialogues."""

from dataclasses import replace

from report_support import BAD, FINE, PUSHED, RECOVERED, page_of, write_run

from fission_grpo.core.types import Rollout, Task, ToolCall, ToolResult, Trajectory, Turn, Verdict
from fission_grpo.evaluation.records import CaseRecord, StepRecord, TurnRecord
from fission_grpo.report.dialogue import Shown, case_dialogue, rollout_dialogue, shown_message, tell_recovery
from fission_grpo.report.run import read_run

CALL = '<tool_call>\n{"name": "move_file", "arguments": {"name": "ä", "folder": 2}}\n</tool_call>'
SHOWN = 'move_file(name="ä", folder=2)'


def test_a_rollout_with_results_of_several_lines_is_split_as_it_was():
    turns = (
        Turn(f"First.\n{CALL}", results=(ToolResult(ToolCall("move_file"), "{'error': 'no'}"),
                                         ToolResult(ToolCall("ls"), "a\n[b] c\n  d"))),
        Turn("[not] a result\nDone."),
    )  # fmt: skip
    text = Rollout(Trajectory(Task("t", "p"), turns), Verdict(1.0, False)).text
    assert rollout_dialogue(text) == (
        Shown("assistant", "First.", (SHOWN,)),
        Shown("tool", "{'error': 'no'}", name="move_file", is_error=True),
        Shown("tool", "a\n[b] c\n  d", name="ls"),
        Shown("tool", "a result", name="not"),  # the one form that cannot be told from a result
        Shown("assistant", "Done."),
    )


def test_a_call_that_cannot_be_read_stays_as_it_was_written():
    broken = '<tool_call>{"name": "x", </tool_call>'
    assert rollout_dialogue(broken) == (Shown("assistant", broken),)
    assert rollout_dialogue("") == (Shown("assistant", ""),)


def test_structured_calls_and_content_in_parts_are_shown():
    entry = {"type": "function", "function": {"name": "ls", "arguments": {"a": [1]}}}
    assert shown_message({"role": "assistant", "content": None, "tool_calls": [entry]}).calls == ("ls(a=[1])",)
    parts = [{"type": "image"}, {"type": "text", "text": "Hi"}]
    assert shown_message({"role": "user", "content": parts}) == Shown("user", "Hi")


def test_a_recovery_begins_with_the_request_and_ends_with_the_worst_rollout(tmp_path):
    prompt = [
        {"role": "system", "content": "You have tools."},
        {"role": "user", "content": "Earlier."},
        {"role": "assistant", "content": "Done."},
        {"role": "user", "content": "Move it to 2."},
        {"role": "assistant", "content": "looking"},
        {"role": "tool", "name": "ls", "content": "a"},
        {"role": "assistant", "content": CALL},
        {"role": "tool", "name": "move_file", "content": "{'error': 'no file'}"},
    ]
    events = [PUSHED | {"prompt": prompt, "failed": CALL}, RECOVERED]
    run = write_run(tmp_path / "run", fission=events)
    story = tell_recovery(read_run(run).instances[0])
    assert (story.request, story.earlier, story.failed.calls) == ("Move it to 2.", 2, (SHOWN,))
    assert story.answers == (Shown("tool", "{'error': 'no file'}", name="move_file", is_error=True),)
    assert [(one.reward, one.dialogue[0].text) for one in story.recoveries] == [
        (1.0, "better"), (0.25, "same"), (0.0, "worse"), (None, "unjudged"),
    ]  # fmt: skip
    text, _ = page_of(run)
    places = [
        text.index(part) for part in (">Move it to 2.", "move_file(name=&#34;ä&#34;", "no file", "<h4>Best", ">better")
    ]
    assert places == sorted(places)
    assert text.index("You have tools.") > text.index("The recovery prompt, as the policy reads it")


def test_a_prompt_that_is_text_is_split_at_the_failed_turn(tmp_path):
    events = [PUSHED | {"prompt": "User: go\nwrote this\n\nfeedback\n\n", "failed": "wrote this"}]
    story = tell_recovery(read_run(write_run(tmp_path / "run", fission=events)).instances[0])
    assert (story.request, story.answers) == ("User: go\n", (Shown("user", "feedback"),))


def test_an_injected_fault_is_named_also_where_the_call_seems_to_succeed():
    explicit = replace(BAD, injected=True, fault="explicit-transient/timeout")
    implicit = replace(FINE, result="", fault="implicit-transient/empty")
    record = CaseRecord("1", turns=(TurnRecord((StepRecord("", (explicit, implicit)),), False, "Move it."),))
    assert [shown.note for shown in case_dialogue(record)[2:]] == [
        "injected error",
        "injected fault: implicit-transient/empty",
    ]


def test_a_case_shows_requests_calls_and_results():
    steps = (StepRecord(CALL, (BAD,), truncated=True), StepRecord("", (FINE,)), StepRecord("{", unread="not JSON"))
    record = CaseRecord("1", turns=(TurnRecord(steps, False, "Move it."), TurnRecord((), None, "And then?")))
    assert case_dialogue(record) == [
        Shown("user", "Move it."),
        Shown("assistant", "", (SHOWN,), note="cut off at the length limit"),
        Shown("tool", BAD.result, name="move_file", is_error=True, note="raised"),
        Shown("assistant", "", ('move_file(name="b")',)),
        Shown("tool", "ok", name="move_file"),
        Shown("assistant", "{"),
        Shown("tool", "not JSON", is_error=True, note="the call cannot be read"),
        Shown("user", "And then?"),
    ]
