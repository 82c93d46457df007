"""A resumed run is the run that was never stopped: to the last bit, whatever the options and the checkpoint."""

import json

import pytest

pytest.importorskip("trl")
from peft import LoraConfig
from resume_support import as_it_was, differences, tiny_trainer

OPTIONS = {
    "several epochs, random order, logs every 2nd step": ({"max_steps": 9, "buffer_order": "random"}, {}, (3, 4)),
    "2 x 2 updates a cycle": (
        {
            "max_steps": 12,
            "per_device_train_batch_size": 4,
            "steps_per_generation": 2,
            "num_iterations": 2,
            "save_steps": 3,
            "logging_steps": 3,
        },
        {},
        (4, 8),
    ),
    "plain GRPO": ({"max_steps": 5, "fission": False, "shared_prefix": False}, {}, (4,)),
    "LoRA": ({"max_steps": 4}, {"peft_config": LoraConfig(r=2, target_modules=["q_proj", "v_proj"])}, (3,)),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_resumed_run_is_the_straight_run_to_the_last_bit(tmp_path, name):
    fields, more, checkpoints = OPTIONS[name]
    straight = tmp_path / "straight"
    tiny_trainer(straight, more, **fields).train()
    for step in checkpoints:
        resumed = tmp_path / f"from-{step}"
        as_it_was(straight, step, resumed)
        trainer = tiny_trainer(resumed, more, **fields)
        trainer.train(resume_from_checkpoint=True)
        assert json.loads((resumed / f"checkpoint-{step}" / "trainer_state.json").read_text())["global_step"] == step
        assert differences(straight, resumed, f"checkpoint-{fields['max_steps']}") == []
