"""Transcripts in the forms of other projects: blocks, marks of errors, errors in words, padding."""

import json

import pytest
from transcripts_support import ASK, CD, DONE, TOOLS, call, errors, read, result, says, write

from fission_grpo.core.errors import RunFileError
from fission_grpo.core.result_errors import error_rule
from fission_grpo.evaluation.metrics import compute_metrics, uncounted_errors
from fission_grpo.evaluation.transcripts import read_traces

USE = {"type": "tool_use", "id": "1", "name": "cd", "input": {"folder": "a"}}


def answered(**block):
    return {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", **block}]}


@pytest.mark.parametrize(
    "text",
    [
        '<|python_tag|>{"name": "ls", "parameters": {}}',
        '[TOOL_CALLS][{"name": "ls", "arguments": {}}]',
        "<TOOLCALL>[]</TOOLCALL>",
        '<function=ls>{"a": 1}</function>',
        "<tool_call>\n<function=ls>\n<parameter=city>\nOslo\n</parameter>\n</function>\n</tool_call>",
        '{"name": "ls", "arguments": {}}',
    ],
)
def test_a_call_in_a_form_that_is_not_read_is_refused_by_name(tmp_path, text):
    with pytest.raises(
        RunFileError, match=r"line 1: field 'messages\[1\].content' holds a call in a form that is not"
    ):
        read(tmp_path, ASK, says(content=text), result("sunny"), DONE)


@pytest.mark.parametrize("text", ["<function=ls>", '{"name": "ls", "arguments": {}}'])
def test_such_a_form_beside_or_inside_a_call_is_text(tmp_path, text):
    inside = f"<tool_call>\n{json.dumps({'name': 'cd', 'arguments': {'folder': text}})}\n</tool_call>"
    for message in (says(content=inside), says(call("cd", json.dumps({"folder": text})), content=text)):
        (one,) = read(tmp_path, ASK, message, result("sunny"), DONE).calls
        assert one.arguments == {"folder": text}


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (answered(content="no such folder", is_error=True), "no such folder"),
        (answered(content=[{"type": "text", "text": "no such folder"}], is_error=True), "no such folder"),
        (answered(content="fine", is_error=False), None),
        (answered(content="fine", is_error=None), None),
        (answered(content='{"error": "no such folder"}'), "no such folder"),
        (answered(is_error=True), "error"),
    ],
)
def test_blocks_of_anthropic_are_calls_and_results(tmp_path, answer, error):
    record = read(
        tmp_path, ASK, {"role": "assistant", "content": [{"type": "text", "text": "Hm."}, USE]}, answer, DONE
    )
    assert errors(record) == [("cd", error, "raised" if error else None)]
    assert record.calls[0].arguments == {"folder": "a"}
    assert record.steps[0].text == 'Hm.\n<tool_call>\n{"name": "cd", "arguments": {"folder": "a"}}\n</tool_call>'
    assert len(record.turns) == 1


def test_a_request_beside_a_result_begins_a_turn(tmp_path):
    answer = answered(content="fine")
    answer["content"].append({"type": "text", "text": "And now?"})
    record = read(tmp_path, ASK, {"role": "assistant", "content": [USE]}, answer, DONE)
    assert [len(turn.steps) for turn in record.turns] == [1, 1]


