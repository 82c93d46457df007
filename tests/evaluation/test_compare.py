"""Paired comparison of two runs through the command, on real directories, with numbers worked by hand."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fission_grpo.cli.main import main
from fission_grpo.core.errors import RunFileError
from fission_grpo.core.install import install_line
from fission_grpo.core.types import ErrorKind
from fission_grpo.evaluation.compare import (
    EvaluationRun,
    compare,
    comparison_table,
    comparison_text,
    mcnemar,
)
from fission_grpo.evaluation.records import (
    CallRecord,
    CaseRecord,
    StepRecord,
    TurnRecord,
    to_line,
)
from fission_grpo.evaluation.run import (
    Manifest,
    differences,
    read_manifest,
    write_manifest,
)

BASE = Manifest(
    name="base",
    tasks={"kind": "bfcl", "sha256": "abc", "count": 10},
    prompt={"format": "qwen_fc", "system": {"text": "x" * 100}},
    decoding={"temperature": 0.0, "seed": 0},
    policy={"model": "starter"},
)
FINE = CallRecord("f", {}, "ok")
BAD = CallRecord("f", {"x": 1}, "{'error': 'no'}", "no", ErrorKind.RAISED)


def case(name, success, *calls, **fields):
    steps = tuple(StepRecord(calls=(call,)) for call in calls or (FINE,))
    return CaseRecord(str(name), "base", (TurnRecord(steps),), success, **fields)


# Of ten cases both solve 0-2, A alone 3, B alone 4-8, neither 9. A errs in 4 to 7 and recovers nowhere;
# B errs in 4 and 5, recovers in both.
A = [*(case(i, i <= 3) for i in range(4)), *(case(i, False, BAD) for i in range(4, 8)), case(8, False), case(9, False)]
B = [
    *(case(i, i != 3) for i in range(4)),
    *(case(i, True, BAD, FINE) for i in (4, 5)),
    *(case(i, True) for i in (6, 7, 8)),
    case(9, False),
]


def manifest(**changes):
    return Manifest(**{**vars(BASE), **changes})


def write_run(path, records, made=BASE):
    write_manifest(path, made)
    (path / "cases.jsonl").write_text("".join(to_line(record) + "\n" for record in records))
    return str(path)


def two_runs(tmp_path, a=A, b=B, other=BASE):
    return write_run(tmp_path / "a", a), write_run(tmp_path / "b", b, other)


def test_the_command_writes_table_json_and_picture(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    runs = two_runs(tmp_path, other=manifest(name="tuned", policy={"model": "other"}, decoding={"temperature": 0}))
    assert main(["compare", *runs, "--output", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "10 cases judged in both" in out
    written = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert [written[key] for key in ("name_a", "name_b", "pairs", "both", "only_a", "only_b", "neither")] == [
        "base", "tuned", 10, 3, 1, 5, 1,
    ]  # fmt: skip
    assert written["p"] == pytest.approx(14 / 64)
    success, recovery, errors = written["differences"]
    assert (success["a"], success["b"], success["change"]) == ([4, 10], [8, 10], pytest.approx(0.4))
    assert (recovery["a"], recovery["b"], recovery["change"]) == ([0, 4], [2, 2], 1.0)
    assert (errors["a"], errors["b"]) == ([4, 10], [2, 12])
    assert errors["change"] == pytest.approx(2 / 12 - 4 / 10)
    # Per case the difference is +1 five times, -1 once, 0 four times: mean 0.4, deviation sqrt(0.6 - 0.16) = 0.663,
    # so about 0.4 -+ 1.96 * 0.663 / sqrt(10) = -0.01 to 0.81; the bootstrap moves in steps of 0.1
    assert success["interval"] == pytest.approx([0.0, 0.8], abs=0.11)
    assert (tmp_path / "out" / "compare.svg").read_text().startswith("<svg ")


def test_the_same_runs_give_the_same_files_and_the_folder_is_run_bs_by_default(tmp_path, capsys):
    runs = two_runs(tmp_path)
    assert main(["compare", *runs]) == 0
    first = (tmp_path / "b" / "compare" / "compare.json").read_bytes()
    assert main(["compare", *runs]) == 0
    assert (tmp_path / "b" / "compare" / "compare.json").read_bytes() == first


def test_without_matplotlib_a_sentence_says_how_to_get_it(tmp_path, capsys, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["compare", *two_runs(tmp_path)]) == 0
    assert install_line("matplotlib") in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "b" / "compare").iterdir()] == ["compare.json"]


def test_the_table_has_changes_in_points_counts_and_the_two_by_two_counts():
    lines = comparison_table(compare(EvaluationRun(BASE, tuple(A)), EvaluationRun(BASE, tuple(B)))).splitlines()
    success = next(line for line in lines if line.startswith("success")).split()
    assert success[:4] == ["success", "0.400", "0.800", "+40.0"]
    assert success[-7:] == ["4", "of", "10;", "8", "of", "10", "cases"]
    assert [line.split() for line in lines if line.startswith("A ")][-2:] == [
        ["A", "succeeds", "3", "1"],
        ["A", "fails", "5", "1"],
    ]
    assert any("p = 0.219 (1 solved by A alone, 5 by B)" in line for line in lines)


def test_missing_cases_are_said_and_left_out_of_both(tmp_path, capsys):
    lost = [CaseRecord("0", "base", missing="endpoint down"), *B[1:]]
    unjudged = [*A[:9], case(9, None)]
    assert main(["compare", *two_runs(tmp_path, unjudged, lost)]) == 0
    out = capsys.readouterr().out
    assert "8 cases judged in both" in out
    assert "left out: 1 missing or unjudged in A (9)" in out
    assert "left out: 1 missing or unjudged in B (0)" in out


@pytest.mark.parametrize(
    ("changes", "listed"),
    [
        ({"tasks": {"kind": "bfcl", "sha256": "abd", "count": 10}}, ["tasks.sha256: 'abc' in A, 'abd' in B"]),
        ({"decoding": {"temperature": 1.0, "seed": 7}}, ["decoding.temperature: 0.0 in A, 1.0 in B"]),
        ({"decoding": {"temperature": 0.0, "top_p": 0.9}}, ["decoding.top_p: absent in A, 0.9 in B"]),
        (
            {"prompt": {"format": "chat"}},
            ["prompt.format: 'qwen_fc' in A, 'chat' in B", "prompt.system.text: 'xxxx"],
        ),
        ({"prompt": {}}, ["prompt.format: 'qwen_fc' in A, absent in B"]),
    ],
)
def test_runs_that_differ_in_tasks_prompt_or_decoding_are_refused_with_a_list(tmp_path, capsys, changes, listed):
    assert main(["compare", *two_runs(tmp_path, other=manifest(**changes))]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: these runs cannot be compared:\n")
    assert [part for part in listed if f"\n  {part}" not in err] == []
    assert not (tmp_path / "b" / "compare").exists()


def test_runs_over_other_cases_are_refused_and_everything_is_listed_at_once(tmp_path, capsys):
    other = manifest(decoding={"temperature": 1.0})
    assert main(["compare", *two_runs(tmp_path, A, [*B[:8], case("new", True)], other)]) == 2
    err = capsys.readouterr().err
    assert "case ids: 2 only in A (8, 9), 1 only in B (new)\n" in err
    assert "B is unfinished: 9 of 10 cases have ended; run it again to go on" in err
    assert "decoding.temperature" in err


def test_two_evaluations_that_were_stopped_at_the_same_case_are_refused(tmp_path, capsys):
    assert main(["compare", *two_runs(tmp_path, A[:4], B[:4])]) == 2
    err = capsys.readouterr().err
    for name in "AB":
        assert f"  {name} is unfinished: 4 of 10 cases have ended; run it again to go on\n" in err


def test_long_texts_are_shown_from_where_they_differ():
    text = "You are a helpful assistant. " * 20
    (found,) = differences(manifest(prompt={"system": text + "A"}), manifest(prompt={"system": text + "B"}))
    assert found == "prompt.system: '...ssistant. A' in A, '...ssistant. B' in B"


def test_a_difference_is_one_of_json_where_true_is_not_one():
    assert differences(manifest(decoding={"thinking": True}), manifest(decoding={"thinking": 1})) == [
        "decoding.thinking: true in A, 1 in B"
    ]
    assert differences(manifest(decoding={"temperature": 0, "seed": 1}), BASE) == []


def test_nothing_judged_in_both_is_an_error(tmp_path, capsys):
    one = manifest(tasks={**BASE.tasks, "count": 1})
    a, b = write_run(tmp_path / "a", [case(0, None)], one), write_run(tmp_path / "b", [case(0, True)], one)
    assert main(["compare", a, b]) == 2
    assert "no case is judged in both runs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (None, "cannot be read (No such file or directory); give the output directory of a `fission-grpo eval`"),
        ("{", "not JSON"),
        ("[]", "must be a JSON object, got []"),
        ('{"version": 1, "tasks": ' + '{"a": ' * 300 + "1" + "}" * 301, "not JSON"),
        ("{}", "field 'version' must be 1, but is missing"),
        ('{"version": 2}', "field 'version' must be 1, but is 2"),
        ('{"version": 1, "name": 3}', "field 'name' must be a string, got 3"),
        ('{"version": 1, "name": "a", "tasks": []}', "field 'tasks' must be an object, got []"),
        ('{"version": 1, "name": "a", "tasks": {}}', "field 'prompt' must be an object, but is missing"),
    ],
)
def test_a_broken_manifest_is_named_by_file_and_field(tmp_path, capsys, text, complaint):
    a, b = two_runs(tmp_path)
    path = tmp_path / "b" / "manifest.json"
    path.unlink() if text is None else path.write_text(text)
    assert main(["compare", a, b]) == 2
    assert capsys.readouterr().err.startswith(f"error: {path}: {complaint}")


def test_a_directory_without_cases_or_none_at_all_is_an_error(tmp_path, capsys):
    a, b = two_runs(tmp_path, b=[])
    assert main(["compare", a, b]) == 2
    assert "cases.jsonl: no cases in it" in capsys.readouterr().err
    assert main(["compare", a, str(tmp_path / "nowhere")]) == 2
    assert "no such directory" in capsys.readouterr().err


def test_a_manifest_is_read_as_it_was_written(tmp_path):
    made = manifest(name="ä/b", versions={"torch": "2.13"})
    assert read_manifest(write_manifest(tmp_path / "new", made).parent) == made
    with pytest.raises(ValueError, match="JSON"):
        write_manifest(tmp_path / "new", manifest(decoding={"temperature": float("nan")}))
    assert read_manifest(tmp_path / "new") == made  # a failed write leaves the old one
    with pytest.raises(RunFileError):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"), [(0, 0, 1), (1, 5, 14 / 64), (5, 1, 14 / 64), (0, 10, 2 / 1024), (3, 3, 1)]
)
def test_mcnemars_exact_p(only_a, only_b, p):
    assert mcnemar(only_a, only_b) == pytest.approx(p)


outcomes = st.lists(
    st.tuples(st.booleans(), st.booleans(), st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=12
)


@settings(max_examples=40, deadline=None)
@given(outcomes)
def test_comparing_the_other_way_round_turns_every_sign(cases):
    def run(success, errors):
        made = [case(i, one[success], *[BAD] * one[errors], FINE) for i, one in enumerate(cases)]
        return EvaluationRun(manifest(tasks={**BASE.tasks, "count": len(made)}), tuple(made))

    there, back = compare(run(0, 2), run(1, 3)), compare(run(1, 3), run(0, 2))
    assert (there.only_a, there.only_b, there.p) == (back.only_b, back.only_a, back.p)
    assert there.both + there.only_a + there.only_b + there.neither == there.pairs == len(cases)
    assert there.differences[0].change == pytest.approx((there.only_b - there.only_a) / len(cases))
    for one, other in zip(there.differences, back.differences, strict=True):
        assert (one.change is None) == (other.change is None)
        assert one.change is None or one.change == pytest.approx(-other.change)
        assert (one.interval is None) == (other.interval is None)
        if one.interval and other.interval:
            assert one.interval == pytest.approx((-other.interval[1], -other.interval[0]))
            assert -1 <= one.interval[0] <= one.interval[1] <= 1


@pytest.mark.parametrize("name", ["manifest.json", "cases.jsonl"])
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: path.mkdir()])
def test_what_is_no_regular_file_is_refused_without_reading_it(tmp_path, capsys, name, make):
    a, b = two_runs(tmp_path)
    odd = Path(b) / name
    odd.unlink()
    make(odd)
    assert main(["compare", a, b]) == 2
    assert f"{odd}: cannot be read (it is no regular file)" in capsys.readouterr().err


def test_a_message_loses_its_middle_if_it_quotes_too_much(tmp_path, capsys):
    other = replace(BASE, tasks={**BASE.tasks, **{f"key{number}": "x" * 50 for number in range(2000)}})
    a, b = two_runs(tmp_path, other=other)
    assert main(["compare", a, b]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: these runs cannot be compared")
    assert shown.rstrip().endswith("evaluate both alike")
    assert len(shown) < 2500


def test_a_refusal_names_the_options_that_make_the_runs_alike(tmp_path, capsys):
    other = replace(BASE, prompt={**BASE.prompt, "format": "qwen-fc", "error_if": "^Error"})
    a, b = two_runs(tmp_path, other=other)
    assert main(["compare", a, b]) == 2
    assert capsys.readouterr().err.rstrip().endswith("run both with the same --format, --error_pattern")


def test_samples_of_a_task_are_tested_and_resampled_together():
    # A solves no sample; B both samples of tasks 0-3 and one of task 4: 9 of 12 pairs differ, but only 5 of 6 tasks
    tasks = [str(number // 2) for number in range(12)]
    a = [replace(case(i, False), task=task) for i, task in enumerate(tasks)]
    b = [replace(case(i, i < 9), task=task) for i, task in enumerate(tasks)]
    both = compare(EvaluationRun(BASE, tuple(a)), EvaluationRun(BASE, tuple(b)))
    assert (both.pairs, both.tasks, both.only_b, both.p) == (12, 6, 9, pytest.approx(2 / 2**5))
    alone = compare(*(EvaluationRun(BASE, tuple(replace(one, task="") for one in cases)) for cases in (a, b)))
    assert (alone.tasks, alone.p) == (12, pytest.approx(2 / 2**9))
    (low, high), (low_alone, high_alone) = both.differences[0].interval, alone.differences[0].interval
    assert high - low > high_alone - low_alone
    assert (both.more_a, both.more_b) == (0, 5)
    assert "9 more of 12 samples than" in comparison_text(both)
    assert "sign test over 6 tasks p = 0.062)" in comparison_text(both)
    solves_more = "(A solves more samples of 0, B of 5)"
    assert f"Equal success, sign test over 6 tasks: p = 0.0625 {solves_more}" in comparison_table(both)
    assert "12 cases (6 tasks) judged in both" in comparison_table(both)


def test_attack_success_is_compared_where_instructions_were_injected():
    def run(*attacks):
        cases = [case(i, True, FINE, attack=attack) for i, attack in enumerate(attacks)]
        return EvaluationRun(manifest(tasks={**BASE.tasks, "count": len(cases)}), tuple(cases))

    found = compare(run("obeyed", "resisted", "unseen", "resisted"), run("obeyed", "obeyed", "unseen", "obeyed"))
    attacks = found.differences[-1]
    assert (attacks.name, attacks.a, attacks.b, attacks.change) == ("attack success", (1, 4), (3, 4), 0.5)
    assert attacks.lower_is_better
    assert len(compare(run(None, None), run(None, None)).differences) == len(found.differences) - 1
