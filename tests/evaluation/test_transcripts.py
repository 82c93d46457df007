"""Foreign traces from real files: which result belongs to which call, what erred and how, and clear complaints."""

import sys
import types

import pytest
from transcripts_support import ASK, DONE, TOOLS, call, errors, read, result, says, write

from fission_grpo.core.errors import RunFileError
from fission_grpo.evaluation.metrics import compute_metrics
from fission_grpo.evaluation.records import CaseRecord, read_records, to_line
from fission_grpo.evaluation.transcripts import read_traces


def test_results_go_to_their_calls_by_id_whatever_their_order(tmp_path):
    record = read(
        tmp_path,
        ASK,
        says(call("a", id="1"), call("b", id="2")),
        result('{"error": "no"}', "2"),
        result("fine", "1"),
        DONE,
    )
    assert errors(record) == [("a", None, None), ("b", "no", "raised")]
    assert [one.result for one in record.calls] == ["fine", '{"error": "no"}']
    assert [len(step.calls) for step in record.steps] == [2, 0]


def test_without_ids_results_go_to_the_calls_of_the_last_reply_in_order(tmp_path):
    record = read(tmp_path, ASK, says(call("never answered")), says(call("a"), call("b")), result("1"), result("2"))
    assert [(one.name, one.result) for one in record.calls] == [("never answered", ""), ("a", "1"), ("b", "2")]


def test_ids_used_again_in_every_reply_mean_the_latest(tmp_path):
    messages = [ASK, says(call("a", id="call_0")), result("1", "call_0"), says(call("b", id="call_0"))]
    record = read(tmp_path, *messages, result("2", "call_0"))
    assert [one.result for one in record.calls] == ["1", "2"]


def test_an_id_that_no_call_has_is_taken_in_order(tmp_path):
    record = read(tmp_path, ASK, says(call("a")), result("1", "made-by-the-server"))
    assert record.calls[0].result == "1"


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("{'error': 'no such folder'}", "no such folder"),
        ("Error during execution: no such folder", "no such folder"),
        ("Error during execution:", "Error during execution:"),
        ({"error": "no such folder"}, "no such folder"),
        ([{"type": "text", "text": '{"error": "no such folder"}'}], "no such folder"),
        ('{"error": null}', None),
        ("the word error means nothing", None),
        (None, None),
    ],
)
def test_what_a_tool_answers_is_an_error_by_its_structure(tmp_path, content, error):
    assert read(tmp_path, ASK, says(call("cd")), result(content)).calls[0].error == error


@pytest.mark.parametrize(
    ("name", "arguments", "kind"),
    [("ls", "{}", "unknown_tool"), ("cd", '{"folder": 1}', "bad_arguments"), ("cd", '{"folder": "x"}', "raised")],
)
def test_errors_are_classed_by_the_tools_if_the_trace_lists_them(tmp_path, name, arguments, kind):
    messages = [ASK, says(call(name, arguments)), result("Error during execution: no")]
    assert errors(read(tmp_path, *messages, tools=TOOLS)) == [(name, "no", kind)]
    assert errors(read(tmp_path, *messages)) == [(name, "no", "raised")]


def test_tools_in_bfcls_types_are_read_as_well(tmp_path):
    parameters = {"type": "dict", "properties": {"x": {"type": "float"}}, "required": ["x"]}
    messages = [ASK, says(call("f", '{"x": "1"}')), result('{"error": "no"}')]
    record = read(tmp_path, *messages, tools=[{"name": "f", "description": "", "parameters": parameters}])
    assert record.calls[0].kind == "bad_arguments"


def test_calls_written_in_hermes_text_are_read_and_answered_by_tool_or_user_messages(tmp_path):
    text = '<tool_call>\n{"name": "cd", "arguments": {"folder": "a"}}\n</tool_call>'
    answer = {"role": "user", "content": "<tool_response>\n{'error': 'no'}\n</tool_response>"}
    record = read(tmp_path, ASK, says(content=text), answer, says(content=text), result("ok"), tools=TOOLS)
    assert errors(record) == [("cd", "no", "raised"), ("cd", None, None)]
    assert len(record.turns) == 1
    assert record.steps[0].text == text


