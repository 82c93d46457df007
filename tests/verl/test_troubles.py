"""Runs in which agent loops raise errors and environments break: counted, logged, and left out of the batch."""

import json
import logging

import pytest

pytest.importorskip("verl", reason="verl has an environment of its own: make test-verl")

from verl_support import (
    CPU,
    ScriptedClient,
    composed,
    groups_of_update,
    train,
    unreliable_policy,
    vault_policy,
    vault_rows,
)


def config_of(folder, broken, *overrides, environment="Vault"):
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in vault_rows(broken=broken)))
    return composed(
        "fission_episodes", *CPU, f"data.train_files={rows}", f"data.val_files={rows}",
        f"data.environment=verl_support:{environment}", f"trainer.default_local_dir={folder / 'run'}",
        "trainer.save_freq=-1", *overrides,
    )  # fmt: skip


def test_rollouts_without_a_judgement_are_counted_and_left_out(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        trainer, _ = train(
            config_of(tmp_path, [1], "trainer.total_training_steps=2"), ScriptedClient(unreliable_policy)
        )
    first, second = trainer.logged
    assert (first["fission/lost_rollouts"], first["fission/infrastructure"]) == (8, 4)
    assert "ConnectionError: the server is gone" in caplog.text
    update = trainer.actor_rollout_wg.updates[0]
    groups = {len(group): group for group in groups_of_update(update) if not group[0]["padding"]}
    assert sorted(groups) == [1, 3]
    assert groups[1][0]["advantages"] == [0.0]
    assert {row["reward"] for row in groups[3]} == {0.0, 1.0}
    assert sum(row["padding"] for row in update) == 12  # verl fills up to a mini-batch, with rows that train nothing
    assert second["fission/lost_rollouts"] == 0


def test_a_cycle_in_which_nothing_can_be_judged_ends_the_run_with_the_reason(tmp_path):
    config = config_of(tmp_path, range(16), "trainer.total_training_steps=2")
    with pytest.raises(RuntimeError, match="no rollout of step 1 could be judged: the environments are broken"):
        train(config, ScriptedClient(unreliable_policy))


def test_a_recovery_that_cannot_be_brought_to_its_failed_turn_is_counted_and_left_out(tmp_path):
    one_worker = "actor_rollout_ref.rollout.agent.num_workers=1"
    config = config_of(tmp_path, [], "trainer.total_training_steps=2", one_worker, environment="Unsteady")
    trainer, _ = train(config, ScriptedClient(vault_policy))
    recovery = trainer.logged[1]
    assert (recovery["env/other_tasks"], recovery["env/replayed"]) == (8, 8)
    assert (recovery["fission/infrastructure"], recovery["fission/phase"]) == (8, 1.0)
    rows = [row for row in trainer.actor_rollout_wg.updates[1] if not row["padding"]]
    assert {len(group) for group in groups_of_update(rows)} == {8}
    assert len(rows) == 8
