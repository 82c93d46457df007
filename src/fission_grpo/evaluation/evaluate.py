"""Evaluation in a live environment in a few lines of Python."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fission_grpo.envs.wrapper import ToolLimits
from fission_grpo.evaluation.episodes import EpisodeConfig, run_episode
from fission_grpo.evaluation.records import CaseRecord
from fission_grpo.evaluation.runner import RunningCase, run_cases
from fission_grpo.inference.base import AsynchronousPolicy, Policy


def evaluate(
    policy: Policy | AsynchronousPolicy,
    make_environment: Callable[[], Any] | Mapping[str, Callable[[], Any]],
    rows: Iterable[Mapping[str, Any]],
    *,
    max_turns: int = 4,
    success_at: float = 1.0,
    limits: ToolLimits | None = None,
) -> list[CaseRecord]:
    """Run one episode per row, all at the same time, and return one record per row, in order.

    All rows are held in memory: use `run_cases` for more rows than fit, and `evaluate_run` for records on disk.

    Args:
        policy: writes the turns, such as an `inference.local.LocalPolicy`, or any object with `reply(requests)`.
        make_environment: makes an environment with `reset(**row)` and `get_reward()` (or `_reward()`); or several by
            name, of which a row's column `environment` selects one, as in TRL.
        rows: with `prompt` (chat messages) and optionally `id` (default: the row's number).
        max_turns, success_at, limits: see `EpisodeConfig`.

    Example:
        >>> records = evaluate(policy, Desk, rows)
        >>> compute_metrics(records).recovery.rate
    """
    config, rows = EpisodeConfig(max_turns, success_at, limits), list(rows)
    records: dict[int, CaseRecord] = {}

    def run_row(number: int) -> RunningCase:
        records[number] = record = yield from run_episode(make_environment, rows[number], number, config)
        return record

    cases = (lambda number=number: run_row(number) for number in range(len(rows)))
    run_cases(policy, cases, in_flight=max(len(rows), 1))
    return [records[number] for number in range(len(rows))]
