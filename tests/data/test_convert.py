"""Data people already have, in small samples of each layout, through the command."""

import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fission_grpo.cli.main import main
from fission_grpo.core.errors import TaskFileError
from fission_grpo.core.types import ToolCall
from fission_grpo.data.convert.dialogues import ConvertOptions, RowDropped
from fission_grpo.data.convert.formats import LAYOUTS, convert_file, read_toolace_calls
from fission_grpo.data.convert.tools import tools_of
from fission_grpo.data.step_tasks import load_step_tasks, to_rows

WEATHER = {
    "name": "weather",
    "description": "Weather of a city",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city"],
    },
}
FLAT = {"city": {"description": "Where", "type": "str"}, "days": {"description": "How many", "type": "int, optional"}}
ROME, OSLO = {"city": "Rome"}, {"city": "Oslo", "days": 2}


def openai_row():
    called = [{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": json.dumps(ROME)}}]
    called.append({"id": "c2", "type": "function", "function": {"name": "weather", "arguments": json.dumps(OSLO)}})
    return {
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Rain in Rome and Oslo?"}]},
            {"role": "assistant", "content": None, "tool_calls": called},
            {"role": "tool", "tool_call_id": "c2", "content": "dry"},
            {"role": "tool", "tool_call_id": "c1", "content": "wet"},
            {"role": "assistant", "content": "Wet in Rome, dry in Oslo."},
            {"role": "user", "content": "And Rome again?"},
            {"role": "assistant", "function_call": {"name": "weather", "arguments": json.dumps(ROME)}},
        ],
        "tools": [{"type": "function", "function": WEATHER}],
    }


def xlam_row():
    tools = json.dumps([{"name": "weather", "description": "Weather", "parameters": FLAT}])
    answers = json.dumps([{"name": "weather", "arguments": {"city": "Oslo", "days": "2"}}])
    return {"id": 7, "query": "Oslo, two days?", "tools": tools, "answers": answers}


def toolace_row():
    parameters = {"type": "dict", "properties": {"city": {"type": "string"}, "days": {"type": "int"}}}
    tools = [{"name": "Get Weather", "description": "Weather", "parameters": {**parameters, "required": ["city"]}}]
    listed = f"Here is a list of functions in JSON format that you can invoke:\n{json.dumps(tools)}."
    system = f"You compose functions.\n{listed}"
    return {
        "system": system,
        "conversations": [
            {"from": "user", "value": "Rome and Oslo?"},
            {"from": "assistant", "value": '[Get Weather(city="Rome"), Get Weather(city="Oslo", days=2)]'},
            {
                "from": "tool",
                "value": '[{"name": "Get Weather", "results": {"rain": true}}, {"name": "x", "results": {}}]',
            },
            {"from": "assistant", "value": "Rome is wet."},
        ],
    }


def hermes_row():
    system = (
        f"You are a function calling AI. <tools> {json.dumps([{'type': 'function', 'function': WEATHER}])} </tools>"
    )
    return {
        "id": "h1",
        "conversations": [
            {"from": "system", "value": system},
            {"from": "human", "value": "Rome?"},
            {"from": "gpt", "value": "<tool_call>\n{'name': 'weather', 'arguments': {'city': 'Rome'}}\n</tool_call>"},
            {"from": "tool", "value": '<tool_response>\n{"rain": true}\n</tool_response>'},
            {"from": "gpt", "value": "Wet."},
        ],
    }


def apigen_row():
    return {
        "system": "You are an airline agent.",
        "tools": json.dumps([WEATHER]),
        "conversations": [
            {"from": "human", "value": "Rome?"},
            {"from": "function_call", "value": json.dumps({"name": "weather", "arguments": ROME})},
            {"from": "observation", "value": "wet"},
            {"from": "gpt", "value": "Wet. Oslo, too?"},
            {"from": "human", "value": "Yes."},
            {"from": "function_call", "value": json.dumps({"name": "weather", "arguments": OSLO})},
        ],
    }


ROWS = {"openai": openai_row, "xlam": xlam_row, "toolace": toolace_row, "hermes": hermes_row, "apigen-mt": apigen_row}
TASKS = {"openai": 2, "xlam": 1, "toolace": 1, "hermes": 1, "apigen-mt": 2}


def write(tmp_path, *rows, name="data.jsonl"):
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("named", [True, False])
def test_every_turn_with_calls_becomes_a_task_and_the_layout_is_recognised(layout, named, tmp_path, capsys):
    source, target = write(tmp_path, ROWS[layout]()), tmp_path / "tasks.jsonl"
    assert main(["tasks", "convert", *(["--from", layout] if named else []), str(source), str(target)]) == 0
    said = capsys.readouterr().out
    assert f"as {layout}: {TASKS[layout]} of {TASKS[layout]} kept" in said
    assert len(load_step_tasks(target)) == TASKS[layout]
    assert main(["tasks", "check", str(target)]) == 0


def test_openai_parallel_calls_results_in_any_order_and_old_fields():
    first, second = convert(openai_row(), "openai")
    assert first.reference == (ToolCall("weather", ROME), ToolCall("weather", OSLO))
    assert [message["role"] for message in first.prompt] == ["system", "user"]
    assert first.prompt[1]["content"] == "Rain in Rome and Oslo?"
    assert (first.id, second.id) == ("data:1#1", "data:1#2")
    assert second.reference == (ToolCall("weather", ROME),)
    roles = [message["role"] for message in second.prompt]
    assert roles == ["system", "user", "assistant", "tool", "tool", "assistant", "user"]
    assert second.prompt[2]["tool_calls"][0]["function"] == {"name": "weather", "arguments": ROME}


def test_xlam_types_are_pythons_and_strings_are_restored_to_them():
    (task,) = convert(xlam_row(), "xlam")
    assert task.reference == (ToolCall("weather", OSLO),)
    assert task.tools[0]["parameters"]["properties"]["days"]["type"] == ["integer", "null"]
    assert task.tools[0]["parameters"]["required"] == ["city"]


def test_toolace_names_may_hold_spaces():
    (task,) = convert(toolace_row(), "toolace")
    assert task.reference == (ToolCall("Get Weather", ROME), ToolCall("Get Weather", OSLO))
    assert "Here is a list" not in task.prompt[0]["content"]


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ('[a.b(x="f(1), g(2)")]', [{"name": "a.b", "arguments": {"x": "f(1), g(2)"}}]),
        ("[a.b(x=true, y=[1, {'k': None}])]", [{"name": "a.b", "arguments": {"x": True, "y": [1, {"k": None}]}}]),
        ("I cannot do that.", []),
        ("[see the list]", []),
    ],
)
def test_toolace_calls_are_read_without_running_anything(text, calls):
    assert read_toolace_calls(text, ["a.b", "a"]) == calls


