"""Live environments (TRL's convention) as plays: one row, one episode, one record."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fission_grpo.core.chat import parse
from fission_grpo.core.rewards import RewardConfig, step_verdict
from fission_grpo.core.tool_schema import check_call
from fission_grpo.core.types import (
    ErrorKind,
    Message,
    Task,
    ToolCall,
    ToolResult,
    Turn,
)
from fission_grpo.envs.faults import injected_calls
from fission_grpo.envs.restore import make_call, make_restorable
from fission_grpo.envs.wrapper import ToolLimits, tool_methods
from fission_grpo.evaluation.records import (
    CallRecord,
    CaseRecord,
    StepRecord,
    TurnRecord,
)
from fission_grpo.evaluation.runner import RunningCase
from fission_grpo.inference.base import Reply, Request
from fission_grpo.inference.messages import assistant_message, result_messages, unread_messages


def run_step(task: Task, config: RewardConfig | None = None) -> RunningCase:
    """Ask a step task. It succeeds as a rollout does in training: R_fmt = 1 and R_corr >= `correctness_threshold`.

    A call of an unknown tool, or with arguments its schema rejects, is an error of the policy. As nothing follows it,
    no step task recovers: error recovery needs episodes.

    Args:
        task: with messages as prompt, tools and a reference.
        config: of the reward.

    Raises:
        ValueError: the task has no reference.
    """
    if task.reference is None or isinstance(task.prompt, str):
        raise ValueError(f"task {task.id!r} is no step task: it needs messages as prompt and a reference")
    began = time.perf_counter()
    reply = yield Request(task.prompt, task.tools)
    if reply.lost is not None:
        return CaseRecord(task.id, "step", missing=reply.lost, seconds=time.perf_counter() - began)
    turn = parse(reply.text, truncated=reply.truncated)
    verdict = step_verdict(task, turn, reply.tokens, config=config)
    calls = tuple(_judged(call, task) for call in turn.calls)
    step = StepRecord(reply.text, calls, turn.error, reply.tokens, reply.truncated)
    why = f"R_fmt {verdict.parts['format']:g}, R_corr {verdict.parts['correctness']:g}" if verdict.failed else None
    seconds = time.perf_counter() - began
    return CaseRecord(task.id, "step", (TurnRecord((step,), why is None),), why is None, why, seconds=seconds)


def _judged(call: ToolCall, task: Task) -> CallRecord:
    problem = check_call(call, task.tools)
    if problem is None:
        return CallRecord(call.name, call.arguments)
    return CallRecord(call.name, call.arguments, error=problem.message, kind=problem.kind)


Factory = Callable[[], Any]


@dataclass(frozen=True)
class EpisodeConfig:
    """How episodes go.

    Args:
        max_turns: assistant turns per episode, at least 1. Calls in the last one are not made, which is TRL's
            `max_tool_calling_iterations = max_turns - 1`.
        success_at: the reward from which on an episode has succeeded.
        limits: of every tool call; None: those of training.
    """

    max_turns: int = 4
    success_at: float = 1.0
    limits: ToolLimits | None = None

    def __post_init__(self):
        if self.max_turns < 1:
            raise ValueError(f"max_turns must be at least 1, got {self.max_turns}")


class ToolSchemas(Sequence[Mapping[str, Any]]):
    """JSON schemas of an environment's tools, read from the methods when someone first asks for them.

    They are what chat templates make of the methods themselves. A scripted policy asks for none, and its environments
    need no documented methods.

    Args:
        tools: methods by name, with type hints and Google docstrings.
    """

    def __init__(self, tools: Mapping[str, Callable[..., Any]]):
        self._tools, self._read = tools, None

    def __len__(self) -> int:
        return len(self._tools)

    def __getitem__(self, index: Any) -> Any:
        """Raises ValueError for a method that has no schema."""
        if self._read is None:
            self._read = [_schema(name, tool) for name, tool in self._tools.items()]
        return self._read[index]


@dataclass
class _Episode:
    """An episode under way; `results` holds the calls of every step."""

    environment: Any
    tools: Mapping[str, Callable[..., Any]]
    transcript: list[Message]
    schemas: ToolSchemas
    steps: list[tuple[Reply, Turn]] = field(default_factory=list)
    results: list[list[ToolResult]] = field(default_factory=list)


def run_episode(
    environment: Factory | Mapping[str, Factory],
    row: Mapping[str, Any],
    number: int = 0,
    rules: EpisodeConfig | None = None,
    category: str = "",
) -> RunningCase:
    """One episode in a live environment.

    As in FissionGRPOTrainer: tools are the environment's public methods, what a tool raises becomes the text
    `str({"error": message})`, a turn that cannot be read is answered so too, a turn without calls ends the episode.
    The record has one turn, of as many steps as the policy wrote; calls that were not made are not in it.

    Args:
        environment: makes a fresh one with `reset(**row)` and `get_reward()` (or `_reward()`); or several by name, of
            which the row's column `environment` takes one, as in TRL.
        row: with `prompt` (chat messages), and `id` (else its number).
        number: of the row.
        rules: of the episode.
        category: of the record; by default the name of the row's environment, if it has one.

    Raises:
        ValueError: a row without a prompt of chat messages.
    """
    began, rules = time.perf_counter(), rules or EpisodeConfig()
    case_id = str(row.get("id", number))
    category = category or (row["environment"] if isinstance(row.get("environment"), str) else "")
    episode = _begin(_environment(environment, row, rules.limits), row, case_id)
    lost = None
    while True:
        reply = yield Request(tuple(episode.transcript), episode.schemas)
        if reply.lost is not None:
            lost = reply.lost
            break
        if not _take_step(episode, reply, last=len(episode.steps) == rules.max_turns - 1):
            break
    verdict = (None, lost, None) if lost is not None else _judge(episode.environment, rules.success_at)
    return _record(episode, case_id, category, verdict, time.perf_counter() - began)


def _environment(given: Factory | Mapping[str, Factory], row: Mapping[str, Any], limits: ToolLimits | None) -> Any:
    """The row's environment, watched as in training."""
    factory = given[row["environment"]] if isinstance(given, Mapping) else given
    return make_restorable(factory, asyncio.run, limits=limits)()


