"""TRL's trainer with shared prefixes takes TRL's own steps. Needs the `train` extra."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

from datasets import Dataset  # noqa: E402
from trl import GRPOConfig, GRPOTrainer  # noqa: E402

from fission_grpo.envs.desk.env import Desk  # noqa: E402
from fission_grpo.envs.desk.tasks import make_rows  # noqa: E402
from fission_grpo.inference.pretrained import load_starter  # noqa: E402
from fission_grpo.training.shared_prefix import SharedPrefixMixin, group_micro_batches  # noqa: E402
from fission_grpo.training.trl_compat import trl_release  # noqa: E402


class SharedPrefixTrainer(SharedPrefixMixin, GRPOTrainer): ...


class Off(SharedPrefixTrainer):
    _sharing = False


class CountTokens(SharedPrefixTrainer):
    """Counts the tokens that pass through the model in updates."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.updated = 0
        self.model.base_model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module, args, kwargs):
        self.updated += kwargs["input_ids"].numel() * module.training


class GroupsOnly(CountTokens):
    share_common = False


def run(cls, folder, before: str = "", **fields):
    """A trainer after two steps of 16 rollouts, and what TRL logged of them."""
    model, tokenizer = load_starter()
    common = {
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "learning_rate": 1e-3,
        "max_tool_calling_iterations": 2,
        "max_completion_length": 64,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 2,
        "num_generations": 4,
        "max_steps": 2,
    }
    rows = make_rows(16, seed=5, split="train")
    for row in rows:
        row["prompt"][-1]["content"] = before + row["prompt"][-1]["content"]
    trainer = cls(
        model=model,
        args=GRPOConfig(output_dir=str(folder), **(common | fields)),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        environment_factory=Desk,
    )
    trainer.train()
    keys = ("loss", "grad_norm", "reward", "completions/mean_length", "tools/call_frequency", "num_tokens")
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    return trainer, [[float(entry[key]) for key in keys if key in entry] for entry in entries]


@pytest.mark.parametrize(
    "fields",
    [
        {"loss_type": "grpo", "mask_truncated_completions": True},
        # Reference and old-policy passes: two optimizer steps per generation batch.
        {"beta": 0.04, "per_device_train_batch_size": 4, "steps_per_generation": 4, "seed": 2},
    ],
    ids=["one step per batch", "two steps per batch"],
)
def test_training_with_tools_takes_the_steps_of_trl(tmp_path, fields):
    trainer, ours = run(SharedPrefixTrainer, tmp_path / "ours", **fields)
    _, theirs = run(GRPOTrainer, tmp_path / "theirs", **fields)
    assert len(ours) == 2
    assert any(norm > 1e-3 for _, norm, *_ in theirs)  # there was something to learn
    for mine, trls in zip(ours, theirs, strict=True):
        assert mine == pytest.approx(trls, rel=1e-4, abs=1e-6)
    counts = trainer.shared_generation.counts
    assert counts["shared"] > 1  # with the turns of the tool loop
    assert not counts["unshared"]
    assert counts["read_tokens"] < counts["prompt_tokens"] / 2
    assert set(trainer._shares.values()) == {trl_release() >= (1, 15)}  # since then TRL has a fused head
    assert trainer.shared_generation.cache.size == 0


def test_updates_compute_what_all_prompts_have_in_common_once_a_step(tmp_path):
    fields = {
        "before": "send the report now. " * 60,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 4,
        "max_completion_length": 24,
    }
    tree, ours = run(CountTokens, tmp_path / "tree", **fields)
    groups, theirs = run(GroupsOnly, tmp_path / "groups", **fields)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine == pytest.approx(other, rel=1e-4, abs=1e-6)
    assert tree._beginnings is None  # nothing is kept after a step
    # Most of the four prompts of a step is the same text.
    assert tree.updated < groups.updated * 0.75


def test_switched_off_it_is_trls_trainer_exactly(tmp_path):
    trainer, ours = run(Off, tmp_path / "ours", max_steps=1, max_completion_length=24)
    _, theirs = run(GRPOTrainer, tmp_path / "theirs", max_steps=1, max_completion_length=24)
    assert ours == theirs
    assert not trainer.shared_generation.counts
    assert not trainer._shares


def test_rows_of_a_prompt_are_grouped_in_micro_batches_of_the_same_size():
    a, b, c = [0, 7], [5, 7], [5, 6]
    masks = {(0, 7): [0, 1]}

    def micro_batch(rows, first):
        return {
            "prompt_ids": torch.tensor(rows),
            "prompt_mask": torch.tensor([masks.get(tuple(row), [1, 1]) for row in rows]),
            "advantages": torch.arange(first, first + len(rows)),
            "num_images": [first + i for i in range(len(rows))],
            "num_items_in_batch": torch.tensor(9),
            "ref_per_token_logps": None,
        }

    first, second = group_micro_batches([micro_batch([b, a, c], 0), micro_batch([a, c, b], 3)])
    assert first["prompt_ids"].tolist() == [b, b, a]
    assert second["prompt_ids"].tolist() == [a, c, c]
    assert first["advantages"].tolist() == first["num_images"] == [0, 5, 1]
    assert second["advantages"].tolist() == second["num_images"] == [3, 2, 4]
    assert first["prompt_mask"].tolist() == [[1, 1], [1, 1], [0, 1]]
    assert first["num_items_in_batch"] == second["num_items_in_batch"] == 9
    assert first["ref_per_token_logps"] is None


class Fails(CountTokens):
    """Raises in the third micro-batch of the first step, once."""

    failing, calls = True, 0
    trainer: "Fails"

    def _get_per_token_logps_and_entropies(self, *args, **kwargs):
        self.calls += torch.is_grad_enabled()
        if self.failing and self.calls == 3:
            Fails.trainer, self.failing = self, False
            raise RuntimeError("no memory")
        return super()._get_per_token_logps_and_entropies(*args, **kwargs)


def test_nothing_of_a_step_that_failed_is_used_by_the_next(tmp_path, caplog):
    fields = {
        "before": "send the report now. " * 60,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 4,
    }
    with pytest.raises(RuntimeError, match="no memory"):
        run(Fails, tmp_path / "failing", **fields)
    assert "no gradient through what its prompts share" in caplog.text
    assert Fails.trainer._beginnings is None


def test_an_auxiliary_loss_is_left_to_trl_with_a_warning_and_a_count(tmp_path, caplog):
    trainer, _ = run(CountTokens, tmp_path, max_steps=1)
    assert not trainer.take_sharing_counts()["shared_prefix/unshared_updates"]
    ids = torch.tensor([[5, 6, 7, 8]])
    arguments = (trainer.model, ids, torch.ones_like(ids), 2)
    with pytest.raises(AttributeError, match="num_experts"):  # TRL computes it, for a model without experts
        trainer._get_per_token_logps_and_entropies(*arguments, compute_aux_loss=True)
    assert trainer.take_sharing_counts()["shared_prefix/unshared_updates"] == 1
    assert "auxiliary loss" in caplog.text
