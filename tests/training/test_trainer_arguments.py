"""What TRL users pass to GRPOTrainer works here as well, and recover cycles run with it."""

import pytest
from datasets import Dataset, IterableDataset
from peft import LoraConfig
from trainer_support import COMMON, events, history, rows
from trl import GRPOConfig

from fission_grpo import FissionGRPOConfig, FissionGRPOTrainer
from fission_grpo.envs.desk.env import Desk
from fission_grpo.inference.pretrained import load_starter


def make(folder, fields=None, **arguments):
    model, tokenizer = load_starter()
    args = FissionGRPOConfig(
        output_dir=str(folder),
        **(COMMON | {"num_recovery_generations": 8, "max_steps": 4, "max_completion_length": 64} | (fields or {})),
    )
    given = {"model": model, "args": args, "processing_class": tokenizer, "train_dataset": rows()} | arguments
    trainer = FissionGRPOTrainer(**given)
    trainer.train()
    assert 1.0 in history(trainer, "fission/phase")
    return trainer


def never(completions, **_):
    return [0.0] * len(completions)


def test_standalone_tools_and_several_weighted_rewards(tmp_path):
    def move_file(name: str, folder: str) -> str:
        """Move a file.

        Args:
            name: its name.
            folder: where to.
        """
        raise ValueError("the disk is read-only")

    def always(completions, **_):
        return [1.0] * len(completions)

    # 0.2 * 1 + 1 * 0 = 0.2 lies below the threshold of 0.5: everything fails
    data = Dataset.from_list(
        [{"prompt": [{"role": "user", "content": f"Move notes_{i}.txt to work."}]} for i in range(16)]
    )
    trainer = make(
        tmp_path, {"reward_weights": [0.2, 1.0]}, train_dataset=data, tools=[move_file], reward_funcs=[always, never]
    )
    assert history(trainer, "fission/success")[0] == 0.0
    kinds = {line["kind"]: line for line in events(tmp_path, "pushed")}
    assert "the disk is read-only" in kinds["raised"]["feedback"]
    assert kinds["raised"]["reward"] == pytest.approx(0.2)


def test_lora_adapters_train(tmp_path):
    config = LoraConfig(r=4, target_modules="all-linear")
    trainer = make(tmp_path, environment_factory=Desk, peft_config=config)
    trained = {name for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    assert trained
    assert all("lora" in name for name in trained)


def test_evaluation_during_training_is_left_alone(tmp_path):
    fields = {"eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 16}
    trainer = make(tmp_path, fields, environment_factory=Desk, eval_dataset=rows(4))
    evaluated = [entry for entry in trainer.state.log_history if "eval_reward" in entry]
    assert len(evaluated) == 2
    assert not any("fission" in key for entry in evaluated for key in entry)


def test_streamed_data_set(tmp_path):
    make(
        tmp_path,
        environment_factory=Desk,
        train_dataset=IterableDataset.from_generator(lambda: iter(rows(64).to_list())),
    )


def test_environments_by_name_with_asynchronous_tools(tmp_path):
    class Slow:
        """Everything fails, later."""

        def reset(self, scenario, **_):
            self.asked = []

        async def delete_file(self, name: str) -> str:
            """Delete a file.

            Args:
                name: its name.
            """
            self.asked.append(name)
            raise ValueError(f"no file {name}")

        def get_reward(self):
            return 0.0

    data = rows().add_column("environment", ["desk", "slow"] * 8)
    trainer = make(tmp_path, train_dataset=data, environment_factory={"desk": Desk, "slow": Slow})
    assert {instance["root"].rsplit(":", 1)[0] for instance in events(tmp_path, "pushed")} <= set(data["id"])
    assert trainer.state.global_step == 4


def test_the_kl_term_is_on_with_fission_and_trls_without(tmp_path):
    def beta(**fields):
        return FissionGRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **fields).beta

    assert beta() == 0.04
    assert beta(fission=False) == GRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False).beta
    assert (beta(beta=0.0), beta(fission=False, beta=0.1)) == (0.0, 0.1)


@pytest.mark.parametrize("name", ["adaptive_recovery_ratio", "adaptive_share"])
def test_an_option_that_is_gone_is_an_error_that_says_so(tmp_path, name):
    with pytest.raises(TypeError, match=f"the option `{name}` was removed: it had no measured effect; leave it out"):
        FissionGRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **{name: True})
