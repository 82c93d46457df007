"""Several samples of each task: pass@k, pass^k, and intervals over tasks."""

import json

import pytest

from fission_grpo import evaluate
from fission_grpo.cli.main import main
from fission_grpo.core.errors import UsageError
from fission_grpo.evaluation.metrics import compute_metrics, metrics_json
from fission_grpo.evaluation.records import CaseRecord, read_records
from fission_grpo.evaluation.tables import metrics_table
from fission_grpo.inference.base import Reply


def records(*outcomes):
    """Cases of tasks "0", "1", ...: for each the success of its samples."""
    return [
        CaseRecord(f"{task} ({k})", task=str(task), success=success)
        for task, samples in enumerate(outcomes)
        for k, success in enumerate(samples)
    ]


def passes(*outcomes):
    return [(one.k, one.tasks, one.any, one.all) for one in compute_metrics(records(*outcomes)).passes]


def test_with_all_samples_it_is_the_share_of_tasks_with_any_and_with_only_successes():
    yes, no = True, False
    one, two = passes([yes, yes], [yes, no], [no, no])
    assert one == (1, 3, 0.5, 0.5)
    assert two == (2, 3, pytest.approx(2 / 3), pytest.approx(1 / 3))


def test_with_fewer_than_all_samples_every_choice_counts():
    # of 4 samples 2 succeed: of the 6 pairs 1 has no success and 1 has two
    (_, two, _, four) = passes([True, True, False, False])
    assert two == (2, 1, pytest.approx(5 / 6), pytest.approx(1 / 6))
    assert four == (4, 1, 1.0, 0.0)


def test_tasks_with_fewer_judged_samples_are_left_out_of_the_larger_k():
    given = [*records([True, False], [True, True]), CaseRecord("2 (1)", task="2", success=True)]
    given.append(CaseRecord("2 (2)", task="2", missing="timeout"))
    (one, two) = compute_metrics(given).passes
    assert (one.tasks, one.any) == (3, pytest.approx((0.5 + 1 + 1) / 3))
    assert (two.tasks, two.any, two.all) == (2, 1.0, 0.5)


def test_one_sample_of_each_task_has_no_pass_rates_and_wilsons_interval():
    metrics = compute_metrics(records([True], [False]))
    assert metrics.passes == ()
    assert metrics.success.method == "wilson"
    assert "pass@" not in metrics_table(metrics)


def test_copies_of_a_task_are_no_further_evidence():
    """Ten tasks, each with the same outcome four times: the interval is that of ten cases, and not of forty."""
    few = compute_metrics(records(*[[k < 5] for k in range(10)])).success.interval
    many = compute_metrics(records(*[[k < 5] * 4 for k in range(10)])).success
    assert many.method == "bootstrap"
    assert many.rate == 0.5
    assert many.interval[1] - many.interval[0] > 0.9 * (few[1] - few[0])


def test_pass_rates_are_in_the_table_and_in_json():
    metrics = compute_metrics(records([True, True], [True, False]))
    table = metrics_table(metrics)
    assert "pass@2" in table
    assert "mean over 2 tasks with 2 samples" in table
    assert metrics_json(metrics)["passes"][1]["all"] == 0.5


class Coin:
    def reset(self, **_):
        self.done = False

    def flip(self) -> str:
        """Flip it."""
        return "ok"


class Seeded:
    """Says a number that its seed decides."""

    def reply(self, requests):
        return [Reply(str(min(request.seed % 5, 1))) for request in requests]


def says_one(completions, **_):
    return [float(completion[-1]["content"] == "1") for completion in completions]


def test_samples_differ_and_the_first_is_the_one_without_samples(tmp_path):
    rows = [{"id": str(k), "prompt": [{"role": "user", "content": "Go."}]} for k in range(12)]
    one = evaluate(Seeded(), Coin, rows, says_one)
    four = evaluate(Seeded(), Coin, rows, says_one, samples=4, output_dir=tmp_path, name="x")
    assert len(four.records) == 48
    first = {record.id: record.success for record in four.records}
    assert all(first[record.id] == record.success for record in one.records)
    assert {record.of_task for record in four.records} == {str(k) for k in range(12)}
    assert 0 < four.metrics.passes[-1].all < four.metrics.success.rate < four.metrics.passes[-1].any
    assert read_records(tmp_path / "eval-x" / "cases.jsonl")[-1].task == "11"
    assert json.loads((tmp_path / "eval-x" / "manifest.json").read_text())["tasks"]["samples"] == 4


def test_samples_that_would_all_be_the_same_are_refused(tmp_path, capsys):
    rows = [{"prompt": [{"role": "user", "content": "Go."}]}]
    with pytest.raises(UsageError, match="temperature above 0"):
        evaluate("starter", Coin, rows, says_one, samples=2, temperature=0)
    greedy = Seeded()
    greedy.temperature = 0.0
    with pytest.raises(UsageError, match="temperature above 0"):
        evaluate(greedy, Coin, rows, says_one, samples=2)
    command = ["eval", "--model", "starter", "--tasks", "desk", "--samples", "3", "--temperature", "0"]
    assert main(command) == 2
    assert "temperature above 0" in capsys.readouterr().err
