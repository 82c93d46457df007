"""Whole runs of verl's own trainer with Fission's hooks, on a CPU."""

import json
from pathlib import Path

import pytest

pytest.importorskip("verl", reason="verl has an environment of its own: make test-verl")

from engine_contract import MAX_LENGTH, MAX_TURNS, episode_rows, record, run_cycles
from transformers import AutoTokenizer
from verl_support import CPU, STARTER, ScriptedClient, composed, groups_of_update, train, vault_policy, vault_rows

from fission_grpo.engines.cycles import RecoveryCycles

STEPS = 9  # explore and recover cycles in turn: five of the one, four of the other
SAVED = 5


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def config_of(folder, rows, environment, *overrides):
    return composed(
        "fission_episodes", *CPU, f"data.train_files={rows}", f"data.val_files={rows}",
        f"data.environment={environment}", f"trainer.default_local_dir={folder / 'run'}", *overrides,
    )  # fmt: skip


def contract_config(folder, *overrides):
    rows = write_rows(folder / "rows.jsonl", episode_rows())
    limits = f"fission.max_turns={MAX_TURNS}", f"data.max_response_length={MAX_LENGTH}", "data.seed=0"
    one_worker = "actor_rollout_ref.rollout.agent.num_workers=1"  # its script counts the dialogues of all rollouts
    environment = "fission_grpo.envs.desk.env:Desk"
    return config_of(folder, rows, environment, *limits, one_worker, f"trainer.save_freq={SAVED}", *overrides)


@pytest.fixture(scope="module")
def contract_run(tmp_path_factory):
    """The trainer of a run of the contract's script, what it did in each cycle, and its folder."""
    folder, cycles = tmp_path_factory.mktemp("contract"), []
    with pytest.MonkeyPatch.context() as patch:
        finish = RecoveryCycles.finish

        def finish_and_keep(self, plan, groups, step):
            before = {item.task.id for item in self.fission.buffer}
            metrics = finish(self, plan, groups, step)
            texts = [[(episode.reward, episode.rollout.text) for episode in group] for group in groups]
            cycles.append((plan.contexts, texts, list(self.fission.buffer), before))
            return metrics

        patch.setattr(RecoveryCycles, "finish", finish_and_keep)
        trainer, _ = train(contract_config(folder, f"trainer.total_training_steps={STEPS}"))
    return trainer, cycles, folder


def rounded(groups):
    """Groups of rewards and advantages, in an order of their own: verl's batch has another."""
    return sorted(sorted((round(reward, 6), round(advantage, 4)) for reward, advantage in group) for group in groups)


def test_cycles_are_those_of_the_contract(contract_run):
    trainer, cycles, _ = contract_run
    expected = run_cycles(AutoTokenizer.from_pretrained(STARTER), episode_rows(), STEPS)
    assert sum(bool(one.contexts) for one in expected) >= 3
    assert sum(not one.contexts for one in expected) >= 4
    for (contexts, groups, buffer, before), update, other in zip(
        cycles, trainer.actor_rollout_wg.updates, expected, strict=True
    ):
        trained = [[(row["reward"], *row["advantages"]) for row in group] for group in groups_of_update(update)]
        assert rounded(trained) == rounded([[one[:2] for one in group] for group in other.groups])
        found = record(contexts, [[(reward, 0.0, text) for reward, text in group] for group in groups], buffer, before)
        assert found.contexts == other.contexts
        assert found.failures == other.failures
        assert found.feedback == other.feedback
        assert found.buffer == other.buffer
        texts = [[(reward, text) for reward, _, text in group] for group in other.groups]
        assert [[(reward, text) for reward, _, text in group] for group in found.groups] == [sorted(g) for g in texts]


def test_only_sampled_tokens_are_trained(contract_run):
    trainer, *_ = contract_run
    rows = [row for update in trainer.actor_rollout_wg.updates for row in update]
    assert all(len(row["advantages"]) == 1 and row["untrained"] == 0.0 for row in rows)
    assert not any(row["padding"] for row in rows)


def test_metrics_have_our_names(contract_run):
    trainer, *_ = contract_run
    phases = [one["fission/phase"] for one in trainer.logged]
    assert phases == [0.0, 1.0] * 4 + [0.0]
    assert all(one["fission/lost_rollouts"] == 0 for one in trainer.logged)
    assert all("recovery/rate" in one for one in trainer.logged[1::2])


def test_a_run_resumes_with_the_buffer_of_its_checkpoint(contract_run):
    *_, folder = contract_run
    checkpoint = folder / "run" / f"global_step_{SAVED}"
    saved = json.loads((checkpoint / "fission.json").read_text())
    assert saved["fission"]["buffer"]
    config = contract_config(
        folder, f"trainer.total_training_steps={SAVED + 1}", "trainer.resume_mode=resume_path",
        f"trainer.resume_from_path={checkpoint}",
    )  # fmt: skip
    states = []
    with pytest.MonkeyPatch.context() as patch:
        load = RecoveryCycles.load_state

        def load_and_keep(self, state):
            load(self, state)
            states.append(self.state())

        patch.setattr(RecoveryCycles, "load_state", load_and_keep)
        trainer, _ = train(config)
    assert states == [saved]
    assert len(trainer.actor_rollout_wg.updates) == 1
    assert trainer.logged[0]["fission/phase"] == 1.0


def test_a_recovery_runs_in_another_worker_than_the_failure(tmp_path):
    rows = vault_rows(tmp_path / "rows.jsonl")
    config = config_of(
        tmp_path, rows, "verl_support:Vault", "trainer.total_training_steps=4", "trainer.save_freq=-1",
        "data.max_response_length=256",
    )  # fmt: skip
    trainer, _ = train(config, ScriptedClient(vault_policy))
    assert [one["fission/phase"] for one in trainer.logged] == [0.0, 1.0, 0.0, 1.0]
    assert sum(one.get("env/restored", 0) for one in trainer.logged) > 0
    assert Path(rows).is_file()
