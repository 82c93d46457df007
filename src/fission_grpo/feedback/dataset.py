"""Labelled failures, as files: what a simulator is trained on and judged by.

A folder holds `train.jsonl`, `test.jsonl` and `tools.json` (tool schemas by a short key, as thousands of rows share
them). A row:

    {"id": "x4f...", "api": "TicketAPI", "origin": "corruption:wrong_value", "kind": "wrong_call", "detail": "",
     "messages": [...], "tools": "6d1f...", "reference": [{"name": ..., "arguments": {...}}],
     "failed": "<tool_call>...", "call_index": null, "diagnosis": "error: ...", "teacher": "rules"}
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
from fission_grpo.core.files import read_task_rows
from fission_grpo.core.json_io import quoted
from fission_grpo.core.serialization import call_fields, recovery_id
from fission_grpo.core.types import (
    ErrorKind,
    Failure,
    Message,
    Task,
    ToolCall,
)

TOOLS = "tools.json"


TRAIN, TEST = "train.jsonl", "test.jsonl"


@dataclass(frozen=True)
class FeedbackExample:
    """A failure with a diagnosis.

    Args:
        failure: of one turn; a longer episode's earlier turns stand in its task's prompt. The turn has no results:
            what the environment said is `failure.detail`.
        api: what the split goes by: the class of the reference's tool in BFCL, else the tool's name.
        origin: where the failure is from: "corruption:<type>", "sampled:<model>", "fission", "trace".
        diagnosis: what the teacher says of it; "" before it was asked.
        teacher: the source that said it.
    """

    failure: Failure
    api: str
    origin: str
    diagnosis: str = ""
    teacher: str = ""

    @property
    def id(self) -> str:
        """A hash of task and failed text."""
        return self.failure.task.id


def instance(failure: Failure, api: str, origin: str) -> FeedbackExample:
    """A failure as an instance without diagnosis: one turn, without results, a step task with the reference.

    Example:
        Of a failure in an episode's third turn, the two turns before it become messages of the prompt.
    """
    last = failure.turns[-1]
    step = Task(recovery_id(failure), tuple(dialogue_before(failure)), failure.tools, failure.reference)
    one = Failure(step, (replace(last, results=()),), failure.kind, failure.detail, failure.call_index)
    return FeedbackExample(one, api, origin)


def write_examples(path: Path, instances: Iterable[FeedbackExample]) -> None:
    """Write a file of instances, and add their tools to `tools.json` beside it."""
    beside = path.parent / TOOLS
    known: dict[str, Any] = json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else {}
    lines = []
    for one in instances:
        tools = [dict(tool) for tool in one.failure.tools]
        key = tools_key(tools)
        known.setdefault(key, tools)
        lines.append(json.dumps(_row(one, key), ensure_ascii=True) + "\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    beside.write_text(json.dumps(known, ensure_ascii=True) + "\n", encoding="utf-8")
    path.write_text("".join(lines), encoding="utf-8")


def tools_key(tools: Sequence[Mapping[str, Any]]) -> str:
    """A short name for a set of tool schemas: the same for the same ones in the same order."""
    text = json.dumps([dict(tool) for tool in tools], ensure_ascii=False)
    return hashlib.sha1(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def load_examples(path: Path) -> list[FeedbackExample]:
    """Read a file of instances.

    Raises:
        TaskFileError: the first mistake, with file, row (line, from 1), field and how to mend it.
    """
    beside = path.parent / TOOLS
    try:
        tools = json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else {}
    except (ValueError, RecursionError) as error:
        raise TaskFileError(f"{beside}: not JSON ({error}); make it again with `simulator data`") from error
    read = read_task_rows(path, "file of `fission-grpo simulator data`", lambda row, name: read_example(row, tools))
    if not read:
        raise TaskFileError(f"{path}: no instances in it; make some with `fission-grpo simulator data`")
    return read


def _row(one: FeedbackExample, tools: str) -> dict[str, Any]:
    failure, reference = one.failure, one.failure.reference
    assert not isinstance(failure.task.prompt, str)
    return {
        "id": one.id,
        "api": one.api,
        "origin": one.origin,
        "kind": str(failure.kind),
        "detail": failure.detail,
        "messages": [dict(message) for message in failure.task.prompt],
        "tools": tools,
        "reference": None if reference is None else [call_fields(call) for call in reference],
        "failed": failure.turns[-1].text,
        "truncated": failure.turns[-1].truncated,
        "call_index": failure.call_index,
        "diagnosis": one.diagnosis,
        "teacher": one.teacher,
    }


_TEXTS = ("id", "api", "origin", "kind", "detail", "failed", "diagnosis", "teacher")


def read_example(row: Mapping[str, Any], tools: Mapping[str, Sequence[Any]]) -> tuple[str, FeedbackExample]:
    """Id and instance of a row.

    Args:
        row: as at the top of this module.
        tools: sets of schemas by their keys.

    Raises:
        RowError: naming the field that is wrong.
    """
    for field in _TEXTS:
        if not isinstance(row.get(field), str):
            raise RowError(field, f"must be a string, got {quoted(row.get(field))}")
    if row["kind"] not in set(ErrorKind):
        raise RowError("kind", f"must be one of {', '.join(ErrorKind)}, got {quoted(row['kind'])}")
    given = row.get("tools")
    schemas = given if isinstance(given, list) else tools.get(given) if isinstance(given, str) else None
    if schemas is None:
        raise RowError("tools", f"must be a list of schemas, or a key of {TOOLS} beside the file; got {quoted(given)}")
    index = row.get("call_index")
    if index is not None and not isinstance(index, int):
        raise RowError("call_index", f"must be a number or null, got {quoted(index)}")
    messages, reference = _messages(row.get("messages")), _reference(row.get("reference"))
    task = Task(row["id"], messages, tuple(schemas), reference)
    turn = parse(row["failed"], truncated=bool(row.get("truncated", False)))
    failure = Failure(task, (turn,), ErrorKind(row["kind"]), row["detail"], index)
    return row["id"], FeedbackExample(failure, row["api"], row["origin"], row["diagnosis"], row["teacher"])


def _messages(given: Any) -> tuple[Message, ...]:
    if not isinstance(given, list) or not all(isinstance(one, dict) and "role" in one for one in given):
        raise RowError("messages", f"must be a list of chat messages with a role, got {quoted(given)}")
    return tuple(given)


def _reference(given: Any) -> tuple[ToolCall, ...] | None:
    if given is None:
        return None
    good = isinstance(given, list) and all(
        isinstance(call, dict) and isinstance(call.get("name"), str) and isinstance(call.get("arguments"), dict)
        for call in given
    )
    if not good:
        raise RowError("reference", f'must be null or a list of {{"name", "arguments"}}, got {quoted(given)}')
    return tuple(ToolCall(call["name"], call["arguments"]) for call in given)
