"""One, two and four processes make the same buffer, the same journal and the same updates; so do resumed ones.

What N ranks do is compared with one process that said the same (see processes_support.py). "straddling": groups of 8
and 12 among ranks of 24, 12 or 6 rows. "uneven": the first half of the ranks has no failure and no advantage.
"""

import json
import math

import pytest
from processes_support import copied, launched, left_by, mixed, straddling, uneven
from safetensors.torch import load_file

from fission_grpo.inference.pretrained import load_starter

APART = 2e-5
"""Largest distance of all parameters together, as a part of their norm, that rounding may make in 4 to 8 updates."""
OF_UPDATES = 2e-3
"""The same as a part of what training has changed: AdamW divides gradients by their size, even mere noise."""
NOT_COMPARED = (
    "seconds",
    "step_time",
    "per_second",
    "runtime",
    "shared_prefix/",
    "env/",
    "fallback",
    "train_",
)
"""Times; prompts shared on the ranks of a repeated run, which samples nothing; worlds restored where a rank has the
snapshot and replayed elsewhere; failures of one task that several ranks asked about, of which one is taken."""
MEANS_OF_RANKS = ("entropy", "clip_ratio/")
"""TRL takes the mean of the ranks' (and micro-batches') means, which weighs tokens by how many others there are."""

