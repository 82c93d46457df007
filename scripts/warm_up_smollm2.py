"""Teach SmolLM2-135M the tool call format by a short supervised run, so that RL starts from something that works.

Untrained, it hardly ever writes a valid call, so that every group of rollouts fails alike and GRPO has no gradient.
This trains LoRA with TRL's SFTTrainer on ToolRL dialogues, in the very prompt format that RL uses; the completion is
just the reference's tool calls, no thoughts, and only it is learned from. The adapter is merged into the weights.

Rows never meet: the warm-up takes the first `--num_tasks` tasks of rlla_sft.json, RL those after them
(`skip_tasks` in configs/smollm2_toolrl.yaml is the same number), and rlla_test.parquet is held out for measuring.

    OMP_NUM_THREADS=1 python scripts/warm_up_smollm2.py --model models/smollm2 --data data/toolrl \\
        --output models/smollm2_warm

Measured on one core: LOG.md. `--epochs 0` measures the model as it is and saves nothing.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fission_grpo.core.chat import parse, render_call
from fission_grpo.core.rewards import step_verdict
from fission_grpo.core.types import Task
from fission_grpo.data.convert.toolrl import read_toolrl
from fission_grpo.data.step_tasks import to_rows


@dataclass(frozen=True)
class Measured:
    """Shares of sampled completions (0 to 1) that parse to at least one call, and that are the reference's calls."""

    completions: int
    parseable: float
    exact: float
    correctness: float

    def __str__(self) -> str:
        return (
            f"{self.completions} sampled completions on held-out rows: parseable calls {self.parseable:.2f}, "
            f"exact {self.exact:.2f}, mean R_corr {self.correctness:.2f} of 2"
        )


def short_enough(tasks: tuple[Task, ...], tokenizer: Any, max_prompt: int, max_completion: int) -> list[Task]:
    """The tasks whose prompt and reference fit the limits, in tokens."""
    rows = to_rows(tasks, tokenizer)
    sizes = [
        (len(tokenizer(r["prompt"])["input_ids"]), len(tokenizer(target(t))["input_ids"]))
        for r, t in zip(rows, tasks, strict=True)
    ]
    return [task for task, (p, c) in zip(tasks, sizes, strict=True) if p <= max_prompt and c <= max_completion]


def target(task: Task) -> str:
    """What the model should write: the reference's calls."""
    return "\n".join(render_call(call) for call in task.reference or ())


def train(model: Any, tokenizer: Any, tasks: list[Task], arguments: argparse.Namespace) -> Any:
    """LoRA on the tasks, completion-only loss; returns the model with the adapter merged in."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    rows = [
        {"prompt": row["prompt"], "completion": target(task) + tokenizer.eos_token}
        for row, task in zip(to_rows(tasks, tokenizer), tasks, strict=True)
    ]
    trainer = SFTTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(rows),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
        args=SFTConfig(
            output_dir=str(arguments.output),
            num_train_epochs=arguments.epochs,
            per_device_train_batch_size=4,
            learning_rate=arguments.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=3,
            max_length=None,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            logging_steps=3,
            save_strategy="no",
            report_to="none",
            seed=arguments.seed,
        ),
    )
    trainer.train()
    return trainer.model.merge_and_unload()  # type: ignore[union-attr]


def measure(model: Any, tokenizer: Any, tasks: list[Task], seed: int) -> Measured:
    """Sample one completion (temperature 1, at most 96 tokens) per task and judge it against the reference."""
    import torch

    torch.manual_seed(seed)
    model.eval()
    tokenizer.padding_side = "left"
    verdicts, parseable = [], 0
    for start in range(0, len(tasks), 8):
        batch = tasks[start : start + 8]
        prompts = [row["prompt"] for row in to_rows(batch, tokenizer)]
        inputs = tokenizer(prompts, return_tensors="pt", padding=True)
        with torch.no_grad():
            tokens = model.generate(**inputs, max_new_tokens=96, do_sample=True, temperature=1.0, top_k=0)
        for task, row in zip(batch, tokens[:, inputs["input_ids"].shape[1] :], strict=True):
            turn = parse(tokenizer.decode(row, skip_special_tokens=True))
            parseable += bool(turn.calls)
            verdicts.append(step_verdict(task, turn, 64))
    correctness = [verdict.parts["correctness"] for verdict in verdicts]
    count = len(verdicts)
    return Measured(count, parseable / count, sum(c == 2 for c in correctness) / count, sum(correctness) / count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or hub id, such as prepare_smollm2.py's output")
    parser.add_argument("--data", type=Path, required=True, help="folder with rlla_sft.json and rlla_test.parquet")
    parser.add_argument("--output", type=Path, required=True, help="folder for the warmed-up model")
    parser.add_argument("--num_tasks", type=int, default=240, help="train on the first N tasks of rlla_sft.json")
    parser.add_argument("--max_prompt_tokens", type=int, default=400, help="leave longer prompts out")
    parser.add_argument("--max_completion_tokens", type=int, default=96, help="leave longer references out")
    parser.add_argument("--epochs", type=float, default=1.2, help="passes over the tasks; 0: only measure")
    parser.add_argument("--learning_rate", type=float, default=5e-4, help="peak, of LoRA's weights")
    parser.add_argument("--samples", type=int, default=32, help="completions to sample before and after; 0: none")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    # float32: without AVX-512 or AMX, bfloat16 on a CPU is several times slower
    model: Any = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
    limits = (arguments.max_prompt_tokens, arguments.max_completion_tokens)
    tasks = short_enough(
        read_toolrl(arguments.data / "rlla_sft.json").tasks[: arguments.num_tasks], tokenizer, *limits
    )
    held_out = short_enough(read_toolrl(arguments.data / "rlla_test.parquet").tasks, tokenizer, *limits)
    held_out = (held_out * arguments.samples)[: arguments.samples]  # several samples of a task if need be
    print(f"{len(tasks)} tasks to train on, {len(held_out)} held out", flush=True)
    if held_out:
        print("before:", measure(model, tokenizer, held_out, arguments.seed), flush=True)
    if not arguments.epochs:
        return
    started = time.monotonic()
    model = train(model, tokenizer, tasks, arguments)
    print(f"trained in {time.monotonic() - started:.0f} s", flush=True)
    model.save_pretrained(arguments.output)
    tokenizer.save_pretrained(arguments.output)
    if held_out:
        print("after:", measure(model, tokenizer, held_out, arguments.seed), flush=True)


if __name__ == "__main__":
    main()