@pytest.mark.parametrize("text", ["[a.b(1)]", "[a.b(x=open('f'))]", "[a.b(x=__import__('os').getcwd())]", "[a.b(x=)]"])
def test_toolace_calls_that_are_no_literals_are_dropped(text):
    with pytest.raises(RowDropped, match="a tool call cannot be read"):
        read_toolace_calls(text, ["a.b"])


def test_hermes_calls_may_be_python_and_results_lose_their_tags():
    (task,) = convert(hermes_row(), "hermes")
    assert task.reference == (ToolCall("weather", ROME),)
    assert [message["role"] for message in task.prompt] == ["user"]


def test_apigen_keeps_its_system_text_and_the_history():
    _, second = convert(apigen_row(), "apigen-mt")
    assert [message["role"] for message in second.prompt] == [
        "system",
        "user",
        "assistant",
        "tool",
        "assistant",
        "user",
    ]
    assert second.prompt[3]["content"] == "wet"


def test_turns_without_calls_become_tasks_only_when_asked_for(tmp_path):
    path = write(tmp_path, toolace_row())
    assert [
        len(task.reference) for task in convert_file(path, "toolace", ConvertOptions(abstentions=True))[1].tasks
    ] == [2, 0]


def test_kept_and_dropped_add_up(tmp_path):
    unknown, broken, middle = openai_row(), openai_row(), openai_row()
    unknown["messages"][2]["tool_calls"][0]["function"]["name"] = "nowhere"
    broken["messages"][2]["tool_calls"][0]["function"]["arguments"] = "{"
    middle["messages"].insert(6, {"role": "system", "content": "Now be long."})
    rows = [openai_row(), unknown, broken, middle, {"messages": 3}]
    _, converted = convert_file(write(tmp_path, *rows), "openai")
    assert dict(converted.dropped) == {
        "the reference calls a tool that is not listed": 1,
        "a tool call cannot be read": 1,
        "a system message stands in the middle": 1,
        "field 'messages' is missing or of the wrong type": 1,
    }
    assert (len(converted.tasks), converted.rows) == (4, 8)


