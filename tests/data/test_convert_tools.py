"""Tools and arguments of padded tables, and schemas that stay as they are."""

import json

import pytest
from convert_support import ASK, WEATHER, convert, openai, references, result, says, tool

from fission_grpo.core.tool_schema import check_call
from fission_grpo.core.types import Task, ToolCall
from fission_grpo.data.convert.dialogues import RowDropped
from fission_grpo.data.convert.tools import tools_of
from fission_grpo.data.step_tasks import row_of_step_task

# padded tables

PAY = tool("pay", {"amount": {"type": "number"}, "to": {"type": "string"}}, ["amount", "to"])
NOTE = tool("note", {"text": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None}})
LOOK = says("weather", {"city": "Oslo"})
SEND = says("pay", {"amount": 2.5, "to": "Bo"})
WROTE = says("note", {"text": "hi"})


def padded(value, pattern):
    """The value with null for every field that `pattern` has beyond it, as a table with one struct type gives it."""
    if isinstance(value, list):
        return [padded(item, pattern[0]) for item in value]
    if isinstance(value, dict):
        return {key: padded(value[key], inner) if key in value else None for key, inner in pattern.items()}
    return value


ARGUMENTS = {"city": "", "amount": 0, "to": "", "text": ""}
NODE = {"type": "", "anyOf": [{"type": ""}], "default": "", "enum": [""], "const": ""}
FUNCTION = {
    "name": "",
    "description": "",
    "parameters": {"type": "", "properties": dict.fromkeys(ARGUMENTS, NODE), "required": [""]},
}
CALL = {"id": "", "type": "", "function": {"name": "", "arguments": ARGUMENTS}}
MESSAGE = {"role": "", "content": "", "tool_calls": [CALL], "tool_call_id": "", "name": "", "weight": 0}
TABLE = {"messages": [MESSAGE], "tools": [{"type": "", "function": FUNCTION}]}
ROWS = [openai(ASK, LOOK, result("wet"), SEND, tools=(WEATHER, PAY, NOTE)), openai(ASK, WROTE, tools=(NOTE, PAY))]


@pytest.mark.parametrize("name", ["data.jsonl", "data.parquet"])
def test_nulls_of_a_table_are_neither_arguments_nor_parameters(tmp_path, name):
    clean = convert(tmp_path, *ROWS)
    read = convert(tmp_path, *(padded(row, TABLE) for row in ROWS), name=name)
    assert read.tasks == clean.tasks
    assert references(read) == [
        [("weather", {"city": "Oslo"})],
        [("pay", {"amount": 2.5, "to": "Bo"})],
        [("note", {"text": "hi"})],
    ]
    assert read.tasks[1].tools[0]["parameters"] == WEATHER["function"]["parameters"]
    assert read.tasks[1].prompt[1]["tool_calls"][0]["function"]["arguments"] == {"city": "Oslo"}
    assert read.tasks[2].tools[0]["parameters"] == NOTE["function"]["parameters"]


def test_a_real_table_of_structs_is_read_as_its_rows(tmp_path):
    assert convert(tmp_path, *ROWS, name="data.parquet").tasks == convert(tmp_path, *ROWS).tasks


def test_a_null_that_its_schema_allows_stays_in_rows_without_padding(tmp_path):
    assert references(convert(tmp_path, openai(ASK, says("note", {"text": None}), tools=[NOTE]))) == [
        [("note", {"text": None})]
    ]
    both = tool("note", {"text": NOTE["function"]["parameters"]["properties"]["text"]}, ["text"])
    row = openai(ASK, says("note", {"text": None, "to": None}), tools=[both])
    assert references(convert(tmp_path, row)) == [[("note", {"text": None})]]


