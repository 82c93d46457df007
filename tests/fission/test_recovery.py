"""Fission: from a failure to the task that recovers from it."""

import json
from dataclasses import replace

import pytest

from fission_grpo.core.chat import parse, render_call
from fission_grpo.core.rewards import StepReward, step_verdict
from fission_grpo.core.serialization import recovery_id, task_from_json, task_to_json
from fission_grpo.core.types import (
    PARSE_ERROR,
    ErrorKind,
    Failure,
    Task,
    ToolCall,
    ToolResult,
    Trajectory,
    Turn,
)
from fission_grpo.envs.restore import make_call
from fission_grpo.feedback.request import feedback_for
from fission_grpo.feedback.rules import rules
from fission_grpo.feedback.sources import FIXED_TEXT, FunctionSource
from fission_grpo.fission.algorithm import select_failures
from fission_grpo.fission.failures import find_failure
from fission_grpo.fission.recovery import recovery_task
from fission_grpo.training.tool_call_parser import with_parse_errors

ASK = ({"role": "user", "content": "delete the plan"},)
CALL = ToolCall("delete", {"name": "plan"})
ERROR = "{'error': \"no file 'plan'\"}"
FAILED = ToolResult(CALL, ERROR, error="no file 'plan'")


def failing_turn(text="<tool_call>...</tool_call>"):
    return Turn(text, calls=(CALL,), results=(FAILED,))


def failure(turns=None, kind=ErrorKind.RAISED, call_index=0, **task):
    task = Task(**({"id": "t", "prompt": ASK, "columns": {"scenario": "s"}} | task))
    return Failure(task, turns or (failing_turn(),), kind, call_index=call_index, reward=0.0)


def test_recovery_prompt_is_task_then_what_was_written_then_feedback():
    task = recovery_task(failure(), "did you mean plan.txt?")
    assert task.prompt == (
        *ASK,
        {"role": "assistant", "content": "<tool_call>...</tool_call>"},
        {"role": "tool", "name": "delete", "content": ERROR + "\ndid you mean plan.txt?"},
    )


def test_environments_own_message_is_not_said_twice():
    task = recovery_task(failure(), "no file 'plan'")
    assert task.prompt[-1]["content"] == ERROR


def test_empty_feedback_adds_nothing_to_the_tool_result():
    assert recovery_task(failure(), "", source="none").prompt[-1]["content"] == ERROR


def test_other_feedback_is_added_even_if_the_environments_message_contains_it():
    assert recovery_task(failure(), "no file").prompt[-1]["content"] == f"{ERROR}\nno file"
    assert recovery_task(failure(), "no file", source="environment").prompt[-1]["content"] == ERROR


def test_recovery_knows_where_it_comes_from_and_what_to_replay():
    earlier = ToolCall("list", {})
    turns = (Turn("first", calls=(earlier,), results=(ToolResult(earlier, "[]"),)), failing_turn())
    unlocked = ToolResult(ToolCall("unlock", {}), "ok")
    task = recovery_task(failure(turns, history=(unlocked,)), "again")
    assert (task.root, task.parent, task.depth) == ("t", "t", 1)
    assert task.history == (unlocked, ToolResult(earlier, "[]"), FAILED)
    assert task.columns == {"scenario": "s"}


def test_recovery_of_a_recovery_is_one_deeper_with_the_same_root():
    first = recovery_task(failure(), "again")
    second = recovery_task(Failure(first, (failing_turn("other"),), ErrorKind.RAISED, call_index=0), "and again")
    assert (second.root, second.parent, second.depth) == ("t", first.id, 2)
    assert second.history == (FAILED, FAILED)
    assert second.prompt[:3] == first.prompt


TOOLS = ({"name": "delete", "parameters": {}}, {"type": "function", "function": {"name": "list", "parameters": {}}})


@pytest.mark.parametrize("feedback", ["unclosed", "error: unclosed"])
@pytest.mark.parametrize(("tools", "name"), [(TOOLS, "delete"), (TOOLS[::-1], "list"), ((), "error")])
def test_unparsed_call_is_answered_like_a_tool_would(tools, name, feedback):
    broken = Turn("<tool_call>{", error="unclosed")
    task = recovery_task(failure((broken,), ErrorKind.UNPARSED, None, tools=tools, reference=(CALL,)), feedback)
    assert task.prompt[1:] == (
        {"role": "assistant", "content": "<tool_call>{"},
        {"role": "tool", "name": name, "content": "{'error': 'unclosed'}"},
    )
    assert task.history == ()  # nothing was executed


UNPARSABLE = (
    "<tool_call>{",
    '<tool_call>{"name": "delete", "arguments": {"name": "plan"}',
    "<tool_call>{'name': 'delete'}</tool_call>",
    '<tool_call>{"name": "delete", "arguments": {"name": "it\'s \\"x\\""}} }</tool_call>',
    '<tool_call>{"name": "delete", "name": "list", "arguments": {}}</tool_call>',
    '<tool_call>{"arguments": {}}</tool_call>',
    "<tool_call></tool_call>",
    "</tool_call>",
)


