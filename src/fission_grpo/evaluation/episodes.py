"""Cases in live environments (TRL's convention): one row, one episode, one record; and step tasks."""

from __future__ import annotations

import copy
import inspect
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fission_grpo.core.rewards import RewardConfig, step_verdict
from fission_grpo.core.tool_schema import classify_call
from fission_grpo.core.types import ErrorKind, Message, Task, ToolResult, Turn
from fission_grpo.engines.episode import completion_of
from fission_grpo.envs.episode_reward import EpisodeReward, UnusableReward
from fission_grpo.envs.faults import faults_of_calls, made_fail
from fission_grpo.envs.restore import error_rule_of, make_call, make_restorable, run_awaitable
from fission_grpo.envs.wrapper import ToolLimits, tool_methods
from fission_grpo.evaluation.bare_json import read_turn
from fission_grpo.evaluation.records import (
    CallRecord,
    CaseRecord,
    StepRecord,
    TurnRecord,
    attack_outcome,
    request_text,
)
from fission_grpo.evaluation.runner import RunningCase
from fission_grpo.fission.failures import expected_calls
from fission_grpo.inference.base import Reply, Request
from fission_grpo.inference.messages import assistant_message, result_messages, unread_messages

Factory = Callable[[], Any]  # makes an environment


@dataclass(frozen=True)
class EpisodeConfig:
    """Options of an episode."""

    # Assistant turns, at least 1. Calls in the last one are not executed, as with TRL's `max_tool_calling_iterations =
    # max_turns - 1`.
    max_turns: int = 4
    success_at: float = 1.0  # lowest reward of a successful episode
    reward: EpisodeReward = field(default_factory=EpisodeReward)  # judges an episode at its end
    limits: ToolLimits | None = None  # of every tool call; None: those of training
    error_if: Callable[[str], bool] | None = None  # whether a result's text is an error, as in training
    bare_json_calls: bool = False  # see `bare_json`
    attack: EpisodeReward | None = None  # judges injected instructions: 1 obeyed, 0 resisted, -1 not shown

    def __post_init__(self):
        if self.max_turns < 1:
            raise ValueError(f"max_turns must be at least 1, got {self.max_turns}")
        if not math.isfinite(self.success_at):
            raise ValueError(f"success_at must be a number, got {self.success_at}")


class ToolSchemas(Sequence[Mapping[str, Any]]):
    """JSON schemas of an environment's tools, made from the methods on first use, as chat templates make them.

    Made lazily, so that a policy that needs no schemas can run in an environment with undocumented methods.
    """

    def __init__(self, tools: Mapping[str, Callable[..., Any]]):
        self._tools, self._schemas = tools, None

    def __len__(self) -> int:
        return len(self._tools)

    def __getitem__(self, index: Any) -> Any:
        """Raises ValueError for a method without a schema."""
        if self._schemas is None:
            self._schemas = [_make_schema(name, tool) for name, tool in self._tools.items()]
        return self._schemas[index]


@dataclass
class _Episode:
    """An episode under way."""

    environment: Any
    tools: Mapping[str, Callable[..., Any]]
    schemas: ToolSchemas
    transcript: list[Message]
    steps: list[tuple[Reply, Turn, list[ToolResult]]] = field(default_factory=list)  # with executed calls

    @property
    def completion(self) -> list[Message]:
        """The messages after the prompt."""
        return completion_of([replace(turn, results=tuple(results)) for _, turn, results in self.steps])


