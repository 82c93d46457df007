"""Evaluation in a live environment: success, and recovery from errors, with intervals."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fission_grpo.chat import parse
from fission_grpo.environment import Limits, make_call, restorable, tool_methods
from fission_grpo.faults import injected_errors
from fission_grpo.policies import Policy, Reply
from fission_grpo.trajectory import Message, ToolResult

Z95 = 1.959963984540054
"""97.5% quantile of the normal distribution."""


@dataclass(frozen=True)
class Case:
    """One evaluated episode.

    Args:
        id: the row's.
        success: the environment's reward at the end was at least `success_at`.
        calls: tool calls made, whether they erred or not.
        errors: calls that erred, and turns that could not be read as calls.
        turns: assistant turns.
        generated_tokens: tokens the policy wrote.
        retries: erring calls whose next call was the same again.
        transcript: the whole dialogue; assistant messages hold the raw text.
        broken: why the episode could not be judged (the environment was out of order), None if it could.
        injected: errors among `errors` that a fault wrapper made (see `faults`), not the policy's own.
    """

    id: str
    success: bool
    calls: int
    errors: int
    turns: int
    generated_tokens: int
    retries: int = 0
    transcript: tuple[Message, ...] = ()
    broken: str | None = None
    injected: int = 0


@dataclass(frozen=True)
class Summary:
    """Shares over the cases that could be judged; intervals are Wilson's at 95%. Rates over no case at all are None.

    `recovery_rate` is P(success | at least one error). `retry_loop_rate` is the share of erring calls that were
    followed by the very same call. `broken` cases could not be judged and count nowhere else.
    """

    tasks: int
    success: float
    success_ci: tuple[float, float]
    error_cases: int
    recovered: int
    recovery_rate: float | None
    recovery_ci: tuple[float, float] | None
    errors: int
    generated_tokens: int
    retry_loop_rate: float | None
    broken: int = 0

    def to_json(self, name: str, step: int, trained_on_tokens: int = 0) -> str:
        """A line of `eval.jsonl`.

        Args:
            name: what was evaluated.
            step: training steps it had had.
            trained_on_tokens: tokens generated in training until then (`generated_tokens` of the line).
        """
        return json.dumps(
            {
                "name": name,
                "step": step,
                "generated_tokens": trained_on_tokens,
                "tasks": self.tasks,
                "success": self.success,
                "success_ci": list(self.success_ci),
                "error_cases": self.error_cases,
                "recovered": self.recovered,
                "recovery_rate": self.recovery_rate,
                "recovery_ci": list(self.recovery_ci) if self.recovery_ci else None,
                "errors": self.errors,
                "retry_loop_rate": self.retry_loop_rate,
                "broken": self.broken,
            }
        )


@dataclass
class _Episode:
    """An episode under way."""

    row: Mapping[str, Any]
    environment: Any
    tools: Mapping[str, Callable[..., Any]]
    transcript: list[Message]
    open: bool = True
    calls: list[ToolResult] = field(default_factory=list)
    unread: int = 0
    turns: int = 0
    tokens: int = 0


def evaluate(
    policy: Policy,
    make_environment: Callable[[], Any] | Mapping[str, Callable[[], Any]],
    rows: Iterable[Mapping[str, Any]],
    *,
    max_turns: int = 4,
    success_at: float = 1.0,
    limits: Limits | None = None,
) -> list[Case]:
    """Let the policy do every row's task, all episodes side by side.

    As in FissionGRPOTrainer: tools are the environment's public methods, what a tool raises becomes the text
    `str({"error": message})`, a turn that cannot be read is answered so too (and counts as an error), a turn without
    calls ends the episode. Calls in the last of `max_turns` turns are not made, which is TRL's
    `max_tool_calling_iterations = max_turns - 1`.

    Args:
        policy: writes the turns.
        make_environment: a fresh environment with `reset(**row)` and `get_reward()` (or `_reward()`); or several by
            name, of which a row's column `environment` takes one, as in TRL.
        rows: with `prompt` (chat messages), and `id` (else their number).
        max_turns: assistant turns per episode, at least 1.
        success_at: the reward from which on an episode has succeeded.
        limits: of every tool call; by default those of training.

    Raises:
        ValueError: a row without a prompt of chat messages; `max_turns` below 1.
    """
    if max_turns < 1:
        raise ValueError(f"max_turns must be at least 1, got {max_turns}")
    make = _maker(make_environment, limits)
    episodes = [_begin(make(row), row, number) for number, row in enumerate(rows)]
    for turn in range(max_turns):
        going = [episode for episode in episodes if episode.open]
        if not going:
            break
        tools = [list(episode.tools.values()) for episode in going]
        replies = policy.reply([episode.transcript for episode in going], tools)
        for episode, reply in zip(going, replies, strict=True):
            _take_turn(episode, reply, last=turn == max_turns - 1)
    return [_case(episode, number, success_at) for number, episode in enumerate(episodes)]


def summarise(cases: Sequence[Case]) -> Summary:
    """Success and recovery over cases. Raises ValueError if there are none."""
    if not cases:
        raise ValueError("no cases to summarise")
    every, cases = cases, [case for case in cases if case.broken is None]
    if not cases:
        raise ValueError(f"none of {len(every)} cases could be judged, the first because: {every[0].broken}")
    successes = sum(case.success for case in cases)
    erring = [case for case in cases if case.errors]
    recovered = sum(case.success for case in erring)
    errors = sum(case.errors for case in cases)
    return Summary(
        tasks=len(cases),
        success=successes / len(cases),
        success_ci=wilson(successes, len(cases)),
        error_cases=len(erring),
        recovered=recovered,
        recovery_rate=recovered / len(erring) if erring else None,
        recovery_ci=wilson(recovered, len(erring)) if erring else None,
        errors=errors,
        generated_tokens=sum(case.generated_tokens for case in cases),
        retry_loop_rate=sum(case.retries for case in cases) / errors if errors else None,
        broken=len(every) - len(cases),
    )


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share (Wilson 1927). Raises ValueError unless 0 <= successes <= trials, trials > 0.

    Example:
        `wilson(5, 10)` is about (0.237, 0.763)
    """
    if trials <= 0 or not 0 <= successes <= trials:
        raise ValueError(f"an interval needs 0 <= successes <= trials and trials > 0, got {successes} of {trials}")
    share, z2 = successes / trials, Z95 * Z95
    middle = share + z2 / (2 * trials)
    half = Z95 * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials * trials))
    low, high = (middle - half) / (1 + z2 / trials), (middle + half) / (1 + z2 / trials)
    return max(low, 0.0) if successes else 0.0, min(high, 1.0) if successes < trials else 1.0


