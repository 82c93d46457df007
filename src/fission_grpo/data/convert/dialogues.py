"""From dialogues to step tasks, for all layouts: each assistant turn with calls becomes one, with its history."""

from __future__ import annotations

import ast
import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fission_grpo.core.chat import MAX_LITERAL, dialogue_results, read_mapping, read_result
from fission_grpo.core.errors import RowError, TaskFileError
from fission_grpo.core.json_io import NotJson
from fission_grpo.core.messages import (
    OTHER_FORM,
    UNREADABLE_CALL,
    call_in_other_form,
    name_and_arguments,
    read_arguments,
)
from fission_grpo.core.result_errors import is_like_an_error
from fission_grpo.core.rewards import same_call
from fission_grpo.core.serialization import call_fields
from fission_grpo.core.table_nulls import without_padding
from fission_grpo.core.tool_schema import check_call, parameter_schema
from fission_grpo.core.types import FOLLOWING, ErrorKind, Message, Task, ToolCall, ToolResult
from fission_grpo.data.convert.files import read_dialogues
from fission_grpo.data.step_tasks import FIELDS
from fission_grpo.envs.catalog import ENVIRONMENT, is_environment_name
from fission_grpo.envs.step_calls import RECOVERY, SNAPSHOT

MAX_TURNS = 250
"""Most assistant turns of a row. [ours] Each becomes a task that holds all turns before it."""


class RowDropped(Exception):
    """A row or turn cannot become a task. The message is the reason, without details of the row, for counting."""


@dataclass(frozen=True)
class Dialogue:
    """A row as chat messages with structured `tool_calls`, and tools `{"name", "description", "parameters"}`."""

    tools: tuple[Mapping[str, Any], ...]
    messages: tuple[Message, ...]
    failed: frozenset[int] = frozenset()  # indices of results that the layout itself marks as errors
    untrained: frozenset[int] = frozenset()  # indices of assistant messages with weight 0
    columns: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of a row with an environment


RowReader = Callable[[Mapping[str, Any]], Dialogue]  # may raise RowDropped, or RowError to refuse the file


@dataclass(frozen=True)
class Converted:
    """The tasks of a file, and counts of the rest."""

    tasks: tuple[Task, ...]
    rows: int  # possible tasks, kept or dropped: assistant turns, and rows that could not be read
    dropped: Mapping[str, int]  # by reason
    restored: int = 0  # tasks with a string in the reference converted to the type that its schema demands
    notes: tuple[str, ...] = ()  # what else to know

    def summary(self) -> str:
        """One line of totals, then one per reason, then the notes."""
        lines = [f"{len(self.tasks)} of {self.rows} kept ({self.restored} with strings restored to their types)"]
        lines += [f"  dropped {count:4d}: {reason}" for reason, count in self.dropped.items()]
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])


@dataclass(frozen=True)
class ConvertOptions:
    """Which turns of a dialogue become tasks."""

    abstentions: bool = False  # also turns without calls, with an empty reference
    last_only: bool = False  # the last turn of a row alone, which is then named "FILE:ROW", not "FILE:ROW#TURN"
    recoveries: bool = False  # turns that recover from a failed call alone
    error_if: Callable[[str], bool] | None = None  # whether a result is an error, beside those that begin like one
    tools: Sequence[Any] | None = None  # of rows that list none


ALL_TURNS = ConvertOptions()