def test_xlam_answers_of_a_table_lose_their_nulls(tmp_path):
    tools = [one["function"] for one in (WEATHER, PAY)]
    rows = [
        {"query": "a", "tools": tools, "answers": [{"name": "weather", "arguments": {"city": "Oslo"}}]},
        {"query": "b", "tools": tools, "answers": [{"name": "pay", "arguments": {"amount": 1.5, "to": "Bo"}}]},
    ]
    assert references(convert(tmp_path, *rows, name="data.parquet")) == [
        [("weather", {"city": "Oslo"})],
        [("pay", {"amount": 1.5, "to": "Bo"})],
    ]


# whole schemas

SCHEMAS = [
    {
        "$defs": {"Item": {"type": "object", "properties": {"sku": {"type": "string"}}, "required": ["sku"]}},
        "type": "object",
        "properties": {"item": {"$ref": "#/$defs/Item"}, "more": {"type": "array", "items": {"$ref": "#/$defs/Item"}}},
        "required": ["item"],
        "title": "order",
    },
    {"type": "object", "properties": {"n": {"type": "integer", "minimum": 1, "maximum": 9, "multipleOf": 2}}},
    {"type": "object", "properties": {"day": {"type": "string", "format": "date"}}, "additionalProperties": False},
    {"type": "object", "properties": {"x": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None}}},
    {"type": "object", "properties": {"x": {"oneOf": [{"const": "a"}, {"type": "integer"}]}}, "minProperties": 1},
    {"type": "object", "properties": {"x": {"type": ["string", "null"], "pattern": r"^\p{L}+$"}}},
    {"type": "object", "additionalProperties": {"type": "integer"}},
    {"type": "object", "patternProperties": {"^x": {"type": "string"}}},
    {"type": "object", "properties": {"properties": {"type": "object"}, "type": {"type": "string"}}},
    {"properties": {"properties": {"type": "string"}}, "required": ["properties"]},
    {"type": "object", "properties": {"x": {"type": "string", "description": "d", "examples": ["a", None]}}},
    {"anyOf": [{"properties": {"x": {"type": "string"}}}, {"properties": {"y": {"type": "string"}}}]},
    {"type": "object", "properties": {"x": {"type": "string", "enum": ["a", "b"]}, "y": True}},
    {"type": "object", "properties": {}},
]


@pytest.mark.parametrize("schema", SCHEMAS)
@pytest.mark.parametrize("key", ["parameters", "input_schema", "inputSchema"])
@pytest.mark.parametrize("as_text", [False, True])
def test_a_valid_schema_stays_as_it_is(schema, key, as_text):
    (read,) = tools_of([{"name": "f", "description": "d", key: json.dumps(schema) if as_text else schema}])
    assert read == {"name": "f", "description": "d", "parameters": schema}


def test_a_valid_row_of_a_schema_with_references_is_kept(tmp_path):
    order = {"name": "order", "description": "", "parameters": SCHEMAS[0]}
    arguments = {"item": {"sku": "a"}, "more": [{"sku": "b"}]}
    good = openai(ASK, says("order", json.dumps(arguments)), tools=[order])
    bad = openai(ASK, says("order", '{"item": {}}'), tools=[order])
    converted = convert(tmp_path, good, bad)
    assert references(converted) == [[("order", arguments)]]
    assert converted.dropped == {"the reference violates its tool's schema": 1}
    assert check_call(ToolCall("order", {"item": {}}), converted.tasks[0].tools) is not None


