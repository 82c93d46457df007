"""Rows of data sets for the tests of converters, and their conversion."""

import json

import pytest

from fission_grpo.data.convert.dialogues import ConvertOptions
from fission_grpo.data.convert.formats import convert_file

ASK = {"role": "user", "content": "Go."}
MARK = b"\xef\xbb\xbf"


def tool(name, properties, required=(), **more):
    schema = {"type": "object", "properties": properties, "required": list(required), **more}
    return {"type": "function", "function": {"name": name, "description": "d", "parameters": schema}}


WEATHER = tool("weather", {"city": {"type": "string"}}, ["city"])


def says(name, arguments, **more):
    entry = {"id": "1", "type": "function", "function": {"name": name, "arguments": arguments}}
    return {"role": "assistant", "content": None, "tool_calls": [entry], **more}


def result(content, **more):
    return {"role": "tool", "tool_call_id": "1", "content": content, **more}


def openai(*messages, tools=(WEATHER,)):
    return {"messages": list(messages), "tools": list(tools)}


def write(folder, *rows, name="data.jsonl"):
    path = folder / name
    if name.endswith(".parquet"):
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(list(rows)), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def convert(folder, *rows, name="data.jsonl", layout="auto", **options):
    return convert_file(write(folder, *rows, name=name), layout, ConvertOptions(**options))[1]


def references(converted):
    return [[(call.name, call.arguments) for call in task.reference] for task in converted.tasks]
