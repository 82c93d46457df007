"""The rows of a data file, and other programs' results as dialogues: τ-bench, τ²-bench, Inspect."""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fission_grpo.core.errors import TaskFileError
from fission_grpo.core.files import parse_json_lines
from fission_grpo.core.table_nulls import without_schema_nulls

_LISTS = ("simulations", "samples")  # fields of a results file that hold its dialogues: of τ²-bench, of Inspect
_VERDICTS = {"C": True, "I": False, 1: True, 0: False}  # values of Inspect's scores; others are no verdict


def _as_list(document: Any) -> Sequence[Any]:
    return document if isinstance(document, list) else [document]


def read_dialogues(path: Path) -> Iterator[Mapping[str, Any]]:
    """The rows of a file of dialogues, see `rows_of_document` and `as_dialogue`. Raises TaskFileError."""
    return map(as_dialogue, read_rows(path, rows_of_document))


def read_rows(path: Path, unwrap: Callable[[Any], Sequence[Any]] = _as_list) -> Iterator[Mapping[str, Any]]:
    """The rows of a .json (a list, an object, or one a line), .jsonl or .parquet file. Raises TaskFileError.

    `unwrap` gives the rows of a .json that is one document.
    """
    if path.suffix == ".parquet":
        import pyarrow.parquet

        try:
            for row in pyarrow.parquet.read_table(path).to_pylist():
                yield row | {key: without_schema_nulls(row[key]) for key in ("tools", "functions") if key in row}
        except (OSError, pyarrow.ArrowException) as error:
            raise TaskFileError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from error
        return
    try:
        content = path.read_bytes()
    except OSError as error:
        raise TaskFileError(f"{path}: cannot be read ({error.strerror}); give the path of a data file") from error
    rows: Iterable[tuple[int, Any]] = parse_json_lines(content)
    if path.suffix == ".json":
        content = content.removeprefix(BOM_UTF8).lstrip()
        try:
            rows = enumerate(unwrap(json.loads(content)), start=1)
        except (ValueError, RecursionError) as error:
            if content.startswith(b"["):  # else there may be one object a line
                raise TaskFileError(f"{path}: not JSON ({error})") from error
    for number, row in rows:
        if isinstance(row, ValueError):
            raise TaskFileError(f"{path}, row {number}: not JSON ({row}); a .jsonl has one object a line")
        if not isinstance(row, dict):
            raise TaskFileError(f"{path}, row {number}: must be an object, got a {type(row).__name__}")
        yield row


def rows_of_document(document: Any) -> Sequence[Any]:
    """The dialogues in a JSON document: a list of them, the list in a file of results, one row, or its messages."""
    if isinstance(document, Mapping) and "messages" not in document:
        document = next((document[name] for name in _LISTS if isinstance(document.get(name), list)), document)
    is_dialogue = isinstance(document, list) and all(isinstance(one, Mapping) and "role" in one for one in document)
    return [{"messages": document}] if document and is_dialogue else _as_list(document)


def task_of(row: Mapping[str, Any]) -> str:
    """The id of the task that a row is one of several trials of (τ-bench, τ²-bench, Inspect's epochs), else ""."""
    name = row.get("task_id", row.get("id"))
    return "" if name is None or row.get("trial", row.get("epoch")) is None else str(name)


def as_dialogue(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A row of other programs' results with `messages`, `id` and `success` as transcripts have them; else itself.

    Several trials of one task get ids of their own. A user's calls of tools (τ²-bench) are left out.
    """
    judged = row.get("reward_info")
    reward = judged.get("reward") if isinstance(judged, Mapping) else row.get("reward")
    messages, scores = row.get("traj", row.get("messages")), row.get("scores")
    scores = list(scores.values()) if isinstance(scores, Mapping) else []
    is_scored = bool(scores) and all(isinstance(score, Mapping) and "value" in score for score in scores)
    if not isinstance(messages, list) or not ("traj" in row or isinstance(judged, Mapping) or is_scored):
        return row
    success = abs(reward - 1) < 1e-6 if isinstance(reward, int | float) else None
    if is_scored:  # of several scores nobody says which one counts
        value = scores[0]["value"] if len(scores) == 1 else None
        success = _VERDICTS.get(value) if isinstance(value, str | int | float) else None
    name, trial = row.get("task_id", row.get("id")), row.get("trial", row.get("epoch"))
    own = [_message(one) for one in messages if not (isinstance(one, Mapping) and one.get("requestor") == "user")]
    fields = {"id": str(name) if trial is None else f"{name}-{trial}", "messages": own, "success": success}
    return {key: value for key, value in row.items() if key in ("tools", "category", "environment")} | fields


def _message(message: Any) -> Any:
    """A message with calls as {"function": {"name", "arguments"}}, and a result's id and error as OpenAI has them."""
    if not isinstance(message, Mapping):
        return message
    fields = dict(message)
    if isinstance(calls := fields.get("tool_calls"), list):
        fields["tool_calls"] = [_call(call) for call in calls]
    if fields.get("role") == "tool":
        error = fields.get("error")
        fields["is_error"] = bool(error)
        fields["tool_call_id"] = fields.get("tool_call_id", fields.get("id"))
        if not fields.get("content") and isinstance(error, Mapping):
            fields["content"] = error.get("message")
    return fields


def _call(call: Any) -> Any:
    if isinstance(call, Mapping) and isinstance(call.get("function"), str):
        return {"id": call.get("id"), "function": {"name": call["function"], "arguments": call.get("arguments")}}
    return call
