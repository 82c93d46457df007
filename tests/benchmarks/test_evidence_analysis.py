"""The analysis of the evidence on small raw files, with numbers worked by hand."""

import json
import sys
from pathlib import Path

import numpy
import pytest

FOLDER = Path(__file__).parent.parent.parent / "benchmarks" / "evidence"
sys.path.insert(0, str(FOLDER))

import analyse  # noqa: E402 - the folder must be known first
from analysis import cells, drawing, intervals, learning, raw, training, verdicts, whole  # noqa: E402

from fission_grpo.core.errors import RunFileError  # noqa: E402

KINDS = ["plain", "names", "ids", "formats"]


def evaluation(arm, seed, outcomes, point=100, **changes):
    return {
        "suite": "s", "arm": arm, "seed": seed, "config": "a1", "point": point, "tokens": point, "extra_tokens": {},
        "updates": 5, "seconds": 10.0, "set": "held_out", "tasks": 4, "outcomes": outcomes,
        "error_kinds": {"raised": 2}, "calls": 8, "loops": [1, 2], "eval_tokens": 9, "versions": {}, **changes,
    }  # fmt: skip


def run_line(arm, seed, cycles=(), **changes):
    options = {"num_generations": 8, "per_device_train_batch_size": 32, "gradient_accumulation_steps": 2}
    line = {"suite": "s", "arm": arm, "seed": seed, "config": "a1", "options": options, "seconds": 10.0}
    return {**line, "eval_seconds": 1.0, "extra_tokens": {}, "versions": {}, "cycles": list(cycles), **changes}