@pytest.mark.parametrize("said", [rules, lambda _: "look again", lambda _: FIXED_TEXT, lambda _: ""])
@pytest.mark.parametrize("text", UNPARSABLE)
def test_an_unreadable_call_has_the_same_answer_in_a_step_task_as_in_an_episode(text, said):
    turn = parse(text)
    assert turn.error
    placeholder = ToolCall("delete", {PARSE_ERROR: turn.error})
    shown = replace(turn, results=(make_call({"delete": with_parse_errors(str)}, placeholder),))
    live = Failure(Task("t", ASK, TOOLS), (shown,), ErrorKind.UNPARSED, turn.error)
    static = Failure(Task("t", ASK, TOOLS, reference=(CALL,)), (turn,), ErrorKind.UNPARSED, turn.error)
    assert recovery_task(static, said(static)).prompt == recovery_task(live, said(live)).prompt


def test_an_unreadable_call_after_a_text_prompt_is_answered_in_the_same_words():
    broken = failure((Turn("<tool_call>{", error="unclosed"),), ErrorKind.UNPARSED, None, prompt="Q: ")
    assert recovery_task(broken, "error: unclosed").prompt == "Q: <tool_call>{\n\n{'error': 'unclosed'}\n\n"
    assert recovery_task(broken, "again").prompt == "Q: <tool_call>{\n\n{'error': 'unclosed'}\nagain\n\n"


MESSAGES = (
    "no file 'plan'",
    'no file "plan"',
    'it\'s no "file"',
    "line one\nline two",
    "line one\r\n\tline two\n",
    "  spaces around  ",
    "two  spaces",
    "C:\\new\\table",
    "50\u202f€ für ‚Zoë‘",
    "tab\there",
    "null\x00byte",
    '{"error": "no file"}',
    "KeyError: 'name'",
    "x" * 3000,
    "many lines\n" * 400,
)


def renderings(message):
    """How a source may quote a message."""
    return {message, message.strip(), " ".join(message.split()), json.dumps(message), json.dumps(message)[1:-1],
            json.dumps(message, ensure_ascii=False)[1:-1], repr(message), repr(message)[1:-1],
            f"error: {message}"}  # fmt: skip


@pytest.mark.parametrize("content", [lambda m: str({"error": m}), lambda m: json.dumps({"error": m}), str])
@pytest.mark.parametrize("message", MESSAGES, ids=range(len(MESSAGES)))
def test_environments_message_is_said_once_however_it_is_rendered(message, content):
    error = ToolResult(CALL, content(message), message)
    raised = failure((Turn("c", calls=(CALL,), results=(error,)),))
    for said in renderings(message):
        feedback = feedback_for(raised, [FunctionSource("mine", lambda _, said=said: said)])
        assert recovery_task(raised, feedback.text, source="mine").prompt[-1]["content"] == error.content, said
    whole = recovery_task(raised, error.content).prompt[-1]["content"]
    assert whole == error.content  # also where the result is quoted as a whole


def test_a_recovery_knows_the_calls_of_each_failed_turn_of_a_step_task():
    step = {"reference": (ToolCall("list"),)}
    first = recovery_task(failure((Turn("c", calls=(CALL,)),), ErrorKind.WRONG_CALL, 0, **step), "again")
    assert first.failed == ((CALL,),)
    other = Turn("d", calls=(CALL, CALL))
    second = recovery_task(Failure(first, (other,), ErrorKind.WRONG_CALL), "again")
    assert second.failed == ((CALL,), (CALL, CALL))
    words = recovery_task(Failure(second, (Turn("words"),), ErrorKind.NO_CALL), "call a tool")
    assert words.failed == second.failed
    assert recovery_task(failure(), "again").failed == ((CALL,),)  # of an episode, to count repetitions


def test_unparsed_call_that_was_told_in_the_episode_is_not_answered_twice():
    told = ToolResult(ToolCall("delete", {PARSE_ERROR: "unclosed"}), "{'error': 'unclosed'}", "unclosed")
    broken = failure((Turn("<tool_call>{", error="unclosed", results=(told,)),), ErrorKind.UNPARSED, None)
    assert recovery_task(broken, "unclosed").prompt[1:] == (
        {"role": "assistant", "content": "<tool_call>{"},
        {"role": "tool", "name": "delete", "content": "{'error': 'unclosed'}"},
    )
    assert recovery_task(broken, "look again").prompt[-1]["content"] == "{'error': 'unclosed'}\nlook again"


