"""Turns that make no task: weight 0, a failed call; and messages in all forms."""

import json

import pytest
from convert_support import ASK, WEATHER, convert, openai, references, result, says, tool, write

from fission_grpo.cli.main import main
from fission_grpo.core.errors import TaskFileError
from fission_grpo.data.step_tasks import load_step_tasks

LOOK = says("weather", {"city": "Oslo"})

# weights and failed turns


@pytest.mark.parametrize("weight", [0, 0.0, False])
def test_a_turn_of_weight_0_is_no_task_and_stays_in_the_dialogue(tmp_path, weight):
    row = openai(ASK, LOOK | {"weight": weight}, result("wet"), LOOK | {"weight": 1}, result("dry"), LOOK)
    converted = convert(tmp_path, row)
    assert [task.id for task in converted.tasks] == ["data:1#2", "data:1#3"]
    assert converted.dropped == {"the turn has weight 0": 1}
    assert [message["role"] for message in converted.tasks[0].prompt] == ["user", "assistant", "tool"]
    assert "weight" not in converted.tasks[0].prompt[1]


HERMES = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
ACE = '[weather(city="Oslo")]'
MARKS = [{"weight": "0"}, {"weight": "0.0"}, {"weight": "false"}, {"loss": False}, {"loss": "false"}, {"loss": 0}]


@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize("layout", ["openai", "hermes", "toolace"])
def test_a_turn_marked_as_not_to_be_learned_is_no_task_in_any_layout(tmp_path, mark, layout):
    says_so, no_mark = {"from": "gpt", "value": ACE if layout == "toolace" else HERMES}, dict.fromkeys(mark, True)
    asks = {"from": "human", "value": "Go."}
    row = {
        "openai": openai(ASK, LOOK | mark, ASK, LOOK | no_mark),
        "hermes": {"conversations": [asks, says_so | mark, asks, says_so | no_mark], "tools": json.dumps([WEATHER])},
        "toolace": {"conversations": [asks, says_so | mark, asks, says_so | no_mark], "system": json.dumps([WEATHER])},
    }[layout]
    converted = convert(tmp_path, row, layout=layout)
    assert (len(converted.tasks), converted.dropped) == (1, {"the turn has weight 0": 1})


@pytest.mark.parametrize("mark", [{"weight": "x"}, {"weight": []}, {"loss": "maybe"}])
@pytest.mark.parametrize("layout", ["openai", "hermes"])
def test_a_weight_that_is_no_number_is_refused_in_any_layout(tmp_path, mark, layout):
    entries = [{"from": "human", "value": "q"}, {"from": "gpt", "value": HERMES} | mark]
    row = (
        openai(ASK, LOOK | mark) if layout == "openai" else {"conversations": entries, "tools": json.dumps([WEATHER])}
    )
    with pytest.raises(TaskFileError, match=r"the (weight|loss) of a message is no number"):
        convert(tmp_path, row, layout=layout)


def test_a_turn_without_calls_of_weight_0_is_no_abstention(tmp_path):
    row = openai(
        ASK, {"role": "assistant", "content": "Hm.", "weight": 0}, ASK, {"role": "assistant", "content": "No."}
    )
    converted = convert(tmp_path, row, abstentions=True)
    assert [task.id for task in converted.tasks] == ["data:1#2"]
    assert converted.dropped == {"the turn has weight 0": 1}


def test_weights_of_conversations_are_honoured(tmp_path):
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
    entries = [
        {"from": "human", "value": "Go."},
        {"from": "gpt", "value": call, "weight": 0},
        {"from": "tool", "value": "wet"},
        {"from": "gpt", "value": call, "weight": 1},
    ]
    converted = convert(tmp_path, {"conversations": entries, "tools": json.dumps([WEATHER])}, layout="hermes")
    assert [task.id for task in converted.tasks] == ["data:1#2"]
    apigen = [
        {"from": "human", "value": "Go."},
        {
            "from": "function_call",
            "value": json.dumps({"name": "weather", "arguments": {"city": "Oslo"}}),
            "weight": 0,
        },
        {"from": "observation", "value": "wet"},
        {"from": "function_call", "value": json.dumps({"name": "weather", "arguments": {"city": "Rome"}})},
    ]
    row = {"conversations": apigen, "tools": json.dumps([WEATHER["function"]]), "system": ""}
    assert references(convert(tmp_path, row)) == [[("weather", {"city": "Rome"})]]