def test_schemas_of_anthropic_and_mcp_class_errors_too(tmp_path):
    for key in ("input_schema", "inputSchema"):
        tools = [{"name": "cd", "description": "", key: CD}]
        use = {"role": "assistant", "content": [USE | {"input": {"folder": 1}}]}
        record = read(tmp_path, ASK, use, answered(content="no", is_error=True), tools=tools)
        assert errors(record) == [("cd", "no", "bad_arguments")]
        record = read(tmp_path, ASK, use | {"content": [USE]}, answered(content="no", is_error=True), tools=tools)
        assert errors(record) == [("cd", "no", "raised")]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (result('{"isError": true, "content": [{"type": "text", "text": "no"}]}'), "no"),
        (result({"isError": True, "content": [{"type": "text", "text": "no"}]}), "no"),
        (result("no") | {"isError": True}, "no"),
        (result("no") | {"is_error": True}, "no"),
        (result("no") | {"status": "error"}, "no"),
        (result('{"isError": false, "content": []}'), None),
        (result("no") | {"is_error": "true"}, "no"),
        (result([{"type": "output_text", "text": '{"error": "no"}'}]), "no"),
        (result([{"type": "text", "text": '{"error": "no"}', "id": "1", "meta": {}}]), "no"),
        (result('{"jsonrpc": "2.0", "result": {"content": [{"type": "text", "text": "no"}], "isError": true}}'), "no"),
        (result('<tool_response>\n{"error": "no"}\n</tool_response>'), "no"),
    ],
)
def test_errors_that_the_message_marks_are_errors(tmp_path, answer, error):
    assert read(tmp_path, ASK, says(call("cd")), answer).calls[0].error == error


def test_results_without_ids_belong_to_the_calls_of_their_names(tmp_path):
    results = [result("2") | {"name": "g"}, result('{"error": "no"}') | {"name": "f"}, result("3") | {"name": "other"}]
    record = read(tmp_path, ASK, says(call("f"), call("g"), call("h")), *results, DONE)
    assert [(one.name, one.result) for one in record.calls] == [("f", '{"error": "no"}'), ("g", "2"), ("h", "3")]
    named = [result("2", "b") | {"name": "f"}, result("1", "a") | {"name": "g"}]  # ids win over names
    record = read(tmp_path, ASK, says(call("f", id="a"), call("g", id="b")), *named, DONE)
    assert [one.result for one in record.calls] == ["1", "2"]


@pytest.mark.parametrize("kind", ["server_tool_use", "tool-call", "made_up"])
def test_a_block_of_an_unknown_type_is_refused_by_name(tmp_path, kind):
    with pytest.raises(RunFileError, match=rf"line 1: field 'messages\[1\].content\[0\]' is a block of type '{kind}'"):
        read(tmp_path, ASK, says(content=[{"type": kind, "id": "1"}]))


@pytest.mark.parametrize(
    "content",
    [
        "a </tool_call>",
        '<tool_call>{"name": "b", "argu',
        "<think>I call a",
        '<tool_call>{"name": "b", "arguments": {}}</tool_call>',
    ],
)
def test_the_structured_call_counts_whatever_stands_beside_it(tmp_path, content):
    record = read(tmp_path, ASK, says(call("a", id="1"), content=content), result("fine", "1"))
    assert [(one.name, one.result) for one in record.calls] == [("a", "fine")]
    assert record.steps[0].unread is None


def test_structured_calls_may_be_json_text_as_may_messages_and_tools(tmp_path):
    entries = json.dumps([call("cd", '{"folder": 1}', "1")])
    messages = [ASK, {"role": "assistant", "tool_calls": entries}, result("{'error': 'no'}", "1")]
    assert errors(read(tmp_path, *messages)) == [("cd", "no", "raised")]
    row = {"messages": json.dumps(messages), "tools": json.dumps(TOOLS)}
    (record,) = read_traces(write(tmp_path, row))
    assert errors(record) == [("cd", "no", "bad_arguments")]


def test_nulls_that_a_table_added_to_an_object_are_no_arguments(tmp_path):
    padded = says(call("cd", {"folder": "a", "city": None}))
    assert errors(read(tmp_path, ASK, padded, result("{'error': 'no'}"), tools=TOOLS)) == [("cd", "no", "raised")]
    written = says(call("cd", '{"folder": "a", "city": null}'))
    assert errors(read(tmp_path, ASK, written, result("{'error': 'no'}"), tools=TOOLS)) == [
        ("cd", "no", "bad_arguments")
    ]


