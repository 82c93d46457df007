"""The reward of an episode outside of training is the one that TRL computes."""

import pytest

from fission_grpo.core.errors import UsageError
from fission_grpo.envs.episode_reward import EpisodeReward, UnusableReward

ROW = {"id": "a", "prompt": [{"role": "user", "content": "Go."}], "target": 3}
COMPLETION = [{"role": "assistant", "content": "Done."}]


class State:
    total = 3


class Judged(State):
    def get_reward(self):
        return 0.25


class Private(State):
    def _reward(self):
        return 0.75


def reached(environments, target, **_):
    return [float(one.total == wanted) for one, wanted in zip(environments, target, strict=True)]


async def half(completions, **_):
    return [0.5 for _ in completions]


def nothing(prompts, **_):
    return [None for _ in prompts]


def polite(completions, trainer_state, log_metric, log_extra, **_):
    log_metric("x", 1.0)
    assert trainer_state is None
    return [float(completion[-1]["content"] == "Done.") for completion in completions]


def judge(*functions, environment=None, weights=None):
    return EpisodeReward(functions, weights)(environment or State(), ROW, COMPLETION)


def test_functions_get_what_trl_gives_them():
    assert judge(reached) == 1.0
    assert judge(polite) == 1.0


def test_rewards_are_added_with_their_weights_and_none_is_left_out():
    assert judge(reached, half) == 1.5
    assert judge(reached, half, weights=[0.1, 2.0]) == pytest.approx(1.1)
    assert judge(nothing, half) == 0.5
    assert judge(nothing) is None


def test_the_environments_own_reward_is_added_as_in_trl():
    assert judge(environment=Judged()) == 0.25
    assert judge(reached, environment=Judged()) == 1.25
    assert judge(environment=Private()) == 0.75
    assert judge(reached, environment=Private()) == 1.0  # TRL does not know `_reward`


def test_a_function_that_changes_its_columns_changes_a_copy():
    def greedy(target, **_):
        target.clear()
        return [1.0]

    assert judge(greedy, reached) == 2.0
    assert ROW["target"] == 3


def raises(**_):
    raise KeyError("colour")


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (raises, r"raises raised KeyError: 'colour' \(test_episode_reward.py, line \d+\)"),
        (lambda **_: 1.0, "a list with one reward"),
        (lambda **_: [1.0, 2.0], "a list with one reward"),
        (lambda **_: "1", "a list with one reward"),
        (lambda colour, **_: [1.0], "colour"),
    ],
)
def test_a_function_that_cannot_be_used_is_named(function, words):
    with pytest.raises(UsageError, match=words):
        judge(function)


def test_a_reward_that_is_no_number_is_no_verdict():
    with pytest.raises(UnusableReward, match="no number"):
        judge(lambda **_: ["much"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"functions": [3]}, "is no function"),
        ({"functions": [lambda completion_ids, **_: [1.0]]}, "needs `completion_ids`"),
        ({"functions": [reached], "weights": [1.0, 2.0]}, "2 reward_weights for 1 reward_funcs"),
    ],
)
def test_what_evaluation_cannot_use_is_refused_before_the_first_episode(options, words):
    with pytest.raises(UsageError, match=words):
        EpisodeReward(**options)


def test_an_environment_that_nothing_judges_is_refused():
    with pytest.raises(UsageError, match="nothing judges State"):
        EpisodeReward().check(State)
    for judged in (Judged, Private):
        EpisodeReward().check(judged)
    EpisodeReward([reached]).check(State)
