"""Whole runs of verl's own trainer with Fission's hooks, on a CPU."""

import json
from dataclasses import replace

import pytest

pytest.importorskip("verl", reason="verl has an environment of its own: make test-verl")

from engine_contract import MAX_LENGTH, MAX_TURNS, SETTINGS, episode_rows, record, run_cycles, step_rows
from transformers import AutoTokenizer
from verl_support import CPU, STARTER, ScriptedClient, composed, groups_of_update, train, vault_policy, vault_rows

from fission_grpo.engines.cycles import RecoveryCycles
from fission_grpo.envs.desk.env import Desk

STEPS = 9  # explore and recover cycles in turn: five of the one, four of the other
SAVED = 5
LIMITS = (f"++fission.max_turns={MAX_TURNS}", f"data.max_response_length={MAX_LENGTH}")
STEP_TASKS = (
    "data.train_files=desk:steps",
    "data.val_files=desk:steps",
    "data.seed=5",
    "data.train_max_samples=24",
    "fission.feedback=rules",
)
KINDS = {  # recipe, settings of the contract, further values of verl's configuration
    "episodes": ("fission_episodes", {}, ()),
    "step tasks": ("fission_step_tasks", {}, STEP_TASKS),
    "mixed batches": ("fission_episodes", {"recovery_batches": "mixed", "max_depth": 2}, ()),
    "more groups than rows": ("fission_episodes", {"num_recovery_generations": 2}, ()),
}


def config_of(folder, recipe, rows, environment, *overrides):
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = f"data.train_files={file}", f"data.val_files={file}", f"data.environment={environment}"
    return composed(
        recipe, *CPU, *(own if environment else ()), f"trainer.default_local_dir={folder / 'run'}", *overrides
    )


def contract_config(folder, recipe, settings, *overrides):
    options = [f"++fission.{name}={value}" for name, value in settings.items()]
    one_worker = "actor_rollout_ref.rollout.agent.num_workers=1"  # its script counts the dialogues of all rollouts
    environment = None if recipe == "fission_step_tasks" else "fission_grpo.envs.desk.env:Desk"
    more = (*LIMITS, *options, one_worker, f"trainer.save_freq={SAVED}", *overrides)
    return config_of(folder, recipe, episode_rows(), environment, *more)


class Recorder:
    """Keeps what `RecoveryCycles.finish` gets and does, cycle by cycle."""

    def __init__(self, patch):
        self.cycles, self._finish = [], RecoveryCycles.finish
        patch.setattr(RecoveryCycles, "finish", lambda *given: self.finish(*given))

    def finish(self, cycles, plan, groups, step):
        before = {item.task.id for item in cycles.fission.buffer}
        metrics = self._finish(cycles, plan, groups, step)
        seen = [[(episode.reward, 0.0, episode.rollout.text) for episode in group] for group in groups]
        self.cycles.append(record(plan.contexts, seen, cycles.fission.buffer, before))
        return metrics


@pytest.fixture(scope="module", params=KINDS)
def run(request, tmp_path_factory):
    """Kind, trainer, what it did in each cycle, and folder of a run of the contract's script."""
    recipe, settings, overrides = KINDS[request.param]
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        recorder = Recorder(patch)
        trainer, _ = train(
            contract_config(folder, recipe, settings, f"trainer.total_training_steps={STEPS}", *overrides)
        )
    return request.param, trainer, recorder.cycles, folder


def in_order(groups):
    """Rewards and advantages of groups in an order of their own, as verl's batch has another."""
    flat = [[number for pair in sorted(group) for number in pair] for group in groups]
    return [number for group in sorted(flat, key=lambda group: [round(one, 3) for one in group]) for number in group]