@pytest.mark.parametrize(
    ("given", "success"),
    [(1, True), (0, False), (1.0, True), (0.0, False), (True, True), (False, False), (None, None)],
)
def test_success_may_be_a_number(tmp_path, given, success):
    record = read(tmp_path, ASK, DONE, success=given)
    assert record.success is success


@pytest.mark.parametrize("given", [2, 0.5, -1, "1", []])
def test_success_of_another_value_is_refused(tmp_path, given):
    with pytest.raises(RunFileError, match="field 'success' must be bool"):
        read(tmp_path, ASK, DONE, success=given)


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path):
    path = write(tmp_path, {"messages": [ASK, DONE]})
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(read_traces(path)) == 1


def test_a_file_of_transcripts_and_results_is_refused_by_line(tmp_path):
    path = write(tmp_path, {"messages": [ASK]}, {"id": "multi_turn_base_0", "result": []})
    with pytest.raises(RunFileError, match="line 2: is of a BFCL result file, and line 1 a transcript"):
        read_traces(path)


WORDS = ["Error: user not found", "ok", "Error: no", "No Error: fine"]


def test_errors_in_words_are_counted_with_a_pattern_and_noted_without(tmp_path):
    rows = [
        {"messages": [ASK, says(call("a")), result(WORDS[0]), says(call("a")), result(WORDS[1])], "success": 1},
        {"messages": [ASK, says(call("a")), result(WORDS[2]), says(call("a")), result(WORDS[3])], "success": 0},
    ]
    path = write(tmp_path, *rows)
    records = read_traces(path)
    assert compute_metrics(records).own_errors == 0
    count, note = uncounted_errors(records)
    assert count == 2
    assert note.startswith("2 of 4 results begin like errors and count as successes (such as 'Error: user not found')")
    assert note.endswith("Cases with such results: 2, 1 of them successful")
    counted = read_traces(path, error_if=error_rule("^Error"))
    rates = compute_metrics(counted)
    assert (rates.own_errors, rates.recovery.hits, rates.recovery.of) == (2, 1, 2)
    assert [one.error for record in counted for one in record.calls] == [WORDS[0], None, WORDS[2], None]
    assert uncounted_errors(counted) == (0, "")


def test_a_pattern_is_refused_for_a_result_file(tmp_path):
    path = write(tmp_path, {"id": "multi_turn_base_0", "result": []})
    with pytest.raises(RunFileError, match="leave --error_pattern out"):
        read_traces(path, error_if=bool)