def _maker(given: Any, limits: Limits | None) -> Callable[[Mapping[str, Any]], Any]:
    """From a row to its environment, watched as in training."""
    named = given if isinstance(given, Mapping) else {None: given}
    factories = {name: restorable(factory, asyncio.run, limits=limits) for name, factory in named.items()}
    return lambda row: factories[row["environment"] if isinstance(given, Mapping) else None]()


def _begin(environment: Any, row: Mapping[str, Any], number: int) -> _Episode:
    prompt = row.get("prompt")
    if not isinstance(prompt, Sequence) or isinstance(prompt, str) or not prompt:
        raise ValueError(f"row {row.get('id', number)!r}: 'prompt' must be a list of chat messages, got {prompt!r}")
    transcript = [dict(message) for message in prompt]
    environment_name = isinstance(row.get("environment"), str)
    columns = {key: value for key, value in row.items() if key != "environment"} if environment_name else row
    observation = environment.reset(**columns)
    if observation:
        transcript[-1]["content"] += observation
    return _Episode(row, environment, tool_methods(environment), list(transcript))


def _take_turn(episode: _Episode, reply: Reply, last: bool) -> None:
    """Add a reply to its episode and make its calls."""
    episode.turns += 1
    episode.tokens += reply.tokens
    episode.transcript.append({"role": "assistant", "content": reply.text})
    turn = parse(reply.text, truncated=reply.truncated)
    episode.unread += turn.error is not None
    episode.open = bool(turn.calls or turn.error) and not last and not reply.truncated
    if not episode.open:
        return
    if turn.error is not None:
        told = {"role": "tool", "name": next(iter(episode.tools), "error"), "content": str({"error": turn.error})}
        episode.transcript.append(told)
    for call in turn.calls:
        result = make_call(episode.tools, call, asyncio.run)
        episode.calls.append(result)
        episode.transcript.append({"role": "tool", "name": call.name, "content": result.content})


def _case(episode: _Episode, number: int, success_at: float) -> Case:
    results, world = episode.calls, episode.environment
    reward = world.get_reward() if hasattr(world, "get_reward") else world._reward()
    reward = asyncio.run(reward) if inspect.iscoroutine(reward) else reward
    return Case(
        id=str(episode.row.get("id", number)),
        success=reward is not None and float(reward) >= success_at,
        calls=len(results),
        errors=sum(result.error is not None for result in results) + episode.unread,
        turns=episode.turns,
        generated_tokens=episode.tokens,
        retries=sum(
            result.error is not None and later.call == result.call for result, later in itertools.pairwise(results)
        ),
        transcript=tuple(episode.transcript),
        broken=world._fission_watch.broken or ("no reward" if reward is None else None),
        injected=injected_errors(results, world, episode.tools),
    )
