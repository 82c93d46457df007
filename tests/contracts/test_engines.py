"""The contract of engines: the same scripted policy gives the same failures, feedback, buffer and advantages in each.

verl has an environment of its own; its part is in tests/verl.
"""

import runpy
from pathlib import Path

import pytest

pytest.importorskip("trl")

from datasets import Dataset
from engine_contract import (
    CYCLES,
    MAX_LENGTH,
    MAX_TURNS,
    SETTINGS,
    Script,
    assert_same_cycle,
    episode_rows,
    record,
    run_cycles,
    step_rows,
)
from trainer_settings import QUIETLY_ON_CPU
from transformers.utils import get_json_schema

from fission_grpo import Fission, FissionGRPOConfig, FissionGRPOTrainer, FissionSettings
from fission_grpo.core.rewards import StepReward
from fission_grpo.envs.desk.env import Desk
from fission_grpo.envs.wrapper import tool_methods
from fission_grpo.fission.metrics import groups_of
from fission_grpo.inference.pretrained import load_starter


class ScriptedTrainer(FissionGRPOTrainer):
    """The trainer whose policy is a script; the update is real."""

    script: Script

    def _generate_single_turn(self, prompt_ids, *args, **kwargs):
        return [self.script(ids) for ids in prompt_ids], None

    def _generate_and_score_completions(self, inputs):
        before = {item.task.id for item in self.fission.buffer}
        output = super()._generate_and_score_completions(inputs)
        rollouts = [one.text for one in self._reader.read(self.cycle, bool(self.tools))]
        rewards = self.cycle.scores.weighted
        seen = zip(rewards, output["advantages"].tolist(), rollouts, strict=True)
        groups = groups_of(list(seen), self.cycle.sizes)
        self.records.append(record(self.cycle.contexts, groups, self.fission.buffer, before))
        return output


def by_trainer(folder, rows, environment=Desk, **settings):
    model, tokenizer = load_starter()
    fields = {**QUIETLY_ON_CPU, "learning_rate": 0.0, "per_device_train_batch_size": 16, "shuffle_dataset": False}
    limits = {"max_tool_calling_iterations": MAX_TURNS - 1, "max_completion_length": MAX_LENGTH}
    args = FissionGRPOConfig(str(folder), max_steps=CYCLES, **fields, **limits, **SETTINGS, **settings)
    trainer = ScriptedTrainer(
        model=model,
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        environment_factory=environment,
        reward_funcs=None if environment else StepReward(),
    )
    trainer.script, trainer.records = Script(tokenizer), []
    trainer.train()
    return trainer.records


def assert_same(found, expected):
    assert sum(bool(one.contexts) for one in expected) >= 2
    assert sum(len(one.failures) for one in expected) >= 6
    assert len(found) == len(expected) == CYCLES
    for one, other in zip(found, expected, strict=True):
        assert_same_cycle(one, other)


OPTIONS = [
    {},
    {"recovery_reward": "strict", "failure_turn": "every", "buffer_order": "random"},
    {"recovery_scope": "turn"},
    {"recovery_batches": "mixed", "max_depth": 2},
]


@pytest.mark.parametrize("settings", OPTIONS, ids=str)
def test_cycles_without_a_trainer_are_those_of_the_trainer(settings, tmp_path):
    rows = episode_rows()
    found = run_cycles(load_starter()[1], rows, **settings)
    expected = by_trainer(tmp_path, rows, **settings)
    assert_same(found, expected)


def test_the_loop_of_ones_own_is_that_of_the_trainer(tmp_path):
    own_loop = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "own_loop.py"))
    tokenizer, rows = load_starter()[1], episode_rows()
    fission, script, found, before = Fission(FissionSettings(**SETTINGS)), Script(tokenizer), [], set()

    class Policy:
        def reply(self, messages, task):
            return script.next_text(tokenizer.apply_chat_template(messages, tokenize=False))

        def update(self, rollouts, advantages):
            pass

    tools = [get_json_schema(tool) for tool in tool_methods(Desk()).values()]
    for contexts, rollouts, advantages in own_loop["train"](Policy(), rows, fission, CYCLES, MAX_TURNS, tools):
        seen = [(one.verdict.reward, a, one.text) for one, a in zip(rollouts, advantages, strict=True)]
        size = SETTINGS["num_recovery_generations" if contexts else "num_generations"]
        groups = groups_of(seen, [size] * (len(seen) // size))
        found.append(record(contexts, groups, fission.buffer, before))
        before = {item.task.id for item in fission.buffer}
    assert_same(found, by_trainer(tmp_path, rows))


@pytest.mark.parametrize("settings", OPTIONS[:2], ids=str)
def test_step_tasks_with_real_errors_are_those_of_the_trainer(settings, tmp_path):
    rows = step_rows(load_starter()[1])
    found = run_cycles(load_starter()[1], rows, environment=None, **settings)
    expected = by_trainer(tmp_path, rows, environment=None, **settings)
    assert_same(found, expected)
    assert any("raised" in kind for one in expected for _, kind in one.failures)
