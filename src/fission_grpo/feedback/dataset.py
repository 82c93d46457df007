"""Labelled failures as files: the data that a feedback model is trained and checked on.

A folder holds `train.jsonl` and `test.jsonl`, with the rows of `write_examples`, and `tools.json`: tool schemas by a
short key, because thousands of rows share them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fission_grpo.core.chat import dialogue_before, parse
from fission_grpo.core.errors import RowError, TaskFileError
from fission_grpo.core.files import read_task_rows, write_file
from fission_grpo.core.json_io import quoted
from fission_grpo.core.serialization import call_fields, recovery_id
from fission_grpo.core.types import ErrorKind, Failure, Task, ToolCall

TRAIN, TEST, TOOLS = "train.jsonl", "test.jsonl", "tools.json"
_STRINGS = ("id", "api", "origin", "kind", "detail", "failed", "diagnosis", "teacher")


@dataclass(frozen=True)
class FeedbackExample:
    """A failure with its label."""

    failure: Failure  # of one turn, without tool results; earlier turns of an episode are in its task's prompt
    api: str  # the unit of the split: the class of the reference's tool in BFCL, else the tool's name
    origin: str  # of the failure: "corruption:<type>", "sampled:<model>", "fission", "trace"
    diagnosis: str = ""  # the teacher's feedback; "" before labelling
    teacher: str = ""  # name of the source that gave it

    @property
    def id(self) -> str:
        """A hash of task and failed text."""
        return self.failure.task.id


def make_example(failure: Failure, api: str, origin: str) -> FeedbackExample:
    """Return a failure as an unlabelled example: one turn without results, in a step task with the reference."""
    task = Task(recovery_id(failure), tuple(dialogue_before(failure)), failure.tools, failure.reference)
    turn = replace(failure.turns[-1], results=())
    return FeedbackExample(Failure(task, (turn,), failure.kind, failure.detail, failure.call_index), api, origin)


def tools_key(tools: Sequence[Mapping[str, Any]]) -> str:
    """Return a short hash of a sequence of tool schemas."""
    text = json.dumps([dict(tool) for tool in tools], ensure_ascii=False)
    return hashlib.sha1(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def read_example(row: Mapping[str, Any], tools: Mapping[str, Sequence[Any]]) -> tuple[str, FeedbackExample]:
    """Return the id and the example of a row; `tools` are schemas by their keys. Raises RowError, naming the field."""

    def require(is_valid: bool, field: str, expected: str) -> None:
        if not is_valid:
            raise RowError(field, f"must be {expected}, got {quoted(row.get(field))}")

    for field in _STRINGS:
        require(isinstance(row.get(field), str), field, "a string")
    require(row["kind"] in set(ErrorKind), "kind", f"one of {', '.join(ErrorKind)}")
    key, messages, calls, index = (row.get(field) for field in ("tools", "messages", "reference", "call_index"))
    schemas = tools.get(key) if isinstance(key, str) else key
    require(isinstance(schemas, list | tuple), "tools", f"a list of schemas, or a key of {TOOLS} beside the file")
    require(index is None or isinstance(index, int), "call_index", "a number or null")
    has_roles = isinstance(messages, list) and all(isinstance(part, dict) and "role" in part for part in messages)
    require(has_roles, "messages", "a list of chat messages with a role")
    are_calls = calls is None or (isinstance(calls, list) and all(map(_is_call, calls)))
    require(are_calls, "reference", 'null or a list of {"name", "arguments"}')
    reference = None if calls is None else tuple(ToolCall(call["name"], call["arguments"]) for call in calls)
    task = Task(row["id"], tuple(messages or ()), tuple(schemas or ()), reference)
    turn = parse(row["failed"], truncated=bool(row.get("truncated", False)))
    failure = Failure(task, (turn,), ErrorKind(row["kind"]), row["detail"], index)
    return row["id"], FeedbackExample(failure, row["api"], row["origin"], row["diagnosis"], row["teacher"])


def _is_call(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("name"), str) and isinstance(entry.get("arguments"), dict)


def write_examples(path: Path, examples: Iterable[FeedbackExample]) -> None:
    """Write a file of examples, and add their tools to `tools.json` beside it."""
    tools_path = path.parent / TOOLS
    tools: dict[str, Any] = json.loads(tools_path.read_text(encoding="utf-8-sig")) if tools_path.is_file() else {}
    lines = []
    for example in examples:
        failure, turn = example.failure, example.failure.turns[-1]
        assert not isinstance(failure.task.prompt, str)
        row = {
            "id": example.id,
            "api": example.api,
            "origin": example.origin,
            "kind": str(failure.kind),
            "detail": failure.detail,
            "messages": [dict(message) for message in failure.task.prompt],
            "tools": tools_key(failure.tools),
            "reference": None if failure.reference is None else [call_fields(call) for call in failure.reference],
            "failed": turn.text,
            "truncated": turn.truncated,
            "call_index": failure.call_index,
            "diagnosis": example.diagnosis,
            "teacher": example.teacher,
        }
        tools.setdefault(row["tools"], [dict(tool) for tool in failure.tools])
        lines.append(json.dumps(row, ensure_ascii=True) + "\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(tools_path, json.dumps(tools, ensure_ascii=True) + "\n")
    write_file(path, "".join(lines))


def load_examples(path: Path) -> list[FeedbackExample]:
    """Read a file of examples. Raises TaskFileError for the first mistake: file, row (from 1), field and the fix."""
    tools_path = path.parent / TOOLS
    try:
        tools = json.loads(tools_path.read_text(encoding="utf-8-sig")) if tools_path.is_file() else {}
    except (ValueError, RecursionError) as error:
        raise TaskFileError(f"{tools_path}: not JSON ({error}); make it again with `simulator data`") from error
    examples = read_task_rows(path, "file of `fission-grpo simulator data`", lambda row, _: read_example(row, tools))
    if not examples:
        raise TaskFileError(f"{path}: no examples in it; make some with `fission-grpo simulator data`")
    return examples
