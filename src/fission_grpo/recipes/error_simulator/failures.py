"""Failures to label: from corrupted reference calls, a policy's replies, and files of runs and evaluations."""

from __future__ import annotations

import random
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from fission_grpo.core.chat import parse
from fission_grpo.core.errors import RowError, TaskFileError
from fission_grpo.core.files import parse_json_lines, read_lines
from fission_grpo.core.messages import from_text, plain_messages, read_messages
from fission_grpo.core.rewards import step_verdict
from fission_grpo.core.tool_schema import check_tool_schema, tool_names
from fission_grpo.core.types import Failure, Message, Task, ToolCall, ToolResult, Trajectory, Turn, Verdict
from fission_grpo.data.load import DESK_STEPS, desk_steps, places_of
from fission_grpo.data.step_tasks import load_step_tasks
from fission_grpo.envs.step_calls import StepEnvironments, names_environment, try_environments
from fission_grpo.evaluation.policies import LoadedPolicy, Sampling, connect_endpoint, load_local_policy
from fission_grpo.evaluation.records import CaseRecord, StepRecord, read_records
from fission_grpo.evaluation.runner import RunningCase, run_cases
from fission_grpo.evaluation.transcripts import read_traces
from fission_grpo.feedback.dataset import FeedbackExample, make_example, read_example
from fission_grpo.fission.event_log import read_events
from fission_grpo.fission.failures import find_failure
from fission_grpo.inference.base import Reply, Request
from fission_grpo.inference.endpoint import EndpointOptions
from fission_grpo.recipes.error_simulator.corruptions import CORRUPTIONS, NEEDLESS, corrupt
from fission_grpo.recipes.error_simulator.values import call_context

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


Execution = Callable[[Sequence[ToolCall]], Sequence[ToolResult]]  # makes calls; no results if they cannot be made


@dataclass(frozen=True)
class StepContext:
    """A step task in which a policy can fail."""

    task: Task  # with a reference
    execute: Execution | None = None  # in the task's environment, if any
    later_calls: tuple[ToolCall, ...] = ()  # of the same user turn; a turn that only makes these early is no failure


@dataclass(frozen=True)
class LabelledFailure:
    """A failure with its feedback text, once it has one, and its root: the case, task or transcript it is from."""

    example: FeedbackExample
    root: str


@dataclass
class FailureSources:
    """What files hold."""

    contexts: list[StepContext] = field(default_factory=list)
    failures: list[LabelledFailure] = field(default_factory=list)
    kinds: dict[str, str] = field(default_factory=dict)  # of the files, by path
    turns: dict[str, list[Task]] = field(default_factory=dict)  # user turns by the id of an evaluation's record
    unused: Counter[str] = field(default_factory=Counter)  # what could not be used, by reason
    notes: list[str] = field(default_factory=list)  # remarks on half-written lines and on environments
    environments: StepEnvironments = field(default_factory=StepEnvironments)  # of the step tasks


def judge_reply(context: StepContext, text: str, truncated: bool = False) -> Failure | None:
    """The failure in a policy's reply, None if the reply is right by `step_verdict`.

    If all called tools exist, the calls are executed where possible, and an error they return is the failure.
    Otherwise the schemas decide, then the reference.
    """
    task, turn = context.task, parse(text, truncated)
    if not step_verdict(task, turn, length=0).failed:
        return None
    needed = [*(task.reference or ()), *context.later_calls]
    if turn.calls and all(call in needed for call in turn.calls):
        return None
    known = tool_names(task.tools)
    if context.execute is not None and turn.calls and all(call.name in known for call in turn.calls):
        results = tuple(context.execute(turn.calls))
        if any(result.error is not None for result in results):
            turn = replace(turn, results=results)
    return find_failure(Trajectory(task, (turn,)), Verdict(0.0, True))


def api_of(failure: Failure) -> str:
    """The API by which data is split: the BFCL class of the reference's (else the called) tool, else its name."""
    from fission_grpo.envs.bfcl.functions import class_of

    names = tool_names(failure.task.tools)
    called = [call.name for call in (*(failure.reference or ()), *failure.calls)]
    candidates = [name for name in called if name in names] or called or names
    if not candidates:
        return "none"
    try:
        return class_of(candidates[0])
    except (ValueError, ModuleNotFoundError):  # no tool of BFCL, or bfcl-eval is not installed
        return candidates[0]


def unlabelled(failure: Failure, origin: str, root: str) -> LabelledFailure:
    """A failure that has no feedback text yet, with its API."""
    return LabelledFailure(make_example(failure, api_of(failure), origin), root)


