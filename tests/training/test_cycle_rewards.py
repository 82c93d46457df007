"""What a cycle's rollouts earn, and that reader and trainer go by that alone."""

import math

import pytest
from datasets import Dataset
from trainer_settings import QUIETLY_ON_CPU
from trainer_support import desk_trainer, history

from fission_grpo import FissionGRPOConfig, FissionGRPOTrainer
from fission_grpo.core.chat import render_call
from fission_grpo.core.errors import InfrastructureError
from fission_grpo.core.rewards import StepReward
from fission_grpo.core.serialization import STEP_KEY, task_to_json
from fission_grpo.core.types import Task, ToolCall
from fission_grpo.data.step_tasks import to_rows
from fission_grpo.envs.desk.env import Desk
from fission_grpo.envs.restore import TASK_KEY
from fission_grpo.inference.pretrained import load_starter
from fission_grpo.training.cycle import Cycle, CycleScores
from fission_grpo.training.rollouts import RolloutReader

END, PADDED = 0, [7] * 99  # an end token, and tokens that make a completion of a good length
RIGHT, WRONG = ToolCall("cd", {"dir": "a"}), ToolCall("ls")


class Recorder(FissionGRPOTrainer):
    """Keeps every cycle after its rewards are known, and TRL's output."""

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        broken = [env._fission_monitor.infrastructure_error is not None for env in self.environments or ()]
        self.cycles = [*getattr(self, "cycles", []), (self.cycle, broken, output)]
        return output


# -- the reader ------------------------------------------------------------------------------------------------------


def read(texts, ids, threshold=0.5, failed=()):
    """Rollouts of a step task with these completions, and what they earned."""
    torch = pytest.importorskip("torch")
    task = Task("t", "go", reference=(RIGHT,), **({"failed": failed} if failed else {}))
    row = {STEP_KEY: task_to_json(task), "prompt": "go"}
    by_ids = {tuple(one): text for one, text in zip(ids, texts, strict=True)}
    reward = StepReward()
    reward.eos_ids = frozenset([END])  # as the trainer does
    earned = reward(texts, ids, [row[STEP_KEY]] * len(texts))
    scores = CycleScores(["go"] * len(texts), texts, ids, torch.tensor(earned)[:, None], torch.ones(1))
    cycle = Cycle([row] * len(texts), [len(texts)], scores=scores)

    def decode(some):
        return by_ids.get((*some, END)) or by_ids[tuple(some)]

    rollouts = RolloutReader(decode, [END], threshold, reward).read(cycle, False)
    return rollouts, earned


def test_a_step_task_fails_by_its_verdict_and_not_by_the_threshold_on_rewards():
    texts = [render_call(RIGHT), render_call(WRONG), "no call"]
    rollouts, earned = read(texts, [[*PADDED, i, END] for i in (1, 2, 3)])
    assert earned == pytest.approx([5 / 3, 1, 0])  # a wrong tool in good form earns more than the threshold 0.5
    assert [rollout.verdict.failed for rollout in rollouts] == [False, True, True]
    right, *_ = rollouts
    assert right.verdict.parts == {"format": 1, "correctness": 2, "length": 1}
    (high, *_), _ = read(texts, [[*PADDED, i, END] for i in (1, 2, 3)], threshold=9)
    assert not high.verdict.failed


@pytest.mark.parametrize("ids", [[*PADDED, 1], [1], [END, 1]])
def test_a_step_task_cut_off_after_a_whole_call_is_one_thing_to_reward_and_reader(ids):
    (rollout,), (earned,) = read([render_call(RIGHT)], [ids])
    (turn,) = rollout.trajectory.turns
    assert (turn.truncated, turn.calls) == (True, (RIGHT,))
    assert (earned, rollout.verdict.reward, rollout.verdict.failed) == (0, 0, True)
    assert rollout.verdict.parts == {"format": 0, "correctness": 0, "length": 0}
    (whole,), (full,) = read([render_call(RIGHT)], [[*PADDED, END]])
    assert (full, whole.verdict.failed, whole.trajectory.turns[0].truncated) == (pytest.approx(5 / 3), False, False)


def test_the_same_again_has_not_the_top_advantage_in_a_group_without_a_right_answer():
    again, other = ToolCall("cd", {"dir": "b"}), ToolCall("cd", {"dir": "c"})
    texts = [render_call(again), render_call(other), render_call(WRONG), "<tool_call>{"]
    _, earned = read(texts, [[*PADDED, i, END] for i in (1, 2, 3, 4)], failed=((again,),))
    assert earned == pytest.approx([0, 4 / 3, 1, 0])