def convert_rows(
    path: Path, read: RowReader, options: ConvertOptions, own_fields: Collection[str] | None = None
) -> Converted:
    """Convert all rows of a file. Raises TaskFileError if it cannot be read, or nothing in it can become a task.

    Each assistant turn with calls makes a task, "FILE:ROW#TURN" (from 1). A turn with weight 0, or whose own call
    failed, makes none. One that follows a failed call, makes other calls and works has the column `recovery`; of equal
    ones in a row the first alone.

    A row that names an environment keeps its columns, but for the layout's `own_fields`; None if it has no such rows.
    """
    tasks: list[Task] = []
    dropped: Counter[str] = Counter()
    restored = others = 0
    for number, row in enumerate(read_dialogues(path), start=1):
        if options.tools is not None and not (row.get("tools") or row.get("functions")):
            row = {**row, "tools": options.tools}
        try:
            dialogue = _without_padding(read(row), path.suffix == ".parquet")
            if own_fields is not None and row.get(ENVIRONMENT) is not None:
                dialogue = replace(dialogue, columns=_columns(row, own_fields))
                others += not dialogue.columns
            found = _convert_dialogue(dialogue, f"{path.stem}:{number}", options)
        except RowDropped as reason:
            dropped[str(reason)] += 1
            continue
        except RecursionError:
            dropped["it is nested too deeply"] += 1
            continue
        except RowError as mistake:
            raise TaskFileError(f"{path}, row {number}, field '{mistake.field}': {mistake.what}") from None
        tasks += found.tasks
        dropped.update(found.dropped)
        restored += found.restored
    if not tasks:
        why = "; ".join(f"{reason}: {count}" for reason, count in dropped.items()) or "no assistant turn calls a tool"
        raise TaskFileError(f"{path}: nothing in it can become a task ({why}); is it in the layout you named?")
    notes = {
        "tasks that recover from a failed call (`recovery`)": sum(RECOVERY in task.columns for task in tasks),
        "rows whose field 'environment' is none of desk, bfcl and module:Class, and is left out": others,
    }
    counts = len(tasks) + dropped.total(), dict(dropped.most_common()), restored
    return Converted(tuple(tasks), *counts, tuple(f"{what}: {count}" for what, count in notes.items() if count))


def _convert_dialogue(dialogue: Dialogue, name: str, options: ConvertOptions) -> Converted:
    """The tasks of one row. Raises RowDropped for a row as a whole."""
    messages = dialogue.messages
    replies = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
    if len(replies) > MAX_TURNS and not options.last_only:
        raise RowDropped(f"it has more than {MAX_TURNS} assistant turns")
    places = [at for at in replies if options.abstentions or messages[at].get("tool_calls")]
    said = (at for at in replies if not messages[at].get("tool_calls"))
    other = next((at for at in said if places and call_in_other_form(messages[at]["content"])), None)
    tasks: dict[str, Task] = {}
    dropped: Counter[str] = Counter()
    restored = 0
    for turn, at in enumerate(places[-1:] if options.last_only else places, start=1):
        try:
            task, is_restored = _task(dialogue, at, name if options.last_only else f"{name}#{turn}", options.error_if)
            if other is not None and other <= at:
                raise RowDropped(OTHER_FORM)
            repair = _repair(dialogue, at, task, options.error_if)
            if options.recoveries and repair is None:
                raise RowDropped("the turn recovers from no failed call")
            if options.recoveries and repair in tasks:
                raise RowDropped("the same recovery again")
        except RowDropped as reason:
            dropped[str(reason)] += 1
            continue
        if repair is not None and repair not in tasks:
            task = replace(task, columns={**task.columns, RECOVERY: True})
        tasks[task.id if repair is None or repair in tasks else repair] = task
        restored += is_restored
    return Converted(tuple(tasks.values()), len(tasks) + dropped.total(), dropped, restored)


def _repair(dialogue: Dialogue, at: int, task: Task, error_if: Callable[[str], bool] | None) -> str | None:
    """The failed calls before message `at` with the other calls that it makes, which work; None if it is no repair."""
    messages = dialogue.messages
    if not task.reference or messages[at - 1]["role"] != "tool" or at + 1 == len(messages):
        return None
    before = next(i for i in range(at - 1, -1, -1) if messages[i]["role"] != "tool")
    if messages[at + 1]["role"] != "tool" or not _failed(dialogue, before, error_if):
        return None
    failed = [ToolCall(**entry["function"]) for entry in messages[before].get("tool_calls") or ()]
    if all(any(same_call(call, other) for other in failed) for call in task.reference):
        return None  # the failing call again, which another time worked
    return json.dumps([[call_fields(call) for call in calls] for calls in (failed, task.reference)], sort_keys=True)


def _columns(row: Mapping[str, Any], own_fields: Collection[str]) -> dict[str, Any]:
    """The columns of a row with an environment, beside its dialogue and tools; none if it is another value."""
    if not is_environment_name(row[ENVIRONMENT]):
        return {}
    if row.get(SNAPSHOT) is not None:
        raise RowDropped("it has a snapshot, which belongs to one turn only")
    return {name: value for name, value in row.items() if name not in {*own_fields, *FIELDS, SNAPSHOT, FOLLOWING}}


