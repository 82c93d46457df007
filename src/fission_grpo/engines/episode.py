"""One rollout, token by token: a step task's turn or an episode, for engines that sample turn by turn.

The engine samples; this runs the environment, answers the policy and judges the end, as `FissionGRPOTrainer` does with
TRL's tool loop. A row made of a recovery task begins at the failed turn.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fission_grpo.core.chat import parse, turn_messages
from fission_grpo.core.rewards import RewardConfig, step_verdict
from fission_grpo.core.serialization import STEP_KEY
from fission_grpo.core.special_tokens import SpecialTokenFilter
from fission_grpo.core.types import (
    Message,
    Rollout,
    Task,
    Trajectory,
    Turn,
    Verdict,
)
from fission_grpo.data.rows import Environments, row_of_task, task_of_row
from fission_grpo.engines.codec import ChatCodec
from fission_grpo.envs.episode_reward import EpisodeReward
from fission_grpo.envs.restore import (
    TASK_KEY,
    answer_turn,
    judge_corrective_turn,
    make_restorable,
    run_awaitable,
    without_task,
)
from fission_grpo.envs.step_calls import StepEnvironments
from fission_grpo.envs.worker import isolated
from fission_grpo.envs.wrapper import ToolLimits, tool_methods
from fission_grpo.fission.algorithm import Fission
from fission_grpo.fission.failures import FailedRollout, failed_rollout

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Sampled:
    """What the policy sampled in one turn."""

    token_ids: Sequence[int]  # with the one that ended the turn, if the length limit did not
    logprobs: Sequence[float] = ()  # of each token; empty where the engine computes them later


Sample = Callable[[list[int], int], Awaitable[Sampled]]
"""Samples one turn: from all token ids so far, and the largest number of new ones."""


@dataclass
class Episode:
    """A finished rollout, as text and as tokens."""

    rollout: Rollout
    prompt_ids: list[int]
    completion_ids: list[int]  # with those of tool results
    mask: list[int]  # of `completion_ids`: 1 for tokens the policy sampled, 0 for tool results
    logprobs: list[float]  # of `completion_ids`, 0 for tool results; empty if the engine gave none
    environment: Any = None  # as it is at the end; None for a step task
    tools: Sequence[Mapping[str, Any]] = ()  # JSON schemas

    @property
    def reward(self) -> float:
        """The reward; NaN if the rollout could not be judged."""
        reward = self.rollout.verdict.reward
        return math.nan if reward is None else reward

    def failed(self, failure_turn: str = "first", zero_std: bool = False) -> FailedRollout:
        """Its failures with their environment's snapshots; see `failed_rollout`."""
        return failed_rollout(self.rollout, self.environment, self.tools, failure_turn, zero_std)


