"""Rows that name an environment keep what it needs, so that the step tasks can be executed."""

import datetime
import json
from pathlib import Path

import pytest
from convert_support import ASK, convert, openai, says, tool, write

from fission_grpo.cli.main import main
from fission_grpo.core.types import ToolCall
from fission_grpo.data.convert.formats import convert_file
from fission_grpo.data.load import check_tasks, load_tasks
from fission_grpo.data.step_tasks import load_step_tasks, row_of_step_task

OPEN = tool("open_box", {"name": {"type": "string"}, "code": {"type": "string"}}, ["name", "code"])
RED, BLUE = ({"name": name, "code": name[0] * 3} for name in ("red", "blue"))
COLUMNS = {"environment": "step_environments:Locker", "codes": {"red": "rrr", "blue": "bbb"}}


def opens(number, box, content):
    answer = {"role": "tool", "tool_call_id": "1", "content": content}
    return [says("open_box", box), answer][:number]


def dialogue(*messages, **columns):
    return openai(ASK, *messages, tools=[OPEN]) | COLUMNS | columns


def calls(*boxes):
    return [[{"name": "open_box", "arguments": box}] for box in boxes]


END = {"role": "assistant", "content": "Done."}


def test_each_turn_keeps_the_columns_and_has_the_turns_after_it(tmp_path):
    row = dialogue(
        *opens(2, RED, "open: red"), *opens(2, BLUE, "open: red, blue"), END, ASK, *opens(1, RED, ""), id="x"
    )
    first, second, third = convert(tmp_path, row | {"following": 3, "reference": None}).tasks
    assert [task.columns["following"] for task in (first, second, third)] == [[*calls(BLUE), []], [[]], []]
    assert {name: value for name, value in second.columns.items() if name != "following"} == COLUMNS
    assert [result.call for result in third.history] == [ToolCall("open_box", RED), ToolCall("open_box", BLUE)]


def test_a_converted_file_is_executed_turn_by_turn(tmp_path, capsys):
    row = dialogue(*opens(2, RED, "open: red"), *opens(2, BLUE, "open: red, blue"), END)
    out = tmp_path / "out.jsonl"
    assert main(["tasks", "convert", str(write(tmp_path, row)), str(out), "--abstentions"]) == 0
    assert main(["tasks", "check", str(out)]) == 0
    assert "3 tasks tried in their environments\n" in capsys.readouterr().out
    assert load_tasks(str(out)) == list(convert(tmp_path, row, abstentions=True).tasks)


def test_a_failed_turn_is_no_task_and_its_calls_are_made_again(tmp_path):
    wrong = {"name": "red", "code": "x"}
    row = dialogue(*opens(2, wrong, "Error: no"), *opens(2, RED, "open: red"), END)
    path, (task,) = tmp_path / "out.jsonl", convert(tmp_path, row).tasks
    path.write_text(row_of_step_task(task))
    assert [result.call.arguments for result in task.history] == [wrong]
    assert "dialogues answered in other words than in the file: 1" in check_tasks(path)


@pytest.mark.parametrize(
    ("later", "following"),
    [
        (opens(1, BLUE, ""), calls(BLUE)),  # nobody knows how it ended
        ([ASK], [[]]),
        (opens(2, BLUE, "Error: no such box"), []),  # would be an error as reference
        ([says("open_box", {"name": 3})], []),
        ([says("open_box", BLUE, weight=0)], []),
    ],
)
def test_the_turns_after_it_end_where_they_could_be_no_reference(tmp_path, later, following):
    first, *_ = convert(tmp_path, dialogue(*opens(2, RED, "open: red"), *later)).tasks
    assert first.columns["following"] == following


def test_the_turns_after_it_end_before_a_call_that_is_not_read(tmp_path):
    call = f"<tool_call>{json.dumps({'name': 'open_box', 'arguments': RED})}</tool_call>"
    values = [("human", "Go."), ("gpt", call), ("tool", "open: red"), ("gpt", '[TOOL_CALLS] [{"name": "open_box"}]')]
    row = {"conversations": [{"from": who, "value": text} for who, text in values], "tools": json.dumps([OPEN])}
    (task,) = convert(tmp_path, row | COLUMNS, layout="hermes").tasks
    assert task.columns["following"] == []


