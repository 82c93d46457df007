"""Run by test_processes.py under torchrun: a short training, then what this rank holds, as JSON."""

import json
import sys
from pathlib import Path

from datasets import Dataset

from fission_grpo import FissionGRPOConfig, FissionGRPOTrainer
from fission_grpo.environments.desk import Desk
from fission_grpo.environments.desk_tasks import make_rows
from fission_grpo.starter import starter_path

folder = Path(sys.argv[1])
trainer = FissionGRPOTrainer(
    model=str(starter_path()),
    args=FissionGRPOConfig(
        output_dir=str(folder),
        max_steps=3,
        per_device_train_batch_size=4,
        num_generations=8,  # every explore group straddles both ranks
        num_recoveries=4,
        max_completion_length=64,
        max_tool_calling_iterations=1,
        learning_rate=1e-3,
        beta=0.0,
        logging_steps=1,
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
        report_to="none",
    ),
    train_dataset=Dataset.from_list(make_rows(16, seed=5, split="train")),
    environment_factory=Desk,
)
trainer.train()
state = {
    "buffer": trainer.fission.buffer.state()["items"],
    "pushed": [entry["fission/pushed"] for entry in trainer.state.log_history if "fission/pushed" in entry],
    "parameters": sum(parameter.double().sum().item() for parameter in trainer.model.parameters()),
}
(folder / f"rank{trainer.accelerator.process_index}.json").write_text(json.dumps(state))
trainer.accelerator.end_training()  # leave the process group together: a rank that outlives the other may abort