def corrupt_references(
    contexts: Sequence[StepContext], each: int, seed: int, unused: Counter[str]
) -> Iterator[LabelledFailure]:
    """Corrupt each reference call up to `each` times; the corruptions used least so far come first.

    Where no call is needed only one corruption applies; it is made no more often than the most frequent other. Tasks
    that cannot be used are counted in `unused`, by reason.
    """
    used: Counter[str] = Counter()
    for context in contexts:
        task, count = context.task, 0
        if len(task.reference or ()) > 1:
            unused["step task: a reference of several calls is not corrupted"] += 1
            continue
        if not task.reference and used[NEEDLESS] > max((n for name, n in used.items() if name != NEEDLESS), default=0):
            unused["step task: calls where none is needed are many already"] += 1
            continue
        call, rng = call_context(task), random.Random(f"{seed} {task.id}")
        for name in sorted(CORRUPTIONS, key=lambda name: (used[name], rng.random())):
            text = corrupt(name, call, rng) if count < each else None
            failure = judge_reply(context, text) if text is not None else None
            if failure is not None:
                count += 1
                used[name] += 1
                yield unlabelled(failure, f"corruption:{name}", task.root)


def sample_failures(
    contexts: Sequence[StepContext], policy: Any, name: str, samples: int = 1, in_flight: int = 64
) -> tuple[list[LabelledFailure], dict[str, int]]:
    """Sample a policy's replies to step tasks; returns its failures, of origin `sampled:name`, and counts.

    Lost replies are those that an endpoint or the context limit cost; they are not counted as replies.
    """
    replies: list[tuple[StepContext, Reply]] = []

    def run_context(context: StepContext) -> RunningCase:
        replies.append((context, (yield Request(_messages(context.task), context.task.tools))))
        return CaseRecord(context.task.id)

    cases = (lambda context=context: run_context(context) for context in contexts for _ in range(samples))
    run_cases(policy, cases, in_flight)
    failures, lost = [], 0
    for context, reply in replies:
        if reply.lost is not None or (reply.truncated and not reply.text):
            lost += 1
        elif failure := judge_reply(context, reply.text, reply.truncated):
            failures.append(unlabelled(failure, f"sampled:{name}", context.task.root))
    return failures, {"replies": len(replies) - lost, "failures": len(failures), "lost": lost}


@contextmanager
def open_policy(arguments: Namespace) -> Iterator[LoadedPolicy]:
    """The policy of `--policy`, behind `--policy_url` or in this process, with the command's sampling options."""
    if arguments.policy_url:
        options = EndpointOptions(temperature=arguments.temperature, max_tokens=arguments.max_new_tokens)
        with connect_endpoint(arguments.policy, arguments.policy_url, options) as loaded:
            yield loaded
    else:
        sampling = Sampling(arguments.temperature, arguments.max_new_tokens, arguments.seed)
        yield load_local_policy(arguments.policy, sampling, arguments.batch_size)


def read_sources(paths: Sequence[Path], skip: int = 0, most: int = 0, seed: int = 0) -> FailureSources:
    """Read files of any kind in `FILE_KINDS`. Task files are read first, as evaluation records need them.

    Args:
        paths: of files; a folder stands for its `fission.jsonl` or `cases.jsonl`. "desk:steps": the built-in tasks.
        skip: cases or tasks left out at the start of every task file.
        most: cases or tasks then taken of each; 0: all, or `DESK_TASKS` of the built-in ones.
        seed: of the built-in tasks.
    """
    sources = FailureSources()
    files = [(path, _file_kind(path)) for path in map(_file_of, paths)]
    for path, kind in sorted(files, key=lambda item: item[1] not in (CASES, TASKS)):
        sources.kinds[str(path)] = kind
        if kind == CASES:
            _read_cases(path, skip, most, sources)
        elif kind == TASKS:
            _read_step_tasks(path, skip, most, seed, sources)
        elif kind == EVENTS:
            sources.failures += read_run_failures(path, sources.unused, sources.notes)
        elif kind == RECORDS:
            sources.failures += read_evaluation_failures(path, sources.turns, sources.unused)
        else:
            sources.failures += read_transcript_failures(path, sources.unused, sources.notes)
    return sources


def _read_step_tasks(path: Path, skip: int, most: int, seed: int, sources: FailureSources) -> None:
    every = desk_steps(skip, most, seed) if str(path) == DESK_STEPS else load_step_tasks(path)
    tasks = every[skip:][: most or None]
    if tried := try_environments(places_of(str(path), skip), tasks):
        sources.notes.append(f"{path}: {tried}")
    for task in tasks:
        sources.contexts.append(StepContext(task, _execution(task, sources.environments)))
        sources.turns[task.id] = [task]


def _execution(task: Task, environments: StepEnvironments) -> Execution | None:
    """A function that makes calls in the environment of a step task, None if it names none."""
    return (lambda calls: environments.results(task, calls) or ()) if names_environment(task) else None


def _file_of(path: Path) -> Path:
    if str(path) == DESK_STEPS or not path.is_dir():
        return path
    for name in ("fission.jsonl", "cases.jsonl"):
        if (path / name).is_file():
            return path / name
    raise TaskFileError(f"{path}: a folder without fission.jsonl or cases.jsonl; give a file, or a run's folder")


