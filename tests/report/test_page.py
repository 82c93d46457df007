"""The report of hand-made run directories, in the formats a run writes."""

import json
import os
import re
from xml.etree import ElementTree

import pytest
from report_support import EVALUATION, GRPO, PUSHED, RECOVERED, Page, page_of, write_run

from fission_grpo.core.errors import RunFileError
from fission_grpo.report.charts import CURVES, KIND_COLORS, arm_colors, family, smoothed, themed
from fission_grpo.report.evaluations import latest_evaluations
from fission_grpo.report.page import pick_evenly, report_command, write_report
from fission_grpo.report.run import (
    Evaluation,
    RecoveryRecord,
    Run,
    read_run,
    read_runs,
)

pytest.importorskip("matplotlib")

LOG = [
    {"step": 1, "fission/phase": 0, "fission/success": 0.4, "fission/error_cases": 5, "reward": 0.3,
     "fission/buffer": 3, "fission/error_recovery_rate": 0.2, "fission/generated_tokens": 4000,
     "fission/kind/raised": 3, "note": "text"},
    {"step": 2, "fission/phase": 1, "recovery/rate": 0.25, "recovery/frac_zero_std": 0.5, "fission/age": 1.0,
     "fission/generated_tokens": 8000, "fission/buffer": 2, "reward": 0.1, "grad_norm": float("nan")},
    {"step": 3, "fission/phase": 0, "fission/success": 0.6, "fission/kind/raised": 1, "fission/kind/no_call": 1,
     "reward": 0.5, "fission/buffer": 3, "fission/generated_tokens": 12000},
]  # fmt: skip


@pytest.fixture(scope="module")
def with_charts(tmp_path_factory):
    """The page of a run with every kind of chart, written once: drawing is the slow part."""
    return write_report(write_run(tmp_path_factory.mktemp("charts") / "run", log=LOG))


def test_the_table_shows_the_numbers_of_eval_jsonl(tmp_path):
    cells = page_of(write_run(tmp_path / "run"))[1].cells
    # 0.41 of 200 tasks is 82; 0.1 of 90 error cases is 9
    assert cells[:5] == [
        "base",
        "41.0%34.4 to 47.982 of 200 tasks",
        "10.0%5.4 to 17.99 of 90 error cases",
        "not trained",
        "grpo",
    ]
    assert cells[5:6] == ["50.0%43.0 to 57.0100 of 200 tasks"]
    assert cells[7:10] == ["52,000", "fission", "60.0%53.0 to 67.0120 of 200 tasks"]


def test_nothing_a_rollout_wrote_becomes_markup(tmp_path):
    evil = '</pre><script>alert(1)</script><img src="http://evil.example/x" onerror="alert(2)">\x00\ud800'
    pushed = PUSHED | dict.fromkeys(("id", "root", "kind", "source", "feedback", "failed", "fallback"), evil)
    pushed |= {"prompt": [{"role": evil, "content": evil}]}
    recovered = RECOVERED | {"id": evil, "completions": [evil] * 4}
    named = EVALUATION | {"name": evil}
    text, page = page_of(write_run(tmp_path / "run", fission=(pushed, recovered), evaluations=(named,)))
    assert "script" not in page.tags
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 10
    assert "\x00" not in text


def test_the_page_loads_nothing_from_elsewhere(with_charts):
    text = with_charts.read_text(encoding="utf-8")
    page = Page(text)
    assert not {"script", "link", "iframe", "object", "base"} & set(page.tags)
    for _, name, value in page.attributes:
        if name in ("src", "href", "xlink:href", "srcset", "action", "poster"):
            assert value.startswith("#")
    assert "url(" not in text.replace("url(#", "")
    assert "@import" not in text


def test_the_charts_in_the_page_are_the_files_beside_it_with_colors_that_a_dark_page_replaces(with_charts):
    text = with_charts.read_text(encoding="utf-8")
    files = {path.stem: path.read_text(encoding="utf-8") for path in with_charts.parent.glob("*.svg")}
    assert set(files) == {"success", "error_recovery_rate", "recovery_rate", "zero_std", "buffer_size",
                          "buffer_age", "error_kinds", "reward"}  # fmt: skip
    dark = text[text.index("prefers-color-scheme: dark") : text.index("* { box-sizing")]
    for svg in files.values():
        assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
        assert "var(" not in svg  # programs other than browsers read it
        assert themed(svg) in text
    used = set(re.findall(r"var\((--c-[0-9a-f]{6}), #", text))
    assert {"--c-1e293b", "--c-e2e8f0"} <= used
    assert {name for name in used if f"{name}:" not in dark} <= {f"--c-{color[1:]}" for color in KIND_COLORS}


