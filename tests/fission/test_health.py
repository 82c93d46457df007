"""Findings in training logs: none for runs that are well, the right one for runs that were broken on purpose."""

import gzip
import json
import math
import sys
from pathlib import Path

import pytest

from fission_grpo.fission.health import check_health

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "evidence" / "results"


def explore(step, **metrics):
    row = {
        "step": step, "learning_rate": 1e-4, "loss": 0.1, "grad_norm": 0.5, "reward": 0.5, "fission/phase": 0.0,
        "fission/frac_zero_std": 0.25, "fission/success": 0.5, "fission/first_try_success": 0.4, "fission/pushed": 3.0,
        "fission/buffer": 3.0, "feedback/fallbacks": 0.0, "completions/mean_length": 40.0,
        "completions/clipped_ratio": 0.0, "fission/kind/raised": 8.0,
    }  # fmt: skip
    return row | {name.replace("__", "/"): value for name, value in metrics.items()}


def recover(step, **metrics):
    row = {"step": step, "fission/phase": 1.0, "recovery/frac_zero_std": 0.5, "recovery/rate": 0.4}
    return row | {name.replace("__", "/"): value for name, value in metrics.items()}


def run(count=6, **metrics):
    return [row for k in range(1, count + 1) for row in (explore(2 * k, **metrics), recover(2 * k + 1))]


def names(rows):
    return [one.name for one in check_health(rows)]


def test_a_run_that_is_well_has_no_finding():
    assert check_health(run(40)) == []
    assert check_health([]) == []
    assert check_health([{"eval_loss": 1.0}, {"train_runtime": 3.0}]) == []


@pytest.mark.parametrize(
    ("metrics", "name", "advice"),
    [
        ({"fission__success": 0.0}, "all_failed", "lower failure_threshold"),
        ({"fission__success": 0.0, "fission__frac_zero_std": 1.0}, "all_failed", "easier tasks"),
        ({"fission__success": 1.0}, "none_failed", "raise failure_threshold"),
        ({"fission__success": 1.0, "fission__frac_zero_std": 1.0}, "none_failed", "harder ones"),
        ({"fission__frac_zero_std": 1.0}, "no_variance", "num_generations"),
        ({"grad_norm": math.nan}, "not_finite", "learning_rate"),
        ({"feedback__fallbacks": 3.0, "feedback__fallback/endpoint/http_429": 3.0}, "no_feedback", "feedback"),
        ({"env__timeouts": 2.0}, "timeouts", "tool_timeout"),
        ({"env__like_errors": 9.0}, "like_errors", "error_pattern"),
        ({"env__replay_mismatches": 1.0, "env__replayed": 8.0}, "replay_mismatches", "_snapshot"),
    ],
)
def test_five_cycles_in_a_row_make_a_finding_and_four_do_not(metrics, name, advice):
    rows = [explore(k, **metrics) for k in range(5)]
    [found] = check_health(rows)
    assert found.name == name
    assert advice in found.advice
    assert str(found) == f"{found.message}. {found.advice}"
    assert check_health(rows[:4]) == []


def test_a_streak_that_ended_is_no_finding():
    assert names([*run(9, fission__frac_zero_std=1.0), explore(20)]) == []


def test_rollouts_without_any_reward_are_told_from_failures():
    rows = [{k: v for k, v in row.items() if k != "fission/success"} for row in run(5, fission__frac_zero_std=1.0)]
    assert names(rows) == ["none_judged"]


def test_the_message_says_what_the_reasons_of_missing_feedback_are():
    [found] = check_health(run(5, **{"feedback__fallbacks": 3.0, "feedback__fallback/endpoint/http_429": 3.0}))
    assert "endpoint/http_429" in found.message


def test_a_source_that_raises_on_some_failures_is_found():
    faulty = {"feedback__fallbacks": 1.0, "feedback__fallback/mine/raised_keyerror": 1.0}
    [found] = check_health(run(5, **faulty))
    assert found.name == "no_feedback"
    assert "33% of failures (mine/raised_keyerror)" in found.message
    assert check_health(run(5, **{"feedback__fallbacks": 1.0, "feedback__fallback/mine/no_diagnosis": 1.0})) == []


def test_recoveries_without_variance_are_found_after_ten_cycles_with_advice_by_their_rate():
    def flat(count, rate):
        return [
            r for k in range(count) for r in (explore(k), recover(k, recovery__frac_zero_std=1, recovery__rate=rate))
        ]

    assert names(flat(9, 0.0)) == []
    assert [one.advice for one in check_health(flat(10, 0.0))] == [
        "Give feedback that says more (feedback: environment,rules), or take easier tasks."
    ]
    assert "recovery_ratio" in check_health(flat(10, 1.0))[0].advice


