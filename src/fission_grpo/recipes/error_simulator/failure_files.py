"""Read failures and tasks from files: task files, runs (`fission.jsonl`), evaluations, and foreign transcripts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from fission_grpo.core.chat import parse
from fission_grpo.core.errors import RowError, TaskFileError
from fission_grpo.core.files import read_lines
from fission_grpo.core.json_io import NotJson, read_json
from fission_grpo.core.tool_schema import check_tool_schema
from fission_grpo.core.types import Message, Task, ToolCall, ToolResult, Trajectory, Turn, Verdict
from fission_grpo.data.step_tasks import load_step_tasks
from fission_grpo.envs.bfcl import INSTALL
from fission_grpo.evaluation.records import StepRecord, read_records
from fission_grpo.evaluation.transcripts import read_traces
from fission_grpo.feedback.dataset import read_example
from fission_grpo.fission.event_log import read_events
from fission_grpo.fission.failures import find_failure
from fission_grpo.recipes.error_simulator.failures import LabelledFailure, StepContext, api_of, unlabelled

EVENTS, CASES, RECORDS = "fission.jsonl of a run", "case file", "cases.jsonl of an evaluation"
TASKS, TRANSCRIPTS = "step-task file", "transcripts"
FILE_KINDS: Sequence[tuple[str, set[str]]] = (
    (EVENTS, {"event"}),
    (CASES, {"turns", "classes"}),
    (RECORDS, {"turns", "category"}),
    (TASKS, {"messages", "reference"}),
    (TRANSCRIPTS, {"messages"}),
)
"""Kinds of files and the fields that a file's first row must have; the first kind that fits counts."""


@dataclass(frozen=True)
class TurnContext:
    """What an evaluation's records do not hold of a user turn.

    Args:
        messages: those that the turn adds before the policy's first reply.
        tools: schemas.
        reference: the calls that do what the turn requests.
    """

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...]
    reference: tuple[ToolCall, ...]


@dataclass
class FailureSources:
    """What files hold.

    Args:
        contexts: step tasks in which policies can fail.
        failures: failures of runs, evaluations and transcripts.
        kinds: the kind of each file.
        turns: by case or task id, the user turns that join an evaluation's records with their dialogues.
        unused: what could not be used, counted by reason.
        notes: remarks on half-written lines.
    """

    contexts: list[StepContext] = field(default_factory=list)
    failures: list[LabelledFailure] = field(default_factory=list)
    kinds: dict[str, str] = field(default_factory=dict)
    turns: dict[str, list[TurnContext]] = field(default_factory=dict)
    unused: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)


def read_sources(paths: Sequence[Path], skip: int = 0, most: int = 0) -> FailureSources:
    """Read files of any kind in `FILE_KINDS`. Task files are read first, as evaluation records need them.

    Args:
        paths: of files; a folder stands for its `fission.jsonl` or `cases.jsonl`.
        skip: cases or tasks left out at the start of every task file.
        most: cases or tasks then taken of each; 0: all.

    Raises:
        TaskFileError, RunFileError: the first mistake, with file, row and the fix.
    """
    sources = FailureSources()
    files = [(path, _file_kind(path)) for path in map(_file_of, paths)]
    for path, kind in sorted(files, key=lambda item: item[1] not in (CASES, TASKS)):
        sources.kinds[str(path)] = kind
        if kind == CASES:
            _read_cases(path, skip, most, sources)
        elif kind == TASKS:
            for task in load_step_tasks(path)[skip:][: most or None]:
                sources.contexts.append(StepContext(task))
                sources.turns[task.id] = [TurnContext(_messages(task), task.tools, task.reference or ())]
        elif kind == EVENTS:
            sources.failures += read_run_failures(path, sources.unused, sources.notes)
        elif kind == RECORDS:
            sources.failures += read_evaluation_failures(path, sources.turns, sources.unused)
        else:
            sources.failures += read_transcript_failures(path, sources.unused, sources.notes)
    return sources


