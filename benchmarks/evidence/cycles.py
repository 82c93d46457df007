"""What explore and recover cycles hold and cost: errors met, groups without variance, tokens, size of the update.

    python benchmarks/evidence/cycles.py benchmarks/evidence/results/episode

Means over all cycles of all runs of an arm, from `runs.jsonl`; rescued groups are the sum of a run. Gradient norms are
those before clipping. Cycles that explore and recover in one batch count as explore cycles.
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))

from packed import unpacked

PHASES = ("explore", "recover")
SHARES = {
    "explored groups without variance": "fission/frac_zero_std",
    "recovery groups without variance": "recovery/frac_zero_std",
    "recoveries that repeat the call": "recovery/repeats",
}
"""Logged shares of a cycle by their column."""
RESCUED = "rescued groups a run"


def cells(cycles: list[Mapping[str, Any]]) -> Iterator[tuple[str, float]]:
    """Named numbers of one run's cycles, a pair for each cycle and number."""
    before = 0
    for cycle in cycles:
        phase = PHASES[cycle["phase"]]
        yield f"tokens of {phase} cycles", cycle["tokens"] - before
        yield f"gradient norm of {phase} cycles", cycle["grad_norm"]
        if "fission/error_cases" in cycle:
            yield "rollouts with an own error", cycle["fission/error_cases"]
        for name, key in SHARES.items():
            if key in cycle:
                yield name, cycle[key]
        before = cycle["tokens"]
    yield RESCUED, sum(cycle.get("fission/rescued_groups", 0.0) for cycle in cycles)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="folder with a suite's raw results")
    folder = parser.parse_args().results
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with unpacked(folder / "runs.jsonl") as file:
        lines = file.read_text().splitlines()
    for run in map(json.loads, lines):
        for name, value in cells(run["cycles"]):
            found[run["arm"]][name].append(value)
    names = [
        "rollouts with an own error",
        *SHARES,
        RESCUED,
        *(f"{what} of {one} cycles" for what in ("tokens", "gradient norm") for one in PHASES),
    ]
    print("| arm | " + " | ".join(names) + " |\n|---|" + "---:|" * len(names))
    for arm, numbers in found.items():
        decimals = {name: 2 if name in SHARES or "norm" in name else 0 for name in names}
        shown = [f"{fmean(numbers[name]):,.{decimals[name]}f}" if numbers[name] else "–" for name in names]
        print(f"| `{arm}` | " + " | ".join(shown) + " |")


if __name__ == "__main__":
    main()
