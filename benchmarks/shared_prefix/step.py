"""Whole training steps of TRL's GRPOTrainer and of the same with shared prefixes: time of each part, and memory.

    python benchmarks/shared_prefix/step.py --output step_starter.json
    python benchmarks/shared_prefix/step.py --model MODEL --layers 8 --prompt 2048 --completion 100 --steps 2 ...

Without `--model` the starter policy plays the built-in tasks with its tools (64 rollouts, 8 tasks). With a model
folder, one group of 8 draws exactly R tokens after random text of P tokens. Both trainers take the same steps from the
same seed, in turn, in one process; seconds are of the processor, of the median step after the first (which has the
self-checks). Memory is the peak of a process of its own per trainer.
"""

import argparse
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from fission_grpo.environments.desk import Desk
from fission_grpo.environments.desk_tasks import make_rows
from fission_grpo.shared_prefix.trainer import SharedPrefixTrainer
from fission_grpo.starter import load_starter

PARTS = {"_generate_single_turn": "generate", "_generate": "rollouts", "_compute_loss": "loss", "training_step": "all"}


TRAINERS = {"trl": GRPOTrainer, "shared": SharedPrefixTrainer}


def clocked(base):
    """The trainer with `steps`: per optimizer step the processor's seconds in each of `PARTS`."""

    def timed(name):
        def method(self, *args, **kwargs):
            started = time.process_time()
            result = getattr(super(Clocked, self), name)(*args, **kwargs)
            self.steps[self.state.global_step][PARTS[name]] += time.process_time() - started
            return result

        return method

    Clocked = type("Clocked", (base,), {name: timed(name) for name in PARTS})
    return Clocked


def make_trainer(options, name: str, folder: str):
    fields = {
        "output_dir": folder,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "num_generations": 8,
        "max_steps": options.steps,
        "lr_scheduler_type": "constant",
    }
    if options.model is None:
        model, tokenizer = load_starter()
        fields |= {
            "learning_rate": 3e-4,
            "per_device_train_batch_size": 32,
            "gradient_accumulation_steps": 2,
            "max_completion_length": 160,
            "max_tool_calling_iterations": 3,
        }
        data, more = make_rows(64, seed=5, split="train"), {"environment_factory": Desk}
    else:
        cut = {"num_hidden_layers": options.layers} if options.layers else {}
        model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32, **cut)
        tokenizer = AutoTokenizer.from_pretrained(options.model)
        fields |= {
            "learning_rate": 1e-5,
            "per_device_train_batch_size": 8,
            "max_completion_length": options.completion,
            "generation_kwargs": {"min_new_tokens": options.completion},
        }
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(1000, 40_000, (options.steps, options.prompt), generator=generator)
        data = [{"prompt": tokenizer.decode(row)} for row in ids]
        more = {"reward_funcs": lambda completions, **_: [float(i % 2) for i in range(len(completions))]}
    trainer = clocked(TRAINERS[name])(
        model=model,
        args=GRPOConfig(**fields),
        train_dataset=Dataset.from_list(data),
        processing_class=tokenizer,
        **more,
    )
    trainer.steps = defaultdict(lambda: defaultdict(float))
    return trainer


def train(options, name: str) -> tuple[dict[str, float], list[list[float]], dict[str, int]]:
    """Seconds of the parts of the median step; loss, gradient norm and tokens of every step; what was shared."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(options, name, folder)
        trainer.train()
    kept = [step for number, step in trainer.steps.items() if number or options.steps == 1]
    seconds = {part: statistics.median(step[part] for step in kept) for part in PARTS.values()}
    seconds["update"] = statistics.median(step["all"] - step["rollouts"] for step in kept)
    logged = [
        [entry[key] for key in ("loss", "grad_norm", "completions/mean_length")]
        for entry in trainer.state.log_history
        if "loss" in entry
    ]
    counts = dict(trainer.shared_generation.counts) if name == "shared" else {}
    print(name, seconds, file=sys.stderr, flush=True)
    return seconds, logged, counts


def peak(options) -> dict[str, float]:
    """Peak resident MiB of one step, and what of it the step needed beyond the model."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(options, options.alone, folder)
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak of loading
        before = resident("VmRSS")
        trainer.train()
    return {"peak_mib": resident("VmHWM"), "step_mib": resident("VmHWM") - before}


def resident(name: str) -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{name}:")[1].split()[0]) / 1024


def alone(name: str) -> dict[str, float]:
    command = [sys.executable, __file__, *sys.argv[1:], "--alone", name, "--steps", "1"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a folder; none: the starter policy at the built-in tasks")
    parser.add_argument("--layers", type=int, default=0, help="first layers of the model only (0: all)")
    parser.add_argument("--prompt", type=int, default=2048)
    parser.add_argument("--completion", type=int, default=100)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--alone", choices=TRAINERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        print(json.dumps(peak(options)))
        return
    runs = {name: [] for name in TRAINERS}
    for _ in range(options.rounds):
        for name in TRAINERS:
            runs[name].append(train(options, name))
    seconds = {name: {part: [run[0][part] for run in some] for part in some[0][0]} for name, some in runs.items()}
    medians = {n: {part: statistics.median(v) for part, v in parts.items()} for n, parts in seconds.items()}
    result = {
        "options": {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()},
        "machine": {"threads": torch.get_num_threads(), "torch": torch.__version__},
        "seconds": seconds,
        "times_faster": {part: medians["trl"][part] / medians["shared"][part] for part in medians["trl"]},
        "loss_norm_tokens": {name: some[0][1] for name, some in runs.items()},
        "counts": runs["shared"][0][2],
    }
    if options.memory:
        result["memory"] = {name: alone(name) for name in TRAINERS}
    text = json.dumps(result, indent=1)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
