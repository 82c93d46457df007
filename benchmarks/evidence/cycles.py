"""What explore and recover cycles hold and cost: errors met, tokens sampled, size of the update.

    python benchmarks/evidence/cycles.py benchmarks/evidence/results/episode

Means over all cycles of all runs of an arm, from `runs.jsonl`. Gradient norms are those before clipping. A cycle that
explores and recovers in one batch counts as an explore cycle. Groups without variance are in `tables.md`.
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


def cells(cycles: list[Mapping[str, Any]]) -> Iterator[tuple[str, float]]:
    """Named numbers of one run's cycles, a pair for each cycle and number."""
    before = 0
    for cycle in cycles:
        phase = PHASES[cycle["phase"]]
        yield f"tokens of {phase} cycles", cycle["tokens"] - before
        yield f"gradient norm of {phase} cycles", cycle["grad_norm"]
        if "fission/error_cases" in cycle:
            yield "rollouts with an own error", cycle["fission/error_cases"]
        if "recovery/repeats" in cycle:
            yield "recoveries that repeat the call, %", 100 * cycle["recovery/repeats"]
        before = cycle["tokens"]


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
        "recoveries that repeat the call, %",
        *(f"{what} of {one} cycles" for what in ("tokens", "gradient norm") for one in PHASES),
    ]
    print("| arm | " + " | ".join(names) + " |\n|---|" + "---:|" * len(names))
    for arm, numbers in found.items():
        shown = [f"{fmean(numbers[name]):,.{2 if 'norm' in name else 0}f}" if numbers[name] else "–" for name in names]
        print(f"| `{arm}` | " + " | ".join(shown) + " |")


if __name__ == "__main__":
    main()