def _without_padding(dialogue: Dialogue, is_padded: bool) -> Dialogue:
    """The dialogue without the null arguments that Arrow adds where calls have different ones."""
    entries = [entry for message in dialogue.messages for entry in message.get("tool_calls") or ()]
    calls = [ToolCall(**entry["function"]) for entry in entries]
    schemas = {str(tool["name"]): parameter_schema(tool) for tool in dialogue.tools}
    own = {name: schema["properties"] for name, schema in schemas.items() if "properties" in schema}
    is_padded = is_padded or any(
        value is None and key not in own.get(call.name, {key}) and not schemas[call.name].get("additionalProperties")
        for call in calls
        for key, value in call.arguments.items()
    )
    for entry, call in zip(entries, calls, strict=True):
        entry["function"]["arguments"] = dict(without_padding(call, dialogue.tools, is_padded).arguments)
    return dialogue


def _failed(dialogue: Dialogue, at: int, error_if: Callable[[str], bool] | None) -> bool:
    """Whether a result of the calls of message `at` is an error."""
    for number, message in enumerate(dialogue.messages[at + 1 :], start=at + 1):
        if message["role"] != "tool":
            return False
        if number in dialogue.failed or _is_error(message["content"], error_if):
            return True
    return False


def _is_error(text: str, error_if: Callable[[str], bool] | None) -> bool:
    if error_if is not None and error_if(text):
        return True
    answers: list[Any] = [text]
    with suppress(ValueError, RecursionError):
        whole = read_literal(text) if len(text) <= MAX_LITERAL else json.loads(text)
        answers.append(whole)
        if isinstance(whole, dict):  # an answer may stand beside the name of its tool
            answers += [whole[key] for key in ("content", "results", "result", "output") if key in whole]
        for item in whole if isinstance(whole, list) else ():  # other lists are data
            if isinstance(item, dict) and "name" in item:
                answers += [item[key] for key in ("content", "results") if key in item]
    texts = [answer if isinstance(answer, str) else json.dumps(answer) for answer in answers]
    return any(is_like_an_error(one) or read_result(ToolCall(""), one).error is not None for one in texts)


def _task(dialogue: Dialogue, at: int, name: str, error_if: Callable[[str], bool] | None) -> tuple[Task, bool]:
    """The task to generate message `at`, and whether strings in its reference were restored to their types."""
    history = dialogue.messages[:at]
    reference, is_restored = _reference(dialogue, at, error_if)
    if not dialogue.columns:
        return Task(name, history, dialogue.tools, reference), is_restored
    try:
        results: tuple[ToolResult, ...] = dialogue_results(history)
    except ValueError:
        raise RowDropped("its environment needs one result for every call of the dialogue") from None
    columns = dict(dialogue.columns)
    if reference:
        columns[FOLLOWING] = _following(dialogue, at, error_if)
    return Task(name, history, dialogue.tools, reference, columns, history=results), is_restored


def _reference(
    dialogue: Dialogue, at: int, error_if: Callable[[str], bool] | None
) -> tuple[tuple[ToolCall, ...], bool]:
    """The calls of message `at`, and whether strings in them were restored. RowDropped if it can be no reference."""
    if at in dialogue.untrained:
        raise RowDropped("the turn has weight 0")
    if _failed(dialogue, at, error_if):
        raise RowDropped("a call of the turn failed")
    history = dialogue.messages[:at]
    if not history or history[-1]["role"] not in ("user", "tool"):
        raise RowDropped("the turn follows no user message or tool result")
    if any(message["role"] == "system" for message in history[1:]):
        raise RowDropped("a system message stands in the middle")
    calls = [ToolCall(**entry["function"]) for entry in dialogue.messages[at].get("tool_calls") or ()]
    reference = tuple(_restored(call, dialogue.tools) for call in calls)
    if reference and not dialogue.tools:
        raise RowDropped("the row lists no tools; give them with --tools FILE")
    for call in reference:
        if problem := check_call(call, dialogue.tools):
            is_unknown = problem.kind is ErrorKind.UNKNOWN_TOOL
            what = "calls a tool that is not listed" if is_unknown else "violates its tool's schema"
            raise RowDropped(f"the reference {what}")
    return reference, list(reference) != calls


