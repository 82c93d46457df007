"""A small trainer on the Desk environment, and readers of what it logs."""

import json

from datasets import Dataset
from trainer_settings import QUIETLY_ON_CPU

from fission_grpo import FissionGRPOConfig, FissionGRPOTrainer
from fission_grpo.envs.desk.env import Desk
from fission_grpo.envs.desk.tasks import make_rows
from fission_grpo.inference.pretrained import load_starter

COMMON = {
    **QUIETLY_ON_CPU,
    "learning_rate": 1e-3,
    "max_tool_calling_iterations": 2,
    "max_completion_length": 96,
    "per_device_train_batch_size": 16,
    "num_generations": 4,
}


def rows(count=16):
    return Dataset.from_list(make_rows(count, seed=5, split="train"))


def desk_trainer(folder, cls=FissionGRPOTrainer, config=FissionGRPOConfig, factory=Desk, more=None, **fields):
    model, tokenizer = load_starter()
    ours = {"num_recovery_generations": 8} if config is FissionGRPOConfig else {}  # 2 contexts make a recover cycle
    args = config(output_dir=str(folder), **(COMMON | {"max_steps": 3} | ours | fields))
    return cls(
        model=model,
        args=args,
        train_dataset=rows(),
        processing_class=tokenizer,
        environment_factory=factory,
        **(more or {}),
    )


def history(trainer, key):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def events(folder, event):
    lines = (folder / "fission.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["event"] == event]


class Spy(FissionGRPOTrainer):
    """Keeps what every cycle did: its contexts, TRL's output, and the weighted rewards."""

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        self.seen = [*getattr(self, "seen", []), (list(self.cycle.contexts), output, self.cycle.scores.weighted)]
        return output