def _file_kind(path: Path) -> str:
    try:
        with path.open("rb") as file:
            first = next((line for line in file if line.strip()), b"")
    except OSError as error:
        raise TaskFileError(f"{path}: cannot be read ({error.strerror}); give a path of a file") from error
    try:
        row, _ = read_json(first.decode("utf-8", "replace").strip())
    except NotJson as error:
        raise TaskFileError(f"{path}, row 1: not JSON: {error}; write one JSON object per line") from None
    fields = set(row) if isinstance(row, dict) else set()
    for kind, required in FILE_KINDS:
        if required <= fields:
            return kind
    raise TaskFileError(
        f"{path}, row 1: fields {', '.join(sorted(fields)) or '(none)'} are of no known file; give one of: "
        + ", ".join(sorted(kind for kind, _ in FILE_KINDS))
    )


def _file_of(path: Path) -> Path:
    if not path.is_dir():
        return path
    for name in ("fission.jsonl", "cases.jsonl"):
        if (path / name).is_file():
            return path / name
    raise TaskFileError(f"{path}: a folder without fission.jsonl or cases.jsonl; give a file, or a run's folder")


def _messages(task: Task) -> tuple[Message, ...]:
    return () if isinstance(task.prompt, str) else tuple(task.prompt)


def case_contexts(cases: Sequence[Any], unused: Counter[str]) -> list[StepContext]:
    """The step tasks of BFCL cases. A case whose own reference fails is left out and counted."""
    from fission_grpo.envs.bfcl.env import TaskError
    from fission_grpo.envs.bfcl.tasks import steps_of_case

    contexts: list[StepContext] = []
    for case in cases:
        try:
            contexts += [StepContext(step.task, step.answers, step.ahead) for step in steps_of_case(case)]
        except TaskError:
            unused["case: its reference fails in its own environment"] += 1
    return contexts