FAILED = [
    result('{"error": "no such city"}'),
    result("{'error': 'no such city'}"),
    result({"error": "no such city"}),
    result('{"isError": true, "content": [{"type": "text", "text": "no"}]}'),
    result("no such city", is_error=True),
    result("no such city", isError=True),
    result("no such city", status="error"),
    result("Error: no such city"),
    result("ValueError: no such city"),
    result("Error executing tool weather: no such city"),
    result("Error during execution: no such city"),
    result('[{"name": "weather", "results": {"error": "no"}}]'),
    result(["Error: no such city"]),
    result('"Error: no such city"'),
    result('{"result": "Error: no such city"}'),
    result("Traceback (most recent call last):\n..."),
    result("{'name': 'weather', 'content': {'error': 'no such city'}}"),
    result("[{'name': 'weather', 'results': 'Error: no such city'}]"),
    result("{'data': {}, 'status': 'Error'}"),
    result('[{"name": "weather", "content": {"status": "ERROR"}}]'),
    result("Tool execution failed: no such city"),
    {"role": "function", "name": "weather", "content": '{"error": "no such city"}'},
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "no", "is_error": True}]},
    {"role": "user", "content": '<tool_response>\n{"error": "no"}\n</tool_response>'},
]


@pytest.mark.parametrize("answer", FAILED)
def test_a_failed_turn_is_no_reference_and_stays_in_the_dialogue(tmp_path, answer):
    wrong, right = says("weather", {"city": "Osloo"}), says("weather", {"city": "Oslo"})
    converted = convert(tmp_path, openai(ASK, wrong, answer, right, result("wet")))
    assert references(converted) == [[("weather", {"city": "Oslo"})]]
    assert converted.dropped == {"a call of the turn failed": 1}
    assert converted.tasks[0].prompt[1]["tool_calls"][0]["function"]["arguments"] == {"city": "Osloo"}
    assert converted.tasks[0].prompt[2]["role"] == "tool"


@pytest.mark.parametrize(
    "answer",
    [
        result("wet"),
        result('{"error": null}'),
        result("No error: wet"),
        result('{"errors": []}'),
        result("", is_error=False),
        result('[{"id": 1, "status": "completed"}, {"id": 2, "status": "failed"}]'),
        result('[{"id": 1, "error": "timeout"}, {"id": 2, "error": null}]'),
        result('[{"name": "job", "error": "timeout"}, {"name": "other", "status": "failed"}]'),
        result("[{'id': 1, 'content': 'Error: none'}]"),
    ],
)
def test_a_turn_that_did_not_fail_is_a_reference(tmp_path, answer):
    assert len(convert(tmp_path, openai(ASK, LOOK, answer)).tasks) == 1


def test_one_failed_call_of_two_makes_no_reference(tmp_path):
    both = says("weather", {"city": "Oslo"})
    both["tool_calls"] += says("weather", {"city": "X"})["tool_calls"]
    row = openai(ASK, both, result("wet"), result('{"error": "no"}'), LOOK)
    assert [task.id for task in convert(tmp_path, row).tasks] == ["data:1#2"]


@pytest.mark.parametrize("write_json", [json.dumps, repr])
def test_failed_turns_of_other_layouts_are_left_out(tmp_path, write_json):
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
    inner = write_json({"name": "weather", "content": {"error": "no such city"}})
    entries = [
        {"from": "human", "value": "Go."},
        {"from": "gpt", "value": call},
        {"from": "tool", "value": f"<tool_response>\n{inner}\n</tool_response>"},
        {"from": "gpt", "value": call},
    ]
    converted = convert(tmp_path, {"conversations": entries, "tools": json.dumps([WEATHER])}, layout="hermes")
    assert [task.id for task in converted.tasks] == ["data:1#2"]
    system = f"Functions: {json.dumps([WEATHER['function']])}"
    entries = [
        {"from": "user", "value": "Go."},
        {"from": "assistant", "value": '[weather(city="Oslo")]'},
        {"from": "tool", "value": '[{"name": "weather", "results": {"error": "no"}}]'},
        {"from": "assistant", "value": '[weather(city="Rome")]'},
    ]
    converted = convert(tmp_path, {"system": system, "conversations": entries})
    assert [task.id for task in converted.tasks] == ["data:1#2"]


