"""Memory and files of a long run, and of a full buffer: nothing may grow without end.

    OMP_NUM_THREADS=1 python benchmarks/resources/run.py --steps 10000 --output benchmarks/resources

Trains a model of a few thousand random weights for so many optimizer steps, so short that they take milliseconds, in
the built-in world. As it never gets a task right, every rollout is a failure, and the buffer is soon full. Written:
resident memory, size of the journal and of the trainer's log, by step (long_run.json), and a
picture; then memory and the time of a save with so many instances waiting (full_buffer.json).
"""

import argparse
import gc
import json
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "speed"))  # for bookkeeping

from bookkeeping import fillers
from datasets import Dataset
from matplotlib.figure import Figure
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, TrainerCallback

from fission_grpo import FissionGRPOConfig, FissionGRPOTrainer
from fission_grpo.envs.desk.env import Desk
from fission_grpo.envs.desk.tasks import make_rows
from fission_grpo.fission.buffer import FissionBuffer
from fission_grpo.inference.pretrained import load_starter


def resident() -> float:
    """MiB of this process."""
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) / 1024


class Watch(TrainerCallback):
    """Notes memory and sizes of files every so many steps."""

    def __init__(self, every: int):
        self.every = every
        self.buffer = FissionBuffer(1)
        self.rows: list[dict[str, float]] = []
        self.began = time.perf_counter()

    def on_step_end(self, args, state, control, **_):
        if state.global_step % self.every == 0 or state.global_step == 1:
            journal = Path(args.output_dir) / "fission.jsonl"
            row = {
                "step": state.global_step,
                "seconds": time.perf_counter() - self.began,
                "resident_mib": resident(),
                "journal_mib": journal.stat().st_size / 2**20 if journal.exists() else 0.0,
                "log_entries": len(state.log_history),
                "waiting": len(self.buffer),
            }
            self.rows.append(row)
            print(json.dumps(row), flush=True)


def long_run(steps: int, capacity: int, folder: str) -> list[dict[str, float]]:
    _, tokenizer = load_starter()
    width = 16
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=width,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        max_position_embeddings=1024,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    chance = random.Random(0)
    watch = Watch(max(1, steps // 100))
    trainer = FissionGRPOTrainer(
        model=LlamaForCausalLM(config),
        args=FissionGRPOConfig(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=8,
            num_generations=4,  # an explore cycle brings two instances
            num_recovery_generations=8,  # a recover cycle takes one
            max_completion_length=4,
            max_tool_calling_iterations=1,
            buffer_capacity=capacity,
            max_age_steps=0,
            learning_rate=1e-4,
            beta=0.0,
            logging_steps=1,
            save_steps=max(1, steps // 10),
            save_total_limit=2,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            disable_tqdm=True,
            report_to="none",
            failure_threshold=2.0,
        ),
        reward_funcs=lambda completions, **_: [chance.random() for _ in completions],
        train_dataset=Dataset.from_list(make_rows(2000, seed=0, split="train")),
        processing_class=tokenizer,
        environment_factory=Desk,
        callbacks=[watch],
    )
    trainer.remove_callback(PrinterCallback)
    watch.buffer = trainer.fission.buffer
    trainer.train()
    return watch.rows


def full_buffer(waiting: int) -> dict[str, float]:
    """MiB and seconds of a buffer with so many instances, and of its state as a checkpoint has it."""
    gc.collect()
    before = resident()
    buffer = FissionBuffer(capacity=waiting)
    for item in fillers(waiting, seed=0):
        buffer.push(item)
    gc.collect()
    held = resident() - before
    began = time.perf_counter()
    text = json.dumps(buffer.state())
    written = time.perf_counter() - began
    began = time.perf_counter()
    again = FissionBuffer(capacity=waiting)
    again.load_state(json.loads(text))
    read = time.perf_counter() - began
    assert list(again) == list(buffer)
    return {
        "waiting": waiting,
        "resident_mib": held,
        "state_mib": len(text) / 2**20,
        "write_seconds": written,
        "read_seconds": read,
    }


def picture(rows: list[dict[str, float]], path: Path) -> None:
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.subplots()
    steps = [row["step"] for row in rows]
    axes.plot(steps, [row["resident_mib"] for row in rows], label="resident memory")
    axes.plot(steps, [row["journal_mib"] for row in rows], label="fission.jsonl, on disk")
    axes.set(xlabel="optimizer step", ylabel="MiB", title="A long run with a full buffer", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--capacity", type=int, default=256, help="of the buffer during the run")
    parser.add_argument("--waiting", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--output", type=Path, default=Path("benchmarks/resources"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    full = [full_buffer(waiting) for waiting in options.waiting]
    (options.output / "full_buffer.json").write_text(json.dumps(full, indent=1) + "\n")
    print(*map(json.dumps, full), sep="\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        rows = long_run(options.steps, options.capacity, folder)
    (options.output / "long_run.json").write_text(json.dumps(rows, indent=1) + "\n")
    picture(rows, options.output / "long_run.png")


if __name__ == "__main__":
    main()
