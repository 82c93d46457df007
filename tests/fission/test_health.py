"""Findings in training logs: none for runs that are well, the right one for runs that were broken on purpose."""

import gzip
import json
import math
import random
import sys
from pathlib import Path

import pytest

from fission_grpo.fission.health import check_health, health_topics

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


def test_loss_and_gradients_are_known_where_the_trainer_logs_and_a_few_faults_at_the_start_are_none():
    def logged(steps):
        return [{"step": step, "learning_rate": 1e-4, "loss": math.nan, "grad_norm": math.inf} for step in steps]

    assert names(logged([10, 20])) == ["not_finite"]
    assert names(logged([10])) == names(logged([1, 2, 3, 4])) == []
    assert names([*logged([1, 2, 3, 4, 5]), explore(6)]) == []


def test_groups_of_which_nearly_none_varies_are_found_though_no_five_cycles_are_flat():
    rows = [recover(0), *(explore(k, fission__frac_zero_std=0.75 if k % 4 == 0 else 1.0) for k in range(100))]
    assert names(rows) == []
    rows = [recover(0), *(explore(k, fission__frac_zero_std=0.875 if k % 4 == 0 else 1.0) for k in range(100))]
    [found] = check_health(rows)
    assert found.name == "no_variance"
    assert found.message.startswith("in the last 20 explore cycles (from step 80) all rewards in 97% of the explore")


def test_first_try_success_that_collapses_is_found_after_three_cycles():
    rows = [explore(k) for k in range(8)] + [explore(k, fission__first_try_success=0.02) for k in (8, 9, 10)]
    assert names(rows[:-1]) == []
    [found] = check_health(rows)
    assert found.message == "success without any error fell from 40% to 2% in the last 3 explore cycles (from step 8)"
    assert "beta" in found.advice


def test_first_try_success_that_falls_slowly_is_found_unless_the_batches_differ_as_much():
    falling = [explore(k, fission__first_try_success=0.8 - 0.015 * k) for k in range(31)]
    assert names([recover(0), *falling]) == ["falling_first_try_success"]
    noisy = [explore(k, fission__first_try_success=(0.9, 0.3)[k % 2] - 0.008 * k) for k in range(31)]
    assert names([recover(0), *noisy]) == []


@pytest.mark.parametrize("tasks", [1, 2, 4])
def test_policies_that_do_not_change_hardly_ever_have_a_finding_though_each_cycle_is_looked_at(tasks):
    warned = 0
    for seed in range(30):
        draw, rows = random.Random(seed), []
        for step in range(100):
            hits = [
                sum(draw.random() < rate for _ in range(8))
                for rate in [draw.betavariate(0.5, 1.0) for _ in range(tasks)]
            ]
            flat, rate = sum(n in (0, 8) for n in hits) / tasks, sum(hits) / 8 / tasks
            row = {"fission/frac_zero_std": flat, "fission/success": rate, "fission/first_try_success": rate}
            rows.append(row | {"step": step})
            if check_health(rows):
                warned += 1
                break
    assert warned <= 1


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


def test_a_small_recovery_ratio_is_named_as_the_reason_of_no_recover_cycle():
    rows = [explore(k, **{"fission__recoveries_per_explore": 0.02 / 0.98}) for k in range(48)]
    [found] = check_health(rows)
    assert found.message == "no recover cycle has run in 48 explore cycles: recovery_ratio asks for one after 49"
    assert "Raise recovery_ratio" in found.advice
    assert "max_age_steps" in check_health([*rows, rows[-1]])[0].advice


def test_topics_with_too_few_rows_are_told_from_those_that_are_well():
    assert health_topics(run(40))[1] == {}
    well, unknown = health_topics(run(9))
    assert unknown == {"recoveries": 10, "first-try success": 20, "lengths": 10}
    assert "reward variance" in well
    plain = [{k: v for k, v in explore(k).items() if k not in ("fission/pushed", "fission/buffer")} for k in range(9)]
    assert health_topics(plain)[1] == {"first-try success": 20, "lengths": 10}


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
    assert silent == {300, 301, 303, 304, 305, 306, 308, 309}
    others = {key: value for key, value in wrong.items() if key not in shuffled and key[1] != "silent"}
    assert {name for value in others.values() for name in value} == {"falling_first_try_success", "endless"}
    assert {key[0] for key in others} == {"episode"}
    assert len(others) == 6
    assert len(wrong) == 24
    assert not any(arm.startswith("grpo") for _, arm, _ in wrong)
