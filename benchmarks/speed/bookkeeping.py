"""What fission's bookkeeping (reading, diagnosing, buffering, writing) costs, and the buffer's operations alone.

    python benchmarks/speed/bookkeeping.py --steps 12 --output benchmarks/speed/bookkeeping.json
    python benchmarks/speed/bookkeeping.py --buffer --output benchmarks/speed/buffer.json

Trains the starter policy on the built-in environment and compares `fission/seconds` with TRL's `step_time`, step by
step. The buffer is filled with as many waiting instances as given first, so that growth would show. With `--buffer`:
microseconds of operations on full buffers of these sizes, without training.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import islice, product
from pathlib import Path
from typing import Any

import torch
import transformers
import trl
from datasets import Dataset

from fission_grpo import FissionGRPOConfig, FissionGRPOTrainer
from fission_grpo.core.types import ErrorKind, Task
from fission_grpo.envs.desk.env import Desk
from fission_grpo.envs.desk.tasks import make_rows
from fission_grpo.feedback.sources import FIXED_TEXT
from fission_grpo.fission.buffer import FissionBuffer
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


def buffer_times(order: str, size: int, repeats: int = 50) -> dict[str, list[float]]:
    """Microseconds to take 8 of a full buffer, to add one, and to look for old ones: [median, least, most]."""
    items = fillers(size + 8 * repeats, seed=0)
    buffer, new = FissionBuffer(size, max_age=32, order=order), iter(items[size:])
    for item in items[:size]:
        buffer.push(item)
    times: dict[str, list[float]] = {"pop": [], "push": [], "expire": []}
    for _ in range(repeats):
        fresh = list(islice(new, 8))
        times["pop"].append(microseconds(lambda: buffer.sample(8)))
        times["push"].append(microseconds(lambda fresh=fresh: [buffer.push(item) for item in fresh]) / 8)
        times["expire"].append(microseconds(lambda: buffer.expire(0)))
    return {name: [statistics.median(values), min(values), max(values)] for name, values in times.items()}


def microseconds(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    run()
    return 1e6 * (time.perf_counter() - started)


def training_results(options: argparse.Namespace) -> dict[str, Any]:
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
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "trl": trl.__version__}
    record = {"versions": versions, "machine": platform.machine(), "threads": torch.get_num_threads()}
    return {**record, "seed": options.seed, "runs": results}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--waiting", type=int, nargs="+", default=[0, 10_000], help="instances waiting beforehand")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--buffer", action="store_true", help="operations on full buffers of 100 to 100,000 instances")
    parser.add_argument("--output", type=Path, help="raw results as JSON")
    options = parser.parse_args()
    if options.buffer:
        points = product(("lifo", "random"), (100, 1000, 10_000, 100_000))
        found = [{"order": order, "size": size, **buffer_times(order, size)} for order, size in points]
        print(*found, sep="\n")
        results: dict[str, Any] = {"median_least_most_microseconds": found}
    else:
        results = training_results(options)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
