"""Metrics of a cycle, on hand-worked numbers."""

import math
from collections import Counter

import pytest

from fission_grpo.core.types import (
    ErrorKind,
    Failure,
    Rollout,
    Task,
    ToolCall,
    ToolResult,
    Trajectory,
    Turn,
    Verdict,
)
from fission_grpo.fission.metrics import (
    RecoveryOutcome,
    count_rollouts,
    explore_metrics,
    outcomes_by_context,
    recovery_metrics,
    zero_std_groups,
)
from fission_grpo.fission.recovery import CorrectiveInstance

TASK, CALL = Task("t", "p"), ToolCall("f")


def rollout(reward, failed, error=None):
    turn = Turn("x", calls=(CALL,), results=(ToolResult(CALL, "r", error=error),))
    return Rollout(Trajectory(TASK, (turn,)), Verdict(reward, failed))


def context(name, step, zero_std):
    task = Task(name, "p", depth=1)
    return CorrectiveInstance(task, step, ErrorKind.RAISED, "rules", "f", "x", 0.0, zero_std=zero_std)


def test_group_is_flat_when_its_judged_rewards_are_equal():
    nan = math.nan
    assert zero_std_groups([1, 1, 0, 1, nan, 1, nan, nan], [2, 2, 2, 2]) == [True, False, True, True]


def test_recovery_rate_is_success_among_rollouts_that_met_an_error():
    # 4 judged: succeeds without error, succeeds after one, two fail after one; 1 lost to infrastructure
    rollouts = [rollout(1.0, False), rollout(1.0, False, "e"), rollout(0.0, True, "e"), rollout(0.0, True, "e")]
    failures = [Failure(TASK, (), ErrorKind.RAISED)] * 2
    counts = count_rollouts([*rollouts, rollout(None, False)], failures)
    assert counts["infrastructure"] == 1
    assert explore_metrics(counts, [True, False]) == {
        "fission/success": 2 / 4,
        "fission/error_cases": 3.0,
        "fission/first_try_success": 1 / 4,
        "fission/error_recovery_rate": 1 / 3,
        "fission/frac_zero_std": 1 / 2,
        "fission/kind/raised": 2.0,
    }


def test_recovery_rate_is_absent_without_errors():
    assert "fission/error_recovery_rate" not in explore_metrics(count_rollouts([rollout(1.0, False)], []), [True])


def test_success_and_rewards_are_absent_if_nobody_could_be_judged():
    lost = explore_metrics(count_rollouts([rollout(None, False)], []), [True])
    assert lost == {"fission/error_cases": 0.0, "fission/frac_zero_std": 1.0}
    outcomes = [RecoveryOutcome("a", None, False, "")]
    metrics = recovery_metrics([context("a", 3, zero_std=True)], outcomes, zero_std=[True], step=7)
    assert metrics.keys().isdisjoint({"recovery/rate", "recovery/reward"})
    assert metrics["fission/age"] == 4


def test_counts_of_ranks_add_up():
    one = count_rollouts([rollout(1.0, False, "e")], [])
    assert sum([one, one], Counter())["recovered"] == 2


def test_recover_cycle_in_numbers():
    contexts = [context("a", 3, zero_std=True), context("b", 5, zero_std=False)]
    outcomes = [
        RecoveryOutcome("a", 1.0, False, ""),
        RecoveryOutcome("a", 0.0, True, "", repeats=True),
        RecoveryOutcome("b", 0.0, True, ""),
    ]
    outcomes.append(RecoveryOutcome("b", 0.0, True, ""))
    metrics = recovery_metrics(contexts, outcomes, zero_std=[False, True], step=7)
    assert metrics == {
        "recovery/reward": pytest.approx(1 / 4),
        "recovery/rate": 1 / 4,
        "recovery/repeats": 1 / 4,
        "recovery/frac_zero_std": 1 / 2,
        "recovery/depth": 1.0,
        "fission/rescued_groups": 1.0,  # a: flat when explored, not when recovered
        "fission/age": ((7 - 3) + (7 - 5)) / 2,
    }
    assert [len(group) for group in outcomes_by_context(contexts, outcomes).values()] == [2, 2]
