"""A plain TRL script with text prompts, no tools and no environment. Two lines differ from trl's; they are marked.

python examples/two_lines_text.py --max_steps 6
"""

import argparse

from datasets import Dataset

from fission_grpo import FissionGRPOConfig, FissionGRPOTrainer  # was: from trl import GRPOConfig, GRPOTrainer
from fission_grpo.inference.pretrained import starter_path


def ends_with_a_digit(completions, **_):
    return [1.0 if text.strip()[-1:].isdigit() else 0.0 for text in completions]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max_steps", type=int, default=6)
    parser.add_argument("--output_dir", default="runs/two_lines_text")
    options = parser.parse_args()
    trainer = FissionGRPOTrainer(  # was: GRPOTrainer(
        model=str(starter_path()),
        reward_funcs=ends_with_a_digit,
        args=FissionGRPOConfig(  # was: GRPOConfig(
            output_dir=options.output_dir,
            max_steps=options.max_steps,
            per_device_train_batch_size=32,
            num_generations=8,
            max_completion_length=16,
            learning_rate=3e-4,
            beta=0.0,
            logging_steps=1,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
        ),
        train_dataset=Dataset.from_list([{"prompt": f"the meeting on day {day} starts at"} for day in range(1, 29)]),
    )
    trainer.train()
    for entry in trainer.state.log_history[:-1]:
        cycle = "recover" if entry["fission/phase"] else "explore"
        print(f"step {entry['step']}: {cycle}, reward {entry['reward']:.2f}, waiting {entry['fission/buffer']:.0f}")


if __name__ == "__main__":
    main()
