"""Edge: dialogues from elsewhere: transcripts, BFCL result files, data sets to convert, and what a policy writes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

from values import changed, damaged, dumps, text

from fission_grpo.core.chat import parse, read_result
from fission_grpo.core.errors import RunFileError, TaskFileError
from fission_grpo.core.result_errors import is_like_an_error
from fission_grpo.core.rewards import step_verdict
from fission_grpo.core.types import Task, ToolCall, ToolResult, Trajectory, Turn
from fission_grpo.data.convert.dialogues import ConvertOptions
from fission_grpo.data.convert.formats import LAYOUTS, convert_file
from fission_grpo.data.step_tasks import load_step_tasks, row_of_step_task
from fission_grpo.evaluation.metrics import compute_metrics, metrics_json, uncounted_errors
from fission_grpo.evaluation.records import to_line
from fission_grpo.evaluation.tables import metrics_table
from fission_grpo.evaluation.transcripts import read_traces
from fission_grpo.feedback.postprocess import usable_text
from fission_grpo.feedback.request import FeedbackRequest
from fission_grpo.feedback.rules import rules
from fission_grpo.feedback.sources import FunctionSource
from fission_grpo.fission.failures import find_failure

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}, "n": {"type": "integer"}}, "required": ["city"]}
TOOL = {"name": "weather", "description": "d", "parameters": SCHEMA}
ASK = {"role": "user", "content": "Weather in Rome?"}
CALL = {"name": "weather", "arguments": {"city": "Rome"}}
ENTRY = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
RESULT = {"role": "tool", "tool_call_id": "1", "content": '{"error": "no such city"}'}
ANSWER = {"role": "assistant", "content": "Sunny."}
WRITTEN = f"<tool_call>\n{json.dumps(CALL)}\n</tool_call>"
SYSTEM = f"You call tools. <tools>{json.dumps([TOOL])}</tools>"
TOOLRL = {
    "instruction": "**Available Tools**\n1. Name: weather\nDescription: d\nParameters: "
    '{"city": {"type": "string", "description": "c", "default": ""}}\n**Steps for Each Turn**\n...',
    "input": "**Dialogue Records History**\n<user> Weather? </user>\n",
    "output": '<think> well </think>\n<tool_call>\n{"name": "weather", "parameters": {"city": "Rome"}}\n</tool_call>',
}
ROWS: dict[str, dict[str, Any]] = {
    "openai": {"messages": [ASK, {"role": "assistant", "content": None, "tool_calls": [ENTRY]}, RESULT, ANSWER]},
    "xlam": {"query": "Weather?", "answers": json.dumps([CALL]), "tools": json.dumps([TOOL])},
    "toolace": {
        "system": f"Functions: {json.dumps([TOOL])}",
        "conversations": [
            {"from": "user", "value": "Weather?"},
            {"from": "assistant", "value": '[weather(city="Rome")]'},
            {"from": "tool", "value": '[{"name": "weather", "results": "sunny"}]'},
            {"from": "assistant", "value": "Sunny."},
        ],
    },
    "hermes": {
        "conversations": [
            {"from": "system", "value": SYSTEM},
            {"from": "human", "value": "Weather?"},
            {"from": "gpt", "value": WRITTEN},
            {"from": "tool", "value": "<tool_response>\nsunny\n</tool_response>"},
            {"from": "gpt", "value": "Sunny."},
        ]
    },
    "apigen-mt": {
        "system": "s",
        "tools": json.dumps([TOOL]),
        "conversations": [
            {"from": "human", "value": "Weather?"},
            {"from": "function_call", "value": json.dumps(CALL)},
            {"from": "observation", "value": "sunny"},
            {"from": "gpt", "value": "Sunny."},
        ],
    },
    "toolrl": TOOLRL,
    "task": {"messages": [ASK], "tools": [TOOL], "reference": [CALL]},
}
ROWS["openai"]["tools"] = [{"type": "function", "function": TOOL}]
TRANSCRIPT = {"id": "a", "success": True, "category": "c", **ROWS["openai"]}
LARGEST = 4_000_000
"""Characters of a generated file. [ours] Readers are linear, so that a larger one only takes longer."""
ENDS = ("\n", "\r\n", "\n\n", "")


def prepare(folder: Path) -> Callable[[Random], str]:
    sys.set_int_max_str_digits(4300)  # Python's own limit, whatever the environment says
    readers = (_transcripts, _transcripts, _convert, _convert, _convert, _tasks, _result_file, _policy, _policy)
    return lambda rng: rng.choice(readers)(rng, folder)


def _bytes_of(row: dict[str, Any], rng: Random) -> bytes:
    """A file of a few rows, changed as JSON or as bytes."""
    rows: list[str] = []
    for _ in range(rng.choice((1, 1, 2, 30))):
        rows.append(dumps(changed(row, rng, rng.choice((0, 1, 1, 2, 4)))))
        if sum(map(len, rows)) > LARGEST:
            break
    text_of_rows = rng.choice(ENDS).join(rows) if rng.random() < 0.9 else f"[{', '.join(rows)}]"
    data = text_of_rows[:LARGEST].encode("utf-8", "surrogatepass")
    return damaged(data, rng) if rng.random() < 0.2 else data


def _transcripts(rng: Random, folder: Path) -> str:
    path = folder / "transcripts.jsonl"
    path.write_bytes(_bytes_of(TRANSCRIPT, rng))
    notes: list[str] = []
    try:
        records = read_traces(path, notes)
    except RunFileError as error:
        return _named(error, path, "transcripts")
    metrics = compute_metrics(records)
    json.dumps(metrics_json(metrics), allow_nan=False)
    metrics_table(metrics)
    uncounted_errors(records)
    for record in records:
        with suppress(ValueError):  # arguments with NaN, which it names
            to_line(record).encode("utf-8", "surrogatepass")
    return "transcripts: read"


def _result_file(rng: Random, folder: Path) -> str:
    steps = ["<tool_call>\n{}\n</tool_call>", "[cd(folder='document')]", [{"cd": '{"folder": "document"}'}], text(rng)]
    row = {"id": "multi_turn_base_0", "result": [[rng.choice(steps), "done"] for _ in range(rng.randint(0, 5))]}
    path = folder / "BFCL_v4_multi_turn_base_result.json"
    path.write_bytes(_bytes_of(row, rng))
    try:
        read_traces(path, [])
    except RunFileError as error:
        return _named(error, path, "result file")
    return "result file: read"


def _convert(rng: Random, folder: Path) -> str:
    layout = rng.choice((*LAYOUTS, "toolrl"))
    path = folder / "data.jsonl"
    path.write_bytes(_bytes_of(ROWS[layout], rng))
    try:
        options = ConvertOptions(abstentions=rng.random() < 0.2 and layout != "toolrl")
        _, converted = convert_file(path, rng.choice((layout, "auto")), options)
    except TaskFileError as error:
        return _named(error, path, "convert")
    for task in converted.tasks:
        row_of_step_task(task)
    return "convert: read"


def _tasks(rng: Random, folder: Path) -> str:
    path = folder / "tasks.jsonl"
    path.write_bytes(_bytes_of(ROWS["task"], rng))
    try:
        tasks = load_step_tasks(path)
    except TaskFileError as error:
        return _named(error, path, "tasks")
    for task in tasks[:3]:
        row_of_step_task(task)
    return "tasks: read"


def _policy(rng: Random, folder: Path) -> str:
    """What a policy and a tool write goes through reward, failure, rules and leak guard."""
    written = text(rng) if rng.random() < 0.5 else f"{text(rng, 1000)}{dumps_call(rng)}{text(rng, 1000)}"
    answered = text(rng, 20_000)
    turn = parse(written)
    is_like_an_error(answered)
    if turn.calls:
        results = tuple(read_result(call, answered) for call in turn.calls)
        turn = Turn(turn.text, turn.content, turn.calls, turn.error, results)
    elif turn.error and rng.random() < 0.5:
        turn = Turn(turn.text, turn.content, (), turn.error, (ToolResult(ToolCall("x"), answered, turn.error),))
    reference = (ToolCall("weather", {"city": text(rng, 1000), "n": 734_219}),)
    task = Task("t", (ASK,), (TOOL,), reference)
    failure = find_failure(Trajectory(task, (turn,)), step_verdict(task, turn, len(written)), (TOOL,))
    usable_text(answered)
    if failure is None:
        return "policy: no failure"
    said = rng.choice((answered, rules(failure) or "", text(rng, 2000)))
    source = FunctionSource("x", lambda _: said)
    FeedbackRequest([failure], [source]).feedback()
    return "policy: failure"


def dumps_call(rng: Random) -> str:
    return f"<tool_call>\n{dumps(changed(CALL, rng))}\n</tool_call>"


def _named(error: Exception, path: Path, what: str) -> str:
    assert str(error).startswith(str(path)), f"the file is not named: {error}"
    assert len(str(error)) < 5000, "a message of more than 5,000 characters"
    return f"{what}: refused"
