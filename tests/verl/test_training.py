"""Whole runs of verl's own trainer with Fission's hooks."""

import pytest

pytest.importorskip("verl", reason="verl has an environment of its own: make test-verl")

from verl_support import CPU, composed, train, vault_rows


def vault_config(folder, *overrides):
    rows = vault_rows(folder / "rows.jsonl")
    return composed(
        "fission_episodes", *CPU, f"data.train_files={rows}", f"data.val_files={rows}",
        "data.environment=verl_support:Vault", f"trainer.default_local_dir={folder / 'run'}",
        *overrides,
    )  # fmt: skip


def test_a_run_explores_and_recovers_in_turn(tmp_path):
    trainer, manager = train(vault_config(tmp_path, "trainer.total_training_steps=8", "trainer.save_freq=-1"))
    for one in trainer.logged:
        print(
            {k: v for k, v in one.items() if k.startswith(("fission/", "recovery/", "env/", "feedback/", "critic/"))}
        )
    print([len(update) for update in trainer.actor_rollout_wg.updates])