TWO = (
    "straddling",
    "mixed",
    "mixed<1",
    "uneven",
    "straddling<1",
    "sampled",
    "sampled<2",
    "endpoint",
    "raising",
    "slow",
    "server",
    "drawn",
    "hanging",
)
FOUR = ("straddling", "uneven", "straddling<2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def one(folder):
    """Both trainings on one process, with their tapes."""
    saves = {"save_strategy": "steps", "save_steps": 4}
    for make, fields in ((straddling, saves), (mixed, saves), (uneven, {})):
        tape = {}
        run = folder / "1" / make.__name__
        trainer = make(run, 1, tape, repeat=False, **fields)
        trainer.train()
        left_by(trainer, run)
        (folder / f"{make.__name__}.json").write_text(json.dumps(tape))
    return folder


@pytest.fixture(scope="module")
def two(one):
    launched(2, "several_processes.py", one, *TWO)
    return one


@pytest.fixture(scope="module")
def four(two):
    launched(4, "several_processes.py", two, *FOUR)
    return two


def ranks(folder, processes, name):
    return [json.loads((folder / str(processes) / name / f"rank{i}.json").read_text()) for i in range(processes)]


def events(run):
    """The lines that count: those before a `resumed` event with its step or a later one are void, tools told again."""
    lines = []
    for line in map(json.loads, (run / "fission.jsonl").read_text().splitlines()):
        if line["event"] == "resumed":
            lines = [one for one in lines if one.get("step", -1) < line["step"]]
        elif line["event"] != "tools" or line not in lines:
            lines.append(line)
    return lines


def distance(one, other):
    """Norm of the difference of two sets of parameters."""
    assert one.keys() == other.keys()
    return math.sqrt(sum((one[name] - other[name]).square().sum().item() for name in one))


def agree(folder, processes, name, base):
    """N ranks hold what one process holds: each of them the same buffer, together the same of everything."""
    by_rank, (alone,) = ranks(folder, processes, name), ranks(folder, 1, base)
    assert [rank["fission"] for rank in by_rank] == [alone["fission"]] * processes
    assert [rank["tokens"] for rank in by_rank] == [alone["tokens"]] * processes
    after = {key: item for key, item in alone["pushed"].items() if name == base or key in by_rank[0]["pushed"]}
    assert [rank["pushed"] for rank in by_rank] == [after] * processes  # a resumed run sees the later ones only
    assert len({rank["parameters"] for rank in by_rank}) == 1
    assert [rank["displaced"] for rank in by_rank] == [alone["displaced"]] * processes
    here, there = folder / str(processes) / name, folder / "1" / base
    assert events(here) == events(there)
    ours, theirs = load_file(here / "parameters.safetensors"), load_file(there / "parameters.safetensors")
    begun = {key: value.detach() for key, value in load_starter()[0].named_parameters()}
    nothing = {key: value * 0 for key, value in theirs.items()}
    assert distance(ours, theirs) <= APART * distance(theirs, nothing)
    assert distance(ours, theirs) <= OF_UPDATES * distance(theirs, begun)
    compare_history(by_rank[0]["history"], alone["history"])


def compare_history(history, alone):
    assert [entry["step"] for entry in history] == [entry["step"] for entry in alone]
    for mine, other in zip(history, alone, strict=True):
        for key, value in other.items():
            if not any(part in key for part in (*NOT_COMPARED, *MEANS_OF_RANKS)):
                assert mine[key] == pytest.approx(value, rel=1e-3, abs=1e-4), key


def phases(folder, name):
    return [entry["fission/phase"] for entry in ranks(folder, 1, name)[0]["history"] if "fission/phase" in entry]


def test_the_trainings_explore_and_recover(one):
    assert phases(one, "straddling") == phases(one, "uneven") == [0, 1, 0, 1]


def test_the_mixed_training_recovers_beside_exploring(one):
    assert phases(one, "mixed") == [0, 0.5, 0.5, 0.5]


@pytest.mark.parametrize("name", ["straddling", "mixed", "uneven"])
def test_two_processes_do_what_one_does(two, name):
    agree(two, 2, name, name)


@pytest.mark.dear
@pytest.mark.parametrize("name", ["straddling", "uneven"])
def test_four_processes_do_what_one_does(four, name):
    agree(four, 4, name, name)


def test_half_of_the_ranks_never_fail_in_the_uneven_training(one):
    roots = [line["root"] for line in events(one / "1" / "uneven") if line["event"] == "pushed"]
    pushed = [root.partition(":")[0] for root in roots]
    assert pushed == ["u1", "u3"]  # odd rows are the hard ones, the second half of each batch
    explored = [entry for entry in ranks(one, 1, "uneven")[0]["history"] if entry.get("fission/phase") == 0]
    assert [entry["frac_reward_zero_std"] for entry in explored] == [0.5, 0.5]


@pytest.mark.dear
def test_a_run_resumed_with_another_number_of_processes_goes_on_as_if_nothing_had_happened(four):
    run = four / "1" / "straddling_from_2"
    copied(four / "2" / "straddling", run, rank=0)
    tape = json.loads((four / "straddling.json").read_text())
    trainer = straddling(run, 1, tape, repeat=True)
    trainer.train(resume_from_checkpoint=str(run / "checkpoint-4"))
    left_by(trainer, run)
    for processes, name in ((1, "straddling_from_2"), (2, "straddling_from_1"), (4, "straddling_from_2")):
        agree(four, processes, name, "straddling")
    agree(four, 2, "mixed_from_1", "mixed")


def test_a_resumed_run_of_two_processes_equals_the_straight_one_to_the_last_bit(two):
    straight, resumed = ranks(two, 2, "sampled"), ranks(two, 2, "sampled_from_2")
    for whole, rest in zip(straight, resumed, strict=True):
        for part in ("fission", "displaced", "parameters", "tokens"):
            assert rest[part] == whole[part]
        assert rest["tape"] == {key: entry for key, entry in whole["tape"].items() if int(key.split()[0]) >= 2}
        assert rest["tape"]
    assert events(two / "2" / "sampled_from_2") == events(two / "2" / "sampled")


@pytest.mark.parametrize("changed", [{"per_device_train_batch_size": 24}, {"num_generations": 12}])
def test_rows_that_wait_in_a_checkpoint_are_explored_in_batches_of_another_size(one, tmp_path, changed):
    trainer = straddling(tmp_path, 1, {}, repeat=False, **changed)
    trainer.train(resume_from_checkpoint=str(one / "1" / "straddling" / "checkpoint-4"))
    assert trainer.state.global_step == 8


@pytest.mark.parametrize(
    ("name", "used", "instead", "counted"),
    [
        ("endpoint", "endpoint", "rules", "feedback/fallback/endpoint/connection"),
        ("raising", "broken_source", "fixed", "feedback/fallback/broken_source/raised_runtimeerror"),
        ("slow", "slow", "fixed", "feedback/fallback/slow/late"),
    ],
)
def test_one_rank_without_diagnoses_falls_back_and_all_hold_the_same(two, name, used, instead, counted):
    first, second = ranks(two, 2, name)
    assert first["fission"] == second["fission"]
    assert first["parameters"] == second["parameters"]
    pushed = [(line["root"], line["source"]) for line in events(two / "2" / name) if line["event"] == "pushed"]
    assert {source for _, source in pushed} == {used, instead}
    entries = [entry for entry in first["history"] if entry.get(counted)]
    assert len(entries) >= 1
    assert all(entry["feedback/fallbacks"] >= entry[counted] for entry in entries)
    assert [entry["step"] for entry in first["history"]][-2:] == [2, 2]  # to the end


def test_a_rank_that_is_waited_for_shows_in_the_log_of_the_first(two):
    waits = [entry.get("feedback/seconds", 0) for entry in ranks(two, 2, "slow")[0]["history"]]
    assert 0.5 <= max(waits) < 5  # feedback_timeout is 0.5


def test_environments_that_draw_their_tasks_are_restored_on_every_rank(two):
    explored, recovered = [e for e in ranks(two, 2, "drawn")[0]["history"] if "fission/phase" in e]
    assert (explored["fission/phase"], recovered["fission/phase"]) == (0, 1)
    assert explored["fission/pushed"] == 16  # each rollout drew its own task
    assert recovered["env/restored"] == 16
    assert recovered["recovery/reward"] == 0  # all in the task of their prompt


def test_server_mode_of_vllm_asks_for_the_groups_of_each_cycle_and_every_rank_gets_its_own(two):
    first, second = ranks(two, 2, "server")
    assert first["fission"] == second["fission"]
    cycles = [entry for entry in first["history"] if "fission/phase" in entry]
    asked = [one for one in first["asked"] if one[1] != 1]  # prompts, and how many of each
    assert asked == [[4, 4] if entry["fission/phase"] else [2, 8] for entry in cycles]
    assert len(first["asked"]) > 2 * len(asked)  # after tool calls the first rank goes on twice, the last once
    assert {entry["fission/phase"] for entry in cycles} == {0, 1}
    assert first["synced"] == 4  # once a step
    # The server tells how likely each token was; the policy finds the same only for its own rows' prompts.
    assert max(entry["sampling/sampling_logp_difference/max"] for entry in cycles) < 1e-3


def test_a_rank_whose_resets_hang_or_exit_goes_on_without_their_rewards(two):
    first, second = ranks(two, 2, "hanging")
    assert first["fission"] == second["fission"]
    entries = [entry for entry in first["history"] if "fission/phase" in entry]
    assert [entry["fission/infrastructure"] for entry in entries] == [8, 8]
    assert [entry["env/timeouts"] for entry in entries] == [2, 2]
    assert [entry["env/broken"] for entry in entries] == [8, 8]
