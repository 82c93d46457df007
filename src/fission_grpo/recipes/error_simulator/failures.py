"""Failures out of step tasks: by corrupting the reference call, and by sampling a policy."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from fission_grpo.core.chat import parse
from fission_grpo.core.errors import RowError, TaskFileError
from fission_grpo.core.files import read_lines
from fission_grpo.core.json_io import NotJson, read_json
from fission_grpo.core.rewards import step_verdict
from fission_grpo.core.tool_schema import check_tool_schema, tool_names
from fission_grpo.core.types import (
    Failure,
    Message,
    Task,
    ToolCall,
    ToolResult,
    Trajectory,
    Turn,
    Verdict,
)
from fission_grpo.data.step_tasks import load_step_tasks
from fission_grpo.envs.bfcl import INSTALL
from fission_grpo.evaluation.records import CaseRecord, StepRecord, TurnRecord, read_records
from fission_grpo.evaluation.runner import RunningCase, run_cases
from fission_grpo.evaluation.transcripts import read_traces
from fission_grpo.feedback.dataset import FeedbackExample, instance, read_example
from fission_grpo.fission.failures import find_failure
from fission_grpo.inference.base import Reply, Request
from fission_grpo.recipes.error_simulator.corruptions import CORRUPTIONS, corrupted
from fission_grpo.recipes.error_simulator.values import call_context

Answers = Callable[[Sequence[ToolCall]], Sequence[ToolResult]]


@dataclass(frozen=True)
class StepContext:
    """A step task in which a policy can fail.

    Args:
        task: with a reference.
        answers: what its environment answers to calls made there; None where nothing can be executed.
        ahead: calls needed later in the same user turn; a turn that only makes these early is not taken for a failure.
    """

    task: Task
    answers: Answers | None = None
    ahead: tuple[ToolCall, ...] = ()


@dataclass(frozen=True)
class LabelledFailure:
    """An instance, and the name of what it descends from (a case, a task, a transcript), for the split."""

    instance: FeedbackExample
    root: str


@dataclass(frozen=True)
class Sampled:
    """What a policy's replies came to.

    Args:
        found: its failures.
        attempts: replies that could be judged.
        lost: replies that could not: the endpoint gave none, or the prompt was longer than the model's context.
    """

    found: tuple[LabelledFailure, ...]
    attempts: int
    lost: int


def failure_in(situation: StepContext, text: str, truncated: bool = False) -> Failure | None:
    """The failure of a turn written in a situation, None if it is right.

    Judged as `step_verdict` does. Where the environment can be asked and all tools exist, the calls are made: an
    error of theirs is the failure, in the environment's words (kind `raised`, or `bad_arguments` where the schema
    says so too). Otherwise the schema decides, then the reference.
    """
    task, turn = situation.task, parse(text, truncated)
    if not step_verdict(task, turn, length=0).failed:
        return None
    wanted = [*(task.reference or ()), *situation.ahead]
    if turn.calls and all(call in wanted for call in turn.calls):
        return None
    known = set(tool_names(task.tools))
    if situation.answers is not None and turn.calls and all(call.name in known for call in turn.calls):
        results = tuple(situation.answers(turn.calls))
        if any(result.error is not None for result in results):
            turn = Turn(text, turn.content, turn.calls, turn.error, results, truncated)
    return find_failure(Trajectory(task, (turn,)), Verdict(0.0, True))


def api_of(failure: Failure) -> str:
    """What the split goes by: the BFCL class of the reference's first tool (else the called one), else its name.

    Example:
        A failed `close_ticket` belongs to "TicketAPI", a failure without calls and reference to "none".
    """
    calls = [*(failure.reference or ()), *failure.calls]
    if not calls:
        return _class_of(tool_names(failure.task.tools)[0]) if failure.task.tools else "none"
    known = [call.name for call in calls if call.name in tool_names(failure.task.tools)]
    return _class_of(known[0] if known else calls[0].name)


def _class_of(name: str) -> str:
    from fission_grpo.envs.bfcl.functions import class_of

    try:
        return class_of(name)
    except (ValueError, ModuleNotFoundError):
        return name


def corrupted_failures(
    situations: Sequence[StepContext], each: int, seed: int, unused: Counter[str]
) -> Iterator[LabelledFailure]:
    """Failures made by corrupting references, at most `each` per situation, of different types.

    Types that have been used least so far come first, so that rare ones get their share. Deterministic.

    Args:
        situations: of which the reference is one call or none.
        each: most corruptions of one reference.
        seed: of all choices.
        unused: counts, by reason, what gave nothing.
    """
    used: Counter[str] = Counter()
    for situation in situations:
        task, made = situation.task, 0
        if len(task.reference or ()) > 1:
            unused["step task: a reference of several calls is not corrupted"] += 1
            continue
        ground, rng = call_context(task), random.Random(f"{seed} {task.id}")
        names = sorted(CORRUPTIONS, key=lambda name: (used[name], rng.random()))
        for name in names:
            text = corrupted(name, ground, rng) if made < each else None
            failure = failure_in(situation, text) if text is not None else None
            if failure is None:
                continue
            made += 1
            used[name] += 1
            yield LabelledFailure(instance(failure, api_of(failure), f"corruption:{name}"), task.root)


def sampled_failures(
    situations: Sequence[StepContext], policy: Any, name: str, samples: int = 1, in_flight: int = 64
) -> Sampled:
    """The failures among a policy's replies.

    Args:
        situations: to reply in.
        policy: a `Policy` or `AsynchronousPolicy` (see `evaluation.players`).
        name: of the policy, for `Instance.origin`.
        samples: replies per situation.
        in_flight: requests open at a time.
    """
    replies: list[tuple[StepContext, Reply]] = []

    def play(situation: StepContext) -> RunningCase:
        assert not isinstance(situation.task.prompt, str)
        reply = yield Request(situation.task.prompt, situation.task.tools)
        replies.append((situation, reply))
        return CaseRecord(situation.task.id)

    plays = (lambda one=one: play(one) for one in situations for _ in range(samples))
    run_cases(policy, plays, in_flight)
    found, attempts, lost = [], 0, 0
    for situation, reply in replies:
        if reply.lost is not None or (reply.truncated and not reply.text):
            lost += 1
            continue
        attempts += 1
        failure = failure_in(situation, reply.text, reply.truncated)
        if failure is not None:
            found.append(LabelledFailure(instance(failure, api_of(failure), f"sampled:{name}"), situation.task.root))
    return Sampled(tuple(found), attempts, lost)


@dataclass(frozen=True)
class SampledTurn:
    """A user turn that an evaluation asked: what its records do not hold.

    Args:
        messages: said before the policy's first reply of this turn, without what the turns before added.
        tools: schemas.
        reference: the calls that do what the turn asks for.
    """

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...]
    reference: tuple[ToolCall, ...]


def journal_failures(path: Path, unused: Counter[str], notes: list[str]) -> list[LabelledFailure]:
    """The "failed" events of a run's `fission.jsonl`. What a resumed run made void is left out.

    Args:
        path: of the file.
        unused: counts "pushed" events without a "failed" one (an older run: tools and reference are not known).
        notes: is told of a line that a kill cut off.

    Raises:
        RunFileError: naming file, line and field of what is wrong.
    """
    tools: dict[str, list[Any]] = {}
    found: dict[str, tuple[int, LabelledFailure]] = {}
    pushed: dict[str, int] = {}
    for line in read_lines(path, notes):
        event = line.take("event", str)
        if event == "tools":
            tools[line.take("key", str)] = list(line.take_all("tools", dict))
        elif event == "resumed":
            step = line.take("step", int)
            found = {name: pair for name, pair in found.items() if pair[0] < step}
            pushed = {name: at for name, at in pushed.items() if at < step}
        elif event == "pushed":
            pushed[line.take("id", str)] = line.take("step", int)
        elif event == "failed":
            row = {**line.record, "api": "", "origin": "fission", "diagnosis": "", "teacher": ""}
            try:
                name, one = read_example(row, tools)
            except RowError as wrong:
                raise line.wrong(f"field '{wrong.field}' {wrong.what}") from None
            one = replace(one, api=api_of(one.failure))
            found[name] = line.take("step", int), LabelledFailure(one, line.take("root", str))
    missing = len(pushed.keys() - found.keys())
    if missing:
        unused["fission.jsonl: pushed before failures were written down (no tools, no reference)"] += missing
    return [one for _, one in found.values()]


def record_failures(
    path: Path, asked: Mapping[str, Sequence[SampledTurn]], unused: Counter[str]
) -> list[LabelledFailure]:
    """The erring steps of an evaluation's `cases.jsonl`, with the environment's own errors.

    Args:
        path: of the file.
        asked: the user turns of every case by id; records hold no dialogue, so cases not here cannot be used.
        unused: counts, by reason, what could not be used.

    Raises:
        RunFileError: naming file, line and field of what is wrong.
    """
    found: list[LabelledFailure] = []
    for record in read_records(path):
        if record.id not in asked:
            unused["evaluation: case without its task file (a record holds no request and no tools)"] += 1
            continue
        messages: list[Message] = []
        here = len(found)
        for turn, question in zip(record.turns, asked[record.id], strict=False):
            messages += question.messages
            for number, step in enumerate(turn.steps):
                name = f"{path}:{record.id}:{len(messages)}:{number}"
                task = Task(name, tuple(messages), question.tools, root=record.id.split("#")[0])
                found += _failures(task, step, question.reference, unused, "evaluation")
                messages += _told(step)
        if len(found) == here and record.success is False:
            unused["evaluation: failed without any error (no single call to blame)"] += 1
    return found


def transcript_failures(path: Path, unused: Counter[str], notes: list[str]) -> list[LabelledFailure]:
    """The erring steps of foreign transcripts (`evaluation.traces`). Their references are unknown.

    Raises:
        RunFileError: naming file, line and field of what is wrong.
    """
    records = read_traces(path, notes)
    found: list[LabelledFailure] = []
    for line, record in zip(read_lines(path, []), records, strict=True):
        tools = _schemas(line.record.get("tools"))
        if tools is None:
            unused["transcript: tools are no JSON schemas"] += 1
            continue
        messages = line.record["messages"]
        replies = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
        for at, step in zip(replies, _steps(record.turns), strict=True):
            task = Task(f"{path}:{record.id}:{at}", tuple(messages[:at]), tools, root=record.id)
            found += _failures(task, step, None, unused, "transcript")
    return found


def _steps(turns: Iterable[TurnRecord]) -> list[StepRecord]:
    return [step for turn in turns for step in turn.steps]


def _schemas(tools: Any) -> tuple[Mapping[str, Any], ...] | None:
    try:
        for tool in tools or ():
            check_tool_schema(tool)
    except ValueError:
        return None
    return tuple(tools or ())


def _failures(
    task: Task, step: StepRecord, expected: tuple[ToolCall, ...] | None, unused: Counter[str], what: str
) -> list[LabelledFailure]:
    """The failure of a step if one of its calls erred or it could not be read."""
    if not step.errors:
        return []
    if any(call.injected for call in step.calls):
        unused[f"{what}: error injected by a fault, not the policy's"] += 1
        return []
    read = parse(step.text, step.truncated)
    if step.unread is None and tuple(call.name for call in step.calls) != tuple(call.name for call in read.calls):
        unused[f"{what}: calls that the reply's text does not show"] += 1
        return []
    calls = tuple(ToolCall(call.name, call.arguments) for call in step.calls)
    results = tuple(ToolResult(call, one.result, one.error) for call, one in zip(calls, step.calls, strict=True))
    turn = Turn(step.text, read.content, calls, step.unread, results, step.truncated)
    failure = find_failure(Trajectory(task, (turn,)), Verdict(0.0, True))
    if failure is None:
        return []
    failure = replace(failure, expected=expected)
    return [LabelledFailure(instance(failure, api_of(failure), "trace"), task.root)]


def _told(step: StepRecord) -> list[Message]:
    said: list[Message] = [{"role": "assistant", "content": step.text}]
    return said + [{"role": "tool", "name": call.name, "content": call.result} for call in step.calls]


@dataclass
class FailureSources:
    """What was read.

    Args:
        situations: step tasks in which policies fail.
        found: failures as they are.
        kinds: what each file was taken for.
        unused: what could not be used, counted by reason.
        notes: remarks of the readers (half-written lines).
    """

    situations: list[StepContext] = field(default_factory=list)
    found: list[LabelledFailure] = field(default_factory=list)
    kinds: dict[str, str] = field(default_factory=dict)
    unused: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)


KINDS = {"cases": "case file", "tasks": "step-task file", "journal": "fission.jsonl of a run"}


KINDS |= {"records": "cases.jsonl of an evaluation", "transcripts": "transcripts"}


def read_sources(paths: Sequence[Path], skip: int = 0, most: int = 0) -> FailureSources:
    """Read files of any kind, told apart by their first row. Task files are read first: records need them.

    Args:
        paths: of files; a folder stands for its `fission.jsonl` or `cases.jsonl`.
        skip: cases or tasks left out at the beginning of every task file.
        most: cases or tasks taken of each then; 0: all.

    Raises:
        TaskFileError, RunFileError: the first mistake, with file, row and how to mend it.
    """
    material = FailureSources()
    files = [(path, _kind(path)) for path in map(_file, paths)]
    asked: dict[str, list[SampledTurn]] = {}
    for path, kind in sorted(files, key=lambda one: one[1] not in ("cases", "tasks")):
        material.kinds[str(path)] = KINDS[kind]
        if kind == "cases":
            _read_cases(path, skip, most, material, asked)
        elif kind == "tasks":
            tasks = load_step_tasks(path)[skip:][: most or None]
            material.situations += [StepContext(task) for task in tasks]
            asked |= {task.id: [SampledTurn(_messages(task), task.tools, task.reference or ())] for task in tasks}
        elif kind == "journal":
            material.found += journal_failures(path, material.unused, material.notes)
        elif kind == "records":
            material.found += record_failures(path, _Official(asked), material.unused)
        else:
            material.found += transcript_failures(path, material.unused, material.notes)
    return material


def case_situations(cases: Sequence[Any], unused: Counter[str]) -> list[StepContext]:
    """The situations of cases (`bfcl.tasks.Case`). A case whose own reference fails is left out and counted."""
    from fission_grpo.envs.bfcl.env import TaskError
    from fission_grpo.envs.bfcl.tasks import steps_of_case

    situations: list[StepContext] = []
    for case in cases:
        try:
            situations += [StepContext(step.task, step.answers, step.ahead) for step in steps_of_case(case)]
        except TaskError:
            unused["case: its reference fails in its own environment"] += 1
    return situations


def generated(cases: int, seed: int, unused: Counter[str]) -> tuple[list[StepContext], tuple[str, ...]]:
    """Situations of so many new cases, half of the training classes and half of the held-out ones; also these."""
    from fission_grpo.recipes.bfcl_tasks.generate import SPLITS, Mix, generate

    made = [case for split in ("train", "heldout") for case in generate(split, max(1, cases // 2), seed, Mix())]
    return case_situations(made, unused), SPLITS["heldout"]


def _read_cases(
    path: Path, skip: int, most: int, material: FailureSources, asked: dict[str, list[SampledTurn]]
) -> None:
    from fission_grpo.envs.bfcl.tasks import load_cases

    try:
        cases = load_cases(path)[skip:][: most or None]
        situations = case_situations(cases, material.unused)
    except ModuleNotFoundError as error:
        raise TaskFileError(f"{path}: its environments need {error.name}; {INSTALL}") from error
    material.situations += situations
    for situation in situations:
        turn, _, call = situation.task.id.rpartition(".")
        if call == "0":
            wanted = (*(situation.task.reference or ()), *situation.ahead)
            asked[turn] = [SampledTurn(_messages(situation.task), situation.task.tools, wanted)]


class _Official(Mapping[str, Sequence[SampledTurn]]):
    """The turns of given cases, and of BFCL's own, which are looked up when a record of theirs comes."""

    def __init__(self, given: Mapping[str, Sequence[SampledTurn]]):
        self._given = given

    def __getitem__(self, name: str) -> Sequence[SampledTurn]:
        return self._given[name] if name in self._given else _official(name.rsplit("_", 1)[0])[name]

    def __contains__(self, name: object) -> bool:
        return name in self._given or name in _official(str(name).rsplit("_", 1)[0])

    def __iter__(self) -> Iterator[str]:
        return iter(self._given)

    def __len__(self) -> int:
        return len(self._given)