def test_rates_have_ticks_at_quarters_and_the_same_range(with_charts):
    for stem in ("success", "error_recovery_rate", "recovery_rate"):
        texts = re.findall(r">([^<>]+)</text>", (with_charts.parent / f"{stem}.svg").read_text())
        assert [text for text in texts if text.endswith("%")] == ["0%", "25%", "50%", "75%", "100%"]


def test_arms_are_read_as_several_runs_with_the_evaluations_above_them(tmp_path):
    write_run(tmp_path / "demo" / "grpo", log=[{"step": 1, "fission/kind/raised": 2}], fission=(), evaluations=())
    write_run(tmp_path / "demo" / "fission", log=[{"step": 1, "fission/kind/raised": 1}], evaluations=())
    write_run(tmp_path / "demo", log=None, fission=())
    (tmp_path / "demo" / "notes").mkdir()
    runs = read_runs(tmp_path / "demo")
    assert [run.name for run in runs] == ["demo", "fission", "grpo"]
    assert [len(run.evaluations) for run in runs] == [3, 0, 0]
    text, page = page_of(tmp_path / "demo")
    assert page.cells[8] == "fission"
    assert (tmp_path / "demo" / "report" / "error_kinds_grpo.svg").exists()
    assert "no trainer_state.json" not in text
    assert [run.name for run in read_runs(tmp_path / "demo")] == ["demo", "fission", "grpo"]  # report/ is no arm


def test_a_pushed_instance_is_merged_with_its_recoveries(tmp_path):
    (item,) = read_run(write_run(tmp_path / "run")).instances
    assert (item.step, item.retried_at, item.retried_at - item.step, item.kind) == (1, 2, 1, "bad_arguments")
    assert item.rewards == (0.0, 1.0, None, 0.25)
    assert item.improved  # 1.0 > 0.25
    text, _ = page_of(tmp_path / "run")
    for badge in ("▼ 0.00", "▲ 1.00", "not judged", "= 0.25"):
        assert badge in text


def test_a_resume_voids_what_was_written_from_its_step_on(tmp_path):
    dropped = PUSHED | {"id": "old", "step": 0}
    events = [dropped, PUSHED, RECOVERED, {"event": "dropped", "id": "old", "step": 2, "reason": "age"}]
    before = read_run(write_run(tmp_path / "a", fission=events)).instances
    after = read_run(write_run(tmp_path / "b", fission=[*events, {"event": "resumed", "step": 2}])).instances
    assert [(i.id, i.retried_at, i.dropped) for i in before] == [("old", None, "age"), ("t1/r1", 2, None)]
    assert [(i.id, i.retried_at, i.dropped) for i in after] == [("old", None, None), ("t1/r1", None, None)]
    start = read_run(write_run(tmp_path / "c", fission=[*events, {"event": "resumed", "step": 1}])).instances
    assert [i.id for i in start] == ["old"]


def test_a_half_written_last_line_is_left_out_and_shown(tmp_path):
    run = write_run(tmp_path / "run")
    with (run / "fission.jsonl").open("ab") as file:
        file.write('{"event": "pushed", "id": "ü'.encode()[:-1])
    text, _ = page_of(run)
    assert "run/fission.jsonl: 1 half-written last line (line 3) left out" in text
    with (run / "fission.jsonl").open("a", encoding="latin-1") as file:
        file.write('\n{"event": "resumed", "step": 9}\n')
    assert read_run(run).notes == ("run/fission.jsonl: line 3, half-written before a resume, left out",)