def _file_kind(path: Path) -> str:
    if str(path) == DESK_STEPS:
        return TASKS
    try:
        content = path.read_bytes()
    except OSError as error:
        raise TaskFileError(f"{path}: cannot be read ({error.strerror}); give a path of a file") from error
    number, row = next(parse_json_lines(content), (1, {}))
    if isinstance(row, ValueError):
        raise TaskFileError(f"{path}, row {number}: not JSON: {row}; write one JSON object per line")
    fields = set(row) if isinstance(row, dict) else set()
    for kind, required in FILE_KINDS:
        if required <= fields:
            return kind
    raise TaskFileError(
        f"{path}, row {number}: fields {', '.join(sorted(fields)) or '(none)'} are of no known file; give one of: "
        + ", ".join(sorted(kind for kind, _ in FILE_KINDS))
    )


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


def _read_cases(path: Path, skip: int, most: int, sources: FailureSources) -> None:
    from fission_grpo.envs.bfcl.tasks import load_cases

    contexts = case_contexts(load_cases(path)[skip:][: most or None], sources.unused)
    sources.contexts += contexts
    for context in contexts:
        turn, _, call = context.task.id.rpartition(".")
        if call == "0":
            reference = (*(context.task.reference or ()), *context.later_calls)
            sources.turns[turn] = [replace(context.task, reference=reference)]


def read_run_failures(path: Path, unused: Counter[str], notes: list[str]) -> list[LabelledFailure]:
    """The "failed" events of a run's `fission.jsonl`. Old runs logged "pushed" events only, which are unused."""
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
            failures[name] = LabelledFailure(replace(example, api=api_of(example.failure)), line.take("root", str))
    if missing := len(pushed - failures.keys()):
        unused["fission.jsonl: pushed before failures were logged (no tools, no reference)"] += missing
    return list(failures.values())


def read_evaluation_failures(
    path: Path, turns: Mapping[str, Sequence[Task]], unused: Counter[str]
) -> list[LabelledFailure]:
    """The failed steps of an evaluation's `cases.jsonl`, with the environment's own errors.

    `turns` holds the user turns of cases in task files by id; those of BFCL's own cases are looked up.
    """
    failures: list[LabelledFailure] = []
    for record in read_records(path):
        user_turns = turns.get(record.id) or _official_turns(record.id.rsplit("_", 1)[0]).get(record.id)
        if user_turns is None:
            unused["evaluation: case without its task file (a record holds no request and no tools)"] += 1
            continue
        messages: list[Message] = []
        before = len(failures)
        for turn, context in zip(record.turns, user_turns, strict=False):
            messages += _messages(context)
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
def _official_turns(category: str) -> Mapping[str, Sequence[Task]]:
    """The user turns of BFCL's own multi-turn cases of a category by case; empty for any other category."""
    from fission_grpo.envs.bfcl.official import MULTI_TURN, multi_turn_cases
    from fission_grpo.envs.bfcl.tasks import SYSTEM, case_tools, official_case

    turns: dict[str, list[Task]] = {}
    for case in map(official_case, multi_turn_cases(category) if category in MULTI_TURN else ()):
        system: tuple[Message, ...] = ({"role": "system", "content": SYSTEM},)
        for turn in case.turns:
            messages = (*system, {"role": "user", "content": turn.request})
            task = Task(case.id, messages, case_tools(case.classes, turn.without), turn.reference)
            turns.setdefault(case.id, []).append(task)
            system = ()
    return turns


def read_transcript_failures(path: Path, unused: Counter[str], notes: list[str]) -> list[LabelledFailure]:
    """The failed steps of foreign transcripts. Their references are unknown."""
    failures: list[LabelledFailure] = []
    records = read_traces(path, notes)
    for line, record in zip(read_lines(path, []), records, strict=True):
        tools = from_text(line.record.get("tools"), "tools") or ()
        try:
            for tool in tools:
                check_tool_schema(tool)
        except ValueError:
            unused["transcript: tools are no JSON schemas"] += 1
            continue
        read = read_messages(from_text(line.record["messages"], "messages"), media=True)
        messages = plain_messages(message for several in read for message in several)
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
    if step.unread is None and [call.name for call in step.calls] != [call.name for call in read.calls]:
        unused[f"{where}: calls that the reply's text does not show"] += 1
        return []
    calls = tuple(ToolCall(call.name, call.arguments) for call in step.calls)
    results = tuple(ToolResult(call, kept.result, kept.error) for call, kept in zip(calls, step.calls, strict=True))
    turn = Turn(step.text, read.content, calls, step.unread, results, step.truncated)
    failure = find_failure(Trajectory(task, (turn,)), Verdict(0.0, True))
    return [] if failure is None else [unlabelled(replace(failure, expected=expected), "trace", task.root)]
