"""Recovery from injected faults by cell, of the desk's policies: untrained, GRPO, Fission, and shuffled errors.

    python benchmarks/faults/desk_faults.py             # evaluates what desk_results.json lacks, then the tables
    python benchmarks/faults/desk_faults.py --tables    # the tables alone, as in desk_tables.md

The policies are those of the suite `static` of benchmarks/evidence, whose training met no injected fault; a checkpoint
that is not in `--runs` is trained with the suite's own options (a minute of one core). Nothing was chosen by results.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / folder) for folder in ("evidence", "injection")]

from analysis.intervals import difference, estimate, less  # noqa: E402
from analysis.verdicts import direction  # noqa: E402
from desk import ARMS, BATCH, COMPARED, FIRST_SEED, MAX_NEW_TOKENS, SEEDS, UNTRAINED_SEEDS, checkpoint  # noqa: E402

COUNT, TASK_SEED = 64, 1000  # held-out tasks; the seed is that of the suite's own [ours]
MAX_TURNS = 6  # [ours]
RATE = 0.5  # probability that a call meets a fault, so that most tasks meet one [ours]
MEASURES = ("success", "recovery", "retry", "another_way", "justified_stop", "retry_loops")


def rates(path: str, seed: int, cell: str) -> dict[str, Any]:
    """Hits and cases of each measure, of a policy at temperature 1; of success alone with the cell "none"."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from fission_grpo.envs.faults import Fault
    from fission_grpo.evaluation.metrics import compute_metrics
    from fission_grpo.evaluation.runner import run_cases, with_seeds
    from fission_grpo.evaluation.task_sets import TaskSpec, task_set
    from fission_grpo.inference.local import LocalPolicy

    faults = () if cell == "none" else (Fault(cell, RATE),)
    tasks = task_set(TaskSpec("desk", COUNT, seed=TASK_SEED, max_turns=MAX_TURNS, faults=faults))
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(path, dtype="float32")
    records: list[Any] = []
    policy = LocalPolicy(model, tokenizer, 1.0, MAX_NEW_TOKENS, BATCH, seed)
    starts = (with_seeds(start, seed, case_id) for case_id, start in tasks.cases.items())
    run_cases(policy, starts, COUNT, records.append)
    metrics = compute_metrics(records)
    if cell == "none":
        return {"success": [metrics.success.hits, metrics.success.of]}
    (found,) = metrics.by_fault
    shares = {name: getattr(found, name) for name in MEASURES}
    return {name: [one.hits, one.of] for name, one in shares.items()} | {"faults": found.faults}


def by_seed(runs: Sequence[Mapping[str, Any]], arm: str, cell: str, measure: str) -> dict[int, float | None]:
    """A share for each seed of an arm; None over nothing."""
    pairs = {run["seed"]: run["cells"][cell][measure] for run in runs if run["arm"] == arm}
    return {seed: hits / of if of else None for seed, (hits, of) in pairs.items()}


def tables(runs: Sequence[Mapping[str, Any]], cells: Sequence[str]) -> list[str]:
    """Markdown: percent by arm, mean over seeds with a bootstrap interval; differences paired by seed, bold where the
    t-interval excludes 0 as well."""
    arms = [arm for arm in ARMS if any(run["arm"] == arm for run in runs)]
    lines = []
    for cell in cells:
        measures = [name for name in MEASURES if cell != "none" or name == "success"]
        measures = [name for name in measures if any(_is_known(runs, arm, cell, name) for arm in arms)]
        lines += [
            "",
            f"### {cell}",
            "",
            f"| percent of cases | {' | '.join(measures)} |",
            "|---|" + "---:|" * len(measures),
        ]
        for arm in arms:
            found = [estimate(by_seed(runs, arm, cell, name)) for name in measures]
            lines.append(f"| {arm} | " + " | ".join(_cell(one, "{:.1f}") for one in found) + " |")
        for arm, other in COMPARED:
            if arm in arms and other in arms:
                pairs = [(by_seed(runs, arm, cell, name), by_seed(runs, other, cell, name)) for name in measures]
                found = [difference(less(*pair)) for pair in pairs]
                lines.append(f"| {arm} less {other} | " + " | ".join(_cell(one, "{:+.1f}") for one in found) + " |")
    return lines


def _is_known(runs: Sequence[Mapping[str, Any]], arm: str, cell: str, measure: str) -> bool:
    return any(value is not None for value in by_seed(runs, arm, cell, measure).values())


def _cell(found: Any, form: str) -> str:
    if found.mean is None:
        return "–"
    text = form.format(100 * found.mean + 0.0)
    if found.interval is not None:
        text += " [" + ", ".join(form.format(100 * end) for end in found.interval) + "]"
    return f"**{text}**" if hasattr(found, "t") and direction(found) else text


def main() -> None:
    from fission_grpo.envs.faults import CELLS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=HERE.parents[1] / "runs" / "evidence" / "static")
    parser.add_argument("--output", type=Path, default=HERE / "desk_results.json", help="raw results")
    parser.add_argument("--tables", action="store_true", help="evaluate nothing, print the tables")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(FIRST_SEED, FIRST_SEED + SEEDS)))
    options = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}  # before torch
    cells = ["none", *CELLS]
    results: dict[str, Any] = {"count": COUNT, "task_seed": TASK_SEED, "rate": RATE, "runs": []}
    if options.output.is_file():
        results = json.loads(options.output.read_text())
    done = {(run["arm"], run["seed"]) for run in results["runs"]}
    for number, seed in enumerate(() if options.tables else options.seeds):
        for arm in options.arms:
            if (arm, seed) in done or (arm == "untrained" and number >= UNTRAINED_SEEDS):
                continue
            path = checkpoint(arm, seed, options.runs.resolve())
            found = {cell: rates(path, seed, cell) for cell in cells}
            results["runs"].append({"arm": arm, "seed": seed, "cells": found})
            options.output.write_text(json.dumps(results) + "\n")
            print(arm, seed, flush=True)
    print("\n".join(tables(results["runs"], cells)))


if __name__ == "__main__":
    main()