def test_an_unreadable_call_in_text_is_unread_and_its_answer_is_no_call(tmp_path):
    record = read(tmp_path, ASK, says(content='<tool_call>{"name": }</tool_call>'), result("{'error': 'not JSON'}"))
    assert record.steps[0].unread.startswith("tool call is not valid JSON")
    assert (record.calls, record.steps[0].errors) == ((), 1)


@pytest.mark.parametrize("arguments", ["{", "[]", '{"a": 1} x', '{"a": NaN}', '{"a": 1, "a": 2}', [1]])
def test_structured_calls_with_unreadable_arguments_are_unread(tmp_path, arguments):
    messages = [ASK, says(call("a", arguments, "1"), call("b", "{}", "2")), result("told", "1"), result("ok", "2")]
    record = read(tmp_path, *messages)
    assert record.steps[0].unread.startswith("the arguments of 'a' are not")
    assert [(one.name, one.result) for one in record.calls] == [("b", "ok")]


def test_arguments_may_be_an_object_or_empty_and_a_call_may_be_a_function_call_of_old(tmp_path):
    old = {"role": "assistant", "content": None, "function_call": {"name": "a", "arguments": '{"x": 1}'}}
    answer = {"role": "function", "name": "a", "content": "Error during execution: no"}
    record = read(tmp_path, ASK, old, answer, says(call("b", {"y": 2}), call("c", "")))
    assert [(one.name, dict(one.arguments)) for one in record.calls] == [("a", {"x": 1}), ("b", {"y": 2}), ("c", {})]
    assert record.calls[0].error == "no"


def test_text_beside_structured_calls_does_not_make_them_twice(tmp_path):
    text = '<tool_call>{"name": "a", "arguments": {}}</tool_call>'
    assert len(read(tmp_path, ASK, says(call("a"), content=text)).calls) == 1


def test_a_step_keeps_structured_calls_as_hermes_text_with_arguments_verbatim(tmp_path):
    record = read(tmp_path, ASK, says(call("a", '{"x":  oops'), content="Hm."))
    assert record.steps[0].text == 'Hm.\n<tool_call>\n{"name": "a", "arguments": {"x":  oops}\n</tool_call>'


def test_user_messages_begin_turns_and_a_greeting_belongs_to_the_first(tmp_path):
    system = {"role": "system", "content": "s"}
    record = read(tmp_path, system, says(content="Hello!"), ASK, ASK, says(call("a")), result("1"), DONE, ASK, DONE)
    assert [len(turn.steps) for turn in record.turns] == [3, 1]
    assert all(turn.valid is None for turn in record.turns)


def test_fields_of_a_row_and_what_they_are_without_them(tmp_path):
    messages = {"messages": [ASK, DONE]}
    rows = [
        messages,
        {"id": "x", "success": True, "category": "air"} | messages,
        {"id": 7, "success": False} | messages,
    ]
    first, second, third = read_traces(write(tmp_path, "", *rows))
    assert (first.id, first.success, first.category) == ("line-2", None, "")
    assert (second.id, second.success, second.category) == ("x", True, "air")
    assert (third.id, third.success) == ("7", False)


def test_unknown_tools_count_and_the_rates_of_a_file_come_out(tmp_path):
    failing = [ASK, says(call("ls")), result("Error during execution: no ls")]
    rows = [
        {"messages": [*failing, says(call("cd", '{"folder": "a"}')), result("ok")], "tools": TOOLS, "success": True},
        {"messages": failing, "tools": TOOLS, "success": False},
        {"messages": [ASK, DONE], "success": True},
        {"messages": failing},
    ]
    records = read_traces(write(tmp_path, *rows))
    rates = compute_metrics(records)
    assert (rates.recovery.hits, rates.recovery.of, rates.unjudged, rates.own_errors) == (1, 2, 1, 3)
    assert {group.name: group.success.of for group in rates.by_kind}["unknown_tool"] == 2
    assert rates.turn_recovery.rate is None  # nobody judged the turns
    copy = tmp_path / "cases.jsonl"
    copy.write_text("".join(to_line(record) + "\n" for record in records))
    assert read_records(copy) == records


