"""ToolRL's files as step tasks."""

import json
from pathlib import Path

import pytest

from fission_grpo.core.errors import TaskFileError
from fission_grpo.core.types import ToolCall
from fission_grpo.data.convert.toolrl import read_toolrl
from fission_grpo.data.convert.tools import json_schema
from fission_grpo.data.step_tasks import load_step_tasks, row_of_step_task

REAL = Path(__file__).parent.parent.parent.parent / "shared" / "data" / "toolrl"
real = pytest.mark.skipif(not REAL.is_dir(), reason=f"ToolRL's data is not in {REAL}")

INSTRUCTION = """You are a helpful multi-turn dialogue assistant.

**Available Tools**
In your response, you can use the following tools:
1. Name: Event Result
Description: Result of an event.
Parameters: {"evt": {"description": "The event's id.", "type": "float", "default": ""}, "lang": {"description": "", \
"type": "string", "default": "en"}}
2. Name: primes
Description: Lists primes.
Parameters: {"limit": {"description": "Up to.", "type": "int", "default": ""}, "kinds": {"description": "", \
"type": "List[str], optional", "default": ""}}

**Steps for Each Turn**
1. **Think:** ..."""


def row(output, dialogue="<user> How did event 7 end? </user>"):
    return {"instruction": INSTRUCTION, "input": "**Dialogue Records History**\n" + dialogue, "output": output}


def call(name, **parameters):
    body = json.dumps({"name": name, "parameters": parameters})
    return f"<think> Use <tool_call>. </think>\n<tool_call>\n{body}\n</tool_call>"


def convert(tmp_path, *rows):
    (tmp_path / "rlla.json").write_text(json.dumps(rows))
    return read_toolrl(tmp_path / "rlla.json")


def test_tools_become_schemas_and_parameters_become_arguments(tmp_path):
    converted = convert(tmp_path, row(call("Event Result", evt=7)))
    (task,) = converted.tasks
    assert task.id == "rlla:1"
    assert task.prompt == ({"role": "user", "content": "How did event 7 end?"},)
    assert task.reference == (ToolCall("Event Result", {"evt": 7}),)
    assert task.tools[0]["parameters"] == {
        "type": "object",
        "properties": {
            "evt": {"type": "number", "description": "The event's id."},
            "lang": {"type": "string", "default": "en"},
        },
    }
    assert converted.restored == 0


def test_unmarked_parameters_are_required_only_beside_marked_ones(tmp_path):
    (task,) = convert(tmp_path, row(call("primes", limit=9))).tasks
    assert "required" not in task.tools[0]["parameters"]
    assert task.tools[1]["parameters"]["required"] == ["limit"]


def test_a_string_is_restored_to_the_type_its_schema_asks_for(tmp_path):
    converted = convert(tmp_path, row(call("Event Result", evt="7.0", lang="1")))
    assert converted.tasks[0].reference == (ToolCall("Event Result", {"evt": 7.0, "lang": "1"}),)
    assert converted.restored == 1


def test_rows_that_cannot_be_tasks_are_counted_by_reason(tmp_path):
    converted = convert(
        tmp_path,
        row(call("Event Result", evt=7)),
        row("<think> Nothing to call. </think>\n<response> Hello. </response>"),
        row(call("Event Score", evt=7)),
        row(call("primes", limit="many")),
        row(call("primes", kinds=["twin"])),
        row("<tool_call>\n{broken\n</tool_call>"),
        row(call("primes", limit=9), dialogue="loose text <user> hi </user>"),
    )
    assert len(converted.tasks) == 1
    assert converted.rows == 7
    assert converted.dropped == {
        "the reference violates its tool's schema": 2,
        "no reference call": 1,
        "the reference calls a tool that is not listed": 1,
        "a tool call cannot be read": 1,
        "the dialogue cannot be read": 1,
    }
    assert "1 of 7 kept" in converted.summary()


def test_the_dialogue_becomes_messages_with_calls_and_results(tmp_path):
    dialogue = (
        "<user> Event 7? </user>\n\n<think> t </think>\n<tool_call>\n"
        '{"name": "Event Result", "parameters": {"evt": 7}}\n{"name": "primes", "parameters": {"limit": 3}}\n'
        "</tool_call>\n"
        '<obs> [{"name": "Event Result", "results": {"won": "A"}}, {"name": "primes", "results": [2, 3]}] </obs>\n\n'
        "<think> t </think>\n<response> A won. </response>\n\n<user> And 8? </user>"
    )
    (task,) = convert(tmp_path, row(call("Event Result", evt=8), dialogue)).tasks
    assert [message["role"] for message in task.prompt] == ["user", "assistant", "tool", "tool", "assistant", "user"]
    assert [entry["function"]["name"] for entry in task.prompt[1]["tool_calls"]] == ["Event Result", "primes"]
    assert [task.prompt[2]["content"], task.prompt[3]["content"]] == ['{"won": "A"}', "[2, 3]"]
    assert task.prompt[4]["content"] == "A won."


@pytest.mark.parametrize(
    ("declared", "schema"),
    [
        ("str", {"type": "string"}),
        ("int", {"type": "integer"}),
        ("float, optional", {"type": ["number", "null"]}),
        ("List[str]", {"type": "array", "items": {"type": "string"}}),
        ("List[Union[int, float]]", {"type": "array", "items": {"type": ["integer", "number"]}}),
        ("List[List[int]]", {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}}),
        ("Tuple[float, float]", {"type": "array"}),
        ("dict", {"type": "object"}),
        ("Dict[str, int]", {"type": "object"}),
        (["string", "null"], {"type": ["string", "null"]}),
        ("Optional[List[int]]", {"anyOf": [{"type": "array", "items": {"type": "integer"}}, {"type": "null"}]}),
        ("Any", {}),
        ("Callable[[float], float]", {}),
        (None, {}),
    ],
)
def test_types_become_json_types(declared, schema):
    assert json_schema(declared) == schema


def test_a_file_in_another_layout_is_refused(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('[{"instruction": "a"}]')
    with pytest.raises(TaskFileError, match="row 1, field 'input': must be a string"):
        read_toolrl(path)
    path.write_text("{}")
    with pytest.raises(TaskFileError, match="row 1, field 'instruction': must be a string"):
        read_toolrl(path)
    with pytest.raises(TaskFileError, match=r"none\.json: cannot be read"):
        read_toolrl(tmp_path / "none.json")


@real
@pytest.mark.parametrize(("file", "rows", "kept"), [("rlla_sft.json", 400, 318), ("rlla_test.parquet", 80, 63)])
def test_more_than_four_fifths_of_the_real_rows_with_calls_are_kept(file, rows, kept, tmp_path):
    if file.endswith("parquet"):
        pytest.importorskip("pyarrow")
    converted = read_toolrl(REAL / file)
    assert (converted.rows, len(converted.tasks)) == (rows, kept)
    assert kept + sum(converted.dropped.values()) == rows
    assert kept > 0.8 * (rows - converted.dropped["no reference call"])
    path = tmp_path / "out.jsonl"
    path.write_text("\n".join(map(row_of_step_task, converted.tasks)))
    assert load_step_tasks(path) == list(converted.tasks)