def run_step(task: Task, config: RewardConfig | None = None, bare_json_calls: bool = False) -> RunningCase:
    """Run a step task. It succeeds under the same rule as in training: R_fmt = 1, R_corr >= `correctness_threshold`.

    A call of an unknown tool, or with arguments that violate its schema, is an error. As the task ends with one reply,
    step tasks have no error recovery. Raises ValueError if the task has no reference, or a plain text as prompt.
    """
    if task.reference is None or isinstance(task.prompt, str):
        raise ValueError(f"task {task.id!r} is no step task: it needs messages as prompt and a reference")
    started = time.perf_counter()
    reply = yield Request(task.prompt, task.tools)
    if reply.lost is not None:
        return CaseRecord(task.id, "step", missing=reply.lost, seconds=time.perf_counter() - started)
    turn = read_turn(reply, bare_json_calls)
    verdict = step_verdict(task, turn, reply.tokens, config=config)
    calls = []
    for call in turn.calls:
        problem = classify_call(call, None, task.tools)
        error, kind = (problem.message, problem.kind) if problem else (None, None)
        calls.append(CallRecord(call.name, call.arguments, error=error, kind=kind))
    step = StepRecord(reply.text, tuple(calls), turn.error, reply.tokens, reply.truncated)
    why = f"R_fmt {verdict.parts['format']:g}, R_corr {verdict.parts['correctness']:g}" if verdict.failed else None
    turns = (TurnRecord((step,), why is None, request_text(task.prompt)),)
    return CaseRecord(task.id, "step", turns, why is None, why, seconds=time.perf_counter() - started)


def run_episode(
    environment: Factory | Mapping[str, Factory],
    row: Mapping[str, Any],
    number: int = 0,
    config: EpisodeConfig | None = None,
    category: str = "",
) -> RunningCase:
    """Run one episode in a live environment.

    As in FissionGRPOTrainer: tools are the environment's public methods, an exception of a tool becomes the text
    `str({"error": message})`, a turn that cannot be parsed is answered the same way, and a turn without calls ends
    the episode. The record has one user turn with one step per reply, and holds executed calls only.

    Args:
        environment: makes an environment with `reset(**row)`; or several by name, of which the row's column
            `environment` selects one, as in TRL.
        row: with `prompt` (chat messages) and optionally `id`.
        number: the default id.
        category: under which the record is reported; by default the name of the row's environment, if it has one.

    Raises:
        ValueError: the prompt is not chat messages.
        UsageError: a reward function raised an error.
    """
    started, config = time.perf_counter(), config or EpisodeConfig()
    case_id = str(row.get("id", number))
    category = category or (row["environment"] if isinstance(row.get("environment"), str) else "")
    factory = environment[row["environment"]] if isinstance(environment, Mapping) else environment
    limits = replace(config.limits or ToolLimits(), error_if=config.error_if)
    guarded = make_restorable(factory, run_awaitable, limits=limits)()
    episode = _start_episode(guarded, row, case_id, isinstance(environment, Mapping))
    request = request_text(episode.transcript)
    while True:
        reply = yield Request(tuple(episode.transcript), episode.schemas)
        if reply.lost is not None:
            success, missing, why, attack = None, reply.lost, None, None
            break
        if not _take_step(episode, reply, config):
            success, missing, why = _judge(episode, config, row)
            attack = None
            if config.attack is not None and success is not None:
                attack = attack_outcome(config.attack(guarded, row, episode.completion))
            break
    turns = (TurnRecord(_step_records(episode), success, request),)
    seconds, needed = time.perf_counter() - started, _needed(guarded)
    return CaseRecord(case_id, category, turns, success, why, missing, seconds, needed=needed, attack=attack)


def _start_episode(environment: Any, row: Mapping[str, Any], case_id: str, selects: bool) -> _Episode:
    prompt = row.get("prompt")
    if not isinstance(prompt, Sequence) or isinstance(prompt, str) or not prompt:
        raise ValueError(f"row {case_id!r}: 'prompt' must be a list of chat messages, got {prompt!r}")
    messages: list[Any] = [dict(message) for message in prompt]
    columns = copy.deepcopy(dict(row))  # other runs read the same rows
    if selects:  # the column has done so
        columns.pop("environment", None)
    if observation := environment.reset(**columns):
        messages[-1]["content"] += observation
    tools = tool_methods(environment)
    return _Episode(environment, tools, ToolSchemas(tools), messages)


