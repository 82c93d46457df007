"""Calls without `<tool_call>` tags: read where asked for, never out of prose."""

import json

import pytest
from scripted_policy import ScriptedPolicy

from fission_grpo import evaluate
from fission_grpo.core.chat import render_call
from fission_grpo.core.types import ErrorKind, ToolCall
from fission_grpo.envs.bfcl.official import multi_turn_cases
from fission_grpo.envs.desk.env import Desk
from fission_grpo.envs.desk.tasks import make_rows, solution
from fission_grpo.evaluation.bare_json import calls_in_bare_json, read_turn
from fission_grpo.evaluation.bfcl.formats import BARE_JSON
from fission_grpo.evaluation.bfcl.run_case import run_case
from fission_grpo.inference.base import Reply

LS, CD = '{"name": "ls", "arguments": {}}', '{"name": "cd", "arguments": {"folder": "a"}}'
CALLS = (ToolCall("ls", {}), ToolCall("cd", {"folder": "a"}))


@pytest.mark.parametrize(
    "text",
    [f"{LS}\n{CD}", f" {LS} {CD}\n", f"[{LS}, {CD}]", f"```json\n{LS}\n{CD}\n```", f"```\n[{LS},\n {CD}]\n```"],
)
def test_a_text_that_is_nothing_but_calls_is_read(text):
    assert calls_in_bare_json(text) == CALLS


@pytest.mark.parametrize(
    "text",
    [
        f"I will call {LS}",
        f"{LS} is the call.",
        f"Here:\n```json\n{LS}\n```",
        f"```json\n{LS}\n```\nand then\n```json\n{CD}\n```",
        f"{LS}\n{CD[:-1]}",  # cut off
        f'{LS}\n{{"name": "Ann"}}',  # an object that is no call
        '{"name": "ls", "arguments": {}, "comment": "x"}',
        '{"name": "ls", "arguments": "{}"}',
        '{"name": "", "arguments": {}}',
        '{"name": "ls", "arguments": {"a": 1, "a": 2}}',  # which of the two is meant?
        '{"tool": "ls"}',
        "[]",
        "```json\n```",
        "7",
        "",
    ],
)
def test_any_other_text_holds_no_call(text):
    assert calls_in_bare_json(text) == ()
    assert read_turn(Reply(text), bare_json_calls=True).content == text.strip()


def test_tags_are_read_as_ever_and_thoughts_are_left_out():
    tagged = render_call(CALLS[0])
    assert read_turn(Reply(f"{tagged}\n{CD}"), bare_json_calls=True).calls == CALLS[:1]
    assert read_turn(Reply(f"<think>\n{CD}\n</think>\n{LS}"), bare_json_calls=True).calls == CALLS[:1]
    broken = "<tool_call>\n{\n</tool_call>"
    assert read_turn(Reply(broken), bare_json_calls=True).error == read_turn(Reply(broken)).error is not None
    assert read_turn(Reply(LS)).calls == ()


def bare(call):
    return json.dumps({"name": call.name, "arguments": dict(call.arguments)})


def test_an_evaluation_reads_bare_calls_only_where_asked_and_an_unknown_tool_is_an_error_of_its_name():
    rows = make_rows(6, seed=0, split="held_out")
    by_request = {row["prompt"][0]["content"]: solution(row) for row in rows}

    def write(dialogue):
        turn = sum(message["role"] == "assistant" for message in dialogue)
        calls = (ToolCall("no_such_tool", {}), *by_request[dialogue[0]["content"]])
        return bare(calls[turn]) if turn < len(calls) else "Done."

    policy = ScriptedPolicy(write)
    result = evaluate(policy, Desk, rows, max_turns=6, bare_json_calls=True)
    assert result.metrics.success.rate == result.metrics.recovery.rate == 1.0
    first = [record.calls[0] for record in result.records]
    assert {(call.name, call.kind) for call in first} == {("no_such_tool", ErrorKind.UNKNOWN_TOOL)}
    assert all("no_such_tool" in call.error for call in first)
    plain = evaluate(policy, Desk, rows, max_turns=6)
    assert (plain.metrics.success.rate, sum(len(record.calls) for record in plain.records)) == (0.0, 0)


def test_bfcls_chat_format_reads_bare_calls_and_keeps_what_was_written_in_the_dialogue():
    case = multi_turn_cases("multi_turn_base")[0]
    texts = [text for turn in case.reference for text in ("\n".join(map(bare, turn)), "Done.")]
    running, reply = run_case(case, BARE_JSON), None
    for text in [*texts, None]:
        try:
            request = running.send(reply)
        except StopIteration as end:
            record = end.value
            break
        reply = Reply(text)
    assert record.success
    assert [m["content"] for m in request.messages if m["role"] == "assistant"] == texts[:-1]
