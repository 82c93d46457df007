"""`recovery_batches="mixed"`: recovery groups beside explored ones in every batch, through the real trainer."""

import math

import pytest
import torch
from resume_support import varied
from trainer_support import Spy, desk_trainer, events, history
from trl import GRPOConfig, GRPOTrainer

from fission_grpo import FissionGRPOConfig
from fission_grpo.fission.metrics import group_advantages
from fission_grpo.training.cycle import Cycle
from fission_grpo.training.rewards import strict_judgements

MIXED = {
    "recovery_batches": "mixed", "per_device_train_batch_size": 24, "max_steps": 4, "max_completion_length": 48,
    "max_tool_calling_iterations": 1,
}  # fmt: skip
SIZES = [(4, 4), (4, 6), (4, 12)]


class Mixed(Spy):
    """Keeps the sizes of every cycle's groups, too."""

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        self.sizes = [*getattr(self, "sizes", []), list(self.cycle.sizes)]
        return output


def trained(folder, g=4, recoveries=4, reward=varied, **fields):
    trainer = desk_trainer(
        folder,
        Mixed,
        more={"reward_funcs": reward},
        **(MIXED | {"num_generations": g, "num_recovery_generations": recoveries, "failure_threshold": 0.9} | fields),
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize(("g", "recoveries"), SIZES)
def test_every_batch_is_full_and_recovers_in_at_most_its_share(tmp_path, g, recoveries):
    trainer = trained(tmp_path, g, recoveries)
    shares = history(trainer, "fission/phase")
    assert shares[0] == 0.0
    assert max(shares) == 0.5
    for (contexts, *_), sizes, share in zip(trainer.seen, trainer.sizes, shares, strict=True):
        explored = len(sizes) - len(contexts)
        assert sizes == [g] * explored + [recoveries] * len(contexts)
        assert sum(sizes) == 24
        assert share == len(contexts) * recoveries / 24
    for entry in trainer.state.log_history[:-1]:
        assert "fission/success" in entry
        assert ("recovery/rate" in entry) == (entry["fission/phase"] > 0)


@pytest.mark.parametrize(
    ("g", "recoveries", "scale"), [(4, 6, "group"), (4, 6, "batch"), (4, 6, "none"), (4, 4, "group"), (4, 3, "group")]
)
def test_each_group_is_normalised_among_itself_whatever_the_sizes(tmp_path, g, recoveries, scale):
    trainer = trained(tmp_path, g, recoveries, scale_rewards=scale, max_steps=3)
    seen = set()
    for (_, output, rewards), sizes in zip(trainer.seen, trainer.sizes, strict=True):
        start = 0
        whole = torch.tensor(rewards).std().item()
        for size in sizes:
            group = torch.tensor(rewards[start : start + size])
            spread = {"group": group.std().item() + 1e-4, "batch": whole + 1e-4, "none": 1.0}[scale]
            expected = (group - group.mean()) / spread if len(set(group.tolist())) > 1 else group * 0
            got = output["advantages"][start : start + size]
            assert got.tolist() == pytest.approx(expected.tolist(), abs=1e-4)
            seen.add(size if got.any() else 0)
            start += size
    assert {g, recoveries} <= seen


def test_rows_that_gave_way_to_recoveries_are_explored_next(tmp_path):
    asked = []

    def watch(prompts, completions, **_):
        asked.append([str(prompt) for prompt in prompts])
        return varied(completions)

    mixed = trained(tmp_path / "mixed", reward=watch)
    got, asked = asked, []

    def watch_plain(prompts, completions, **_):
        asked.append([str(prompt) for prompt in prompts])
        return varied(completions)

    trained(tmp_path / "plain", reward=watch_plain, fission=False)
    plain = [prompt for batch in asked for prompt in batch[::4]]
    explored_rows = []
    for batch, (contexts, *_) in zip(got, mixed.seen, strict=True):
        explored_rows += batch[: 24 - 4 * len(contexts) : 4]
    assert any(contexts for contexts, *_ in mixed.seen)
    assert explored_rows == plain[: len(explored_rows)]


def test_without_failures_it_is_trls_grpo_exactly(tmp_path):
    given = {"per_device_train_batch_size": 24, "max_steps": 3, "max_completion_length": 32}
    theirs = desk_trainer(tmp_path / "theirs", GRPOTrainer, GRPOConfig, more={"reward_funcs": varied}, **given)
    theirs.train()
    ours = desk_trainer(
        tmp_path / "ours",
        more={"reward_funcs": varied},
        recovery_batches="mixed",
        num_recovery_generations=4,
        failure_threshold=-1.0,
        shared_prefix=False,
        skip_zero_signal=False,
        guard_tools=True,
        **given,
    )
    ours.train()
    for key in ("loss", "grad_norm", "reward", "entropy", "completions/mean_length"):
        assert history(ours, key) == history(theirs, key)
    assert all(a.equal(b) for a, b in zip(ours.model.parameters(), theirs.model.parameters(), strict=True))


def test_advantages_of_equal_groups_are_trls_own(tmp_path):
    trainer = trained(tmp_path, skip_zero_signal=False)
    checked = 0
    for (contexts, output, rewards), sizes in zip(trainer.seen, trainer.sizes, strict=True):
        assert output["advantages"].tolist() == pytest.approx(group_advantages(rewards, sizes, "group"), abs=1e-6)
        checked += bool(contexts)
    assert checked


def test_rollouts_without_a_reward_have_no_advantage_and_do_not_count_for_their_group():
    nan = math.nan
    got = group_advantages([1.0, nan, 0.0, 0.5, nan, nan, nan], [4, 3], "none")
    assert got == pytest.approx([0.5, 0.0, -0.5, 0.0, 0.0, 0.0, 0.0])


def test_strict_judgements_are_of_recoveries_that_have_a_reward():
    cycle = Cycle([{}] * 6, [2, 2, 2], contexts=[None, None])  # pyright: ignore
    rewards = torch.tensor([[0.0], [1.0], [0.4], [0.6], [math.nan], [0.9]])
    verdicts = [None, None, None, None, None, False]
    got = strict_judgements(cycle, rewards, torch.tensor([1.0]), verdicts, 0.5)
    assert got == {2: 0.0, 3: 1.0, 5: 0.0}  # the last one's step verdict counts, not its reward


@pytest.mark.parametrize("weights", [[0.5], [0.0, 2.0]])
def test_strict_rewards_of_episodes_are_one_or_nothing_in_weighted_units(tmp_path, weights):
    def lengths(completions, **_):
        return varied(completions)

    funcs = [varied, lengths][: len(weights)]
    trainer = desk_trainer(
        tmp_path,
        Mixed,
        more={"reward_funcs": funcs},
        **(MIXED | {"num_recovery_generations": 4, "recovery_reward": "strict", "reward_weights": weights}),
        failure_threshold=0.4,
    )
    trainer.train()
    of_recoveries = {reward for line in events(tmp_path, "recovered") for reward in line["rewards"]}
    assert of_recoveries == {0.0, 1.0}
    rates = [entry for entry in trainer.state.log_history if "recovery/rate" in entry]
    assert all(entry["recovery/rate"] == pytest.approx(entry["recovery/reward"]) for entry in rates)
    explored = {reward for contexts, _, rewards in trainer.seen for reward in rewards[: 24 - 4 * len(contexts)]}
    assert len(explored) > 2


def test_a_larger_share_and_a_buffer_that_must_fill_first(tmp_path):
    trainer = trained(tmp_path, recovery_ratio=0.84, min_buffered=5)
    assert max(history(trainer, "fission/phase")) == pytest.approx(20 / 24)  # 5 of 6 groups
    assert min(len(contexts) for contexts, *_ in trainer.seen if contexts) == 5


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"recovery_batches": "both"}, "recovery_batches is 'both'; set it to one of alternate, mixed"),
        ({"recovery_reward": "kind"}, "recovery_reward is 'kind'; set it to one of graded, strict"),
        ({"recovery_ratio": 1.0}, "above 0 and below 1"),
        ({"recovery_ratio": 0.0}, "above 0 and below 1"),
        ({"recovery_ratio": 0.1}, "more than recovery_ratio"),
        ({"recovery_scope": "turn"}, "recovery_batches=alternate"),
        ({"num_recovery_generations": 5}, "5 recovery groups|4 recovery groups"),
        ({"num_recovery_generations": 16}, "Raise one of the last two"),
        ({"num_recovery_generations": 2, "min_buffered": 1}, "min_buffered is 1, but must lie between 2"),
        ({"num_recovery_generations": 2, "multi_objective_aggregation": "normalize_then_sum"}, "groups of two sizes"),
    ],
)
def test_settings_that_cannot_be_mixed_are_refused_with_the_way_out(tmp_path, fields, message):
    given = {"recovery_batches": "mixed", "per_device_train_batch_size": 16, "num_generations": 4} | fields
    with pytest.raises(ValueError, match=message):
        FissionGRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **given)
