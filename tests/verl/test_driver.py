"""The parts of the driver and of workers, one by one."""

import pickle
from collections import Counter
from types import SimpleNamespace

import pytest

pytest.importorskip("verl", reason="verl has an environment of its own: make test-verl")

import torch
from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage

import fission_grpo.engines.verl as package
from fission_grpo.core.errors import CheckpointError, UnsupportedVersionError, UsageError
from fission_grpo.core.types import Rollout, Task, ToolCall, Trajectory, Turn, Verdict
from fission_grpo.engines.episode import Episode
from fission_grpo.engines.verl import driver, worker
from fission_grpo.envs.restore import make_call, make_restorable, run_awaitable
from fission_grpo.fission.metrics import group_advantages


def token_rewards(*rewards):
    tokens = torch.zeros(len(rewards), 3)
    tokens[:, -1] = torch.tensor(rewards)
    return tokens


def test_advantages_are_normalised_in_each_group_of_a_mixed_up_batch():
    mask = torch.tensor([[1, 0, 1]] * 5)
    found, returns = driver.group_advantages(token_rewards(1.0, 0.5, 0.0, 0.0, 0.25), mask, ["a", "b", "a", "a", "b"])
    expected = group_advantages([1.0, 0.0, 0.0, 0.5, 0.25], [3, 2])
    assert found[:, 0].tolist() == pytest.approx([expected[i] for i in (0, 3, 1, 2, 4)], abs=1e-6)
    assert found[:, 1].tolist() == [0.0] * 5
    assert returns is found


def test_a_group_of_one_is_not_trained():
    mask = torch.ones(1, 3)
    assert driver.group_advantages(token_rewards(1.0), mask, ["a"])[0].tolist() == [[0.0] * 3]
    assert compute_grpo_outcome_advantage(token_rewards(1.0), mask, ["a"])[0].tolist() != [[0.0] * 3]  # verl's own


class Button:
    """An environment whose snapshot is `state`."""

    state = ("plain",)

    def reset(self, **_):
        pass

    def press(self) -> str:
        """Press."""
        raise ValueError("no")

    def _snapshot(self):
        return self.state

    def _restore(self, state):
        pass


class OddButton(Button):
    state = (lambda: "a function can be copied, but not sent to another process",)


def failed_episode(kind):
    environment = make_restorable(kind, run_awaitable)()
    environment.reset()
    result = make_call({"press": environment.press}, ToolCall("press"), run_awaitable)
    turn = Turn("text", calls=(result.call,), results=(result,))
    trajectory = Trajectory(Task("t", ({"role": "user", "content": "?"},)), (turn,))
    return Episode(Rollout(trajectory, Verdict(0.0, True)), [1], [2, 3], [1, 1], [], environment)


def test_an_episode_is_sent_with_its_failures_snapshots_and_counts():
    episode = failed_episode(Button)
    sent = pickle.loads(worker.send(episode, "first", Counter({"env/restored": 1})))
    assert sent.rollout == episode.rollout
    assert (sent.reward, sent.mask) == (0.0, [1, 1])
    [failure] = sent.failed().failures
    assert failure.detail == "no"
    assert sent.failed().get_snapshot(failure) == ("plain",)
    assert sent.counts == {"env/restored": 1}


def test_a_snapshot_that_cannot_be_sent_is_left_out_and_counted():
    sent = pickle.loads(worker.send(failed_episode(OddButton), "first", Counter()))
    [failure] = sent.failed().failures
    assert sent.failed().get_snapshot(failure) is None
    assert sent.counts == {"env/snapshots_not_sent": 1}


def test_another_version_of_verl_is_refused(monkeypatch):
    monkeypatch.setattr(package, "SUPPORTED", "0.8.0")
    with pytest.raises(UnsupportedVersionError, match=r"runs on verl 0\.8\.0, .* installed: 0\.9\.1"):
        package.check_version()


def test_the_sampler_without_the_loop_manager_says_which_key_is_missing(monkeypatch):
    monkeypatch.setattr(driver.FissionLoopManager, "current", None)
    sampler = driver.FissionReplayBuffer.__new__(driver.FissionReplayBuffer)
    with pytest.raises(UsageError, match="agent_loop_manager_class"):
        sampler.sample(1, "train", 4)


def load_from(checkpoint):
    manager = driver.FissionLoopManager.__new__(driver.FissionLoopManager)
    manager.cycles = SimpleNamespace(load_state=dict)
    manager._load(SimpleNamespace(resume_mode="resume_path", resume_from_path=str(checkpoint)))


def test_a_checkpoint_of_a_run_without_fission_gives_a_warning(tmp_path, caplog):
    load_from(tmp_path)
    assert "fission.json is missing" in caplog.text


def test_a_damaged_state_in_a_checkpoint_is_named(tmp_path):
    (tmp_path / driver.STATE).write_text('{"fission": ')
    with pytest.raises(CheckpointError, match=r"fission\.json cannot be read"):
        load_from(tmp_path)