@cache
def _official(category: str) -> Mapping[str, Sequence[SampledTurn]]:
    """The user turns of BFCL's own multi-turn cases of a category; empty for anything else."""
    from fission_grpo.envs.bfcl.official import MULTI_TURN, multi_turn_cases
    from fission_grpo.envs.bfcl.tasks import SYSTEM, case_tools, official_case

    if category not in MULTI_TURN:
        return {}
    found: dict[str, list[SampledTurn]] = {}
    for case in map(official_case, multi_turn_cases(category)):
        turns = []
        for number, turn in enumerate(case.turns):
            said = [{"role": "system", "content": SYSTEM}] if number == 0 else []
            messages = (*said, {"role": "user", "content": turn.request})
            turns.append(SampledTurn(messages, case_tools(case.classes, turn.without), turn.reference))
        found[case.id] = turns
    return found


def _messages(task: Any) -> tuple[Any, ...]:
    return () if isinstance(task.prompt, str) else tuple(task.prompt)


def _file(path: Path) -> Path:
    if path.is_dir():
        for name in ("fission.jsonl", "cases.jsonl"):
            if (path / name).is_file():
                return path / name
        raise TaskFileError(f"{path}: a folder without fission.jsonl or cases.jsonl; give a file, or a run's folder")
    return path


def _kind(path: Path) -> str:
    """What a file holds, by the fields of its first row."""
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
    tests: list[tuple[str, Callable[[set[str]], bool]]] = [
        ("journal", lambda has: "event" in has),
        ("cases", lambda has: {"turns", "classes"} <= has),
        ("records", lambda has: {"turns", "category"} <= has),
        ("tasks", lambda has: {"messages", "reference"} <= has),
        ("transcripts", lambda has: "messages" in has),
    ]
    for kind, fits in tests:
        if fits(fields):
            return kind
    raise TaskFileError(
        f"{path}, row 1: fields {', '.join(sorted(fields)) or '(none)'} are of no file known here; give one of: "
        + ", ".join(KINDS.values())
    )