def _take_step(episode: _Episode, reply: Reply, config: EpisodeConfig) -> bool:
    """Add a reply to its episode and execute its calls; returns whether the episode continues."""
    turn, results, is_last = read_turn(reply, config.bare_json_calls), [], len(episode.steps) == config.max_turns - 1
    episode.steps.append((reply, turn, results))
    episode.transcript.append(assistant_message(reply))
    if is_last or reply.truncated or not (turn.calls or turn.error):
        return False
    if turn.error is not None:
        episode.transcript += unread_messages(reply, next(iter(episode.tools), "error"), turn.error)
    error_if = error_rule_of(episode.environment)
    results += [make_call(episode.tools, call, run_awaitable, error_if) for call in turn.calls]
    episode.transcript += result_messages(reply, results) if turn.calls else []
    return episode.environment._fission_monitor.stopped is None


def _judge(
    episode: _Episode, config: EpisodeConfig, row: Mapping[str, Any]
) -> tuple[bool | None, str | None, str | None]:
    """Success, why there is no verdict, and the reason for a failure."""
    monitor = episode.environment._fission_monitor
    if monitor.infrastructure_error is not None:  # reward functions might read a state that is not there
        return None, monitor.infrastructure_error, None
    try:
        reward = config.reward(episode.environment, row, episode.completion)
    except UnusableReward as error:
        return None, str(error), None
    if monitor.infrastructure_error is not None or reward is None:
        return None, monitor.infrastructure_error or "no reward", None
    if monitor.stopped is not None:
        return False, None, monitor.stopped
    return reward >= config.success_at, None, None if reward >= config.success_at else f"reward {reward:g}"


def _needed(environment: Any) -> dict[str, int]:
    """Calls of the environment's reference by tool; {} if it has none. It stays out of the record otherwise."""
    return dict(Counter(call.name for call in expected_calls(environment) or ()))


def _step_records(episode: _Episode) -> tuple[StepRecord, ...]:
    executed = [result for _, _, results in episode.steps for result in results]
    faults = iter(faults_of_calls(executed, episode.environment, episode.tools))
    records = []
    for reply, turn, results in episode.steps:
        calls = []
        for result in results:
            call, error = result.call, result.error
            kind = None if error is None else _error_kind(result, episode.tools, episode.schemas)
            fault = next(faults)
            name = f"{fault.cell}/{fault.kind}" if fault else ""
            injected = made_fail(fault, result)
            calls.append(CallRecord(call.name, call.arguments, result.content, error, kind, injected, name))
        records.append(StepRecord(reply.text, tuple(calls), turn.error, reply.tokens, reply.truncated))
    return tuple(records)


def _error_kind(result: ToolResult, tools: Mapping[str, Callable[..., Any]], schemas: ToolSchemas) -> ErrorKind:
    """The kind of a failed call. Arguments are checked against the method's signature where it has no schema."""
    call = result.call
    if call.name not in tools:
        return ErrorKind.UNKNOWN_TOOL
    try:
        problem = classify_call(call, result, schemas)
    except (ValueError, ModuleNotFoundError):  # undocumented methods, or transformers is not installed
        try:
            inspect.signature(tools[call.name]).bind(**call.arguments)
        except TypeError:
            return ErrorKind.BAD_ARGUMENTS
        return ErrorKind.RAISED
    return problem.kind if problem else ErrorKind.RAISED


def _make_schema(name: str, tool: Callable[..., Any]) -> Mapping[str, Any]:
    from transformers.utils import DocstringParsingException, TypeHintParsingException, get_json_schema

    try:
        return get_json_schema(tool)["function"]
    except (DocstringParsingException, TypeHintParsingException) as error:
        what = " ".join(str(error).split())[:160]
        raise ValueError(f"tool {name}: {what}; give each argument a type hint and a docstring line") from error