def _following(dialogue: Dialogue, at: int, error_if: Callable[[str], bool] | None) -> list[list[dict[str, Any]]]:
    """The calls of the turns after message `at`, up to the next user message, as far as each can be a reference."""
    turns: list[list[dict[str, Any]]] = []
    for later, message in enumerate(dialogue.messages[at + 1 :], start=at + 1):
        if message["role"] == "user":
            return [*turns, []]
        if message["role"] == "assistant":
            try:
                calls, _ = _reference(dialogue, later, error_if)
            except RowDropped:
                break
            if not calls and call_in_other_form(message["content"]):
                break
            turns.append([call_fields(call) for call in calls])
            if not calls:
                break
    return turns


def _restored(call: ToolCall, tools: Sequence[Mapping[str, Any]]) -> ToolCall:
    """The call with strings replaced by the values they spell ("2.5"), where the schema forbids the string. [ours]"""
    schema = next((tool["parameters"] for tool in tools if tool["name"] == call.name), {})
    tool = {"name": call.name, "parameters": {key: value for key, value in schema.items() if key != "required"}}
    arguments = dict(call.arguments)
    for name, value in call.arguments.items():
        if not isinstance(value, str) or check_call(ToolCall(call.name, {name: value}), [tool]) is None:
            continue
        try:
            meant = read_literal(value)
        except ValueError:
            continue
        if check_call(ToolCall(call.name, {name: meant}), [tool]) is None:
            arguments[name] = meant
    return ToolCall(call.name, arguments)


def field(row: Mapping[str, Any], name: str, kind: type | tuple[type, ...]) -> Any:
    """A field of a row. Raises RowDropped if it is missing or of another type."""
    value = row.get(name)
    if not isinstance(value, kind):
        raise RowDropped(f"field '{name}' is missing or of the wrong type")
    return value


def decoded(value: Any, what: str, read: Callable[[str], Any] = json.loads) -> Any:
    """A value that may be given as text, to be decoded by `read`. Raises RowDropped, naming `what`, if that fails."""
    try:
        return read(value) if isinstance(value, str) else value
    except (ValueError, RecursionError) as error:
        raise RowDropped(f"{what} cannot be read") from error


def read_literal(text: str) -> Any:
    """The JSON value that `text` spells as JSON or as a Python literal. Raises ValueError."""
    for read in (json.loads, lambda text: literal_of(ast.parse(text.strip(), mode="eval").body)):
        with suppress(ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            return json.loads(json.dumps(read(text), allow_nan=False))
    raise ValueError("neither JSON nor a Python literal")


class _JsonNames(ast.NodeTransformer):
    def visit_Name(self, node: ast.Name) -> ast.expr:
        names = {"true": True, "false": False, "null": None}
        return ast.Constant(names[node.id]) if node.id in names else node


def literal_of(node: ast.expr) -> Any:
    """The value of a Python literal, which may hold JSON's true, false and null. Raises ValueError or TypeError."""
    return ast.literal_eval(_JsonNames().visit(node))


def assistant_message(calls: Iterable[Any], content: str = "") -> dict[str, Any]:
    """An assistant message with calls `{"name", "arguments"}`; arguments may be JSON text. Raises RowDropped."""
    entries = []
    for call in calls:
        name, arguments = name_and_arguments(call) if isinstance(call, Mapping) else (None, None)
        if not isinstance(name, str):
            raise RowDropped(UNREADABLE_CALL)
        try:
            function = {"name": name, "arguments": read_arguments(arguments)}
        except NotJson as error:
            raise RowDropped(UNREADABLE_CALL) from error
        entries.append({"type": "function", "function": function})
    return {"role": "assistant", "content": content, "tool_calls": entries}


def tool_messages(content: Any, messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The results of the last message's calls: one message each if `content` is a list of that length, else one."""
    names = [call["function"]["name"] for call in messages[-1].get("tool_calls", ())] if messages else []
    if not names:
        raise RowDropped("a tool result follows no call")
    parts = content if isinstance(content, list) and len(content) == len(names) else [content]
    results = []
    for part in parts:  # an answer may name its tool, in another order than that of the calls
        own = (part if isinstance(part, Mapping) else read_mapping(part) if isinstance(part, str) else {}).get("name")
        name = own if own in names else names[0]
        names.remove(name)
        text = part if isinstance(part, str) else json.dumps(part, ensure_ascii=False)
        results.append({"role": "tool", "name": name, "content": text})
    return results