def test_texts_that_no_file_can_hold_are_mended(tmp_path):
    record = read(tmp_path, ASK, says(call("a", '{"x": "\\ud800"}'), content="\ud800"))
    assert (record.steps[0].text[0], bool(record.steps[0].unread)) == ("\ufffd", True)
    to_line(record).encode()


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({}, "field 'messages' must be list, but is missing"),
        ({"messages": []}, "field 'messages' must not be empty"),
        ({"messages": [{"role": "robot", "content": ""}]}, "field 'messages[0]' has an unknown role (one of system"),
        ({"messages": [ASK, "hi"]}, "field 'messages[1]' must be an object with a `role`"),
        ({"messages": [ASK, result("x")]}, "field 'messages[1]' is a tool result without a call before it"),
        (
            {"messages": [ASK, says(call("a")), result("1"), result("2")]},
            "field 'messages[3]' is a tool result without a call before it that waits for one, got '2'",
        ),
        ({"messages": [ASK, says() | {"tool_calls": {}}]}, "field 'messages[1].tool_calls' must be a list, got {}"),
        ({"messages": [ASK, says("ls")]}, "field 'messages[1].tool_calls[0]' must be like"),
        ({"messages": [ASK, says(call(None))]}, "field 'messages[1].tool_calls[0].function.name' must be a string"),
        ({"messages": [ASK, says(content=7)]}, "field 'messages[1].content' must be a string"),
        ({"messages": [ASK], "success": "yes"}, "field 'success' must be bool"),
        ({"messages": [ASK], "tools": [{"name": ""}]}, "field 'tools[0]' cannot be read"),
        ({"messages": [ASK], "tools": ["ls"]}, "field 'tools[0]' cannot be read"),
    ],
)
def test_a_broken_row_is_named_by_file_line_and_field(tmp_path, row, complaint):
    path = write(tmp_path, {"messages": [ASK, DONE]}, row)
    with pytest.raises(RunFileError) as caught:
        read_traces(path)
    assert str(caught.value).startswith(f"{path}, line 2: {complaint}")


def test_two_rows_of_one_id_a_missing_and_an_empty_file_are_refused(tmp_path):
    row = {"id": "a", "messages": [ASK]}
    with pytest.raises(RunFileError, match="line 3: field 'id' 'a' is line 1's already"):
        read_traces(write(tmp_path, row, {"messages": [ASK]}, row))
    with pytest.raises(RunFileError, match="no traces in it"):
        read_traces(write(tmp_path, ""))
    with pytest.raises(RunFileError, match="no such file"):
        read_traces(tmp_path / "nowhere.jsonl")


def test_a_last_line_cut_off_is_noted_where_notes_are_taken_and_refused_elsewhere(tmp_path):
    path = write(tmp_path, {"messages": [ASK]})
    path.write_text(path.read_text() + '{"messages": [{"ro')
    notes = []
    assert len(read_traces(path, notes)) == 1
    assert "line 2" in notes[0]
    with pytest.raises(RunFileError, match="line 2"):
        read_traces(path)


def test_a_line_nested_too_deeply_is_refused(tmp_path):
    deep = "[" * 200_000 + "]" * 200_000
    with pytest.raises(RunFileError, match="nested too deeply"):
        read_traces(write(tmp_path, '{"messages": ' + deep + "}"))


def test_rows_with_id_and_result_go_to_the_reader_of_bfcls_result_files(tmp_path, monkeypatch):
    reader = types.ModuleType("fission_grpo.evaluation.bfcl.results")  # its own tests read real result files
    reader.read_result_file = lambda path: [CaseRecord(path.name)]
    monkeypatch.setitem(sys.modules, "fission_grpo.evaluation.bfcl.results", reader)
    path = write(tmp_path, {"id": "multi_turn_base_0", "result": [["x"]]})
    assert read_traces(path) == [CaseRecord("traces.jsonl")]
    both = {"id": "a", "result": "mine", "messages": [ASK]}
    assert [record.id for record in read_traces(write(tmp_path, both))] == ["a"]


def test_without_bfcl_a_result_file_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fission_grpo.evaluation.bfcl.results", None)
    with pytest.raises(RunFileError, match="pip install --no-deps bfcl-eval"):
        read_traces(write(tmp_path, {"id": "multi_turn_base_0", "result": []}))