@pytest.mark.parametrize(
    ("given", "schema"),
    [
        (  # other types of parameters, with what else is valid in their schemas
            {"type": "dict", "properties": {"x": {"type": "float", "minimum": 0, "maximum": "9"}}, "required": ["x"]},
            {"type": "object", "properties": {"x": {"type": "number", "minimum": 0}}, "required": ["x"]},
        ),
        (
            {"type": "dict", "properties": {"x": {"anyOf": [{"type": "int"}, {"type": "null"}]}}},
            {"type": "object", "properties": {"x": {"anyOf": [{"type": "integer"}, {"type": "null"}]}}},
        ),
        (
            {"type": "dict", "$defs": {"A": {"type": "str"}}, "properties": {"x": {"$ref": "#/$defs/A"}}},
            {"type": "object", "$defs": {"A": {"type": "string"}}, "properties": {"x": {"$ref": "#/$defs/A"}}},
        ),
        (  # a mapping of names to parameters that have the names of keywords
            {"properties": {"type": "str", "description": "d"}, "type": {"type": "str, optional"}},
            {
                "type": "object",
                "properties": {
                    "properties": {"type": "string", "description": "d"},
                    "type": {"type": ["string", "null"]},
                },
                "required": ["properties"],
            },
        ),
        (
            {"required": {"type": "bool"}, "items": {"type": "List[int]"}},
            {
                "type": "object",
                "properties": {
                    "required": {"type": "boolean"},
                    "items": {"type": "array", "items": {"type": "integer"}},
                },
                "required": ["required", "items"],
            },
        ),
        (  # a constant of null that a table added
            {"type": "object", "properties": {"x": {"type": "string", "const": None}}},
            {"type": "object", "properties": {"x": {"type": "string"}}},
        ),
    ],
)
def test_other_schemas_keep_what_is_valid_in_them(given, schema):
    assert tools_of([{"name": "f", "description": "", "parameters": given}])[0]["parameters"] == schema


def test_strings_are_restored_beside_parameters_with_references(tmp_path):
    schema = SCHEMAS[0] | {
        "properties": SCHEMAS[0]["properties"] | {"n": {"type": "integer"}, "who": {"type": "string"}}
    }
    order = {"name": "order", "description": "", "parameters": schema}
    row = openai(ASK, says("order", '{"item": {"sku": "a"}, "n": "2", "who": "Bo"}'), tools=[order])
    assert references(convert(tmp_path, row)) == [[("order", {"item": {"sku": "a"}, "n": 2, "who": "Bo"})]]


def test_a_null_of_a_tool_that_takes_any_argument_is_one(tmp_path):
    anything = tool("log", {"x": {"type": ["string", "null"]}}, additionalProperties=True)
    row = openai(ASK, says("log", '{"x": null, "y": null}'), tools=[anything])
    assert references(convert(tmp_path, row)) == [[("log", {"x": None, "y": None})]]


@pytest.mark.parametrize("required", [3, "x", [["x"]], [None], {"x": 1}])
def test_a_broken_list_of_required_parameters_is_left_out(required):
    given = {"type": "object", "properties": {"x": {"type": "str"}, "y": {"type": None}}, "required": required}
    (read,) = tools_of([{"name": "f", "description": "", "parameters": given}])
    assert read["parameters"]["properties"] == {"x": {"type": "string"}}
    assert not read["parameters"].get("required")


@pytest.mark.parametrize("key", ["properties", "items", "anyOf", "x"])
@pytest.mark.parametrize("is_text", [True, False])
def test_tools_nested_too_deeply_are_dropped(key, is_text):
    inner = {"type": "string"}
    for _ in range(450):
        inner = {"type": "object", key: [inner, None] if key == "anyOf" else {"a": inner}}
    tool = {"name": "f", "parameters": json.dumps(inner) if is_text else inner}
    with pytest.raises(RowDropped):
        tools_of([tool])


def test_every_tool_that_is_kept_can_be_written_again():
    kept, dropped = 0, 0
    for depth in range(20, 480, 20):
        inner = 1
        for _ in range(depth):
            inner = {"x": inner}
        tool = {"name": "f", "parameters": {"type": "object", "properties": {"a": {"x": inner}}}}
        try:
            tools = tools_of([tool])
        except RowDropped:
            dropped += 1
            continue
        task = Task("t", ({"role": "user", "content": "x"},), tools, ())
        assert row_of_step_task(task)
        kept += 1
    assert kept
    assert dropped