@dataclass
class TaskRunner:
    """Runs data set rows and recovery tasks.

    Args:
        fission: its settings hold the limits, and it knows the snapshots of buffered instances.
        codec: between messages and token ids.
        environments: makes an environment in TRL's convention; or several by name, of which a row's column
            `environment` selects one. None for step tasks, which name theirs.
        reward: judges an episode at its end.
        step_reward: constants of the reward of step tasks.
        max_turns: assistant turns of an episode; calls in the last one are not made.
        max_completion_length: tokens of a completion, with those of tool results.
        context_length: of the model, in tokens: recovery tasks that would not leave room for a completion are left out
            and counted (`fission/too_long`). None: no limit.
        error_if: whether a tool's result is an error, from its text.
        progress: the share of training that is done, 0 to 1; the weights of a step task's reward depend on it.

    Raises:
        ValueError: the settings ask for what engines cannot do yet, or a limit is below 1.
    """

    fission: Fission
    codec: ChatCodec
    environments: Environments | None = None
    reward: EpisodeReward = field(default_factory=EpisodeReward)
    step_reward: RewardConfig = field(default_factory=RewardConfig)
    max_turns: int = 5
    max_completion_length: int = 1024
    context_length: int | None = None
    error_if: Callable[[str], bool] | None = None
    progress: Callable[[], float] = lambda: 0.0

    def __post_init__(self):
        if self.settings.recovery_continues:
            raise ValueError("recovery_continues=True works with FissionGRPOTrainer only; leave it out here.")
        if self.settings.fault_pairs:
            raise ValueError("fault_pairs=True works with FissionGRPOTrainer only; leave it out here.")
        if self.max_turns < 1 or self.max_completion_length < 1:
            raise ValueError("max_turns and max_completion_length must be at least 1.")
        if self.environments is not None:
            self.codec.check_tools()
        self.special_tokens = SpecialTokenFilter.from_tokenizer(self.codec.tokenizer)
        self.fission.special_tokens, self.fission.fits = self.special_tokens, self._fits
        self._schemas: dict[Any, list[dict[str, Any]]] = {}  # of the tools, by the name of the environment
        self.step_environments = StepEnvironments(self._restorable)
        self.counts: Counter[str] = Counter()

    @property
    def settings(self) -> Any:
        return self.fission.settings

    def row_of(self, task: Task) -> Row:
        """The row of a recovery task."""
        return row_of_task(task, self.codec.tokenizer, self.codec.template_options)

    def _fits(self, task: Task) -> bool:
        """Whether a recovery task's prompt and a completion of full length fit into the model's context."""
        if self.context_length is None:
            return True
        schemas = [] if self.environments is None else self._tool_schemas(task.columns)
        prompt_ids = self.codec.encode_prompt(self.row_of(task)["prompt"], schemas)
        return len(prompt_ids) + self.max_completion_length <= self.context_length

    async def run(self, row: Row, sample: Sample) -> Episode:
        """Run one rollout of a row. Errors of `sample` are raised."""
        row = copy.deepcopy(dict(row))
        if STEP_KEY in row:
            return await self._run_step(row, sample)
        return await self._run_episode(row, sample)

    def pop_counts(self) -> Counter[str]:
        """Return and reset the events in environments since the last time, as `env/<event>`."""
        counts, self.counts = self.counts, Counter()
        return counts + self.step_environments.pop_counts()

    # -- step tasks --------------------------------------------------------------------------------------------------

    async def _run_step(self, row: Row, sample: Sample) -> Episode:
        task = task_of_row(row, row["prompt"])
        prompt_ids = self.codec.encode_prompt(row["prompt"])
        sampled = await sample(prompt_ids, self.max_completion_length)
        turn = self._read(sampled)
        verdict = step_verdict(task, turn, len(sampled.token_ids), self.progress(), self.step_reward)
        if verdict.failed:
            turn = self.step_environments.answered(task, turn)
        episode = _Tokens(prompt_ids)
        episode.add(sampled)
        return episode.finish(Rollout(Trajectory(task, (turn,)), self._strict(task, verdict)))

    # -- episodes ----------------------------------------------------------------------------------------------------

    async def _run_episode(self, row: dict[str, Any], sample: Sample) -> Episode:
        environment = self._make_environment(row)
        prompt = self._first_messages(environment, row)
        task = task_of_row(row, prompt)
        tools = tool_methods(environment)
        schemas = self._tool_schemas(row, environment)
        tokens = _Tokens(self.codec.encode_prompt(prompt, schemas))
        turns: list[Turn] = []
        single_turn = self.settings.recovery_scope == "turn" and TASK_KEY in row
        monitor = environment._fission_monitor
        while monitor.infrastructure_error is None:
            sampled = await sample(tokens.all, self.max_completion_length - len(tokens.completion))
            tokens.add(sampled)
            turns.append(self._read(sampled))
            if turns[-1].truncated or not (turns[-1].calls or turns[-1].error):
                break
            if single_turn or len(turns) == self.max_turns:
                break
            turns[-1], fits = self._answered(turns[-1], tools, tokens)
            if not fits or monitor.stopped is not None:
                break
        verdict = self._verdict(environment, row, task, turns, single_turn)
        self.counts.update({f"env/{name}": n for name, n in monitor.counts.items()})
        monitor.counts.clear()
        rollout = Rollout(Trajectory(task, tuple(turns)), verdict)
        return tokens.finish(rollout, environment, [schema["function"] for schema in schemas])

    def _tool_schemas(self, row: Row, environment: Any = None) -> list[dict[str, Any]]:
        """JSON schemas of the tools of a row's environment, made once for each factory, as TRL does."""
        name = row["environment"] if isinstance(self.environments, Mapping) else None
        if name not in self._schemas:
            environment = self._make_environment(row) if environment is None else environment
            self._schemas[name] = self.codec.schemas(tool_methods(environment).values())
        return self._schemas[name]

    def _make_environment(self, row: Row) -> Any:
        if self.environments is None:
            raise ValueError("a row without a step task needs an environment: give `environments`.")
        make = self.environments
        if isinstance(make, Mapping):
            make = make[row["environment"]]
        return self._restorable(make)()

    def _restorable(self, make: Callable[[], Any]) -> Callable[[], Any]:
        if self.settings.isolate_environments:
            make = isolated(make, self.settings.tool_timeout)
        limits = ToolLimits(
            self.settings.tool_timeout, self.settings.max_tool_result_chars, lambda: False, self.error_if
        )
        sanitize = self.special_tokens.sanitize
        return make_restorable(make, run_awaitable, self.fission.get_snapshot, limits, sanitize)

    def _first_messages(self, environment: Any, row: dict[str, Any]) -> list[Message]:
        """The row's prompt with the environment's first observation, as TRL makes it."""
        columns = copy.deepcopy(row)
        if isinstance(self.environments, Mapping):
            columns.pop("environment", None)
        messages: list[Any] = [dict(message) for message in row["prompt"]]
        if observation := environment.reset(**columns):
            messages[-1]["content"] += observation
        return messages

    def _answered(self, turn: Turn, tools: Mapping[str, Any], tokens: _Tokens) -> tuple[Turn, bool]:
        """The turn with its calls' results, and whether these fit into the completion; else it counts as cut off."""
        answered = replace(turn, results=answer_turn(turn, tools, run_awaitable, self.error_if))
        messages = self.special_tokens.sanitize_tool_results(turn_messages(answered)[1:])
        ids = self.codec.encode_results(messages)
        if len(tokens.completion) + len(ids) >= self.max_completion_length:
            return replace(turn, truncated=True), False
        tokens.add_results(ids)
        return answered, True

    def _verdict(self, environment: Any, row: Row, task: Task, turns: list[Turn], single_turn: bool) -> Verdict:
        monitor = environment._fission_monitor
        if single_turn and turns:
            calls = () if turns[-1].truncated else turns[-1].calls
            judged = judge_corrective_turn(
                environment, completion_of([replace(turns[-1], calls=calls)]), run_awaitable
            )
            turns[-1] = replace(turns[-1], results=judged.results)
            reward: float | None = float(judged.resolved)
        elif monitor.infrastructure_error is None:
            reward = self.reward(environment, without_task(row), completion_of(turns))
        else:
            reward = None
        if monitor.infrastructure_error is not None or reward is None:
            return Verdict(None, failed=False)
        if monitor.stopped is not None:
            reward = min(reward, 0.0)
        return self._strict(task, Verdict(reward, failed=reward < self.settings.failure_threshold))

    def _strict(self, task: Task, verdict: Verdict) -> Verdict:
        if task.depth and self.settings.recovery_reward == "strict":
            return replace(verdict, reward=float(not verdict.failed))
        return verdict

    def _read(self, sampled: Sampled) -> Turn:
        ids = list(sampled.token_ids)
        truncated = not ids or ids[-1] not in self.codec.eos_ids
        return parse(self.codec.decode(ids if truncated else ids[:-1]), truncated=truncated)


