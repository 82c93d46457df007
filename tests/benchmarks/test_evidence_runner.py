"""benchmarks/evidence: suites are read and checked, every (arm, seed) is run once, and a killed suite goes on."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
EVIDENCE = ROOT / "benchmarks" / "evidence"
sys.path.insert(0, str(EVIDENCE))

from evaluations import outcome, plays_of, raw_line  # noqa: E402
from suite import Set, SuiteError, read_suite  # noqa: E402

from fission_grpo.core.types import ErrorKind  # noqa: E402
from fission_grpo.evaluation.records import (  # noqa: E402
    CallRecord,
    CaseRecord,
    StepRecord,
    TurnRecord,
)

TINY = """
suite: tiny
config: configs/desk_fission.yaml
base: {save_strategy: "no", per_device_train_batch_size: 16, gradient_accumulation_steps: 1, num_tasks: 8}
first_seed: 7
points: [100, 1000]
sets:
  held_out: {tasks: "desk:held_out", count: 4}
  faults: {tasks: "desk:faults", count: 2, at: last, arms: [fission]}
arms:
  untrained: {seeds: 1, train: false}
  fission: {seeds: 2}
"""


def written(folder, text=TINY):
    path = folder / "tiny.yaml"
    path.write_text(text)
    return path


def test_jobs_go_through_all_arms_of_a_seed_first(tmp_path):
    suite = read_suite(written(tmp_path))
    assert suite.jobs() == [("untrained", 7), ("fission", 7), ("fission", 8)]


def test_the_config_names_what_decides_an_arms_results_and_nothing_else(tmp_path):
    suite = read_suite(written(tmp_path))
    more_seeds = replace(suite, arms={**suite.arms, "fission": replace(suite.arms["fission"], seeds=5)})
    other_points = replace(suite, points=[300])
    other_option = replace(suite, options={**suite.options, "learning_rate": 1.0})
    assert more_seeds.config("fission") == suite.config("fission")
    assert len({one.config("fission") for one in (suite, other_points, other_option)}) == 3
    assert suite.config("fission") != suite.config("untrained")


@pytest.mark.parametrize(
    ("wrong", "right", "told"),
    [
        ("seeds: 2", "seed: 2", "arms.fission knows no 'seed'; its fields are seeds,"),
        ("points: [100, 1000]", "points: [1000, 100]", "points must be rising numbers of tokens"),
        ("arms: [fission]", "arms: [fision]", "sets.faults.arms names 'fision'; there are untrained, fission"),
        ("at: last", "at: first", "sets.faults.at must be every or last, got 'first'"),
        ("suite: tiny", "name: tiny", "must be a mapping with suite, points, sets, arms"),
        ("fission: {seeds: 2}", "fission: 2", "arms.fission must be a mapping"),
        ("suite: tiny", "suite: [", "not YAML"),
    ],
)
def test_a_mistake_in_a_suite_is_named_with_its_file_and_field(tmp_path, wrong, right, told):
    path = written(tmp_path, TINY.replace(wrong, right))
    with pytest.raises(SuiteError, match=r"tiny\.yaml") as caught:
        read_suite(path)
    assert told in str(caught.value)


@pytest.mark.parametrize("path", sorted(EVIDENCE.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_desks_sets_of_every_suite_exist(path):
    suite = read_suite(path)
    for one in suite.sets.values():
        if one.tasks.startswith("desk"):
            assert len(plays_of(replace(one, count=3))) == 3


def test_skipped_tasks_are_left_out_of_every_desk_set():
    for tasks in ("desk", "desk:held_out", "desk:faults"):
        assert list(plays_of(Set(tasks, count=2, skip=2))) == ["held_out-1000-2", "held_out-1000-3"]


def case(success, *errors, injected=False):
    calls = tuple(
        CallRecord("f", {"x": 1}, "", error, ErrorKind.RAISED if error else None, injected=injected)
        for error in errors
    )
    return CaseRecord("a", "plain", (TurnRecord((StepRecord(text="f", calls=calls, tokens=5),), success),), success)


def test_outcomes_tell_success_and_own_errors_apart():
    assert [outcome(case(True, None)), outcome(case(False, None))] == ["s", "f"]
    assert [outcome(case(True, "no", None)), outcome(case(False, "no"))] == ["r", "x"]
    assert outcome(case(True, "503", injected=True)) == "s"
    assert outcome(CaseRecord("a", missing="endpoint down")) == "-"


def test_a_raw_line_counts_errors_calls_and_loops():
    line = raw_line([case(True, "no", "no", None), case(False, "no")])
    told = [line[name] for name in ("outcomes", "error_kinds", "calls", "loops", "eval_tokens")]
    assert told == ["rx", {"raised": 3}, 4, [1, 3], 10]


def run(tmp_path, *more):
    command = [sys.executable, str(EVIDENCE / "run.py"), str(tmp_path / "tiny.yaml"), "--workers", "1"]
    folders = ["--work", str(tmp_path / "work"), "--results", str(tmp_path / "results")]
    return subprocess.run([*command, *folders, *more], capture_output=True, text=True, check=False)


def lines(tmp_path, name):
    return [json.loads(line) for line in (tmp_path / "results" / "tiny" / name).read_text().splitlines()]


@pytest.mark.dear
def test_a_suite_runs_what_is_missing_and_keeps_what_is_there(tmp_path):
    written(tmp_path)
    first = run(tmp_path, "--arms", "fission", "--seeds", "7")
    assert first.returncode == 0, first.stdout + first.stderr
    found = lines(tmp_path, "evaluations.jsonl")
    assert [(one["point"], one["set"]) for one in found] == [(100, "held_out"), (1000, "held_out"), (1000, "faults")]
    assert all(one["tokens"] >= one["point"] and len(one["outcomes"]) == one["tasks"] for one in found)
    (whole,) = lines(tmp_path, "runs.jsonl")
    assert (whole["cycles"][0]["phase"], whole["options"]["num_generations"]) == (0, 8)
    assert whole["cycles"][-1]["tokens"] == found[-1]["tokens"]  # the last update is in, and evaluated

    (tmp_path / "work" / "tiny" / "fission-8").mkdir()  # begun and killed
    second = run(tmp_path)
    assert second.returncode == 0, second.stdout + second.stderr
    assert "1 of 3 runs are there" in second.stdout
    assert [(one["arm"], one["seed"]) for one in lines(tmp_path, "runs.jsonl")] == [
        ("fission", 7),
        ("untrained", 7),
        ("fission", 8),
    ]
    assert lines(tmp_path, "runs.jsonl")[0] == whole
    cards = json.loads((tmp_path / "results" / "tiny" / "sets.json").read_text())
    assert cards["held_out"]["categories"] == ["plain", "names", "formats", "ids"]


@pytest.mark.dear
def test_what_an_arm_needs_is_made_for_it_alone_or_on_demand(tmp_path):
    made, maker = tmp_path / "made.txt", tmp_path / "maker.py"
    maker.write_text(f"open({str(made)!r}, 'w').close()")
    written(tmp_path, f"{TINY}prepare: [{{creates: {made}, arms: [fission], command: python {maker}}}]\n")
    assert run(tmp_path, "--arms", "untrained").returncode == 0
    assert not made.exists()  # only fission needs it
    (tmp_path / "results").rename(tmp_path / "before")
    assert run(tmp_path, "--prepare").returncode == 0
    assert made.exists()
    assert not (tmp_path / "results").exists()


def test_an_unknown_arm_is_refused_with_the_arms_there_are(tmp_path):
    written(tmp_path)
    refused = run(tmp_path, "--arms", "grpo")
    assert refused.returncode == 2
    assert "no arm 'grpo' in" in refused.stderr
    assert "there are untrained, fission" in refused.stderr
