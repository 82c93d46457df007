"""Code of others in a training run that hangs, exits, or makes the policy's call run into its limit."""

import math
import time

import pytest
from datasets import Dataset
from isolated_environments import Shop, Unscored
from odd_tools import OddTools
from trainer_settings import QUIETLY_ON_CPU
from trainer_support import Spy, desk_trainer, events, history

from fission_grpo import FissionGRPOConfig, FissionGRPOTrainer
from fission_grpo.envs.worker import isolated
from fission_grpo.inference.pretrained import load_starter

CALL = '<tool_call>\n{"name": "%s", "arguments": {}}\n</tool_call>'
NAMES = ["hangs", "hangs_async", "exits", "exits_async", "works"]


class Odd(OddTools):
    """Tools that hang or exit; all that ends by itself earns 0.5."""

    def reset(self, **row): ...

    def get_reward(self) -> float:
        return 0.5

    async def exits_async(self) -> str:
        """Exit."""
        raise SystemExit(0)


def standalone() -> str:
    """Exit."""
    raise SystemExit(3)


class Scripted(FissionGRPOTrainer):
    """Samples one call, each rollout of a group another, and then "Done."."""

    names = NAMES

    def _generate_and_score_completions(self, inputs):
        self.again = False
        output = super()._generate_and_score_completions(inputs)
        self.rewards = self.cycle.scores.rewards.tolist()
        self.completions = self.cycle.scores.completions
        return output

    def _generate_single_turn(self, prompt_ids, *args, **kwargs):
        texts = ["Done."] * len(prompt_ids) if self.again else [CALL % name for name in self.names]
        self.again = True
        return [self.processing_class(text + "<|im_end|>")["input_ids"] for text in texts], None


def scripted_trainer(
    folder, names=NAMES, factory=Odd, isolate_environments=False, tool_timeout=0.2, max_steps=1, row=None, **more
):
    model, tokenizer = load_starter()
    fields = {
        "max_tool_calling_iterations": 2,
        "max_completion_length": 120,
        "tool_timeout": tool_timeout,
        "max_steps": max_steps,
    }
    fields["isolate_environments"] = isolate_environments
    size = {"per_device_train_batch_size": len(names), "num_generations": len(names)}
    args = FissionGRPOConfig(output_dir=str(folder), **QUIETLY_ON_CPU, **fields, **size)
    rows = Dataset.from_list([{"prompt": [{"role": "user", "content": "Do it."}], **(row or {})}] * 4)
    trainer = Scripted(
        model, args=args, train_dataset=rows, processing_class=tokenizer, environment_factory=factory, **more
    )
    trainer.names = names
    return trainer


def test_a_call_that_hangs_earns_nothing_and_one_that_exits_is_answered_with_an_error(tmp_path):
    trainer = scripted_trainer(tmp_path)
    trainer.train()
    assert [reward for [reward] in trainer.rewards] == [0.0, 0.0, 0.5, 0.5, 0.5]
    answers = [completion[1]["content"] for completion in trainer.completions]
    assert "hangs was stopped after 0.2 s" in answers[0]
    assert "hangs_async was stopped after 0.2 s" in answers[1]
    assert "exits tried to end the process (SystemExit: 0)" in answers[2]
    assert "exits_async tried to end the process (SystemExit: 0)" in answers[3]
    assert answers[4] == "done"
    assert history(trainer, "env/timeouts") == [2.0]
    assert history(trainer, "fission/infrastructure") == [0.0]
    assert history(trainer, "fission/kind/raised") == [2.0]
    [pushed] = events(tmp_path, "pushed")
    assert pushed["feedback"] in ("hangs was stopped after 0.2 s", "hangs_async was stopped after 0.2 s")
    assert trainer.async_loop_thread.is_alive()


@pytest.mark.parametrize(("other", "expected"), [(1.0, 0.0), (-1.0, -1.0), (math.nan, 0.0)])
def test_a_stopped_call_earns_no_more_than_zero_from_any_reward_function(tmp_path, other, expected):
    class Silent(Odd):
        get_reward = None

    def judge(completions, **_):
        return [other] * len(completions)

    trainer = scripted_trainer(tmp_path, ["hangs", "works"], Silent, reward_funcs=judge)
    trainer.train()
    assert trainer.rewards[0] == [expected]


