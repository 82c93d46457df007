"""`fault_pairs`: half of each group meets injected faults, and is compared with itself alone."""

import math

import pytest
from trainer_support import Spy, desk_trainer, history

from fission_grpo import Fault, FissionGRPOConfig, inject_faults
from fission_grpo.envs.desk.env import Desk
from fission_grpo.envs.faults import FAULTS_KEY
from fission_grpo.training.cycle import Cycle, CycleScores, in_fault_pairs

ALWAYS = inject_faults(Desk, [Fault("server_error", 1.0)])
REWARDS = [1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0]  # of a group: without faults, then with faults


class Watch(Spy):
    """Keeps each cycle's rows, the number of faults that its episodes met, and its groups' sizes."""

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        met = [len(environment.injected) for environment in self.environments]
        kept = [dict(row) for row in self.cycle.rows], met, list(self.cycle.sizes)
        self.kept = [*getattr(self, "kept", []), kept]
        return output


def by_place(completions, environments, **columns):
    """`REWARDS`, less what the desk itself gives."""
    assert FAULTS_KEY not in columns  # users do not see it
    return [REWARDS[i % 8] - environment.get_reward() for i, environment in enumerate(environments)]


def trained(folder, **fields):
    settings = {"num_generations": 8, "num_recovery_generations": 8, "fault_pairs": True}
    trainer = desk_trainer(folder, Watch, factory=ALWAYS, more={"reward_funcs": by_place}, **settings, **fields)
    trainer.train()
    return trainer


def test_a_fault_is_not_blamed_on_the_policy_hand_worked(tmp_path):
    """Without pairs the mean is 0.5, and three rollouts that met a fault would have -0.94 each."""
    trainer = trained(tmp_path, fission=False, guard_tools=True, max_steps=1)
    ((_, output, rewards),) = trainer.seen
    assert rewards == REWARDS * 2
    # without faults: mean 3/4, deviation 1/2; with faults: mean 1/4, deviation 1/2
    expected = [0.5, 0.5, 0.5, -1.5, -0.5, -0.5, 1.5, -0.5] * 2
    assert output["advantages"].tolist() == pytest.approx(expected, abs=1e-3)
    assert history(trainer, "fission/reward_without_faults") == [0.75]
    assert history(trainer, "fission/reward_with_faults") == [0.25]


@pytest.mark.parametrize("fission", [True, False])
def test_both_halves_do_the_same_task_and_one_meets_faults(tmp_path, fission):
    trainer = trained(tmp_path, fission=fission, max_steps=1)
    ((rows, met, sizes),) = trainer.kept
    assert sizes == [4, 4, 4, 4]
    for start in (0, 8):
        assert len({str(row["prompt"]) for row in rows[start : start + 8]}) == 1
        assert [row[FAULTS_KEY] for row in rows[start : start + 8]] == [False] * 4 + [True] * 4
        assert sum(met[start : start + 4]) == 0
        assert sum(met[start + 4 : start + 8]) > 0


@pytest.mark.parametrize("batches", ["alternate", "mixed"])
def test_a_recovery_goes_on_where_its_rollout_was(tmp_path, batches):
    trainer = trained(tmp_path, recovery_batches=batches, max_steps=4, per_device_train_batch_size=16)
    recovered = 0
    for (contexts, *_), (rows, met, sizes) in zip(trainer.seen, trainer.kept, strict=True):
        explored = len(sizes) - len(contexts)
        assert sizes == [4] * explored + [8] * len(contexts)
        for context, start in zip(contexts, range(16 - 8 * len(contexts), 16, 8), strict=True):
            with_faults = context.task.columns[FAULTS_KEY]
            assert all(row[FAULTS_KEY] is with_faults for row in rows[start : start + 8])
            assert with_faults or not sum(met[start : start + 8])
            recovered += 1
    assert recovered
    assert not sum(history(trainer, "env/other_tasks"))


def test_halves_are_found_by_their_place_among_all_ranks():
    def rank(offset):
        rows = [{"id": "a"}] * 4 if offset < 8 else [{"id": "b"}] * 4
        return in_fault_pairs(Cycle(list(rows), [8, 8], offset))

    assert [[row[FAULTS_KEY] for row in rank(offset).rows] for offset in (0, 4, 8, 12)] == [
        [False] * 4, [True] * 4, [False] * 4, [True] * 4,
    ]  # fmt: skip


def test_unjudged_rollouts_are_left_out_of_the_means():
    torch = pytest.importorskip("torch")
    rewards = torch.tensor([[math.nan], [1.0], [math.nan], [math.nan]])
    scores = CycleScores([], [], [], rewards, torch.ones(1))
    cycle = Cycle([{}] * 4, [2, 2], scores=scores, paired=True)
    assert cycle.rewards_of_pairs() == {"fission/reward_without_faults": 1.0}
    assert Cycle([{}] * 4, [2, 2], scores=scores).rewards_of_pairs() == {}


@pytest.mark.parametrize("count", [2, 5])
def test_groups_that_cannot_be_halved_are_refused(tmp_path, count):
    with pytest.raises(ValueError, match=f"num_generations is {count}; set it to an even number"):
        FissionGRPOConfig(
            str(tmp_path), num_generations=count, generation_batch_size=2 * count, fault_pairs=True,
            per_device_train_batch_size=2 * count, use_cpu=True, bf16=False,
        )  # fmt: skip


def test_environments_without_faults_are_refused(tmp_path):
    with pytest.raises(ValueError, match="give an environment_factory of"):
        desk_trainer(tmp_path, num_generations=8, fault_pairs=True)
