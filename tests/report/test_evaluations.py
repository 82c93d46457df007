"""Evaluations in a report: the verdict, and reports of evaluations alone."""

import json
import re

import pytest
from report_support import BAD, EVALUATION, FINE, FISSION, GRPO, case, page_of, write_evaluation, write_run

from fission_grpo.core.errors import RunFileError
from fission_grpo.evaluation.records import CallRecord
from fission_grpo.report.evaluations import case_limit, describe_evaluations, latest_evaluations, summarize_evaluations
from fission_grpo.report.run import read_runs

pytest.importorskip("matplotlib")

# Of 40 tasks A solves 0-29, B 0-9 and 30-34: B solves 15 fewer; A alone solves 20, B alone 5
A = [case(i, i < 30) for i in range(40)]
B = [case(i, i < 10 or 30 <= i < 35) for i in range(40)]


def summary_of(path):
    return summarize_evaluations(latest_evaluations(read_runs(path)))


def test_the_verdict_pairs_the_tasks_of_two_runs(tmp_path):
    for folder, name, cases, tokens in (("one", "GRPO", A, 50_000), ("two", "Fission-GRPO", B, 40_000)):
        write_evaluation(tmp_path / folder, name, cases, 9, tokens)
    text, comparison = summary_of(tmp_path)
    assert text.startswith("Fission-GRPO solved 15 fewer of 40 tasks than GRPO (-37.5 points, 95% CI -")
    assert "; McNemar p = 0.0041)." in text  # 2 * P(at most 5 of 25 heads)
    assert "differ by 20%" in text  # 1 - 40,000 / 50,000
    assert comparison is not None
    assert (comparison.only_a, comparison.only_b) == (20, 5)
    page, parsed = page_of(tmp_path)
    assert "minus GRPO (A)" in page
    assert "svg" in parsed.tags


def test_overlap_of_intervals_is_never_a_verdict(tmp_path):
    far = FISSION | {"success": 0.9, "success_ci": [0.85, 0.94]}
    text, comparison = summary_of(write_run(tmp_path / "run", evaluations=(EVALUATION, GRPO, far)))
    assert text.startswith("No verdict: the cases of grpo and fission are not here.")
    assert comparison is None


def test_evaluations_of_other_tasks_are_not_compared(tmp_path):
    write_evaluation(tmp_path, "GRPO", A)
    write_evaluation(tmp_path, "Fission-GRPO", B, decoding={"temperature": 0.5})
    text, comparison = summary_of(tmp_path)
    assert text.startswith("No verdict: these runs cannot be compared: decoding.temperature: absent in A, 0.5 in B")
    assert comparison is None


def test_an_evaluation_that_was_stopped_gets_no_verdict(tmp_path):
    desk = {"kind": "desk", "sha256": "abc", "count": 40}
    write_evaluation(tmp_path, "mine", A[:9], line=False, tasks=desk)
    text = "No verdict yet: of mine 9 of 40 cases have ended. A stopped evaluation goes on with the same command."
    assert summary_of(tmp_path) == (text, None)
    write_evaluation(tmp_path, "base", A)
    assert summary_of(tmp_path) == (text, None)


def test_one_model_on_two_task_sets_is_not_compared(tmp_path):
    write_evaluation(tmp_path, "mine", A)
    own = {"kind": "rows", "sha256": "abd", "count": 40, "environment": "OrderDesk", "reward": ["solved"]}
    write_evaluation(tmp_path, "mine_orders", B, tasks={**own, "success_at": 0.5})
    told = "No verdict: mine and mine_orders were evaluated on different tasks (desk and OrderDesk)."
    assert summary_of(tmp_path) == (told, None)
    text = page_of(tmp_path)[0]
    facts = [re.sub(r"<[^>]+>", "", fact) for fact in re.findall(r"<div><dt>.*?</dd></div>", text)]
    assert {"Environmentmine_orders: OrderDesk", "Rewardmine_orders: solved", "Success atmine_orders: 0.5"} <= {*facts}


