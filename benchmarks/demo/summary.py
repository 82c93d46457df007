"""Fission-GRPO minus GRPO over the demo's seeds: mean and 95% t-interval, paired by seed.

python benchmarks/demo/summary.py
"""

import math
import statistics
from pathlib import Path

from scipy.stats import t

from fission_grpo.run_files import read_run


def main():
    pairs = []
    for folder in sorted(Path(__file__).parent.glob("seed*")):
        grpo, fission = (read_run(folder / arm).evaluations[-1] for arm in ("grpo", "fission"))
        pairs.append((grpo, fission))
        print(
            f"{folder.name}: success {grpo.success:.3f} -> {fission.success:.3f}, "
            f"recovery {grpo.recovery_rate:.3f} -> {fission.recovery_rate:.3f} (GRPO -> Fission-GRPO)"
        )
    for name in ("success", "recovery_rate"):
        points = [100 * (getattr(fission, name) - getattr(grpo, name)) for grpo, fission in pairs]
        half = t.ppf(0.975, len(points) - 1) * statistics.stdev(points) / math.sqrt(len(points))
        mean = statistics.mean(points)
        print(f"{name}: {mean:+.1f} points [{mean - half:+.1f}, {mean + half:+.1f}], {len(points)} seeds")


if __name__ == "__main__":
    main()
