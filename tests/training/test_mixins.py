"""Three of the trainer's mixins know nothing of fission: each works alone on TRL's GRPOTrainer. Needs `train`."""

import pytest

pytest.importorskip("torch")
pytest.importorskip("trl")

from datasets import Dataset
from trainer_settings import QUIETLY_ON_CPU
from trl import GRPOConfig, GRPOTrainer

from fission_grpo import FissionGRPOTrainer
from fission_grpo.envs.desk.env import Desk
from fission_grpo.envs.desk.tasks import make_rows
from fission_grpo.inference.pretrained import load_starter
from fission_grpo.training.checkpoint import ExactCheckpointMixin
from fission_grpo.training.checkpoint_files import FILE, find_corruption, load_state
from fission_grpo.training.lockstep import LockstepToolCallsMixin
from fission_grpo.training.reporting import ReportingMixin
from fission_grpo.training.shared_prefix import SharedPrefixMixin

MIXINS = (LockstepToolCallsMixin, ExactCheckpointMixin, SharedPrefixMixin)


def one_step(mixin, folder):
    model, tokenizer = load_starter()
    trainer = type(f"With{mixin.__name__}", (mixin, GRPOTrainer), {})(
        model=model,
        args=GRPOConfig(
            **(QUIETLY_ON_CPU | {"save_strategy": "steps", "save_steps": 1}),
            output_dir=str(folder),
            max_steps=1,
            per_device_train_batch_size=4,
            num_generations=4,
            max_completion_length=24,
            max_tool_calling_iterations=1,
        ),
        train_dataset=Dataset.from_list(make_rows(4, seed=5, split="train")),
        processing_class=tokenizer,
        environment_factory=Desk,
    )
    trainer.train()
    return trainer


def test_the_trainer_is_four_mixins_over_trls():
    assert FissionGRPOTrainer.__bases__ == (*MIXINS, ReportingMixin, GRPOTrainer)
    assert {mixin.__bases__ for mixin in MIXINS} == {(object,)}


@pytest.mark.parametrize("mixin", MIXINS)
def test_each_mixin_trains_alone(tmp_path, mixin):
    trainer = one_step(mixin, tmp_path)
    checkpoint = tmp_path / "checkpoint-1"
    assert trainer.state.global_step == 1
    if mixin is ExactCheckpointMixin:
        assert find_corruption(checkpoint) is None
        assert set(load_state(checkpoint)) == {"version", "run", "trainer"}
    else:
        assert not (checkpoint / FILE).exists()
    if mixin is SharedPrefixMixin:
        assert trainer.take_sharing_counts()["shared_prefix/prompt_tokens"] > 0
        assert not trainer.take_sharing_counts()