def test_samples_are_called_samples_and_passes_are_beside_the_rate(tmp_path):
    # Of 6 tasks A solves no sample, B both samples of tasks 0-3 and one of task 4
    tasks = {"kind": "desk", "sha256": "abc", "count": 12, "samples": 2}
    a, b = ([case(i, i < solved, BAD, task=str(i // 2)) for i in range(12)] for solved in (0, 9))
    write_evaluation(tmp_path, "b", b, tasks=tasks)
    text, _ = page_of(tmp_path)
    assert "b solved 9 of 12 samples (75.0%, 95% CI" in text
    assert "pass@2 83.3%, pass^2 66.7%" in text
    for told in ("12 samples: 12 judged", "desk, 12 samples of 6 tasks", "Recovered from an error: 9 samples"):
        assert told in text, told
    assert json.loads((tmp_path / "eval.jsonl").read_text())["samples"] == 2
    write_evaluation(tmp_path, "a", a, tasks=tasks)
    assert "sign test over 6 tasks p = 0.062)" in summary_of(tmp_path)[0]
    assert "<dt>Sign test, p</dt>" in page_of(tmp_path)[0]


def test_the_samples_of_a_single_task_have_a_rate_without_an_interval(tmp_path):
    write_evaluation(tmp_path, "one", [case(i, i < 2, BAD, task="only") for i in range(4)])
    assert summary_of(tmp_path)[0].startswith("one solved 2 of 4 samples (50.0%), and 2 of the 4 in which")
    (tmp_path / "eval-one" / "cases.jsonl").unlink()  # by its line alone
    page = page_of(tmp_path)[1]
    assert page.cells[1:3] == ["50.0%2 of 4 samples", "50.0%2 of 4 error cases"]


def test_long_names_stay_within_the_page_and_the_chart(tmp_path):
    for name in ("base_qwen3_8b_instruct_2507_temperature1_cabinet", "lora_qwen3_8b_lr3e4_r16_step4000_seed17"):
        write_evaluation(tmp_path, name, A)
    text = page_of(tmp_path)[0]
    assert re.search(r"\nbody \{[^}]*overflow-wrap: break-word;", text)
    titles = re.findall(r">([^<>]* \((?:A|B)\))<", text)
    assert [title[-3:] for title in titles] == ["(B)", "(A)"]
    assert max(map(len, titles)) <= 44  # at 390 px, in bold


def test_a_run_is_compared_with_its_base_and_few_pairs_are_said(tmp_path):
    write_evaluation(tmp_path, "mine", [case(i, True) for i in range(6)], step=8, tokens=100)
    write_evaluation(tmp_path, "starter", [case(i, i > 2) for i in range(6)])
    text, _ = summary_of(tmp_path)
    assert text.startswith("mine solved 3 more of 6 tasks than starter (+50.0 points")
    assert "p = 0.25). This can be chance. With fewer than 30 tasks" in text


def test_equal_policies_solve_as_many(tmp_path):
    write_evaluation(tmp_path, "a", A)
    write_evaluation(tmp_path, "b", A)
    assert summary_of(tmp_path)[0].startswith("b solved as many of 40 tasks as a (+0.0 points; McNemar p = 1).")


def test_several_seeds_get_no_verdict(tmp_path):
    for seed in (1, 2):
        write_evaluation(tmp_path / str(seed), f"GRPO seed {seed}", A, 9, 50)
        write_evaluation(tmp_path / str(seed), f"Fission-GRPO seed {seed}", B, 9, 50)
    text, comparison = summary_of(tmp_path)
    assert text.startswith("Last evaluation of each policy.")
    assert comparison is None


def test_an_evaluation_alone_has_a_report_without_words_of_training(tmp_path):
    cases = [
        case("fine", True, FINE),
        case("lost", False, BAD),
        case("back", True, BAD, FINE, request="Move <b>it</b>."),
        case("loop", False, BAD, BAD),
        case("mute", False),
        case("down", None, missing="HTTP 500"),
    ]
    folder = write_evaluation(tmp_path, "model", cases, line=False)
    for path in (tmp_path, folder):
        text, page = page_of(path)
        assert "model solved 2 of 5 tasks (40.0%, 95% CI 11.8 to 76.9), and 1 of the 3 in which" in text
        for absent in ("trainer_state.json", "Corrective", "Explore cycle", "eval.jsonl", "Training", "Step"):
            assert absent not in text[text.index("<body>") :], absent
        for group in ("Failed after an error: 1 task", "Failed after repeating the same failing call: 1 task",
                      "Recovered from an error: 1 task", "Failed without an error: 1 task", "made no call: 1",
                      "Could not be run: 1 task", "raised (the tool itself reported an error): 1"):  # fmt: skip
            assert group in text, group
        assert "Move &lt;b&gt;it&lt;/b&gt;." in text
        assert page.cells[page.cells.index("success") : page.cells.index("success") + 2] == ["success", "0.400"]
        assert "models/model" in text
    assert "fine" not in text  # a success without an error is not shown


def test_transcripts_without_a_verdict_have_errors_and_no_rates(tmp_path):
    write_evaluation(tmp_path, "traces", [case(1, None, BAD), case(2, None)], line=False)
    text, page = page_of(tmp_path)
    assert "traces: nothing judges these cases" in text
    assert page.cells[1:3] == ["not judged", "no error cases"]
    assert "With an error, not judged: 1 task" in text


def test_results_that_look_like_errors_and_cases_without_a_call_are_said(tmp_path):
    like_error = CallRecord("move_file", {"name": "a"}, "Error: no file a")
    write_evaluation(tmp_path, "a", [case(1, True, like_error), case(2, False)])
    text, page = page_of(tmp_path)
    assert "1 of 1 results begins like an error and is a success" in text[text.index('class="notes"') :]
    at = page.cells.index("cases without any call")
    assert (page.cells[at + 1], page.cells[at + 3]) == ("0.500", "1 of 2 cases")


def test_cases_are_shown_by_kind_up_to_a_limit_and_counted_in_full(tmp_path):
    write_evaluation(tmp_path, "a", [case(i, False, BAD) for i in range(200)])
    (detail,) = describe_evaluations(latest_evaluations(read_runs(tmp_path)))
    assert len(detail.cases["Failed after an error"]["raised"]) == 200
    assert case_limit([detail]) == 90
    assert case_limit([detail] * 200) == 2
    assert "raised (the tool itself reported an error): 200, the first 90" in page_of(tmp_path)[0]


def test_rare_kinds_are_shown_together(tmp_path):
    lost = [case(i, None, missing=f"HTTP {min(i, 410)}") for i in range(400, 420)]
    write_evaluation(tmp_path, "a", lost, line=False)
    (detail,) = describe_evaluations(latest_evaluations(read_runs(tmp_path)))
    kinds = detail.cases["Could not be run"]
    assert next(iter(kinds)) == "HTTP 410"
    assert list(kinds)[-1] == "other"
    assert [len(records) for records in kinds.values()] == [10, 1, 1, 1, 1, 1, 1, 1, 3]


def test_cases_that_are_not_those_of_the_line_are_left_out_and_said(tmp_path):
    folder = write_evaluation(tmp_path, "a", A)
    with (folder / "cases.jsonl").open("a") as file:
        file.write(json.dumps({"id": "40", "category": "", "turns": [], "success": True, "seconds": 0}) + "\n")
    (run,) = read_runs(tmp_path)
    assert run.evaluations[0].cases is None
    assert run.notes == ("eval-a: its cases are not those of a line in eval.jsonl, so they are left out",)
    (folder / "cases.jsonl").write_text("")
    assert read_runs(tmp_path)[0].notes == ("eval-a: no case has ended yet",)
    (folder / "cases.jsonl").write_text("{}\n")
    with pytest.raises(RunFileError, match=r"cases\.jsonl, line 1: field 'id' must be str"):
        read_runs(tmp_path)


def test_two_trained_policies_are_held_against_the_one_before_training(tmp_path):
    """A verdict between two policies that both became worse must not hide that."""
    from fission_grpo.evaluation.compare import EvaluationRun
    from fission_grpo.evaluation.records import CaseRecord
    from fission_grpo.evaluation.run import Manifest
    from fission_grpo.report.evaluations import summarize_evaluations
    from fission_grpo.report.run import _evaluation_of

    def evaluated(name, solved, step):
        manifest = Manifest(name, {"kind": "rows", "count": 40}, {}, {}, {"step": step, "tokens": 1000 * step})
        records = tuple(CaseRecord(str(number), success=number < solved) for number in range(40))
        return _evaluation_of(EvaluationRun(manifest, records))

    headline = {"before": evaluated("before", 30, 0), "grpo": evaluated("grpo", 10, 9)}
    headline["fission"] = evaluated("fission", 20, 9)
    text, _ = summarize_evaluations(headline)
    assert "fission solved 10 more of 40 tasks than grpo" in text
    assert "Success less that before training (before): grpo -50.0 points" in text
    assert "; fission -25.0 points" in text
    assert "before training" not in summarize_evaluations({k: headline[k] for k in ("grpo", "fission")})[0]