def test_json_lists_and_parquet_are_read_as_well(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")

    listed = tmp_path / "data.json"
    listed.write_text(json.dumps([xlam_row(), xlam_row()]))
    parquet.write_table(pyarrow.Table.from_pylist([xlam_row()]), tmp_path / "data.parquet")
    assert len(convert_file(listed, "auto")[1].tasks) == 2
    assert len(convert_file(tmp_path / "data.parquet", "auto")[1].tasks) == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "nothing in it can become a task"),
        (b"{", "row 1: not JSON"),
        (b"[1]\n", "row 1: must be an object"),
        (b"\xff\xfe", "not UTF-8"),
        (b'{"query": "a", "tools": "[]", "answers": "[]"}', "nothing in it can become a task"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_clear_error(tmp_path, capsys, content, words):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    assert main(["tasks", "convert", "--from", "openai", str(path), str(tmp_path / "out.jsonl")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert words in error


def test_an_unknown_layout_is_named_by_its_fields(tmp_path):
    with pytest.raises(TaskFileError, match=r"fields \['text'\].*--from"):
        convert_file(write(tmp_path, {"text": "hi"}), "auto")


@pytest.mark.parametrize("tools", [3, [3], [{"name": 1}], [WEATHER, WEATHER], [{"name": "f", "parameters": "{"}]])
def test_tools_that_cannot_be_read_drop_the_row(tools):
    with pytest.raises(RowDropped):
        tools_of(tools)


def test_converted_tasks_render_with_a_real_tokenizer(tmp_path):
    from fission_grpo.inference.pretrained import load_starter

    tokenizer = load_starter()[1]
    for layout, row in ROWS.items():
        _, converted = convert_file(write(tmp_path, row()), layout)
        for made in to_rows(converted.tasks, tokenizer):
            assert made["prompt"].rstrip().endswith("<|im_start|>assistant")


def mangle(value, path, junk):
    """A copy of nested data with junk at one place."""
    if not path or not isinstance(value, dict | list) or not value:
        return junk
    if isinstance(value, dict):
        key = sorted(value)[path[0] % len(value)]
        return {**value, key: mangle(value[key], path[1:], junk)}
    at = path[0] % len(value)
    return [*value[:at], mangle(value[at], path[1:], junk), *value[at + 1 :]]


JUNK = st.one_of(
    st.none(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.just([]),
    st.just({}),
    st.just(["x"]),
    st.just("[{}]"),
)


@settings(max_examples=150, deadline=None)
@given(layout=st.sampled_from(sorted(LAYOUTS)), path=st.lists(st.integers(0, 9), min_size=1, max_size=6), junk=JUNK)
def test_no_mangled_row_raises_anything_but_row_dropped(layout, path, junk):
    row = mangle(ROWS[layout](), path, junk)
    if not isinstance(row, dict):
        return
    with contextlib.suppress(RowDropped):
        LAYOUTS[layout](row)


def convert(row, layout):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        return convert_file(write(Path(folder), row), layout)[1].tasks