def test_wrong_call_that_was_never_executed_is_answered_like_a_tool_would():
    task = recovery_task(failure((Turn("c", calls=(CALL,)),), ErrorKind.WRONG_CALL, 0), "`name` is wrong")
    assert task.prompt[-1] == {"role": "tool", "name": "delete", "content": "`name` is wrong"}


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("kind", [ErrorKind.WRONG_CALL, ErrorKind.BAD_ARGUMENTS, ErrorKind.RAISED])
def test_the_failed_call_again_is_the_worst_call_of_a_recovery_group(kind, depth):
    def call(**arguments):
        return ToolCall("book", {"city": "Oslo", "day": 3, **arguments})

    task = Task("t", ASK, reference=(call(seats=2),))
    for n in range(depth):
        again = ToolCall("book", dict(reversed(call(seats=n + 5).arguments.items())))
        task = recovery_task(Failure(task, (Turn("c", calls=(call(seats=n + 5),)),), kind, call_index=0), "seats?")
    row = task_to_json(task_from_json(task_to_json(task)))
    answers = [call(seats=2), call(seats=9), call(day=4, seats=9), ToolCall("cancel"), again]
    texts = [render_call(answer) for answer in answers]
    rewards = StepReward()(texts, [[i] * 100 for i in range(5)], [row] * 5)
    # R_corr 2, 2 * (0.5 + 0.5 * 2/3), 2 * (0.5 + 0.5 * 1/3), 0: (2 + R_corr + 1) / 3; the same again earns nothing
    assert rewards == pytest.approx([5 / 3, (3 + 5 / 3) / 3, (3 + 4 / 3) / 3, 1, 0])


@pytest.mark.parametrize("text", ["", "\u200b", '{"name": "cd", "arguments": {}}'])
def test_where_no_call_was_made_the_user_says_what_is_wrong(text):
    """An empty answer where no call is wanted is a `wrong_call` without calls."""
    task = Task("t", ASK, reference=())
    turn = parse(text)
    found = find_failure(Trajectory(task, (turn,)), step_verdict(task, turn, 1))
    assert found is not None
    assert found.kind == ErrorKind.WRONG_CALL
    said = rules(found)
    assert said == ("error: no tool call is needed here" if "name" in text else "error: the answer is empty")
    assert recovery_task(found, said).prompt[1:] == (
        {"role": "assistant", "content": text},
        {"role": "user", "content": said},
    )


def test_missing_call_is_pointed_out_by_the_user():
    task = recovery_task(failure((Turn("Sure!"),), ErrorKind.NO_CALL, None), "call a tool")
    assert task.prompt[-2:] == (
        {"role": "assistant", "content": "Sure!"},
        {"role": "user", "content": "call a tool"},
    )


def test_plain_text_prompt_goes_on_as_text():
    task = recovery_task(failure((Turn("5"),), ErrorKind.LOW_REWARD, None, prompt="2+2="), "try again")
    assert task.prompt == "2+2=5\n\ntry again\n\n"


def test_only_the_failing_call_of_several_gets_the_feedback():
    good = ToolCall("list", {})
    turn = Turn("two", calls=(good, CALL), results=(ToolResult(good, "ok"), ToolResult(CALL, ERROR, "no file")))
    task = recovery_task(failure((turn,), call_index=1), "look closer")
    assert [m["content"] for m in task.prompt[2:]] == ["ok", ERROR + "\nlook closer"]


def test_equal_failures_have_equal_names_and_others_do_not():
    assert recovery_id(failure()) == recovery_id(failure())
    assert recovery_id(failure()) != recovery_id(failure((failing_turn("else"),)))
    assert recovery_id(failure()) != recovery_id(failure(id="u"))


def test_lone_surrogates_in_a_rollout_are_no_problem():
    assert recovery_id(failure((Turn("\ud800"),)))


def test_one_failure_per_root_task_is_chosen_the_first_new_one():
    a1, a2, b1 = failure((failing_turn("1"),)), failure((failing_turn("2"),)), failure(id="u")
    chosen, duplicates = select_failures(
        [[a1], [a2], [], [b1]], max_depth=1, is_buffered=lambda name: name == recovery_id(a1)
    )
    assert chosen == [a2, b1]
    assert duplicates == 1


def test_depth_limit_stops_the_chain():
    deep = failure(depth=1)
    assert select_failures([[deep]], max_depth=1, is_buffered=lambda _: False) == ([], 0)
    assert select_failures([[deep]], max_depth=2, is_buffered=lambda _: False) == ([deep], 0)


def test_every_failing_turn_of_the_chosen_rollout_may_be_branched_from():
    one, two, other = failure((failing_turn("1"),)), failure((failing_turn("2"),)), failure((failing_turn("3"),))
    assert select_failures([[one, two], [other]], max_depth=1, is_buffered=lambda _: False) == ([one, two], 0)
    assert select_failures([[one, two]], max_depth=1, is_buffered=lambda name: name == recovery_id(one)) == ([two], 1)
