"""What fission's bookkeeping (reading, diagnosing, buffering, writing) costs, as a share of the training step.

    python benchmarks/speed/bookkeeping.py --steps 12 --output benchmarks/speed/bookkeeping.json

Trains the starter policy on the built-in environment and compares `fission/seconds` with TRL's `step_time`, step by
step. The buffer is filled with as many waiting instances as given first, so that growth would show.
"""

import argparse
import json
import platform
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
import transformers
import trl
from datasets import Dataset

from fission_grpo import FissionGRPOConfig, FissionGRPOTrainer
from fission_grpo.core.types import ErrorKind, Task
from fission_grpo.envs.desk.env import Desk
from fission_grpo.envs.desk.tasks import make_rows
from fission_grpo.feedback.sources import FIXED_TEXT
from fission_grpo.fission.recovery import CorrectiveInstance
from fission_grpo.inference.pretrained import starter_path


def train(steps: int, waiting: int, seed: int) -> dict[str, list[float]]:
    """Step times and bookkeeping times in seconds, explore and recover cycles apart."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = FissionGRPOTrainer(
            model=str(starter_path()),
            args=FissionGRPOConfig(
                output_dir=folder,
                max_steps=steps,
                per_device_train_batch_size=64,
                num_generations=8,
                max_completion_length=160,
                max_tool_calling_iterations=3,
                buffer_capacity=waiting + 64,
                max_age_steps=0,
                learning_rate=3e-4,
                beta=0.0,
                logging_steps=1,
                save_strategy="no",
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                disable_tqdm=True,
                report_to="none",
                seed=seed,
            ),
            train_dataset=Dataset.from_list(make_rows(steps * 8, seed=seed, split="train")),
            environment_factory=Desk,
        )
        for item in fillers(waiting, seed):
            trainer.fission.buffer.push(item)
        trainer.train()
        entries = [entry for entry in trainer.state.log_history if "fission/seconds" in entry]
    times: dict[str, list[float]] = {}
    for entry in entries:
        phase = "recover" if entry["fission/phase"] else "explore"
        times.setdefault(f"{phase}_step", []).append(entry["step_time"])
        times.setdefault(f"{phase}_bookkeeping", []).append(entry["fission/seconds"])
    return times


def fillers(count: int, seed: int) -> list[CorrectiveInstance]:
    """Corrective instances as a silent failure would leave them, of every kind in turn."""
    (row,) = make_rows(1, seed=seed, split="train")
    said = ({"role": "assistant", "content": "Done."}, {"role": "user", "content": FIXED_TEXT})
    task = Task("filler", (*row["prompt"], *said), columns=row, root=row["id"], parent=row["id"], depth=1)
    item = CorrectiveInstance(task, 0, ErrorKind.LOW_REWARD, "fixed", FIXED_TEXT, "Done.", 0.0)
    kinds = list(ErrorKind)
    return [replace(item, task=replace(task, id=f"filler{i}"), kind=kinds[i % len(kinds)]) for i in range(count)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--waiting", type=int, nargs="+", default=[0, 10_000], help="instances waiting beforehand")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="raw results as JSON")
    options = parser.parse_args()
    results = []
    for waiting in options.waiting:
        times = train(options.steps, waiting, options.seed)
        results.append({"waiting": waiting, **times})
        for phase in ("explore", "recover"):
            steps, spent = times.get(f"{phase}_step", []), times.get(f"{phase}_bookkeeping", [])
            if steps:
                share = 100 * statistics.median(b / s for b, s in zip(spent, steps, strict=True))
                print(
                    f"{waiting:6d} waiting, {phase}: step {statistics.median(steps):.2f} s, "
                    f"bookkeeping {1000 * statistics.median(spent):.1f} ms, {share:.2f} % (medians of {len(steps)})"
                )
    if options.output:
        versions = {"torch": torch.__version__, "transformers": transformers.__version__, "trl": trl.__version__}
        record = {"versions": versions, "machine": platform.machine(), "threads": torch.get_num_threads()}
        options.output.write_text(json.dumps({**record, "seed": options.seed, "runs": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
