"""Which levers of fission help at the desk: how recoveries are judged, chosen, and how often there are any.

    python benchmarks/archive/levers/run.py --seeds 0 1 2 --output benchmarks/archive/levers

Every arm starts from the shipped policy and stops once it has sampled the same number of tokens, then does the same
held-out tasks; about 2 minutes an arm and seed on one core. Results that are there already are kept. The last lines
printed are every arm minus GRPO over the seeds, paired, with 95% t-intervals.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from pathlib import Path

from scipy.stats import t

from fission_grpo.report.run import read_history, read_run

ROOT = Path(__file__).parents[3]
CHOSEN = ["--buffer_order", "variance", "--adaptive_recovery_ratio", "true"]
ARMS = {
    "grpo": [],
    "episode": ["--recovery_scope", "episode"],
    "turn": ["--recovery_scope", "turn"],
    "episode_chosen": ["--recovery_scope", "episode", *CHOSEN],
    "turn_chosen": ["--recovery_scope", "turn", *CHOSEN],
}
MEANS = ("recovery/rate", "recovery/frac_zero_std", "fission/frac_zero_std", "fission/phase")


def run(arm: str, seed: int, options: argparse.Namespace) -> dict:
    """Train and evaluate one arm."""
    folder = options.work / f"{arm}-{seed}"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    config = "desk_grpo" if arm == "grpo" else "desk_fission"
    budget = ["--max_generated_tokens", str(options.tokens), "--max_steps", "10000", "--save_strategy", "no"]
    train = ["train", "--config", str(ROOT / "configs" / f"{config}.yaml"), *budget, "--seed", str(seed), *ARMS[arm]]
    evaluate = ["eval", "--model", str(folder), "--tasks", "desk", "--num_tasks", str(options.eval_tasks)]
    for command in (
        [*train, "--output_dir", str(folder)],
        [*evaluate, "--seed", str(seed), "--name", arm, "--output", str(folder)],
    ):
        whole = [sys.executable, "-m", "fission_grpo.cli", *command]
        done = subprocess.run(whole, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{arm} {seed}: {' '.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    result = read_run(folder).evaluations[-1]
    history = read_history(folder / "trainer_state.json")
    means = {name: [row[name] for row in history if name in row] for name in MEANS}
    return {
        "arm": arm,
        "seed": seed,
        "success": result.success,
        "success_ci": list(result.success_ci),
        "recovery_rate": result.recovery_rate,
        "recovery_ci": list(result.recovery_ci or ()),
        "error_cases": result.error_cases,
        "tasks": result.tasks,
        "generated_tokens": result.generated_tokens,
        "cycles": len(means["fission/phase"]),
        "mean": {name: statistics.mean(values) for name, values in means.items() if values},
    }


def table(results: list[dict]) -> None:
    """Every arm minus GRPO, paired by seed."""
    by_arm = {arm: {one["seed"]: one for one in results if one["arm"] == arm} for arm in ARMS}
    for arm, ours in by_arm.items():
        for name in ("success", "recovery_rate"):
            values = [one[name] for one in ours.values()]
            print(f"{arm:15} {name:14} " + " ".join(f"{value:.3f}" for value in values), end="")
            pairs = [100 * (one[name] - by_arm["grpo"][seed][name]) for seed, one in ours.items()]
            if arm != "grpo" and len(pairs) > 1:
                half = t.ppf(0.975, len(pairs) - 1) * statistics.stdev(pairs) / math.sqrt(len(pairs))
                mean = statistics.mean(pairs)
                print(f"   minus grpo: {mean:+.1f} points [{mean - half:+.1f}, {mean + half:+.1f}]", end="")
            print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="folder of results.json")
    parser.add_argument("--work", type=Path, default=Path("runs/levers"), help="folder of the runs themselves")
    parser.add_argument("--arms", choices=tuple(ARMS), nargs="+", default=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tokens", type=int, default=90_000, help="tokens each arm may sample")
    parser.add_argument("--eval_tasks", type=int, default=300)
    options = parser.parse_args()
    file = options.output / "results.json"
    results = json.loads(file.read_text()) if file.is_file() else []
    for seed in options.seeds:
        for arm in options.arms:
            if not any((one["arm"], one["seed"]) == (arm, seed) for one in results):
                results.append(run(arm, seed, options))
                file.write_text(json.dumps(results, indent=1) + "\n")
                print(json.dumps(results[-1]), flush=True)
    table(results)


if __name__ == "__main__":
    main()