def write(folder, lines, runs=(), sets=None):
    folder.mkdir(parents=True, exist_ok=True)
    cards = sets or {"held_out": {"ids": ["t0", "t1", "t2", "t3"], "categories": KINDS}}
    (folder / "sets.json").write_text(json.dumps(cards))
    (folder / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if runs:
        (folder / "runs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in runs))
    return folder


TWO_ARMS = [
    evaluation("grpo", 0, "srxf"), evaluation("grpo", 1, "sfss"),
    evaluation("fission", 0, "srrf"), evaluation("fission", 1, "sxss"),
]  # fmt: skip


def test_shares_of_each_seed_are_those_counted_by_hand(tmp_path):
    main = whole.analyse(write(tmp_path, TWO_ARMS)).main
    shares = {key: dict(one.by_seed) for key, one in main.arms["grpo"].estimates.items()}
    assert shares["success"] == {0: 0.5, 1: 0.75}
    assert shares["recovery"] == {0: 0.5, 1: None}  # seed 1 met no error
    assert shares["flawless"] == {0: 0.25, 1: 0.75}
    assert shares["error_cases"] == {0: 0.5, 1: 0.0}
    assert shares["success_after_needed_error"] == {0: 0.5, 1: 0.5}  # names, ids: "rx", "fs"
    assert shares["success_without_need"] == {0: 0.5, 1: 1.0}  # plain, formats: "sf", "ss"
    assert shares["retry_loops"] == {0: 0.5, 1: 0.5}
    assert shares["errors_per_call"] == {0: 0.25, 1: 0.25}
    recovery = main.arms["grpo"].estimates["recovery"]
    assert (recovery.mean, recovery.seeds, recovery.undefined) == (0.5, 1, 1)


def test_differences_are_paired_by_seed_and_leave_out_seeds_without_the_number(tmp_path):
    found = (
        whole.analyse(write(tmp_path, [*TWO_ARMS, evaluation("fission", 2, "ssss")])).main.arms["fission"].differences
    )
    assert found["success"].by_seed == {0: 0.25, 1: 0.0}  # seed 2 has no partner
    assert found["success"].mean == 0.125
    assert (found["recovery"].by_seed, found["recovery"].mean) == ({0: 0.5, 1: None}, 0.5)


def test_recovery_on_common_errors_counts_tasks_where_both_arms_erred_in_that_seed(tmp_path):
    lines = [evaluation("grpo", 0, "xrxr"), evaluation("fission", 0, "rrsx"), evaluation("grpo", 1, "xsss")]
    common = whole.analyse(write(tmp_path, [*lines, evaluation("fission", 1, "rxxx")])).main.arms["fission"].common
    # seed 0: tasks 0, 1, 3: fission r r x = 2/3, grpo x r r = 2/3; seed 1: task 0: 1 and 0
    assert common.cases == 4
    assert (common.arm, common.reference) == (pytest.approx(5 / 6), pytest.approx(1 / 3))
    assert common.difference.by_seed == {0: 0.0, 1: 1.0}


def test_a_missing_outcome_counts_nowhere_and_is_told(tmp_path):
    found = whole.analyse(write(tmp_path, [evaluation("grpo", 0, "sr--")]))
    assert found.main.arms["grpo"].estimates["success"].mean == 1.0
    assert "grpo: 2 outcomes missing, left out" in found.notes


def test_intervals_of_a_mean_over_seeds():
    # resampled (0, 1): means 0, 0.5, 1 with chances 1/4, 1/2, 1/4
    assert intervals.bootstrap(numpy.array([0.0, 1.0])) == (0.0, 1.0)
    assert intervals.bootstrap(numpy.array([0.3, 0.3, 0.1 + 0.2])) is None  # equal but for rounding: no spread
    assert intervals.bootstrap(numpy.array([0.3])) is None
    # 0 and 1 five times each: mean 0.5, error 0.5 / sqrt(10) = 0.158; the mean moves in steps of 0.1
    assert intervals.bootstrap(numpy.array([0.0, 1.0] * 5)) == pytest.approx((0.2, 0.8), abs=1e-9)
    assert intervals.t_interval(numpy.array([0.0, 2.0])) == pytest.approx((1 - 12.7062, 1 + 12.7062), abs=1e-3)


def test_the_sign_flip_test_counts_signs_exactly():
    assert intervals.sign_flip_p(numpy.array([1.0, 2.0, 3.0])) == pytest.approx(2 / 8)
    assert intervals.sign_flip_p(numpy.array([1.0, 2.0, -4.0])) == 1.0  # every pattern's sum is at least 1 away from 0
    assert intervals.sign_flip_p(numpy.array([3.0, 2.0, -1.0])) == pytest.approx(4 / 8)  # +-6, +-4
    assert intervals.sign_flip_p(numpy.arange(1.0, 11.0)) == pytest.approx(2 / 1024)
    assert intervals.sign_flip_p(numpy.zeros(4)) == 1.0
    assert intervals.sign_flip_p(numpy.array([])) is None


def test_tasks_are_resampled_for_both_arms_and_all_seeds_alike():
    half = numpy.tile(numpy.arange(100) < 50, (2, 1))
    everything, nothing = numpy.ones((2, 100), bool), numpy.zeros((2, 100), bool)
    # the share of tasks drawn from the first half: 0.5 -+ 1.96 * sqrt(0.25 / 100) = 0.402 to 0.598
    interval = intervals.over_seeds_and_tasks((nothing, everything), (half, everything))
    assert interval == pytest.approx((0.402, 0.598), abs=0.015)
    assert intervals.over_seeds_and_tasks((half, everything), (half, everything)) is None  # equal on whatever is drawn
    one_seed = numpy.array([[True] * 100, [False] * 100])
    assert intervals.over_seeds_and_tasks((nothing, everything), (one_seed, everything)) == (0.0, 1.0)
    # the first seed has no error case: what its recovery would be stays out
    errors = numpy.array([[False] * 100, [True] * 100])
    interval = intervals.over_seeds_and_tasks((nothing, everything), (half & errors, errors))
    assert interval == pytest.approx((0.402, 0.598), abs=0.015)


def test_only_differences_that_both_intervals_show_are_bold():
    # (0.1, 0.2): the bootstrap is (0.1, 0.2), t 0.15 -+ 0.635; (0.1, 0.11): t 0.105 -+ 0.0635
    one, other = (intervals.difference(dict(enumerate(values))) for values in ((0.1, 0.2), (0.1, 0.11)))
    assert [cells.gap(one), cells.gap(other)] == ["+15.0 [+10.0, +20.0]", "**+10.5 [+10.0, +11.0]**"]


def test_equal_cost_interpolates_between_a_seeds_own_evaluations(tmp_path):
    lines = [
        *(evaluation(arm, 0, "ffff", 0, seconds=0.0) for arm in ("grpo", "fission")),
        evaluation("grpo", 0, "sfff", 50, seconds=100.0), evaluation("grpo", 0, "sssf", 60, seconds=200.0, tokens=100),
        evaluation("fission", 0, "ssff", 50, seconds=75.0), evaluation("fission", 0, "ssss", 60, seconds=150.0),
    ]  # fmt: skip
    suite = raw.read_suite(write(tmp_path, lines))
    found = learning.at_equal_cost(suite, "seconds", "fission", "grpo")
    assert found.budget == 150.0
    assert found.differences["success"].by_seed == {0: 0.5}  # 1 less (0.25 + 0.75) / 2
    assert found.differences["recovery"].mean is None  # nobody erred
    assert learning.at_equal_cost(suite, "tokens", "fission", "grpo") is None  # neither has others: all_tokens tell
    assert learning.at_equal_cost(suite, "all_tokens", "fission", "grpo").budget == 60.0
    assert learning.over_points(suite, "fission", "grpo")["success"].by_seed == {0: 0.25}  # both points: 0.25


def test_extra_tokens_are_charged_and_unequal_ones_are_told(tmp_path):
    lines = [evaluation("grpo", 0, "ssff"), evaluation("fission", 0, "ssss", extra_tokens={"simulator": 25})]
    found = whole.analyse(write(tmp_path, lines))
    assert found.main.arms["fission"].cost.extra_tokens == {"simulator": 25}
    assert "fission was charged +25.0% tokens against grpo: not an equal cost" in found.notes


def test_cycles_belong_to_the_quarter_in_which_they_began():
    cycles = [{"phase": 0, "tokens": tokens} for tokens in (10, 20, 40, 80)]  # began at 0, 10, 20, 40 of 80
    assert [[one["tokens"] for one in part] for part in training.quarters(cycles)] == [[10, 20], [40], [80], []]


def test_groups_follow_from_the_options():
    options = {"per_device_train_batch_size": 32, "gradient_accumulation_steps": 2, "num_generations": 8}
    assert training.groups({**options, "num_recoveries": 4}) == (8, 16)
    assert training.groups(options) == (8, 8)
    assert training.groups({"num_generations": 8}) == (None, None)


def test_training_logs_are_summed_over_cycles_and_averaged_over_seeds(tmp_path):
    explore = {
        "phase": 0,
        "fission/zero_variance": 0.5,
        "fission/pushed": 8,
        "fission/leaks": 1,
        "fission/fallbacks": 2,
    }
    recover = {"phase": 1, "recovery/zero_variance": 0.25, "fission/rescued_groups": 2, "fission/age": 1.5}
    cycles = [
        {**explore, "tokens": 10, "fission/kind/raised": 6.0}, {**recover, "tokens": 20},
        {**explore, "tokens": 30, "fission/zero_variance": 1.0}, {**recover, "tokens": 40, "fission/age": 2.5},
    ]  # fmt: skip
    runs = [run_line("fission", 0, cycles), run_line("fission", 1, cycles[:2])]
    found = training.trainings(raw.read_suite(write(tmp_path, TWO_ARMS, runs)))["fission"]
    totals = {key: dict(one.by_seed) for key, one in found.totals.items()}
    assert totals["rescued_groups"] == {0: 4.0, 1: 2.0}
    assert totals["rescued_of_recovery_groups"] == {0: 4 / 16, 1: 2 / 8}  # 8 groups in each recover cycle
    assert totals["rescued_of_flat_groups"] == {0: 4 / 12, 1: 2 / 4}  # 0.5 and 1.0 of 8 explore groups
    assert totals["leaks"] == {0: 2 / 16, 1: 1 / 8}
    assert totals["fallbacks"] == {0: 4 / 16, 1: 2 / 8}
    assert found.whole["fission/age"].by_seed == {0: 2.0, 1: 1.5}
    assert [one.by_seed[0] for one in found.quarters["fission/zero_variance"]] == [0.5, None, 1.0, None]
    assert found.kinds["raised"] == [6.0, None, 0.0, None]  # quarters 2 and 4 have no explore cycle


def test_what_is_missing_is_told(tmp_path):
    lines = [*TWO_ARMS, evaluation("fission", 2, "srrf", point=50), evaluation("untrained", 0, "ffff", point=0)]
    found = whole.analyse(write(tmp_path, lines, [run_line("grpo", 0), run_line("grpo", 1), run_line("fission", 0)]))
    assert found.point == 100
    assert list(found.main.arms) == ["untrained", "grpo", "fission"]
    assert "fission: held_out at point 100 is missing for seeds 2" in found.notes
    assert "fission: no finished run (runs.jsonl) for seeds 1, 2" in found.notes
    assert "fewer seeds than 2: untrained 1" in found.notes


def test_seeds_with_settings_that_were_changed_since_are_left_out(tmp_path):
    lines = [evaluation("fission", 0, "ffff", config="old"), *TWO_ARMS[:2], TWO_ARMS[3]]
    found = whole.analyse(write(tmp_path, lines, [run_line("fission", 0, config="old")]))
    assert found.main.arms["fission"].seeds == [1]
    assert "fission: evaluations of seeds 0 with other settings than the last ones are left out" in found.notes
    assert "runs.jsonl, line 1: fission, seed 0 has other settings; left out" in found.notes


def test_of_two_lines_on_the_same_evaluation_the_later_counts(tmp_path):
    found = whole.analyse(write(tmp_path, [evaluation("grpo", 0, "ffff"), evaluation("grpo", 0, "ssss")]))
    assert found.main.arms["grpo"].estimates["success"].mean == 1.0
    assert any(note.startswith("evaluations.jsonl, line 2: grpo, seed 0, point 100") for note in found.notes)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"outcomes": "sss"}, "field 'outcomes' has 3 letters, but set 'held_out' 4 tasks"),
        ({"outcomes": "sssq"}, "field 'outcomes' has the letter 'q'"),
        ({"set": "other"}, "field 'set' is 'other', but sets.json knows only held_out"),
        ({"seed": "0"}, "field 'seed' must be int"),
        ({"loops": [3, 2]}, "field 'loops' must be [hits, of]"),
        ({"tokens": -1}, "field 'tokens' must be a whole number of at least 0"),
        ({"error_kinds": {"raised": 0.5}}, "field 'error_kinds.raised' must be a whole number"),
    ],
)
def test_a_broken_line_is_named_with_its_field(tmp_path, changes, told):
    write(tmp_path, [*TWO_ARMS, {**evaluation("grpo", 2, "ssss"), **changes}])
    with pytest.raises(RunFileError) as raised:
        raw.read_suite(tmp_path)
    assert f"{tmp_path / 'evaluations.jsonl'}, line 5: {told}" in str(raised.value)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([0.1, 0.2, 0.1, 0.2, 0.1], "5 seeds: both exclude 0, higher"),
        ([-0.1, -0.2, -0.1, -0.2, -0.1], "5 seeds: both exclude 0, lower"),
        ([0.1, -0.2, 0.1, 0.1, -0.1], "5 seeds: the bootstrap and t hold 0, no difference shown"),
        ([0.1, 0.2], "+15.0 points [+10.0, +20.0], t [-48.5, +78.5], 2 seeds: t holds 0, no difference shown"),
        ([0.1, 0.11, 0.1], "3 seeds: both exclude 0, higher (but only 3 seeds)"),
        ([0.1], "+10.0 points, 1 seed: no interval"),
        ([], "nothing to compare"),
    ],
)
def test_the_verdict_says_whether_the_interval_excludes_0(values, said):
    assert said in verdicts.verdict(intervals.difference(dict(enumerate(values))))


