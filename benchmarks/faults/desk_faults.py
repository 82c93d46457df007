"""Recovery from injected faults by cell, of the desk's policies: untrained, GRPO, Fission, and shuffled errors.

    python benchmarks/faults/desk_faults.py             # evaluates what desk_results.json lacks, then the tables
    python benchmarks/faults/desk_faults.py --tables    # the tables alone, as in desk_tables.md

The policies are those of the suite `static` of benchmarks/evidence, whose training met no injected fault; a checkpoint
that is not in `--runs` is trained with the suite's own options (a minute of one core). Nothing was chosen by results.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / folder) for folder in ("evidence", "injection")]

from desk import BATCH, COUNT, MAX_NEW_TOKENS, TASK_SEED, completed, parser_of, table  # noqa: E402

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


@dataclass(frozen=True)
class Column:
    """A measure of a cell, as `desk.table` shows it."""

    cell: str
    title: str

    def of(self, runs: Sequence[Mapping[str, Any]], arm: str) -> dict[int, float | None]:
        """The arm's values by seed."""
        return by_seed(runs, arm, self.cell, self.title)


def tables(runs: Sequence[Mapping[str, Any]], cells: Sequence[str]) -> list[str]:
    """Markdown: for each cell every arm's measures, of those that any case counts for, and the arms' differences."""
    arms = {run["arm"] for run in runs}
    lines = []
    for cell in cells:
        columns = [Column(cell, name) for name in MEASURES if cell != "none" or name == "success"]
        columns = [one for one in columns if any(set(one.of(runs, arm).values()) - {None} for arm in arms)]
        lines += ["", f"### {cell}", "", *table(runs, columns)]
    return lines


def main() -> None:
    from fission_grpo.envs.faults import CELLS

    cells = ["none", *CELLS]
    options = parser_of(__doc__, HERE / "desk_results.json").parse_args()

    def evaluate(path: str, seed: int, _: Mapping[str, Any]) -> dict[str, Any]:
        return {"cells": {cell: rates(path, seed, cell) for cell in cells}}

    results = completed(options, {"count": COUNT, "task_seed": TASK_SEED, "rate": RATE}, evaluate)
    print("\n".join(tables(results["runs"], cells)))


if __name__ == "__main__":
    main()