@pytest.mark.parametrize(
    ("name", "line", "reason"),
    [
        ("fission.jsonl", "{oops", "not a JSON object"),
        ("fission.jsonl", "[1]", "not a JSON object (it is a list)"),
        ("fission.jsonl", json.dumps(PUSHED | {"step": "one"}), "field 'step' must be int, but is \"one\""),
        ("fission.jsonl", '{"event": "pushed", "id": "a"}', "field 'prompt' must be str or list, but is missing"),
        ("fission.jsonl", json.dumps({"event": "exploded", "id": "a"}), "field 'event' must be"),
        ("fission.jsonl", json.dumps(RECOVERED | {"rewards": [1.0]}), "'rewards' (1) and 'completions' (4) differ"),
        ("fission.jsonl", json.dumps(RECOVERED | {"rewards": ["a"]}), "field 'rewards[0]' has the wrong type"),
        ("eval.jsonl", json.dumps(EVALUATION | {"tasks": None}), "field 'tasks' must be int, but is null"),
        ("eval.jsonl", json.dumps(EVALUATION | {"success_ci": [0.1]}), "field 'success_ci' must be [low, high]"),
    ],
)  # fmt: skip
def test_a_broken_line_is_named_with_file_number_and_field(tmp_path, capsys, name, line, reason):
    run = write_run(tmp_path / "run", fission=[PUSHED], evaluations=[EVALUATION])
    with (run / name).open("a") as file:
        file.write(line + "\n")
    assert report_command([str(run)]) == 1
    message = capsys.readouterr().err
    assert f"{name}, line 2: " in message
    assert reason in message
    assert "correct or delete this line" in message


def test_a_directory_without_a_run_says_what_was_looked_for(tmp_path):
    with pytest.raises(RunFileError, match=r"no trainer_state\.json .* give the output_dir"):
        read_runs(tmp_path)
    with pytest.raises(RunFileError, match="no such directory"):
        read_runs(tmp_path / "nowhere")


def test_a_broken_trainer_state_is_named_and_the_newest_checkpoint_read_without_it(tmp_path):
    run = write_run(tmp_path / "run", log=None)
    for step in (9, 10):  # as text, "checkpoint-9" would be the newer one
        write_run(run / f"checkpoint-{step}", log=[{"step": step}], fission=(), evaluations=())
    (run / "trainer_state.json").write_text('{"log_history": [\n{"step"')
    with pytest.raises(RunFileError, match=r"trainer_state\.json, line 2: not valid JSON"):
        read_runs(run)
    (run / "trainer_state.json").unlink()
    (only,) = read_runs(run)
    assert only.log_history == ({"step": 10.0},)


def test_log_rows_keep_finite_numbers_only(tmp_path):
    history = read_run(write_run(tmp_path / "run", log=LOG)).log_history
    assert "note" not in history[0]
    assert "grad_norm" not in history[1]


def test_a_run_that_has_just_started_gets_a_report(tmp_path):
    text, _ = page_of(write_run(tmp_path / "run", log=None, fission=[PUSHED], evaluations=()))
    assert "run: no trainer_state.json and no checkpoint yet" in text
    assert "No held-out evaluation yet" in text
    assert "none was used yet" in text


def test_recoveries_are_picked_evenly_and_counted(tmp_path):
    items = [RecoveryRecord(str(i), i, "t", "raised", "rules", "", "", "") for i in range(7)]
    assert [item.id for item in pick_evenly(items, 3)] == ["0", "3", "6"]
    events = []
    for i in range(100):
        events += [PUSHED | {"id": str(i), "step": i, "root": f"task {i}."}, RECOVERED | {"id": str(i), "step": i + 1}]
    text, page = page_of(write_run(tmp_path / "run", fission=events))
    assert page.tags.count("article") == 30
    assert "Showing 30 of 100 used recovery tasks" in text
    assert "24 more failures" in text
    assert page.tags.count("details") == text.count("</details>")
    assert text.index("task 0.") < text.index("task 99.")
    assert "Not logged by" not in text


def test_smoothing_weighs_by_the_number_of_cases():
    # window of 5 around the middle: (0*1 + 0*1 + 1*1 + 1*1 + 1*4) / 8 = 6/8
    assert smoothed([0, 0, 1, 1, 1], [1, 1, 1, 1, 4])[2] == 0.75
    assert smoothed([0.5], [0.0]) == [0.5]
    assert next(c.weight for c in CURVES if c.stem == "error_recovery_rate") == "fission/error_cases"