def test_arms_keep_name_and_colour_in_every_picture():
    assert drawing.colors_of(["fission", "grpo", "untrained"]) == {
        "fission": "#d9480f", "grpo": "#2563eb", "untrained": "#64748b",
    }  # fmt: skip
    all_colors = drawing.colors_of(["grpo_large_g", "fission_fixed", "fission_shuffled", "x", "y", "z"])
    assert len(set(all_colors.values())) == 6
    assert drawing.colors_of(["fission_fixed"])["fission_fixed"] == all_colors["fission_fixed"]
    assert [drawing.shown_name(arm) for arm in ("fission_depth_2", "dr_grpo", "untrained_rules")] == [
        "Fission, depth 2", "Dr. GRPO", "untrained rules",
    ]  # fmt: skip


def test_the_command_writes_numbers_tables_and_pictures_of_all_suites(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    cycles = [{"phase": 0, "tokens": 50, "fission/kind/raised": 2}, {"phase": 1, "tokens": 100, "fission/age": 1.0}]
    runs = [run_line(arm, seed, cycles) for arm in ("grpo", "fission") for seed in (0, 1)]
    cards = {name: {"ids": [*"abcd"], "categories": KINDS} for name in ("held_out", "faults")}
    early = [{**line, "point": 50, "outcomes": "ffff"} for line in TWO_ARMS]
    write(tmp_path / "step", [*early, *TWO_ARMS, *({**line, "set": "faults"} for line in TWO_ARMS)], runs, cards)
    write(tmp_path / "episode", TWO_ARMS)
    write(tmp_path / "smoke", TWO_ARMS)
    picture = tmp_path / "evidence.png"
    assert analyse.main(["--all", "--results", str(tmp_path), "--picture", str(picture)]) == 0
    assert "no findings: fission less grpo has no interval" in capsys.readouterr().out
    pictures = {file.stem for file in (tmp_path / "step").glob("*.png")}
    assert pictures == {"headline", "curves", "training", "error_kinds", "transfer"}
    for file in (picture, *(tmp_path / "step").glob("*.png")):
        assert file.read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "smoke" / "analysis.json").exists()  # it is no evidence
    written = json.loads((tmp_path / "step" / "analysis.json").read_text())
    assert written["main"]["arms"]["fission"]["differences"]["success"]["mean"] == 0.125
    assert "| `grpo` | 2 | 62.5 [50.0, 75.0] | – |" in (tmp_path / "step" / "tables.md").read_text()
    summary = (tmp_path / "summary.md").read_text()
    assert 0 < summary.index("## `episode`") < summary.index("## `step`")
    before = (tmp_path / "episode" / "tables.md").read_bytes()
    assert analyse.main([str(tmp_path / "episode")]) == 0
    assert (tmp_path / "episode" / "tables.md").read_bytes() == before


def test_mistakes_of_the_command_are_one_line_on_stderr(tmp_path, capsys):
    folder = write(tmp_path / "s", TWO_ARMS)
    for arguments, told in (
        ([str(folder), "--reference", "ppo"], "no arm 'ppo' to compare with; give --reference, one of grpo, fission"),
        ([str(folder), "--point", "7"], "no evaluations at point 7; there are 100"),
        ([str(tmp_path / "none")], "no such folder"),
        (["--all", "--results", str(tmp_path / "none")], "no suite has evaluations.jsonl in it"),
    ):
        assert analyse.main(arguments) == 2
        error = capsys.readouterr().err
        assert told in error
        assert error.count("\n") == 1
