"""Rewards that are no numbers: the rollout is not judged, which is counted and logged, and training goes on."""

import math

import pytest
from trainer_support import Desk, Spy, desk_trainer, history

ODD = [10**400, float("inf"), "1.0", [1], -(10**400), 1e300, object()]
EVERY = len(ODD) + 1


def odd_rewards(completions, **_):
    """One in eight rollouts has a right reward, the others each another wrong one."""
    return [1.0 if i % EVERY == 0 else ODD[i % EVERY - 1] for i in range(len(completions))]


async def odd_rewards_later(completions, **_):
    return odd_rewards(completions)


class OddDesk(Desk):
    def get_reward(self):
        return 10**400


def plain(completions, **_):
    return [0.25] * len(completions)


@pytest.mark.parametrize("function", [odd_rewards, odd_rewards_later], ids=["sync", "async"])
def test_a_reward_that_is_no_number_leaves_its_rollout_unjudged(tmp_path, caplog, function):
    """Even if another function judges it: the sum would lack a part."""
    trainer = desk_trainer(
        tmp_path, cls=Spy, factory=None, more={"reward_funcs": [function, plain]}, max_steps=2, shared_prefix=False
    )
    trainer.train()
    _, _, rewards = trainer.seen[0]
    assert [math.isnan(reward) for reward in rewards] == [i % EVERY != 0 for i in range(len(rewards))]
    assert [reward for reward in rewards if not math.isnan(reward)] == [1.25] * (len(rewards) // EVERY)
    assert history(trainer, "fission/unusable_rewards")[0] == len(rewards) * (EVERY - 1) // EVERY
    assert trainer.reward_funcs == [function, plain]
    (said,) = {record.getMessage()[:60] for record in caplog.records if "as a reward" in record.getMessage()}
    assert said.startswith(f"{function.__name__} gave 1000")
    assert all(math.isfinite(loss) for loss in history(trainer, "loss"))


def test_an_environment_whose_reward_is_no_number_leaves_its_rollouts_unjudged(tmp_path):
    trainer = desk_trainer(tmp_path, factory=OddDesk, max_steps=1)
    trainer.train()
    assert history(trainer, "fission/unusable_rewards") == [16.0]
    assert history(trainer, "fission/pushed") in ([], [0.0])


def test_none_and_nan_stay_what_they_are_in_trl(tmp_path, caplog):
    """A function that does not judge a rollout leaves it to the others."""

    def some(completions, **_):
        return [None if i % 2 else math.nan for i in range(len(completions))]

    trainer = desk_trainer(tmp_path, cls=Spy, factory=None, more={"reward_funcs": [some, plain]}, max_steps=1)
    trainer.train()
    assert set(trainer.seen[0][2]) == {0.25}
    assert not history(trainer, "fission/unusable_rewards")
    assert "as a reward" not in caplog.text
