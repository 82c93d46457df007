"""The table of evaluations in a model's README.md."""

import json

from fission_grpo.core.model_readme import BEGIN, END, evaluations_section, update_readme

LINE = {
    "name": "mine", "step": 40, "tasks": 300, "success": 0.42, "success_ci": [0.366, 0.4765], "error_cases": 199,
    "recovered": 28, "recovery_rate": 0.1407, "recovery_ci": [0.0992, 0.196],
}  # fmt: skip
ROW = "| mine |  | 40 | 300 | 42.0% [36.6, 47.6] | 199 | 28, 14.1% [9.9, 19.6] |"


def write(folder, *lines):
    (folder / "eval.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_an_evaluation_is_a_row_with_counts_and_intervals(tmp_path):
    write(tmp_path, LINE)
    assert ROW in evaluations_section(tmp_path).splitlines()


def test_without_any_error_nothing_is_a_rate(tmp_path):
    write(tmp_path, {**LINE, "name": "a|b", "error_cases": 0, "recovered": 0, "recovery_rate": None})
    assert r"| a\|b |  | 40 | 300 | 42.0% [36.6, 47.6] | 0 | 0 |" in evaluations_section(tmp_path).splitlines()


def test_samples_are_no_tasks_and_an_interval_may_be_absent(tmp_path):
    write(tmp_path, {**LINE, "of": "OrderDesk", "tasks": 4, "samples": 4, "success": 0.5, "success_ci": None})
    row = "| mine | OrderDesk | 40 | 4, 4 of each task | 50.0% | 199 | 28, 14.1% [9.9, 19.6] |"
    assert row in evaluations_section(tmp_path).splitlines()


def test_of_evaluations_with_one_name_the_newest_counts(tmp_path):
    write(tmp_path, {**LINE, "tasks": 250}, {**LINE, "name": "base"}, LINE)
    rows = [row.split(" | ") for row in evaluations_section(tmp_path).splitlines() if "42.0%" in row]
    assert [(row[0], row[3]) for row in rows] == [("| mine", "300"), ("| base", "300")]


def test_an_update_changes_the_table_and_nothing_else(tmp_path):
    (tmp_path / "README.md").write_text(f"before\n{evaluations_section(tmp_path)}\nafter\n")
    assert "None yet." in (tmp_path / "README.md").read_text()
    write(tmp_path, LINE)
    update_readme(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert text.startswith(f"before\n{BEGIN}\n|")
    assert text.endswith(f"{END}\nafter\n")
    assert ROW in text


def test_a_readme_of_somebody_else_stays_as_it_is(tmp_path):
    write(tmp_path, LINE)
    update_readme(tmp_path)
    assert not (tmp_path / "README.md").exists()
    for text in ("mine alone\n", f"{BEGIN}\nhalf a section\n"):
        (tmp_path / "README.md").write_text(text)
        update_readme(tmp_path)
        assert (tmp_path / "README.md").read_text() == text


def test_a_damaged_file_is_named_in_a_warning_and_is_no_error(tmp_path, caplog):
    write(tmp_path, {**LINE, "success": "high"}, LINE)
    assert "could not be read" in evaluations_section(tmp_path)
    assert "eval.jsonl, line 1: field 'success'" in caplog.text
