"""A plain TRL script with an environment of one's own. Two lines differ from trl's; they are marked.

python examples/two_lines_environment.py --max_steps 6

The environment knows nothing of fission: it is brought back to a failed turn by replaying the calls.
"""

import argparse

from datasets import Dataset

from fission_grpo import FissionGRPOConfig, FissionGRPOTrainer  # was: from trl import GRPOConfig, GRPOTrainer
from fission_grpo.inference.pretrained import starter_path


class Cabinet:
    """Files in drawers. Names must be exact, and locked files must be unlocked first."""

    def reset(self, name: str, locked: bool, **_):
        self.files = {name: "inbox"}
        self.locked = {name} if locked else set()

    def move_file(self, name: str, folder: str) -> str:
        """Move a file to another folder.

        Args:
            name: Full name of the file.
            folder: Folder to move it to.
        """
        self._check(name)
        if name in self.locked:
            raise ValueError(f"{name} is locked; call unlock_file first")
        self.files[name] = folder
        return "ok"

    def unlock_file(self, name: str) -> str:
        """Unlock a file.

        Args:
            name: Full name of the file.
        """
        self._check(name)
        self.locked.discard(name)
        return "ok"

    def _check(self, name):
        if name not in self.files:
            raise ValueError(f"no file {name!r}; there is {', '.join(self.files)}")


def moved_to_archive(environments, **_):
    return [1.0 if "archive" in environment.files.values() else 0.0 for environment in environments]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max_steps", type=int, default=6)
    parser.add_argument("--output_dir", default="runs/two_lines_environment")
    options = parser.parse_args()
    rows = [
        {
            "prompt": [{"role": "user", "content": f"Move {word}_{number}.txt to archive."}],
            "name": f"{word}_{number}.txt",
            "locked": number % 2 == 0,
        }
        for number in range(1, 9)
        for word in ("notes", "budget", "letter", "plan")
    ]
    trainer = FissionGRPOTrainer(  # was: GRPOTrainer(
        model=str(starter_path()),
        reward_funcs=moved_to_archive,
        args=FissionGRPOConfig(  # was: GRPOConfig(
            output_dir=options.output_dir,
            max_steps=options.max_steps,
            per_device_train_batch_size=32,
            num_generations=8,
            max_completion_length=128,
            max_tool_calling_iterations=3,
            learning_rate=3e-4,
            beta=0.0,
            logging_steps=1,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
        ),
        train_dataset=Dataset.from_list(rows),
        environment_factory=Cabinet,
    )
    trainer.train()
    for entry in trainer.state.log_history[:-1]:
        cycle = "recover" if entry["fission/phase"] else "explore"
        print(f"step {entry['step']}: {cycle}, reward {entry['reward']:.2f}, waiting {entry['fission/buffer']:.0f}")


if __name__ == "__main__":
    main()
