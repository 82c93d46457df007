"""Recovery from injected faults at the desk: shares by seed, tables, and one real policy."""

import json
import sys
from pathlib import Path

from fission_grpo.envs.faults import CELLS
from fission_grpo.inference.pretrained import model_path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks" / "faults"))

from desk_faults import MEASURES, by_seed, rates, tables  # noqa: E402


def run(arm, seed, hits):
    cell = {name: [hits, 4] for name in MEASURES} | {"retry_loops": [0, 0]}
    return {"arm": arm, "seed": seed, "cells": {"none": {"success": [4, 4]}, "explicit-transient": cell}}


def test_shares_are_by_seed_and_differences_paired():
    runs = [run("grpo", 1, 1), run("grpo", 2, 2), run("fission", 1, 3), run("fission", 2, 4)]
    assert by_seed(runs, "grpo", "explicit-transient", "recovery") == {1: 0.25, 2: 0.5}
    assert by_seed(runs, "grpo", "explicit-transient", "retry_loops") == {1: None, 2: None}
    text = "\n".join(tables(runs, ["none", "explicit-transient"]))
    assert "| grpo | 100.0" in text
    assert "| fission less grpo | " in text
    assert "+50.0" in text
    assert "retry_loops" not in text  # nobody could loop


def test_the_starter_meets_faults_of_the_cell_and_its_counts_fit():
    found = rates(model_path("starter"), 0, "explicit-permanent")
    assert found["faults"] >= found["success"][1] > 0
    assert found["recovery"][0] == sum(found[name][0] for name in ("retry", "another_way", "justified_stop"))
    assert found["recovery"][1] <= found["success"][1]


def test_the_committed_results_have_every_cell_and_the_seeds_of_the_suite():
    results = json.loads((ROOT / "benchmarks" / "faults" / "desk_results.json").read_text())
    seeds = {arm: sorted(one["seed"] for one in results["runs"] if one["arm"] == arm) for arm in ("grpo", "fission")}
    assert seeds["grpo"] == seeds["fission"] == list(range(300, 310))
    assert all(set(one["cells"]) == {"none", *CELLS} for one in results["runs"])
