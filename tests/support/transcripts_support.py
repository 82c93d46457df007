"""Transcripts for the tests of their reader."""

import json

from fission_grpo.evaluation.transcripts import read_traces

CD = {"type": "object", "properties": {"folder": {"type": "string"}}, "required": ["folder"]}
TOOLS = [{"type": "function", "function": {"name": "cd", "description": "", "parameters": CD}}]
ASK = {"role": "user", "content": "go"}
DONE = {"role": "assistant", "content": "done"}


def call(name, arguments="{}", id=None):
    entry = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return entry | ({"id": id} if id else {})


def says(*calls, content=None):
    return {"role": "assistant", "content": content} | ({"tool_calls": list(calls)} if calls else {})


def result(content, id=None):
    return {"role": "tool", "content": content} | ({"tool_call_id": id} if id else {})


def write(tmp_path, *rows):
    path = tmp_path / "traces.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def read(tmp_path, *messages, **fields):
    (record,) = read_traces(write(tmp_path, {"messages": list(messages), **fields}))
    return record


def errors(record):
    return [(one.name, one.error, one.kind and one.kind.value) for one in record.calls]