class _Tokens:
    """The tokens of a rollout under way."""

    def __init__(self, prompt_ids: list[int]):
        self.prompt, self.completion, self.mask, self.logprobs = prompt_ids, [], [], []
        self.has_logprobs = True

    @property
    def all(self) -> list[int]:
        return self.prompt + self.completion

    def add(self, sampled: Sampled) -> None:
        self._extend(sampled.token_ids, 1, sampled.logprobs)
        self.has_logprobs = self.has_logprobs and len(sampled.logprobs) == len(sampled.token_ids)

    def add_results(self, ids: Sequence[int]) -> None:
        self._extend(ids, 0, [0.0] * len(ids))

    def _extend(self, ids: Sequence[int], sampled: int, logprobs: Sequence[float]) -> None:
        self.completion += ids
        self.mask += [sampled] * len(ids)
        self.logprobs += logprobs

    def finish(self, rollout: Rollout, environment: Any = None, tools: Sequence[Any] = ()) -> Episode:
        logprobs = self.logprobs if self.has_logprobs else []
        return Episode(rollout, self.prompt, self.completion, self.mask, logprobs, environment, tools)


def completion_of(turns: Sequence[Turn]) -> list[Message]:
    """The messages after the prompt, in the form in which TRL gives completions to reward functions."""
    messages: list[Message] = []
    for turn in turns:
        functions = [{"name": call.name, "arguments": dict(call.arguments)} for call in turn.calls]
        calls = [{"type": "function", "function": function} for function in functions]
        message: dict[str, Any] = {"role": "assistant", "content": turn.content if calls else turn.text}
        messages.append(message | ({"tool_calls": calls} if calls else {}))
        messages += turn_messages(turn)[1:]
    return messages