def test_arms_of_one_name_keep_one_colour():
    assert [family(n) for n in ("base", "GRPO", "Fission-GRPO", "no_fission", "x")] == [
        "base",
        "grpo",
        "fission",
        "grpo",
        "",
    ]
    assert arm_colors(["grpo", "fission"])["fission"] == arm_colors(["fission"])["fission"]
    assert len(set(arm_colors(["fission-1", "fission-2", "grpo", "a", "b"]).values())) == 5


def test_equal_names_in_different_arms_get_their_runs_name():
    one = Evaluation("final", 8, 100, 10, 0.5, (0.2, 0.8), 0, 0)
    two = Evaluation("final", 8, 100, 10, 0.7, (0.4, 0.9), 0, 0)
    runs = [Run("fission", evaluations=(two,)), Run("grpo", evaluations=(one,))]
    assert list(latest_evaluations(runs)) == ["final (grpo)", "final (fission)"]
    same = [Run("fission", evaluations=(one,)), Run("grpo", evaluations=(one,))]
    assert list(latest_evaluations(same)) == ["final"]


def test_the_command_prints_the_path_and_takes_another_folder(tmp_path, capsys):
    run = write_run(tmp_path / "run")
    assert report_command([str(run), "--output", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out" / "report.html")
    assert (tmp_path / "out" / "report.html").exists()
    assert not (run / "report").exists()


def test_numbers_beyond_floating_point_are_left_out_of_the_curves_and_refused_in_results(tmp_path):
    huge = "9" * 400
    run = write_run(tmp_path / "run", log=LOG)
    state = run / "trainer_state.json"
    state.write_text('{"log_history": [{"step": 1, "loss": HUGE, "reward": 0.5}]}'.replace("HUGE", huge))
    assert read_run(run).log_history == ({"step": 1.0, "reward": 0.5},)
    line = {"name": "n", "step": 1, "generated_tokens": 1, "tasks": 1, "success": 1.0, "success_ci": [0.1, 1.0]}
    line |= {"error_cases": 0, "recovered": 0, "errors": 0, "recovery_rate": None}
    for field, value in (("errors", huge), ("success", "Infinity"), ("success_ci", f"[0.1, {huge}]")):
        text = json.dumps(line | {field: "HERE"}).replace('"HERE"', value)
        (run / "eval.jsonl").write_text(text + "\n")
        with pytest.raises(RunFileError, match=rf"eval\.jsonl, line 1: field '{field}.*too large a number"):
            read_run(run)


def test_what_a_run_has_set_aside_is_no_run_of_its_folder(tmp_path):
    (tmp_path / "_earlier-1" / "checkpoint-4").mkdir(parents=True)
    (tmp_path / "_earlier-1" / "checkpoint-4" / "trainer_state.json").write_text('{"log_history": [{"reward": 9}]}')
    (tmp_path / "fission.jsonl").write_text("")
    assert [run.name for run in read_runs(tmp_path)] == [tmp_path.name]


@pytest.mark.parametrize(
    "name", ["trainer_state.json", "checkpoint-3/trainer_state.json", "fission.jsonl", "eval.jsonl"]
)
def test_a_pipe_in_place_of_a_runs_file_is_refused_without_reading_it(tmp_path, capsys, name):
    run = write_run(tmp_path / "run", evaluations=[EVALUATION])
    odd = tmp_path / "run" / name
    odd.unlink(missing_ok=True)
    odd.parent.mkdir(exist_ok=True)
    (tmp_path / "run/trainer_state.json").unlink(missing_ok=True)
    os.mkfifo(odd)
    assert report_command([str(run)]) != 0
    assert f"{odd}: cannot be read (it is no regular file)" in capsys.readouterr().err


def test_a_page_says_what_was_run_and_an_old_folder_still_has_one(tmp_path):
    old = write_run(tmp_path / "runs" / "old", evaluations=())
    (old / "fission_run.json").write_text('{"run": "abc"}')
    text, _ = page_of(old)
    assert "What was run" not in text
    for name, fission in (("one", True), ("two", False)):
        run = write_run(tmp_path / "runs" / name, log=[{"step": 4, "train_runtime": 75.0}], evaluations=())
        settings = {"fission": fission, "num_generations": 8, "beta": 0.04, "feedback": ["environment", "rules"]}
        description = {"command": f"fission-grpo train --seed 1 <{name}>", "model": "starter", "parameters": 1099712,
                       "tasks": "desk", "settings": settings, "versions": {"trl": "1.16.0"}}  # fmt: skip
        (run / "fission_run.json").write_text(json.dumps(description))
    text, _ = page_of(tmp_path / "runs")
    facts = re.sub(r"(\s*<[^>]+>\s*)+", "|", text[text.index('id="run"') : text.index('id="errors"')])
    for fact in ("one:|fission-grpo train --seed 1 &lt;one&gt;|two:|fission-grpo train --seed 1 &lt;two&gt;",
                 "Model|starter (1,099,712 parameters)|", "Method|one:|Fission-GRPO|two:|GRPO|",
                 "Rollouts per task (G)|8|", "KL weight (beta)|0.04|", "Feedback|environment, rules|",
                 "4 steps, 1:15 since the start or resume", "trl 1.16.0"):  # fmt: skip
        assert fact in facts, facts
    (run / "fission_run.json").write_text("[1]")
    with pytest.raises(RunFileError, match=r"fission_run\.json: must be a JSON object; restore or delete it"):
        read_runs(run)


def test_a_run_and_its_evaluation_have_one_name_in_tables_and_legends(tmp_path):
    for folder, name in (("grpo", "GRPO"), ("fission", "Fission-GRPO")):
        write_run(tmp_path / folder, log=LOG, fission=(), evaluations=[GRPO | {"name": name}])
    assert [run.name for run in read_runs(tmp_path, by_policy=True)] == ["Fission-GRPO", "GRPO"]
    assert [run.name for run in read_runs(tmp_path)] == ["fission", "grpo"]  # for who looks for the folder
    text = write_report(tmp_path).read_text()
    for name, color in (("GRPO", "2563eb"), ("Fission-GRPO", "d9480f")):
        assert f'class="dot" style="background:var(--c-{color}, #{color})"></span>{name}<' in text
    write_run(tmp_path / "third", log=LOG, fission=(), evaluations=[GRPO])
    write_run(tmp_path / "fourth", log=LOG, fission=(), evaluations=[GRPO])
    names = [run.name for run in read_runs(tmp_path, by_policy=True)]
    assert names == ["Fission-GRPO", "fourth", "GRPO", "third"]


def test_a_run_that_learns_nothing_says_so_at_the_top(tmp_path):
    row = {"fission/phase": 0.0, "fission/success": 0.0, "fission/frac_zero_std": 1.0, "reward": 0.0}
    log = [{"step": step, "fission/generated_tokens": step, **row} for step in range(1, 9)]
    text, _ = page_of(write_run(tmp_path / "run", log=log, fission=(), evaluations=()))
    alarm = text.index("every explore rollout failed")
    assert text.index('class="notes alarm"') < alarm < text.index('class="verdict"')
    assert "raise num_generations" in text[alarm:]
    well = [entry | {"fission/success": 0.5, "fission/frac_zero_std": 0.2} for entry in log]
    assert "notes alarm" not in page_of(write_run(tmp_path / "well", log=well, fission=(), evaluations=()))[0]


def test_a_right_recovery_is_better_where_recoveries_are_right_or_wrong(tmp_path):
    """A failed rollout may have earned 1.42 by partial credit, and a right recovery earns 1."""
    pushed = {"event": "pushed", "id": "a", "step": 0, "root": "a", "parent": None, "depth": 1, "kind": "raised"}
    pushed |= {"source": "environment", "feedback": "no", "leaked": False, "fallback": None, "failed": "x"}
    pushed |= {"reward": 1.42, "prompt": [{"role": "user", "content": "Go."}]}
    recovered = {"event": "recovered", "id": "a", "step": 1, "rewards": [1.0, 0.0], "completions": ["y", "z"]}
    lines = "".join(json.dumps(event) + "\n" for event in (pushed, recovered))
    improved = {}
    for how in ("strict", "graded"):
        folder = tmp_path / how
        folder.mkdir()
        (folder / "fission.jsonl").write_text(lines)
        (folder / "fission_run.json").write_text(json.dumps({"run": "1", "settings": {"recovery_reward": how}}))
        (record,) = read_runs(folder)[0].instances
        improved[how] = record.improved
        page = write_report(folder).read_text()
        assert ("1 is right, whatever the failed rollout earned" in page) == (how == "strict")
    assert improved == {"strict": True, "graded": False}
