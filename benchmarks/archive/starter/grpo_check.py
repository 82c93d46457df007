"""Does plain TRL GRPO improve the starter policy? Held-out success and recovery before and after.

OMP_NUM_THREADS=1 python benchmarks/archive/starter/grpo_check.py --seed 0 --steps 40 --output seed0.json
"""

import argparse
import json
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from fission_grpo.envs.desk.env import Desk
from fission_grpo.envs.desk.tasks import make_rows
from fission_grpo.evaluation.evaluate import evaluate
from fission_grpo.evaluation.metrics import compute_metrics
from fission_grpo.evaluation.run import eval_line
from fission_grpo.inference.local import LocalPolicy
from fission_grpo.inference.pretrained import load_starter


def measure(model, tokenizer, rows, seed, samples):
    """Sampled at T = 1: every row `samples` times. Summary of all, success by kind, and pass@samples."""
    began = time.monotonic()
    policy = LocalPolicy(model, tokenizer, temperature=1.0, max_new_tokens=64, batch_size=128, seed=seed)
    sampled = [{**row, "id": f"{row['id']}/{n}"} for row in rows for n in range(samples)]
    cases = evaluate(policy, Desk, sampled)
    kinds, solved = defaultdict(list), defaultdict(bool)
    for case, row in zip(cases, sampled, strict=True):
        kinds[row["kind"]].append(case)
        solved[row["id"].rsplit("/", 1)[0]] |= bool(case.success)
    by_kind = {kind: compute_metrics(part) for kind, part in kinds.items()}
    return {
        **json.loads(eval_line(compute_metrics(cases), "", 0)),
        "pass_at": {"samples": samples, "success": sum(solved.values()) / len(solved)},
        "kinds": {
            kind: [round(r.success.rate or 0, 3), round(r.recovery.rate or 0, 3), r.judged]
            for kind, r in by_kind.items()
        },
        "seconds": round(time.monotonic() - began, 1),
    }, cases


def train(model, tokenizer, args):
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            beta=0.0,
            report_to="none",
            save_strategy="no",
            learning_rate=args.learning_rate,
            lr_scheduler_type="constant",
            per_device_train_batch_size=args.prompts * args.generations,
            num_generations=args.generations,
            max_steps=args.steps,
            max_completion_length=args.max_completion_length,
            max_tool_calling_iterations=3,
            temperature=1.0,
            loss_type="dapo",
            scale_rewards="group",
            logging_steps=1,
            seed=args.seed,
            disable_tqdm=True,
        )
        rows = Dataset.from_list(make_rows(args.prompts * args.steps, 1000 + args.seed, "train"))
        trainer = GRPOTrainer(
            model=model, train_dataset=rows, environment_factory=Desk, args=config, processing_class=tokenizer
        )
        began, cpu_began = time.monotonic(), time.process_time()
        trainer.train()
        seconds = {"wall": time.monotonic() - began, "cpu": time.process_time() - cpu_began}
    keys = ("reward", "frac_reward_zero_std", "entropy", "completions/mean_length", "completions/clipped_ratio")
    history = [{key: log[key] for key in keys if key in log} for log in trainer.state.log_history if "reward" in log]
    return seconds, history


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder of starter_training; the shipped policy if left out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=40, help="0 measures the base policy only")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--generations", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--max-completion-length", type=int, default=128)
    parser.add_argument("--tasks", type=int, default=200, help="held-out tasks")
    parser.add_argument("--show", type=int, default=0, help="dialogues of the base policy to print")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    model, tokenizer = load_starter(args.model)
    rows = make_rows(args.tasks, 7, "held_out")
    before, cases = measure(model, tokenizer, rows, args.seed, 8 if args.steps == 0 else 1)
    for case in cases[:: 8 if args.steps == 0 else 1][: args.show]:
        for step in case.steps:
            print(step.text, *(f"  -> {call.result}" for call in step.calls), sep="\n")
        print(case.success, end="\n\n")
    result = {"command": "python " + " ".join(sys.argv), "seed": args.seed, "before": before}
    print(json.dumps(before), flush=True)
    if args.steps:
        seconds, history = train(model, tokenizer, args)
        after, _ = measure(model, tokenizer, rows, args.seed, 1)
        per_step = {f"{clock}_seconds_per_step": round(spent / args.steps, 2) for clock, spent in seconds.items()}
        result |= {"steps": args.steps, **per_step, "after": after, "history": history}
        print(json.dumps(after), per_step, flush=True)
    if args.output:
        args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
