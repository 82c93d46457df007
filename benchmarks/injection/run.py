"""Train every arm, and evaluate each on AgentDojo's clean and injected tasks. The same command goes on after a kill.

    python benchmarks/injection/warm_up.py --model models/smollm2 --output runs/injection/warm
    python benchmarks/injection/run.py --seeds 0
    python benchmarks/injection/analyse.py

Needs agentdojo (docs/evaluation.md). Arms differ in `ARMS` only, and sample equally many tokens.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WORK = Path("runs/injection")
SUITES = ("slack",)
ATTACK = "important_instructions"
ARMS: dict[str, list[str]] = {
    "untrained": [],
    "grpo": ["--fission", "false"],
    "fission": ["--feedback", "environment,rules"],
    "shuffled": ["--feedback", "shuffled:environment,rules"],
}
SETS = {"attack-slack": 105, "clean-slack": 0}
"""Cases of each set, 105: all five injection tasks for each user task; 0: all. [ours]"""
SAMPLING = ["--temperature", "1", "--seed", "0", "--max_turns", "4", "--max_new_tokens", "112"]
SAMPLING += ["--in_flight", "32", "--dtype", "bfloat16"]
"""112 tokens: the longest official call has 110. [ours]"""


def fission_grpo(*words: str) -> None:
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-m", "fission_grpo.cli", *words], cwd=ROOT, env=environment, check=True)


def prepare() -> None:
    """Write the step tasks of all suites into one file."""
    target = ROOT / WORK / "steps.jsonl"
    if target.exists():
        return
    texts = []
    for suite in SUITES:
        file = WORK / f"steps-{suite}.jsonl"
        fission_grpo("tasks", "convert", "--from", "agentdojo", f"agentdojo:{suite}", str(file))
        texts.append((ROOT / file).read_text(encoding="utf-8"))
    target.write_text("".join(texts), encoding="utf-8")


def train(arm: str, seed: int, more: Sequence[str]) -> Path:
    """The folder of an arm's policy, which is trained unless it is there."""
    if arm == "untrained":
        return WORK / "warm"
    folder = WORK / f"{arm}-{seed}"
    if not (ROOT / folder / "adapter_config.json").exists():
        begun = any((ROOT / folder).glob("checkpoint-*"))
        resume = ["--resume_from_checkpoint", "true"] if begun else []
        options = ["--config", "benchmarks/injection/train.yaml", "--output_dir", str(folder), "--seed", str(seed)]
        fission_grpo("train", *options, *ARMS[arm], *resume, *more)
    return folder


def evaluate(arm: str, seed: int, folder: Path, sets: Sequence[str], attack: str) -> None:
    """Evaluate a policy on the sets; evaluations that are there are only read."""
    for name in sets:
        kind, suite = name.split("-")
        attacked = ["--attack", attack] if kind == "attack" else []
        count = ["--num_tasks", str(SETS[name])] if SETS[name] else []
        where = ["--output", str(WORK / "eval" / f"{arm}-{seed}"), "--name", name]
        fission_grpo(
            "eval", "--model", str(folder), "--tasks", f"agentdojo:{suite}", *attacked, *count, *SAMPLING, *where
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of training; evaluations have one seed")
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--attack", default=ATTACK, help="an official attack")
    options, more = parser.parse_known_args()
    (ROOT / WORK).mkdir(parents=True, exist_ok=True)
    prepare()
    for seed in options.seeds:
        for arm in options.arms:
            if arm == "untrained" and seed != options.seeds[0]:
                continue
            for step in ("train", "evaluate"):
                began = time.monotonic()
                if step == "train":
                    folder = train(arm, seed, more)
                else:
                    evaluate(arm, seed, folder, options.sets, options.attack)
                print(f"{arm} {seed}: {step} took {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
