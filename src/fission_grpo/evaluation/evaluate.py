"""Evaluation in a live environment in a few lines: `rates_of(evaluate(policy, MyEnvironment, rows))`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from fission_grpo.core.types import Message
from fission_grpo.envs.wrapper import Limits
from fission_grpo.evaluation.episodes import Rules, play_environment
from fission_grpo.evaluation.metrics import Rates
from fission_grpo.evaluation.records import CaseRecord
from fission_grpo.evaluation.runner import play_all
from fission_grpo.inference.base import AsynchronousPolicy, Policy, Reply, Request


class ScriptedPolicy:
    """`write(dialogue)` returns the assistant's text. Assistant messages of the dialogue hold its earlier texts."""

    def __init__(self, write: Callable[[Sequence[Message]], str]):
        self._write = write

    def reply(self, requests: Sequence[Request]) -> list[Reply]:
        return [Reply(self._write(request.messages)) for request in requests]


def evaluate(
    policy: Policy | AsynchronousPolicy,
    make_environment: Callable[[], Any] | Mapping[str, Callable[[], Any]],
    rows: Iterable[Mapping[str, Any]],
    *,
    max_turns: int = 4,
    success_at: float = 1.0,
    limits: Limits | None = None,
) -> list[CaseRecord]:
    """Let the policy do every row's task, all episodes side by side; one record per row, in order.

    How an episode goes is `evaluation.episodes.play_environment`'s matter. All rows are held in memory; use `play_all`
    for as many as you like, and `evaluation.run.evaluate_run` to keep the records on disk.

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
    records: dict[int, CaseRecord] = {}

    def play(number: int) -> Any:
        records[number] = record = yield from play_environment(make_environment, rows[number], number, rules)
        return record

    begin = (lambda number=number: play(number) for number in range(len(rows)))
    play_all(policy, begin, in_flight=max(len(rows), 1))
    return [records[number] for number in range(len(rows))]


def eval_line(rates: Rates, name: str, step: int, trained_on_tokens: int = 0) -> str:
    """A line of `eval.jsonl`, which reports read. Shares that could not be taken are null.

    Args:
        rates: of the evaluation.
        name: what was evaluated.
        step: training steps it had had.
        trained_on_tokens: tokens sampled in training until then (`generated_tokens` of the line).

    Raises:
        ValueError: no case could be judged.
    """
    if not rates.judged:
        reasons = "; ".join(f"{reason} ({count})" for reason, count in rates.missing_reasons.items())
        raise ValueError(f"none of {rates.cases} cases could be judged: {reasons or 'nothing judges them'}")
    return json.dumps(
        {
            "name": name,
            "step": step,
            "generated_tokens": trained_on_tokens,
            "tasks": rates.judged,
            "success": rates.success.rate,
            "success_ci": rates.success.interval,
            "error_cases": rates.recovery.of,
            "recovered": rates.recovery.hits,
            "recovery_rate": rates.recovery.rate,
            "recovery_ci": rates.recovery.interval,
            "errors": rates.own_errors,
            "retry_loop_rate": rates.retry_loops.rate,
            "broken": rates.missing,
        }
    )