@pytest.mark.parametrize("other", ["production", {"os": "linux"}, 3, ["desk"], True, ""])
def test_another_meaning_of_the_word_changes_nothing_and_is_counted(tmp_path, other):
    row = dialogue(*opens(2, RED, "open: red"), END)
    plain = convert(tmp_path, {key: value for key, value in row.items() if key not in COLUMNS})
    converted = convert(tmp_path, row | {"environment": other})
    assert [row_of_step_task(task) for task in converted.tasks] == [row_of_step_task(task) for task in plain.tasks]
    assert (
        "rows whose field 'environment' is none of desk, bfcl and module:Class, and is left out: 1"
        in converted.summary()
    )
    assert plain.notes == convert(tmp_path, row | {"environment": None}).notes == ()


def test_turns_that_cannot_be_reached_are_dropped_with_the_reason(tmp_path):
    whole, snapshot = dialogue(*opens(2, RED, "open: red")), {"snapshot": {"open": []}}
    lost = dialogue(*opens(1, RED, ""), ASK, *opens(1, BLUE, ""))
    converted = convert(tmp_path, whole, whole | snapshot, whole | {"snapshot": None}, lost)
    assert [task.id for task in converted.tasks] == ["data:1#1", "data:3#1", "data:4#1"]
    assert converted.dropped == {
        "it has a snapshot, which belongs to one turn only": 1,
        "its environment needs one result for every call of the dialogue": 1,
    }


@pytest.mark.parametrize("layout", ["hermes", "xlam", "toolace", "apigen-mt"])
def test_every_layout_keeps_the_columns(tmp_path, layout):
    call = json.dumps({"name": "open_box", "arguments": RED})
    tools = json.dumps([OPEN["function"]])
    ask = {"from": "human", "value": "Go."}
    rows = {
        "hermes": {
            "conversations": [ask, {"from": "gpt", "value": f"<tool_call>{call}</tool_call>"}],
            "tools": tools,
        },
        "xlam": {"query": "Go.", "answers": f"[{call}]", "tools": tools},
        "toolace": {
            "system": tools,
            "conversations": [ask, {"from": "gpt", "value": '[open_box(name="red", code="rrr")]'}],
        },
        "apigen-mt": {"system": "s", "tools": tools, "conversations": [ask, {"from": "function_call", "value": call}]},
    }
    (task,) = convert(tmp_path, rows[layout] | COLUMNS | {"level": 2}, layout=layout).tasks
    assert task.columns == COLUMNS | {"level": 2, "following": []}
    assert task.reference == (ToolCall("open_box", RED),)


def test_tables_give_rows_without_an_environment_a_null(tmp_path):
    row = dialogue(*opens(2, RED, "open: red"), END)
    bare = {key: value for key, value in row.items() if key not in COLUMNS}
    tables = [json.dumps(row["tools"]), json.dumps(row["messages"])]
    with_environment, without = convert(
        tmp_path,
        *(one | {"tools": tables[0], "messages": tables[1]} for one in (row, bare)),
        name="data.parquet",
    ).tasks
    assert with_environment.columns["environment"] == "step_environments:Locker"
    assert without.columns == {}


def test_a_column_that_json_cannot_hold_is_named(tmp_path, capsys):
    row = dialogue(*opens(2, RED, "open: red"), END, when=datetime.date(2026, 1, 2))
    row |= {"tools": json.dumps(row["tools"]), "messages": json.dumps(row["messages"])}
    path = write(tmp_path, row, name="data.parquet")
    assert main(["tasks", "convert", str(path), str(tmp_path / "out.jsonl")]) == 1
    error = capsys.readouterr().err
    assert "data.parquet: task 'data:1#1': field 'when' holds a date" in error
    assert "or remove it" in error


# -- BFCL's cases -------------------------------------------------------------------------------------------------