def test_cycles_are_those_of_the_contract(run, monkeypatch):
    kind, trainer, cycles, _ = run
    recipe, settings, _ = KINDS[kind]
    tokenizer = AutoTokenizer.from_pretrained(STARTER)
    rows, environment = (step_rows(tokenizer), None) if recipe == "fission_step_tasks" else (episode_rows(), Desk)
    for name, value in settings.items():
        monkeypatch.setitem(SETTINGS, name, value)
    expected = run_cycles(tokenizer, rows, STEPS, environment)
    assert sum(bool(one.contexts) for one in expected) >= 3
    assert kind == "mixed batches" or sum(not one.contexts for one in expected) >= 4
    for found, update, other in zip(cycles, trainer.actor_rollout_wg.updates, expected, strict=True):
        trained = [[(row["reward"], *row["advantages"]) for row in group] for group in groups_of_update(update)]
        expected_numbers = in_order([[one[:2] for one in group] for group in other.groups])
        assert in_order(trained) == pytest.approx(expected_numbers, abs=1e-6)
        without = [sorted((reward, 0.0, text) for reward, _, text in group) for group in other.groups]
        assert found == replace(other, groups=without)


def test_only_sampled_tokens_are_trained(run):
    _, trainer, *_ = run
    rows = [row for update in trainer.actor_rollout_wg.updates for row in update]
    assert all(len(row["advantages"]) == 1 and row["untrained"] == 0.0 for row in rows)
    assert not any(row["padding"] for row in rows)


def test_metrics_have_the_names_of_the_other_trainer(run):
    _, trainer, cycles, _ = run
    assert [one["fission/phase"] > 0 for one in trainer.logged] == [bool(one.contexts) for one in cycles]
    assert all(one["fission/lost_rollouts"] == 0 for one in trainer.logged)
    assert all("recovery/rate" in one for one in trainer.logged if one["fission/phase"])
    assert all("fission/success" in one for one in trainer.logged if one["fission/phase"] < 1)
    assert all("fission/pushed" in one for one in trainer.logged)


@pytest.mark.parametrize("run", ["episodes", "mixed batches"], indirect=True)
def test_a_run_resumes_with_the_buffer_of_its_checkpoint(run, tmp_path):
    kind, trainer, cycles, folder = run
    recipe, settings, overrides = KINDS[kind]
    checkpoint = folder / "run" / f"global_step_{SAVED}"
    saved = json.loads((checkpoint / "fission.json").read_text())
    assert saved["fission"]["buffer"]
    config = contract_config(
        tmp_path, recipe, settings, *overrides, f"trainer.total_training_steps={SAVED + 1}",
        "trainer.resume_mode=resume_path", f"trainer.resume_from_path={checkpoint}", "trainer.save_freq=-1",
    )  # fmt: skip
    states = []
    with pytest.MonkeyPatch.context() as patch:
        load, recorder = RecoveryCycles.load_state, Recorder(patch)

        def load_and_keep(self, state):
            load(self, state)
            states.append(self.state())

        patch.setattr(RecoveryCycles, "load_state", load_and_keep)
        resumed, _ = train(config)
    assert states == [saved]
    assert [one["training/global_step"] for one in resumed.logged] == [SAVED + 1]
    assert [one.contexts for one in recorder.cycles] == [cycles[SAVED].contexts]
    assert resumed.logged[0]["fission/phase"] == trainer.logged[SAVED]["fission/phase"]


def test_a_recovery_runs_from_its_snapshot_in_any_worker(tmp_path):
    config = config_of(
        tmp_path, "fission_episodes", vault_rows(), "verl_support:Vault", "trainer.total_training_steps=4",
        "trainer.save_freq=-1", "data.max_response_length=256", "trainer.val_before_train=true",
    )  # fmt: skip
    trainer, _ = train(config, ScriptedClient(vault_policy))
    assert trainer.validated["val-core/fission/reward/mean@1"] == 1.0  # one rollout of each row, the right one
    assert [one["fission/phase"] for one in trainer.logged] == [0.0, 1.0, 0.0, 1.0]
    assert [one.get("env/restored", 0) for one in trainer.logged] == [0, 16, 0, 16]
    assert not any(one.get("env/replayed", 0) for one in trainer.logged)