def test_numbers_that_a_reader_left_out_are_no_finite_numbers():
    rows = [explore(k) for k in range(3)] + [explore(k) for k in range(3, 8)]
    for row in rows[3:]:
        del row["loss"]
    assert names(rows) == ["not_finite"]


def test_first_try_success_that_collapses_is_found_after_three_cycles():
    rows = [explore(k) for k in range(8)] + [explore(k, fission__first_try_success=0.02) for k in (8, 9, 10)]
    assert names(rows[:-1]) == []
    [found] = check_health(rows)
    assert found.message == "success without any error fell from 40% (step 0) to 2%"
    assert "beta" in found.advice


def test_first_try_success_that_falls_slowly_is_found_unless_the_batches_differ_as_much():
    falling = [explore(k, fission__first_try_success=0.8 - 0.015 * k) for k in range(31)]
    assert names([recover(0), *falling]) == ["falling_first_try_success"]
    noisy = [explore(k, fission__first_try_success=(0.9, 0.3)[k % 2] - 0.008 * k) for k in range(31)]
    assert names([recover(0), *noisy]) == []


@pytest.mark.parametrize(
    "late",
    [
        {"completions__clipped_ratio": 0.3},
        {"completions__mean_length": 81.0},
        {"fission__kind/out_of_turns": 8.0},
    ],
)
def test_a_policy_that_no_longer_stops_is_found(late):
    rows = [explore(k) for k in range(6)] + [explore(k, **late) for k in range(6, 11)]
    assert names(rows) == ["endless"]


def test_longer_completions_with_more_success_are_no_finding():
    rows = [explore(k) for k in range(6)]
    rows += [explore(k, completions__mean_length=90.0, fission__success=0.7) for k in range(6, 11)]
    assert names(rows) == []


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({}, "the buffer holds 3 instances, too few for a recover cycle"),
        ({"fission__pushed": 0.0}, "no failure became a corrective instance"),
        ({"fission__pushed": 0.0, "fission__too_long": 2.0}, "every corrective instance was too long"),
    ],
)
def test_failures_that_are_never_recovered_from_are_found_after_20_explore_cycles(metrics, message):
    assert check_health([explore(k, **metrics) for k in range(19)]) == []
    [found] = check_health([explore(k, **metrics) for k in range(20)])
    assert found.name == "no_recovery"
    assert message in found.message


def test_plain_grpo_is_not_asked_for_recoveries():
    rows = [{k: v for k, v in explore(k).items() if k not in ("fission/pushed", "fission/buffer")} for k in range(40)]
    assert check_health(rows) == []


def committed_runs():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from old_names import new_names

    sys.path.pop(0)
    for suite in ("confirm", "static", "episode"):
        for line in gzip.decompress((RESULTS / suite / "runs.jsonl.gz").read_bytes()).splitlines():
            record = json.loads(line)
            rows = []
            for cycle in record["cycles"]:
                row = {name: value for name, value in new_names(cycle).items() if isinstance(value, int | float)}
                row["fission/phase"] = row.pop("phase")
                if "fission/success" in row:  # of 64 rollouts
                    recovered = row.get("fission/error_recovery_rate", 0.0) * row["fission/error_cases"] / 64
                    row["fission/first_try_success"] = row["fission/success"] - recovered
                rows.append(row)
            yield suite, record["arm"], record["seed"], rows


def test_in_the_committed_runs_only_those_that_went_wrong_have_findings():
    """The controls with shuffled or silent feedback, and the policies of `episode` that no longer stopped."""
    found = {run[:3]: names(run[3]) for run in committed_runs()}
    assert len(found) > 300
    wrong = {key: value for key, value in found.items() if value}
    shuffled = {key for key, value in wrong.items() if "replay_mismatches" in value}
    assert shuffled == {("static", "shuffled", seed) for seed in range(300, 310)}
    silent = {key[2] for key in wrong if key[:2] == ("static", "silent")}
    assert silent == {301, 303, 306, 308, 309}
    others = {key: value for key, value in wrong.items() if key not in shuffled and key[1] != "silent"}
    assert {name for value in others.values() for name in value} == {"falling_first_try_success", "endless"}
    assert {key[0] for key in others} == {"episode"}
    assert len(others) == 7
    assert not any(arm.startswith("grpo") for _, arm, _ in wrong)