def test_a_function_as_tool_that_exits_or_hangs_is_answered_with_an_error(tmp_path):
    def slow() -> str:
        """Hang."""
        time.sleep(30)
        return "late"

    def judge(completions, **_):
        return [1.0] * len(completions)

    trainer = scripted_trainer(tmp_path, ["standalone", "slow"], None, tools=[standalone, slow], reward_funcs=judge)
    trainer.train()
    answers = [completion[1]["content"] for completion in trainer.completions]
    assert "standalone tried to end the process (SystemExit: 3)" in answers[0]
    assert "slow was stopped after 0.2 s" in answers[1]


def exiting(completions, **_):
    raise SystemExit(0)


async def exiting_later(completions, **_):
    raise SystemExit(0)


@pytest.mark.parametrize("function", [exiting, exiting_later])
def test_a_reward_function_that_exits_leaves_the_rollouts_unjudged(function, tmp_path, caplog):
    trainer = desk_trainer(
        tmp_path, cls=Spy, factory=None, more={"reward_funcs": function}, max_steps=1, max_completion_length=16
    )
    trainer.train()
    assert all(math.isnan(reward) for reward in trainer.seen[0][2])
    assert history(trainer, "fission/unusable_rewards") == [16.0]
    assert f"{function.__name__} tried to end the process" in caplog.text


def test_a_run_with_isolated_environments_goes_on_after_hangs_in_c_code_and_crashes(tmp_path):
    names = ["hashes", "dies", "exits", "offline", "add_nothing"]
    trainer = scripted_trainer(tmp_path, names, Shop, isolate_environments=True, tool_timeout=1.0)
    trainer.train()
    assert str([reward for [reward] in trainer.rewards]) == "[0.0, 0.0, 0.0, nan, 0.0]"
    answers = [completion[1]["content"] for completion in trainer.completions]
    assert "hashes was stopped after 1 s" in answers[0]
    assert "dies ended the process of Shop" in answers[1]
    assert (history(trainer, "env/timeouts"), history(trainer, "env/crashes")) == ([1.0], [1.0])


def test_a_reward_function_that_reads_an_environment_which_cannot_be_reset_leaves_the_rollouts_unjudged(tmp_path):
    def kept(environments, **_):
        return [float(len(environment.kept)) for environment in environments]

    factory = isolated(Unscored, 1.0)
    trainer = scripted_trainer(tmp_path, ["pid", "dies"], factory, reward_funcs=kept, row={"name": "crash"})
    trainer.train()
    assert str(trainer.rewards[0]) == "[nan]"


def test_isolated_environments_need_a_guard(tmp_path):
    with pytest.raises(ValueError, match="isolate_environments needs guard_tools"):
        FissionGRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, fission=False, isolate_environments=True)


def test_training_in_processes_equals_training_without_them(tmp_path):
    steps = {"max_steps": 2, "num_recovery_generations": 4, "num_generations": 4, "per_device_train_batch_size": 4}
    runs = []
    for isolate in (False, True):
        runs.append(desk_trainer(tmp_path / str(isolate), Spy, isolate_environments=isolate, **steps))
        runs[-1].train()
    assert history(runs[0], "fission/phase") == [0.0, 1.0]
    for key in ("loss", "reward", "fission/phase", "env/restored"):
        assert history(runs[0], key) == history(runs[1], key)


def test_a_failure_by_a_stopped_call_is_recovered_from_without_making_it_again(tmp_path):
    trainer = scripted_trainer(tmp_path, ["hangs", "works", "works", "works"], max_steps=2)
    began = time.monotonic()
    trainer.train()
    assert time.monotonic() - began < 10
    assert history(trainer, "fission/phase") == [0.0, 1.0]
    assert history(trainer, "env/replayed") == [4.0]
    assert history(trainer, "env/timeouts") == [1.0, 1.0]  # of the policy, once in each cycle
    assert [reward for [reward] in trainer.rewards] == [0.0, 0.5, 0.5, 0.5]