SENT = {"name": "find", "arguments": {"order": "7"}}
TAU = [
    {"role": "system", "content": "Be kind."},
    ASK,
    {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": SENT}]},
    {"role": "tool", "tool_call_id": "1", "name": "find", "content": "Error: order 7 not found"},
    {"role": "assistant", "content": "No."},
]
TAU2 = [
    ASK,
    {"role": "assistant", "content": None, "tool_calls": [{"id": "1", **SENT, "requestor": "assistant"}]},
    {"role": "tool", "id": "1", "content": "no order", "requestor": "assistant", "error": True},
    {"role": "user", "content": None, "tool_calls": [{"id": "2", **SENT, "requestor": "user"}], "requestor": "user"},
    {"role": "tool", "id": "2", "content": "on", "requestor": "user", "error": False},
]
INSPECT = [
    ASK,
    {
        "role": "assistant",
        "content": [{"type": "reasoning", "reasoning": "hm"}, {"type": "text", "text": "Well."}],
        "tool_calls": [{"id": "1", "function": "find", "arguments": {"order": "7"}, "type": "function"}],
    },
    {
        "role": "tool",
        "tool_call_id": "1",
        "function": "find",
        "content": "",
        "error": {"type": "timeout", "message": "too slow"},
    },
]


@pytest.mark.parametrize(
    ("document", "records"),
    [
        (
            [{"task_id": 3, "trial": n, "reward": reward, "traj": TAU} for n, reward in enumerate((1.0, 0.5))],
            [("3-0", True, ["Error: order 7 not found"]), ("3-1", False, ["Error: order 7 not found"])],
        ),
        (
            {
                "tasks": [],
                "simulations": [{"task_id": "4", "trial": 0, "messages": TAU2, "reward_info": {"reward": 1}}],
            },
            [("4-0", True, ["no order"])],
        ),
        (
            {"samples": [{"id": 1, "epoch": 1, "messages": INSPECT, "scores": {"match": {"value": "C"}}}]},
            [("1-1", True, ["too slow"])],
        ),
        (TAU, [("line-1", None, ["Error: order 7 not found"])]),
        ([{"messages": TAU}, {"messages": TAU}], [(f"line-{n}", None, ["Error: order 7 not found"]) for n in (1, 2)]),
    ],
    ids=["tau-bench", "tau2-bench", "inspect", "messages", "list"],
)
def test_results_of_other_programs_are_read_as_transcripts(tmp_path, document, records):
    (tmp_path / "results.json").write_text(json.dumps(document))
    found = read_traces(tmp_path / "results.json", error_if=error_rule("^Error"))
    assert [(one.id, one.success, [made.error for made in one.calls]) for one in found] == records
    assert {(made.name, made.arguments["order"]) for one in found for made in one.calls} == {("find", "7")}


def test_trials_of_one_task_are_samples_of_it_and_not_cases_of_their_own(tmp_path):
    tau = [{"task_id": n // 4, "trial": n % 4, "reward": float(n < 4), "traj": TAU} for n in range(8)]
    score = {"match": {"value": "C"}}
    inspect = {"samples": [{"id": "a", "epoch": n, "messages": INSPECT, "scores": score} for n in (1, 2)]}
    for name, document in (("tau.json", tau), ("inspect.json", inspect)):
        (tmp_path / name).write_text(json.dumps(document))
    records = read_traces(tmp_path / "tau.json")
    assert [one.task for one in records] == ["0"] * 4 + ["1"] * 4
    metrics = compute_metrics(records)
    assert metrics.success.method == "bootstrap"
    assert [(one.k, one.tasks, one.all) for one in metrics.passes] == [(k, 2, 0.5) for k in (1, 2, 3, 4)]
    assert [(one.id, one.task) for one in read_traces(tmp_path / "inspect.json")] == [("a-1", "a"), ("a-2", "a")]


def test_a_transcript_may_name_its_task_and_trial_and_other_fields_called_task_are_not_read(tmp_path):
    rows = [{"messages": TAU, "task": {"kind": "refund"}}, {"messages": TAU, "task_id": 7, "trial": 0}]
    assert [one.task for one in read_traces(write(tmp_path, *rows))] == ["", "7"]


def test_a_row_that_is_no_object_is_named(tmp_path):
    (tmp_path / "rows.json").write_text('[{"messages": [{"role": "user", "content": "go"}]}, 3]')
    with pytest.raises(RunFileError, match=r"rows\.json, row 2: not a JSON object"):
        read_traces(tmp_path / "rows.json")


def test_the_layouts_of_data_sets_are_transcripts_too(tmp_path):
    call = '<tool_call>{"name": "find", "arguments": {"order": "7"}}</tool_call>'
    said = [
        ("human", "Go."),
        ("gpt", call),
        ("tool", '<tool_response>{"error": "no"}</tool_response>'),
        ("gpt", "Sorry."),
    ]
    row = {"conversations": [{"from": role, "value": text} for role, text in said], "success": False}
    (record,) = read_traces(write(tmp_path, row))
    assert [(one.name, one.error) for one in record.calls] == [("find", "no")]
    assert record.success is False
    broken = {"conversations": [{"from": "human", "value": "Go."}, {"from": "gpt", "value": "<tool_call>{"}]}
    with pytest.raises(RunFileError, match="line 1: it cannot be read: a tool call cannot be read"):
        read_traces(write(tmp_path, broken))