def test_a_pattern_leaves_out_turns_with_errors_in_other_words(tmp_path, capsys):
    row = openai(ASK, LOOK, result("Sorry, no such city"), LOOK)
    assert len(convert(tmp_path, row).tasks) == 2
    source, target = str(write(tmp_path, row)), tmp_path / "out.jsonl"
    assert main(["tasks", "convert", "--error_pattern", "^Sorry", source, str(target)]) == 0
    assert "dropped    1: a call of the turn failed" in capsys.readouterr().out
    assert len(load_step_tasks(target)) == 1
    with pytest.raises(SystemExit):
        main(["tasks", "convert", "--error_pattern", "(", source, str(target)])
    assert "'(' is no regular expression" in capsys.readouterr().err
    long = openai(ASK, LOOK, result("a" * 500 + "!"), LOOK)
    assert main(["tasks", "convert", "--error_pattern", "^(a|a|b?a)+$", str(write(tmp_path, long)), str(target)]) == 1
    assert "takes too long on the result" in capsys.readouterr().err


@pytest.mark.parametrize("linked", [False, True])
def test_the_data_to_convert_is_never_replaced(tmp_path, capsys, linked):
    source = write(tmp_path, openai(ASK, LOOK))
    target = tmp_path / "sub" / ".." / source.name
    (tmp_path / "sub").mkdir()
    if linked:
        target = tmp_path / "link.jsonl"
        target.symlink_to(source)
    before = source.read_bytes()
    assert main(["tasks", "convert", str(source), str(target)]) == 1
    assert "is the file to convert" in capsys.readouterr().err
    assert source.read_bytes() == before


@pytest.mark.parametrize("option", [["--abstentions"], ["--error_pattern", "^Sorry"]])
@pytest.mark.parametrize("named", [[], ["--from", "toolrl"]])
def test_options_without_effect_on_a_layout_are_refused(tmp_path, capsys, option, named):
    source = write(tmp_path, {"instruction": "x", "input": "y", "output": "z"})
    assert main(["tasks", "convert", *option, *named, str(source), str(tmp_path / "out.jsonl")]) == 1
    assert f"{option[0]} does not fit the layout toolrl" in capsys.readouterr().err


# forms of messages


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "assistant", "tool_calls": json.dumps(LOOK["tool_calls"])},
        {"role": "assistant", "function_call": {"name": "weather", "arguments": '{"city": "Oslo"}'}},
        {
            "role": "assistant",
            "content": [{"type": "tool_use", "id": "1", "name": "weather", "input": {"city": "Oslo"}}],
        },
        {"role": "assistant", "content": '<tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call>'},
        LOOK | {"content": '<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>'},
        LOOK | {"content": "<think>I look"},
        LOOK | {"content": "</tool_call>"},
    ],
)
def test_calls_in_all_forms_are_references(tmp_path, turn):
    assert references(convert(tmp_path, openai(ASK, turn))) == [[("weather", {"city": "Oslo"})]]


@pytest.mark.parametrize("arguments", [None, "", " ", "null", "{}", {}])
def test_missing_arguments_are_none(tmp_path, arguments):
    row = openai(ASK, says("now", arguments), tools=[tool("now", {})])
    assert references(convert(tmp_path, row)) == [[("now", {})]]
    needs = openai(ASK, says("weather", arguments))
    with pytest.raises(TaskFileError, match="violates its tool's schema"):
        convert(tmp_path, needs)