# -- the trainer -----------------------------------------------------------------------------------------------------


def quarter(prompts, **_):
    return [0.25] * len(prompts)


def test_a_truncated_completion_of_a_step_task_earns_nothing_in_training_and_has_failed(tmp_path):
    model, tokenizer = load_starter()
    tools = ({"name": "cd", "description": "", "parameters": {"type": "object", "properties": {}}},)
    prompt = ({"role": "user", "content": "move plan.txt"},)
    rows = to_rows([Task(f"t{i}", prompt, tools, reference=(RIGHT,)) for i in range(8)], tokenizer)
    fields = {"max_completion_length": 10, "per_device_train_batch_size": 8, "num_generations": 4, "max_steps": 2}
    args = FissionGRPOConfig(output_dir=str(tmp_path), **QUIETLY_ON_CPU, **fields)
    reward = StepReward()
    trainer = Recorder(model, reward, args, Dataset.from_list(rows), processing_class=tokenizer)
    trainer.train()
    seen = set()
    for cycle, _, _ in trainer.cycles:
        for ids, earned in zip(cycle.scores.completion_ids, cycle.scores.weighted, strict=True):
            is_cut = ids[-1] not in trainer.eos_token_ids
            assert not is_cut or earned == 0
            seen.add(is_cut)
    assert True in seen
    assert reward.eos_ids == {*trainer.eos_token_ids, trainer._tokenizer.pad_token_id}


def test_the_verdict_on_a_corrective_turn_replaces_all_rewards_and_ends_the_tool_loop(tmp_path):
    asked = []

    def noted(prompts, **columns):
        asked.append(set(columns))
        return [0.25] * len(prompts)

    more = {"reward_funcs": noted}
    trainer = desk_trainer(tmp_path, Recorder, more=more, max_steps=5, recovery_scope="turn")
    trainer.train()
    recovered = [(cycle, output) for cycle, _, output in trainer.cycles if cycle.contexts]
    assert recovered
    called = 0
    for cycle, output in recovered:
        resolved = [float(cycle.scores.corrective_turns[i].resolved) for i in range(len(cycle.rows))]
        assert cycle.scores.weighted == resolved  # neither the function's 0.25 nor the environment's reward
        assert [[m["role"] for m in one] for one in cycle.scores.completions] == [["assistant"]] * len(cycle.rows)
        assert output.get("tool_mask") is None or (output["tool_mask"][output["completion_mask"].bool()] == 1).all()
        called += sum(bool(turn.results) for turn in cycle.scores.corrective_turns.values())
    assert called  # by the judge, after the turn
    explored = [value for cycle, *_ in trainer.cycles if not cycle.contexts for value in cycle.scores.weighted]
    assert explored
    assert all(value >= 0.25 for value in explored)
    assert all(TASK_KEY not in columns for columns in asked)


@pytest.mark.parametrize("scope", ["episode", "turn"])
def test_reward_functions_never_see_the_recovery_task(tmp_path, scope):
    asked = []

    def noted(prompts, **columns):
        asked.append(columns)
        return [0.25] * len(prompts)

    trainer = desk_trainer(tmp_path, Recorder, more={"reward_funcs": noted}, max_steps=4, recovery_scope=scope)
    trainer.train()
    assert 1.0 in history(trainer, "fission/phase")
    assert len(asked) == len(trainer.cycles)
    names = {frozenset(columns) for columns in asked}
    assert len(names) == 1  # the same columns in explore and recover cycles
    assert not [name for columns in asked for name in columns if name.startswith("_fission") or name == STEP_KEY]
    assert not [value for columns in asked for values in columns.values() if isinstance(values, list)
                for value in values if isinstance(value, Task)]  # fmt: skip


def test_a_rollout_in_a_broken_environment_has_no_reward_of_any_function(tmp_path):
    class Breaking(Desk):
        made = 0

        def __init__(self):
            super().__init__()
            Breaking.made += 1
            self.is_down = Breaking.made % 2 == 0

        def get_reward(self):
            if self.is_down:
                raise InfrastructureError("the service is down")
            return super().get_reward()

    trainer = desk_trainer(tmp_path, Recorder, factory=Breaking, more={"reward_funcs": quarter}, max_steps=2)
    trainer.train()
    count = 0
    for cycle, broken, _ in trainer.cycles:
        assert [math.isnan(value) for value in cycle.scores.weighted] == broken
        count += sum(broken)
    assert 0 < count < 32
    assert sum(history(trainer, "fission/infrastructure")) == count