def generate_contexts(cases: int, seed: int, unused: Counter[str]) -> tuple[list[StepContext], tuple[str, ...]]:
    """The step tasks of new cases, half of them over held-out BFCL classes; also the names of these classes."""
    from fission_grpo.recipes.bfcl_tasks.generate import SPLITS, Mix, generate

    new = [case for split in ("train", "heldout") for case in generate(split, max(1, cases // 2), seed, Mix())]
    return case_contexts(new, unused), SPLITS["heldout"]


def _read_cases(path: Path, skip: int, most: int, sources: FailureSources) -> None:
    from fission_grpo.envs.bfcl.tasks import load_cases

    try:
        contexts = case_contexts(load_cases(path)[skip:][: most or None], sources.unused)
    except ModuleNotFoundError as error:
        raise TaskFileError(f"{path}: its environments need {error.name}; {INSTALL}") from error
    sources.contexts += contexts
    for context in contexts:
        task = context.task
        turn, _, call = task.id.rpartition(".")
        if call == "0":
            reference = (*(task.reference or ()), *context.later_calls)
            sources.turns[turn] = [TurnContext(_messages(task), task.tools, reference)]


def read_run_failures(path: Path, unused: Counter[str], notes: list[str]) -> list[LabelledFailure]:
    """The "failed" events of a run's `fission.jsonl`.

    Args:
        path: of the file.
        unused: counts "pushed" events of old runs, which logged no tools and reference.
        notes: receives a remark on a half-written line.

    Raises:
        RunFileError: naming file, line and field of what is wrong.
    """
    tools: dict[str, list[Any]] = {}
    failures: dict[str, LabelledFailure] = {}
    pushed: set[str] = set()
    for line in read_events(path, notes):
        event = line.take("event", str)
        if event == "tools":
            tools[line.take("key", str)] = list(line.take_all("tools", dict))
        elif event == "pushed":
            pushed.add(line.take("id", str))
        elif event == "failed":
            row = {**line.record, "api": "", "origin": "fission", "diagnosis": "", "teacher": ""}
            try:
                name, example = read_example(row, tools)
            except RowError as wrong:
                raise line.wrong(f"field '{wrong.field}' {wrong.what}") from None
            example = replace(example, api=api_of(example.failure))
            failures[name] = LabelledFailure(example, line.take("root", str))
    if missing := len(pushed - failures.keys()):
        unused["fission.jsonl: pushed before failures were logged (no tools, no reference)"] += missing
    return list(failures.values())


def read_evaluation_failures(
    path: Path, turns: Mapping[str, Sequence[TurnContext]], unused: Counter[str]
) -> list[LabelledFailure]:
    """The failed steps of an evaluation's `cases.jsonl`, with the environment's own errors.

    Args:
        path: of the file.
        turns: by id, the user turns of cases in task files; those of BFCL's own cases are looked up.
        unused: counts, by reason, what could not be used.

    Raises:
        RunFileError: naming file, line and field of what is wrong.
    """
    failures: list[LabelledFailure] = []
    for record in read_records(path):
        contexts = turns.get(record.id) or _official_turns(record.id.rsplit("_", 1)[0]).get(record.id)
        if contexts is None:
            unused["evaluation: case without its task file (a record holds no request and no tools)"] += 1
            continue
        messages: list[Message] = []
        before = len(failures)
        for turn, context in zip(record.turns, contexts, strict=False):
            messages += context.messages
            for number, step in enumerate(turn.steps):
                name = f"{path}:{record.id}:{len(messages)}:{number}"
                task = Task(name, tuple(messages), context.tools, root=record.id.split("#")[0])
                failures += _step_failures(task, step, context.reference, unused, "evaluation")
                messages.append({"role": "assistant", "content": step.text})
                messages += [{"role": "tool", "name": call.name, "content": call.result} for call in step.calls]
        if len(failures) == before and record.success is False:
            unused["evaluation: failed without an error of any single call"] += 1
    return failures


@cache
def _official_turns(category: str) -> Mapping[str, Sequence[TurnContext]]:
    """The user turns of BFCL's own multi-turn cases of a category by case; empty for any other category."""
    from fission_grpo.envs.bfcl.official import MULTI_TURN, multi_turn_cases
    from fission_grpo.envs.bfcl.tasks import SYSTEM, case_tools, official_case

    if category not in MULTI_TURN:
        return {}
    turns: dict[str, list[TurnContext]] = {}
    for case in map(official_case, multi_turn_cases(category)):
        system: tuple[Message, ...] = ({"role": "system", "content": SYSTEM},)
        for turn in case.turns:
            messages = (*system, {"role": "user", "content": turn.request})
            context = TurnContext(messages, case_tools(case.classes, turn.without), turn.reference)
            turns.setdefault(case.id, []).append(context)
            system = ()
    return turns


def read_transcript_failures(path: Path, unused: Counter[str], notes: list[str]) -> list[LabelledFailure]:
    """The failed steps of foreign transcripts. Their references are unknown.

    Raises:
        RunFileError: naming file, line and field of what is wrong.
    """
    failures: list[LabelledFailure] = []
    records = read_traces(path, notes)
    for line, record in zip(read_lines(path, []), records, strict=True):
        tools = line.record.get("tools") or ()
        try:
            for tool in tools:
                check_tool_schema(tool)
        except ValueError:
            unused["transcript: tools are no JSON schemas"] += 1
            continue
        messages = line.record["messages"]
        replies = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
        for at, step in zip(replies, record.steps, strict=True):
            task = Task(f"{path}:{record.id}:{at}", tuple(messages[:at]), tuple(tools), root=record.id)
            failures += _step_failures(task, step, None, unused, "transcript")
    return failures


def _step_failures(
    task: Task, step: StepRecord, expected: tuple[ToolCall, ...] | None, unused: Counter[str], where: str
) -> list[LabelledFailure]:
    """The failure of a step with a failed call or unreadable calls, else an empty list."""
    if not step.errors:
        return []
    if any(call.injected for call in step.calls):
        unused[f"{where}: error injected by a fault, not the policy's"] += 1
        return []
    read = parse(step.text, step.truncated)
    if step.unread is None and tuple(call.name for call in step.calls) != tuple(call.name for call in read.calls):
        unused[f"{where}: calls that the reply's text does not show"] += 1
        return []
    calls = tuple(ToolCall(call.name, call.arguments) for call in step.calls)
    results = tuple(ToolResult(call, kept.result, kept.error) for call, kept in zip(calls, step.calls, strict=True))
    turn = Turn(step.text, read.content, calls, step.unread, results, step.truncated)
    failure = find_failure(Trajectory(task, (turn,)), Verdict(0.0, True))
    return [] if failure is None else [unlabelled(replace(failure, expected=expected), "trace", task.root)]