def test_a_row_of_anthropic_is_read_with_its_system_text_and_results(tmp_path):
    row = {
        "system": [{"type": "text", "text": "Be brief."}],
        "tools": [{"name": "weather", "description": "d", "input_schema": WEATHER["function"]["parameters"]}],
        "messages": [
            ASK,
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": "1", "name": "weather", "input": {"city": "X"}}],
            },
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": "1", "content": "no", "is_error": True}],
            },
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": "2", "name": "weather", "input": {"city": "Oslo"}}],
            },
        ],
    }
    converted = convert(tmp_path, row)
    assert references(converted) == [[("weather", {"city": "Oslo"})]]
    assert [message["role"] for message in converted.tasks[0].prompt] == ["system", "user", "assistant", "tool"]
    assert converted.tasks[0].prompt[3] == {"role": "tool", "name": "weather", "content": "no"}


@pytest.mark.parametrize("kind", ["image_url", "server_tool_use", "made_up"])
def test_a_block_that_is_no_text_is_counted_by_its_name(tmp_path, kind):
    row = openai({"role": "user", "content": [{"type": kind}]}, LOOK)
    converted = convert(tmp_path, row, openai(ASK, LOOK))
    assert converted.dropped == {f"a message holds more than text: a block of type '{kind}'": 1}


def other(city):
    return says("weather", json.dumps({"city": city}))


def test_a_turn_that_recovers_from_a_failed_call_is_marked_and_can_be_had_alone(tmp_path, capsys):
    failed, ok = (other("Olso"), result("Error: no such city")), result("rain")
    row = openai(ASK, *failed, *failed, other("Oslo"), ok, other("Rome"), ok)
    tasks = convert(tmp_path, row).tasks
    assert [task.id for task in tasks] == ["data:1#3", "data:1#4"]  # the failed ones are no references
    assert [task.columns for task in tasks] == [{"recovery": True}, {}]
    assert tasks[0].prompt[-1]["content"] == "Error: no such city"
    assert [call.arguments for call in tasks[0].reference] == [{"city": "Oslo"}]
    source, target = str(write(tmp_path, row, row)), tmp_path / "out.jsonl"
    assert main(["tasks", "convert", "--recoveries", source, str(target)]) == 0
    said = capsys.readouterr().out
    assert "tasks that recover from a failed call (`recovery`): 2" in said
    assert "dropped    2: the turn recovers from no failed call" in said
    assert [json.loads(line)["recovery"] for line in target.read_text().splitlines()] == [True, True]
    assert len(load_step_tasks(target)) == 2


def test_what_is_no_recovery_is_not_marked(tmp_path):
    no, ok = result('{"error": "no"}'), result("rain")
    again = openai(ASK, other("Oslo"), no, other("Oslo"), ok)  # the failing call itself
    unknown = openai(ASK, other("Olso"), no, other("Oslo"))  # whether it works
    asked = openai(ASK, other("Olso"), no, {"role": "assistant", "content": "Which?"}, ASK, other("Oslo"), ok)
    tasks = convert(tmp_path, again, unknown, asked).tasks
    assert [task.columns for task in tasks] == [{}, {}, {}]
    twice = openai(ASK, *(other("Olso"), no, other("Oslo"), ok) * 2)
    assert [task.id for task in convert(tmp_path, twice, recoveries=True).tasks] == ["data:1#2"]
    with pytest.raises(TaskFileError, match="the turn recovers from no failed call: 3"):
        convert(tmp_path, again, unknown, asked, recoveries=True)


def test_tools_come_from_a_file_for_rows_that_list_none(tmp_path, capsys):
    row = {"task_id": 0, "reward": 1.0, "traj": [ASK, other("Oslo"), result("rain")], "info": {}}
    source, target, tools = tmp_path / "results.json", tmp_path / "out.jsonl", tmp_path / "tools.json"
    source.write_text(json.dumps([row]))
    assert main(["tasks", "convert", str(source), str(target)]) == 1
    assert "the row lists no tools; give them with --tools FILE: 1" in capsys.readouterr().err
    tools.write_text(json.dumps([WEATHER]))
    assert main(["tasks", "convert", "--tools", str(tools), str(source), str(target)]) == 0
    assert len(load_step_tasks(target)) == 1