def _begin(environment: Any, row: Mapping[str, Any], case_id: str) -> _Episode:
    prompt = row.get("prompt")
    if not isinstance(prompt, Sequence) or isinstance(prompt, str) or not prompt:
        raise ValueError(f"row {case_id!r}: 'prompt' must be a list of chat messages, got {prompt!r}")
    messages = [dict(message) for message in prompt]
    environment_name = isinstance(row.get("environment"), str)
    columns = {key: value for key, value in row.items() if key != "environment"} if environment_name else row
    observation = environment.reset(**columns)
    if observation:
        messages[-1]["content"] += observation
    tools = tool_methods(environment)
    return _Episode(environment, tools, list(messages), ToolSchemas(tools))


def _take_step(episode: _Episode, reply: Reply, last: bool) -> bool:
    """Add a reply to its episode and make its calls; whether the episode goes on."""
    turn = parse(reply.text, truncated=reply.truncated)
    episode.steps.append((reply, turn))
    episode.results.append([])
    episode.transcript.append(assistant_message(reply))
    if last or reply.truncated or not (turn.calls or turn.error):
        return False
    if turn.error is not None:
        episode.transcript += unread_messages(reply, next(iter(episode.tools), "error"), turn.error)
    episode.results[-1] += [make_call(episode.tools, call, asyncio.run) for call in turn.calls]
    episode.transcript += result_messages(reply, episode.results[-1]) if turn.calls else []
    return True


def _judge(world: Any, success_at: float) -> tuple[bool | None, str | None, str | None]:
    """Success, why there is no judgement, and what the judge said of a failure."""
    reward = world.get_reward() if hasattr(world, "get_reward") else world._reward()
    reward = asyncio.run(reward) if inspect.iscoroutine(reward) else reward
    broken = world._fission_monitor.infrastructure_error
    if broken is not None or reward is None:
        return None, broken or "no reward", None
    value = float(reward)
    return value >= success_at, None, None if value >= success_at else f"reward {value:g}"


def _record(
    episode: _Episode,
    case_id: str,
    category: str,
    verdict: tuple[bool | None, str | None, str | None],
    seconds: float,
) -> CaseRecord:
    success, missing, why = verdict
    made = [result for results in episode.results for result in results]
    flags = iter(injected_calls(made, episode.environment, episode.tools))
    steps = tuple(
        StepRecord(
            text=reply.text,
            calls=tuple(_call_record(episode, result, next(flags)) for result in results),
            unread=turn.error,
            tokens=reply.tokens,
            truncated=reply.truncated,
        )
        for (reply, turn), results in zip(episode.steps, episode.results, strict=True)
    )
    return CaseRecord(case_id, category, (TurnRecord(steps, success),), success, why, missing, seconds)


def _call_record(episode: _Episode, result: ToolResult, injected: bool) -> CallRecord:
    call = result.call
    kind = None if result.error is None else _kind(call, episode.tools, episode.schemas)
    return CallRecord(call.name, call.arguments, result.content, result.error, kind, injected)


def _kind(call: ToolCall, tools: Mapping[str, Callable[..., Any]], schemas: ToolSchemas) -> ErrorKind:
    """The kind of a call's error. Arguments are held against the method's signature where it has no schema."""
    if call.name not in tools:
        return ErrorKind.UNKNOWN_TOOL
    try:
        problem = check_call(call, schemas)
    except (ValueError, ModuleNotFoundError):  # undocumented methods, or no transformers to read them
        try:
            inspect.signature(tools[call.name]).bind(**call.arguments)
        except TypeError:
            return ErrorKind.BAD_ARGUMENTS
        return ErrorKind.RAISED
    return ErrorKind.RAISED if problem is None else problem.kind


def _schema(name: str, tool: Callable[..., Any]) -> Mapping[str, Any]:
    from transformers.utils import DocstringParsingException, TypeHintParsingException, get_json_schema

    try:
        return get_json_schema(tool)["function"]
    except (DocstringParsingException, TypeHintParsingException) as error:
        what = " ".join(str(error).split())[:160]
        raise ValueError(f"tool {name}: {what}; give each argument a type hint and a docstring line") from error
