"""Evaluation in a live environment: success, and recovery from errors, with intervals."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fission_grpo.environment import Limits
from fission_grpo.evaluation.episodes import Rules, play_environment
from fission_grpo.evaluation.play import AsynchronousPolicy, Play, Policy, play_all
from fission_grpo.evaluation.records import CaseRecord
from fission_grpo.trajectory import Message

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
        broken: why the episode could not be judged (the environment was out of order, or a reply got lost), None if
            it could.
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


def evaluate(
    policy: Policy | AsynchronousPolicy,
    make_environment: Callable[[], Any] | Mapping[str, Callable[[], Any]],
    rows: Iterable[Mapping[str, Any]],
    *,
    max_turns: int = 4,
    success_at: float = 1.0,
    limits: Limits | None = None,
) -> list[Case]:
    """Let the policy do every row's task, all episodes side by side.

    How an episode goes is `evaluation.episodes.play_environment`'s matter. All rows are held in memory; use `play_all`
    for as many as you like.

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
    rules, rows = Rules(max_turns, success_at, limits), list(rows)
    cases: dict[int, Case] = {}

    def case_of(number: int) -> Play:
        transcript: list[Message] = []
        record = yield from play_environment(make_environment, rows[number], number, rules, transcript=transcript)
        cases[number] = case_of_record(record, transcript)
        return record

    begin = (lambda number=number: case_of(number) for number in range(len(rows)))
    play_all(policy, begin, in_flight=max(len(rows), 1))
    return [cases[number] for number in range(len(rows))]


def case_of_record(record: CaseRecord, transcript: Sequence[Message] = ()) -> Case:
    """A record in the terms of `summarise`; injected errors are among its errors."""
    calls = record.calls
    return Case(
        id=record.id,
        success=bool(record.success),
        calls=len(calls),
        errors=sum(step.errors for step in record.steps),
        turns=len(record.steps),
        generated_tokens=sum(step.tokens for step in record.steps),
        retries=sum(
            call.error is not None and (later.name, later.arguments) == (call.name, call.arguments)
            for call, later in itertools.pairwise(calls)
        ),
        transcript=tuple(transcript),
        broken=record.missing,
        injected=sum(call.injected for call in calls),
    )


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
