"""What the analysis of the evidence concludes by the protocol's rules, and how it compares sets of the same tasks."""

import json
import sys
from pathlib import Path

import numpy
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "benchmarks" / "evidence"))

from analysis import findings, intervals, measures, raw, results, whole

UP, DOWN, FLAT = ([0.1, 0.12, 0.1, 0.14, 0.1], [-0.1, -0.12, -0.1, -0.14, -0.1], [0.1, -0.12, 0.1, -0.1, 0.03])


def gains(recovery, success, needed=UP):
    values = {"recovery": recovery, "success": success, "success_after_needed_error": needed}
    return {key: intervals.difference(dict(enumerate(one))) for key, one in values.items()}


def concluded(fission, **controls):
    cost = results.Cost(100.0, {}, 5.0, 10.0)
    success = {"success": intervals.estimate({0: 0.5})}
    arms = {
        name: results.ArmResult(100, cost, success, differences, None, {}, {}, 0)
        for name, differences in (("grpo", {}), ("fission", fission))
    }
    against = {("fission", f"fission_{name}"): one for name, one in controls.items()}
    lines = findings.findings(results.SetResult("held_out", 100, 4, "grpo", arms), against)
    return [line for line in lines if not line.startswith("fission less")]


def test_a_gain_in_one_primary_number_without_a_loss_in_the_other_is_for_the_method():
    assert concluded(gains(UP, FLAT), fixed=gains(UP, FLAT), shuffled=gains(UP, FLAT)) == [
        "For the method: yes",
        "Against the method: no",
        "Against the diagnosis: no",
        # FLAT's t-interval, the wider one: 0.002 + 2.776 * sqrt(0.04528 / 4 / 5) = 0.134
        "Not shown for success: gains above +13.4 points are excluded; the paper's, +4.0, is not excluded",
    ]


def test_a_gain_in_recovery_with_a_loss_in_success_is_against_the_method():
    assert concluded(gains(UP, DOWN))[:2] == ["For the method: no", "Against the method: yes, success fell"]


def test_recovery_gained_by_erring_more_is_against_the_method():
    line = concluded(gains(UP, FLAT, needed=FLAT))[1]
    assert line.startswith("Against the method: yes, recovery rose, but success where an error is expected did not: ")


def test_a_control_that_gains_as_much_speaks_against_the_diagnosis():
    line = concluded(gains(UP, FLAT), fixed=gains(FLAT, UP), shuffled=gains(UP, UP))[2]
    assert line == "Against the diagnosis: yes, error recovery rate did not rise over fission_fixed"
    assert concluded(gains(UP, FLAT))[2] == "Against the diagnosis: not known, the controls are missing"


def test_intervals_that_hold_0_show_nothing_but_exclude_larger_gains():
    small = [0.01, -0.012, 0.01, -0.01, 0.003]  # a tenth of FLAT
    assert concluded(gains(small, FLAT)) == [
        "For the method: no",
        "Against the method: no",
        "Against the diagnosis: not asked, as nothing rose over GRPO",
        "Not shown for error recovery rate: gains above +1.3 points are excluded; the paper's, +5.7, is excluded",
        "Not shown for success: gains above +13.4 points are excluded; the paper's, +4.0, is not excluded",
    ]


def test_three_seeds_are_called_few():
    assert concluded(gains(UP[:3], UP[:3]))[0] == "For the method: yes (but only 3 seeds)"


def test_with_ten_seeds_the_t_interval_covers_and_the_bootstrap_is_known_to_be_too_narrow():
    draws = numpy.random.default_rng(0).normal(size=(400, 10))  # 400 experiments without any effect
    covers = {
        find: sum(low <= 0 <= high for low, high in map(find, draws)) / 400
        for find in (intervals.t_interval, intervals.bootstrap)
    }
    assert covers[intervals.t_interval] == pytest.approx(0.95, abs=0.03)  # 3 standard errors of 0.011
    assert covers[intervals.bootstrap] == pytest.approx(0.905, abs=0.045)


def test_there_are_no_findings_without_seeds_to_compare():
    assert concluded(gains([0.1], [0.1]))[0].startswith("no findings: fission less grpo has no interval")


LINE = {
    "seed": 0, "config": "a1", "tokens": 0, "extra_tokens": {}, "updates": 0, "seconds": 0.0, "error_kinds": {},
    "calls": 4, "loops": [0, 0],
}  # fmt: skip


def suite_of(tmp_path, *evaluations):
    """`evaluations`: (arm, point, set, outcomes) of seed 0; better_errors are tasks 2 and 0 of held_out."""
    sets = {
        "held_out": {"ids": ["t0", "t1", "t2"], "categories": ["names", "plain", "ids"]},
        "better_errors": {"ids": ["t2", "t0"], "categories": ["ids", "names"]},
    }
    (tmp_path / "sets.json").write_text(json.dumps(sets))
    names = ("arm", "point", "set", "outcomes")
    lines = [{**LINE, **dict(zip(names, one, strict=True))} for one in evaluations]
    (tmp_path / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def test_a_set_is_compared_with_the_same_tasks_of_the_main_set(tmp_path):
    folder = suite_of(
        tmp_path,
        ("untrained", 0, "held_out", "xsr"),
        ("untrained", 0, "better_errors", "rr"),
        ("grpo", 100, "held_out", "rsr"),
    )
    found = results.set_result(raw.read_suite(folder), "better_errors", 100, "grpo").arms
    # held_out on tasks t2, t0 is "rx": success and recovery 1/2 there, 1 with better errors
    assert found["untrained"].less_main["success"].by_seed == {0: 0.5}
    assert found["untrained"].less_main["recovery"].by_seed == {0: 0.5}
    assert list(found) == ["untrained"]
    assert "recovery … less held out" in whole_tables(folder)


def whole_tables(folder):
    from analysis.tables import markdown

    return markdown(whole.analyse(folder))


@pytest.mark.parametrize(
    ("categories", "known"),
    [(["plain", "names"], True), (["plain+names", "ids, locked"], True), (["plain"], False), (["TicketAPI"], False)],
)
def test_which_tasks_lead_into_an_error_is_known_of_the_desks_kinds_only(categories, known):
    tasks = raw.TaskSet(tuple(map(str, range(len(categories)))), tuple(categories))
    assert measures.has_needs(tasks) == known
    assert list(measures.chosen(measures.OTHERS, raw.TaskSet(("a", "b"), ("plain+names", "plain")))) == [False, True]
