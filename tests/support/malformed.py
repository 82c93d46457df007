"""Rows, schemas and files of other layouts that are wrong, and what the one error must say. For test_malformed.py."""

import json
from dataclasses import dataclass, field

TOOL = {"name": "f", "description": "", "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}}}
ROW = {
    "id": "a",
    "messages": [{"role": "user", "content": "hi"}],
    "tools": [TOOL],
    "reference": [{"name": "f", "arguments": {"x": 1}}],
}


@dataclass(frozen=True)
class Malformed:
    """One wrong input.

    Args:
        name: for the test's id.
        command: arguments of `fission-grpo`, in the folder of the files.
        says: regular expression that the error line must match: the place and what is wrong.
        files: by path, text or bytes.
    """

    name: str
    command: str
    says: str
    files: dict[str, str | bytes] = field(default_factory=dict)


def row(**changes):
    fields = {**ROW, **changes}
    return json.dumps({name: value for name, value in fields.items() if value is not ...})


def rows(name, says, text):
    """A step-task file, checked."""
    return Malformed(f"rows: {name}", "tasks check t.jsonl", rf"t\.jsonl.*{says}", {"t.jsonl": text})


def schema(name, says, parameters):
    tool = {"name": "f", "description": "", "parameters": parameters}
    return rows(f"schema: {name}", rf"row 1, field 'tools\[0\]'.*{says}", row(tools=[tool], reference=[]))


def convert(name, says, text, layout="auto", path="in.json"):
    command = f"tasks convert --from {layout} {path} out.jsonl"
    return Malformed(f"convert: {name}", command, says, {path: text})


ROWS = [
    rows("empty file", "no tasks", ""),
    rows("binary", "row 1.*not JSON", b"\x00\xff\xfe\x80"),
    rows("utf-16", "row 1.*not JSON", row().encode("utf-16")),
    rows("cut off", "row 2.*not JSON", row() + "\n" + row()[:40]),
    rows("two objects in a line", "row 1.*more text follows it", row() + row()),
    rows("an array", "row 1.*not one JSON object", "[" + row() + "]"),
    rows("pretty-printed", "row 1.*not JSON", json.dumps(ROW, indent=1)),
    rows("single quotes", "row 1.*not JSON", str(ROW)),
    rows("duplicate key", "row 1.*duplicate key 'id'", '{"id": "a", ' + row()[1:]),
    rows("NaN", "row 1.*NaN is not a JSON value", row()[:-1] + ', "weight": NaN}'),
    rows("number too large", "row 1.*too large", row()[:-1] + ', "weight": 1e999}'),
    rows("integer of 5,000 digits", "row 1.*too large", row()[:-1] + ', "weight": ' + "9" * 5000 + "}"),
    rows("1,000 levels", "row 1.*nested deeper", row()[:-1] + ', "w": ' + "[" * 1000 + "]" * 1000 + "}"),
    rows("100,000 levels", "row 1.*(nested deeper|not JSON)", "[" * 100_000),
    rows("lone surrogate", "row 1.*unpaired surrogate", row(id="x\ud800")),
    rows("no messages", "row 1, field 'messages': missing", row(messages=...)),
    rows("no tools", "row 1, field 'tools': missing", row(tools=...)),
    rows("no reference", "row 1, field 'reference': missing", row(reference=...)),
    rows("messages is text", "field 'messages': must be a list", row(messages="hi")),
    rows("no message", "field 'messages': must end with", row(messages=[])),
    rows("message is text", r"field 'messages\[0\]'", row(messages=["hi"])),
    rows("unknown role", r"field 'messages\[0\]\.role'", row(messages=[{"role": "bot", "content": ""}])),
    rows("role is a list", r"field 'messages\[0\]\.role'", row(messages=[{"role": ["user"], "content": ""}])),
    rows("content is a number", r"field 'messages\[0\]\.content'", row(messages=[{"role": "user", "content": 3}])),
    rows("content is missing", r"field 'messages\[0\]\.content'", row(messages=[{"role": "user"}])),
    rows("late system message", r"field 'messages\[1\]\.role'", row(messages=[*ROW["messages"], {"role": "system"}])),
    rows("ends with the assistant", "must end with", row(messages=[{"role": "assistant", "content": "x"}])),
    rows("id is a number", "field 'id'", row(id=3)),
    rows("id is empty", "field 'id'", row(id="")),
    rows("id twice", "row 2, field 'id'.*row 1's already", row() + "\n" + row()),
    rows("tool without a name", r"field 'tools\[0\]'", row(tools=[{"parameters": {}}], reference=[])),
    rows("tool is text", r"field 'tools\[0\]'", row(tools=["f"], reference=[])),
    rows("tool twice", r"field 'tools\[1\]\.name'", row(tools=[TOOL, TOOL])),
    rows("reference is an object", "field 'reference': must be a list", row(reference={"name": "f"})),
    rows("reference to no tool", r"field 'reference\[0\]\.name'", row(reference=[{"name": "g", "arguments": {}}])),
    rows(
        "reference of a wrong type",
        r"'reference\[0\]\.arguments'",
        row(reference=[{"name": "f", "arguments": {"x": "1"}}]),
    ),
    rows("arguments as text", r"'reference\[0\]\.arguments'", row(reference=[{"name": "f", "arguments": '{"x": 1}'}])),
    rows("arguments missing", r"'reference\[0\]\.arguments'", row(reference=[{"name": "f"}])),
    Malformed("rows: no such file", "tasks check t.jsonl", r"t\.jsonl: cannot be read"),
    Malformed("rows: a folder", "tasks check d.jsonl", r"d\.jsonl: cannot be read", {"d.jsonl/x": ""}),
]

SCHEMAS = [
    schema("unknown type", "text", {"type": "object", "properties": {"x": {"type": "text"}}}),
    schema("type is a number", "3", {"type": "object", "properties": {"x": {"type": 3}}}),
    schema("not an object", "object", {"type": "string"}),
    schema("properties is a list", "properties", {"type": "object", "properties": ["x"]}),
    schema("property is text", "x", {"type": "object", "properties": {"x": "integer"}}),
    schema("required is text", "required", {"type": "object", "properties": {}, "required": "x"}),
    schema("enum is text", "enum", {"type": "object", "properties": {"x": {"enum": "abc"}}}),
    schema(
        "pattern is no regular expression", "pattern|regex", {"type": "object", "properties": {"x": {"pattern": "("}}}
    ),
    schema("remote $ref", "ref", {"type": "object", "properties": {"x": {"$ref": "http://127.0.0.1:9/x"}}}),
    schema("$ref to nowhere", "ref", {"type": "object", "properties": {"x": {"$ref": "#/$defs/none"}}}),
    schema("minimum is text", "minimum", {"type": "object", "properties": {"x": {"minimum": "1"}}}),
    schema("parameters is a list", "parameters", []),
]

CONVERSIONS = [
    convert("empty", r"in\.json", ""),
    convert("not JSON", r"in\.json.*not JSON|in\.json", "{"),
    convert("a number", r"in\.json", "3"),
    convert("no rows", r"in\.json", "[]"),
    convert("rows are text", r"in\.json", '["a"]'),
    convert("unknown layout", r"in\.json.*(layout|--from)", '[{"a": 1}]'),
    convert("another layout", r"in\.json", json.dumps([{"messages": []}]), "xlam"),
    convert("parquet that is none", r"in\.parquet", "no", "auto", "in.parquet"),
    convert("unknown ending", r"in\.csv", "a,b", "auto", "in.csv"),
    Malformed("convert: no such file", "tasks convert none.json out.jsonl", r"none\.json"),
]