CASE = {
    "id": "c",
    "classes": ["TicketAPI"],
    "config": {
        "TicketAPI": {
            "ticket_queue": [{"id": 7, "title": "a", "status": "Open", "created_by": "ann"}],
            "current_user": "ann",
        }
    },
    "turns": [
        {"request": "Close it.", "reference": [{"name": "close_ticket", "arguments": {"ticket_id": 7}}]},
        {"request": "Log me out.", "reference": [], "without": ["close_ticket", "logout"]},
        {
            "request": "Show it, then log me out.",
            "reference": [{"name": "get_ticket", "arguments": {"ticket_id": 7}}, {"name": "logout", "arguments": {}}],
            "without": ["close_ticket"],
        },
    ],
}


def test_a_case_becomes_step_tasks_whose_dialogue_is_made_again_with_functions_held_back_later(tmp_path, capsys):
    pytest.importorskip("bfcl_eval")
    out = tmp_path / "out.jsonl"
    assert main(["tasks", "convert", str(write(tmp_path, CASE)), str(out)]) == 0
    assert main(["tasks", "check", str(out)]) == 0
    assert capsys.readouterr().out.endswith("\n4 tasks tried in their environments\n")
    tasks = load_tasks(str(out))
    logout = {"name": "logout", "arguments": {}}
    assert [task.id for task in tasks] == ["c#0.0", "c#1.0", "c#2.0", "c#2.1"]
    assert [task.columns.get("following") for task in tasks] == [[[]], None, [[logout], []], [[]]]
    assert {json.loads(task.columns["scenario"])["history"] == [] for task in tasks} == {True}
    assert "close_ticket" not in {tool["name"] for task in tasks[1:] for tool in task.tools}


def test_long_contents_survive(tmp_path):
    pytest.importorskip("bfcl_eval")
    turns = [{"request": "?", "reference": [{"name": "displayCarStatus", "arguments": {"option": "fuel"}}] * 2}]
    case = CASE | {"classes": ["VehicleControlAPI"], "config": {}, "long_context": True, "turns": turns}
    path, long = tmp_path / "out.jsonl", convert(tmp_path, case).tasks[1]
    path.write_text(row_of_step_task(long))
    assert json.loads(long.columns["scenario"])["long_context"] is True
    (short,) = convert(tmp_path, case | {"long_context": False}).tasks[1:]
    assert "long_context" not in json.loads(short.columns["scenario"])
    assert len(long.history[0].content) > len(short.history[0].content), "BFCL's long contents are in the result"
    assert check_tasks(path).endswith("1 tasks tried in their environments")


def test_bfcls_own_cases_are_marked_as_test_cases(monkeypatch):
    pytest.importorskip("bfcl_eval")
    from fission_grpo.envs.bfcl import tasks

    cases = tasks.multi_turn_cases("multi_turn_miss_func")[:3]
    monkeypatch.setattr(tasks, "multi_turn_cases", lambda category: cases)  # the others take long
    layout, converted = convert_file(Path("multi_turn_miss_func"), "cases")
    assert layout == "cases"
    assert {task.id.split("#")[0] for task in converted.tasks} == {case.id for case in cases}
    assert "these are test cases of BFCL: evaluate on them, and train on none" in converted.summary()


def test_results_in_another_order_than_the_calls_go_to_their_calls(tmp_path):
    entry = {"type": "function"}
    calls = [
        {**entry, "id": "c1", "function": {"name": "first", "arguments": "{}"}},
        {**entry, "id": "c2", "function": {"name": "second", "arguments": "{}"}},
    ]
    tools = [
        {**entry, "function": {"name": name, "description": "", "parameters": {"type": "object", "properties": {}}}}
        for name in ("first", "second")
    ]
    row = {
        "environment": "my_module:MyEnv",
        "tools": tools,
        "messages": [
            {"role": "user", "content": "Both."},
            {"role": "assistant", "content": None, "tool_calls": calls},
            {"role": "tool", "tool_call_id": "c2", "content": "of the second"},
            {"role": "tool", "tool_call_id": "c1", "content": "of the first"},
            {"role": "user", "content": "Again the first."},
            {"role": "assistant", "content": None, "tool_calls": calls[:1]},
        ],
    }
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(json.dumps(row) + "\n")
    _, converted = convert_file(source, "openai")
    target.write_text("".join(row_of_step_task(task) + "\n" for task in converted.tasks))
    last = load_step_tasks(target)[-1]
    assert [(past.call.name, past.content) for past in last.history] == [
        ("first", "of the first"),
        ("second", "of the second"),
    ]
