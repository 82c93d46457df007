"""What happened in a turn is known from the sampled token ids and the wrapped tools, and evaluation is left alone."""

import asyncio
import functools

import pytest
from datasets import Dataset
from trainer_support import COMMON, desk_trainer, events, history, rows

from fission_grpo import FissionGRPOConfig, FissionGRPOTrainer
from fission_grpo.core.chat import read_result, render_call
from fission_grpo.core.rewards import StepReward
from fission_grpo.core.types import Task, ToolCall
from fission_grpo.data.step_tasks import to_rows
from fission_grpo.envs.desk.env import Desk
from fission_grpo.envs.wrapper import tool_methods
from fission_grpo.inference.pretrained import load_starter
from fission_grpo.training.callbacks import steps_per_cycle
from fission_grpo.training.tool_call_parser import with_parse_errors


class Quarter(Desk):
    """Desk with a constant reward."""

    def get_reward(self):
        return 0.25


@pytest.mark.parametrize("scope", ["turn", "episode"])
def test_recovery_verdicts_never_reach_evaluation(tmp_path, scope):
    trainer = desk_trainer(
        tmp_path, factory=Quarter, max_steps=4, recovery_scope=scope, eval_strategy="steps", eval_steps=1,
        per_device_eval_batch_size=4, more={"eval_dataset": rows(4)},
    )  # fmt: skip
    trainer.train()
    assert history(trainer, "fission/phase") == [0.0, 1.0, 0.0, 1.0]
    assert history(trainer, "eval_reward") == [0.25] * 4
    assert not any(key.startswith("eval_recovery") for entry in trainer.state.log_history for key in entry)


@pytest.mark.parametrize("masks", [True, False])
def test_a_completion_cut_at_the_length_limit_is_a_truncated_failure_also_where_trl_masks_it(tmp_path, masks):
    trainer = desk_trainer(
        tmp_path, max_steps=1, max_completion_length=6, mask_truncated_completions=masks, min_buffered=2
    )
    trainer.train()
    assert history(trainer, "completions/clipped_ratio") == [1.0]
    assert {one["kind"] for one in events(tmp_path, "pushed")} == {"truncated"}
    assert history(trainer, "fission/kind/truncated") == [16.0]


def failing(tool):
    @functools.wraps(tool)
    def call(self, *args, **kwargs):
        raise AssertionError

    return call


class Picky(Desk):
    """Desk whose every tool fails like a bare assert."""


for name, method in tool_methods(Desk()).items():
    setattr(Picky, name, failing(method.__func__))


def test_tools_that_fail_without_a_message_count_as_errors(tmp_path):
    trainer = desk_trainer(tmp_path, factory=Picky, max_steps=1)
    trainer.train()
    assert history(trainer, "fission/error_cases") == [16.0]
    assert history(trainer, "fission/kind/raised")[0] > 0
    assert history(trainer, "fission/error_recovery_rate") == [0.0]
    assert any("AssertionError" in one["feedback"] for one in events(tmp_path, "pushed"))


def standalone(value):
    def look() -> str:
        """Look."""
        if isinstance(value, Exception):
            raise value
        return value

    async def look_async() -> str:
        """Look."""
        return look()

    def run(tool):
        answer = tool()
        return asyncio.run(answer) if asyncio.iscoroutine(answer) else answer

    return [run(with_parse_errors(one)) if not isinstance(value, Exception) else (run, with_parse_errors(one))
            for one in (look, look_async)]  # fmt: skip


@pytest.mark.parametrize("value", [[{"type": "cafe", "name": "Blue"}], [], [1, 2], [{"type": "image"}], ["a"]])
def test_a_list_that_holds_no_content_blocks_is_read_as_text_by_the_policy(value):
    assert standalone(value) == [str(value)] * 2


def test_content_blocks_of_a_standalone_tool_are_passed_on():
    blocks = [{"type": "text", "text": "a cafe"}, {"type": "image", "image": object()}]
    assert standalone(blocks) == [blocks] * 2


@pytest.mark.parametrize("error", [ValueError(), AssertionError(), RuntimeError("  "), KeyError()])
def test_a_standalone_tool_that_raises_without_a_message_names_its_error(error):
    for run, tool in standalone(error):
        with pytest.raises(ValueError, match=f"^{type(error).__name__}$") as caught:
            run(tool)
        assert read_result(ToolCall("look"), str({"error": str(caught.value)})).error == type(error).__name__


def test_arguments_that_a_standalone_tool_changes_stay_as_the_policy_wrote_them():
    def sort(items: list[int]) -> str:
        """Sort."""
        items.sort()
        return str(items)

    written = {"items": [3, 1, 2]}
    assert with_parse_errors(sort)(**written) == "[1, 2, 3]"
    assert written == {"items": [3, 1, 2]}


# -- updates without a signal --------------------------------------------------------------------------------------


def flat_after_first(reward=1.0):
    """A reward function: different rewards in the first cycle, equal ones afterwards."""

    def judge(completions, trainer_state=None, **_):
        if trainer_state.global_step:
            return [reward] * len(completions)
        return [float(n % 2) for n in range(len(completions))]

    return judge


class Watched(FissionGRPOTrainer):
    """Keeps the sum of all weights, and the learning rate, after every update."""

    def training_step(self, *args, **kwargs):
        self.weights = [
            *getattr(self, "weights", []),
            sum(p.detach().double().sum().item() for p in self.model.parameters()),
        ]
        return super().training_step(*args, **kwargs)


def flat_run(folder, reward=1.0, **fields):
    model, tokenizer = load_starter()
    settings = COMMON | {"max_steps": 5, "max_completion_length": 16, "failure_threshold": -1.0, "weight_decay": 0.1}
    data = Dataset.from_list([{"prompt": f"Question {n}?"} for n in range(16)])
    trainer = Watched(
        model=model, args=FissionGRPOConfig(output_dir=str(folder), **(settings | fields)), train_dataset=data,
        processing_class=tokenizer, reward_funcs=flat_after_first(reward),
    )  # fmt: skip
    trainer.train()
    return trainer


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused", "sgd", "adafactor"])
@pytest.mark.parametrize("shared_prefix", [True, False])
def test_updates_without_a_gradient_leave_the_policy_as_it_is_and_are_counted(tmp_path, optim, shared_prefix):
    trainer = flat_run(tmp_path, optim=optim, shared_prefix=shared_prefix)
    start, first, *others = trainer.weights
    assert start != first
    assert set(others) == {first}
    assert history(trainer, "fission/skipped_updates") == [0.0, 1.0, 1.0, 1.0, 1.0]
    rates = history(trainer, "learning_rate")
    assert rates == pytest.approx([1e-3, 8e-4, 6e-4, 4e-4, 2e-4])  # the schedule goes on


@pytest.mark.parametrize("reward", [0.9, 0.1, 1 / 3])
@pytest.mark.parametrize("group", [8, 16])
def test_equal_rewards_have_no_advantage_though_their_mean_is_rounded(tmp_path, reward, group):
    trainer = flat_run(tmp_path, reward, num_generations=group)
    assert set(trainer.weights[1:]) == {trainer.weights[1]}
    assert history(trainer, "fission/skipped_updates") == [0.0, 1.0, 1.0, 1.0, 1.0]


def test_with_several_micro_batches_one_signal_is_enough(tmp_path):
    trainer = flat_run(tmp_path, per_device_train_batch_size=8, gradient_accumulation_steps=2)
    assert history(trainer, "fission/skipped_updates") == [0.0, 1.0, 1.0, 1.0, 1.0]
    first, others = trainer.weights[2], trainer.weights[3:]
    assert trainer.weights[0] != first
    assert set(others) == {first}


@pytest.mark.parametrize("fields", [{"skip_zero_signal": False}, {"fission": False}])
def test_otherwise_momentum_moves_the_policy_as_in_trl(tmp_path, fields):
    trainer = flat_run(tmp_path, **fields)
    assert len(set(trainer.weights)) == 5
    assert history(trainer, "fission/skipped_updates") == []


def test_a_kl_term_is_a_signal(tmp_path):
    trainer = flat_run(tmp_path, beta=0.04)
    assert history(trainer, "fission/skipped_updates") == [0.0] * 5
    assert len(set(trainer.weights)) == 5


def test_plain_grpo_can_skip_such_updates_too(tmp_path):
    trainer = flat_run(tmp_path, fission=False, skip_zero_signal=True)
    assert len(set(trainer.weights)) == 2
    assert steps_per_cycle(trainer.args) == 1


# -- what the policy wrote ------------------------------------------------------------------------------------------


def rollouts(texts, mask=None):
    """A rollout function whose every completion is these token texts; `mask` marks those that the policy sampled."""

    def function(prompts, trainer):
        tokenizer = trainer.processing_class
        asked = [p if isinstance(p, str) else tokenizer.apply_chat_template(p, tokenize=False) for p in prompts]
        parts = [[tokenizer.eos_token_id] if text == "EOS" else tokenizer(text)["input_ids"] for text in texts]
        ids = [token for part in parts for token in part]
        flags = [flag for part, flag in zip(parts, mask or [1] * len(parts), strict=True) for _ in part]
        more = {"env_mask": [flags] * len(prompts)} if mask else {}
        return more | {
            "prompt_ids": [tokenizer(text)["input_ids"] for text in asked],
            "completion_ids": [ids] * len(prompts),
            "logprobs": [[0.0] * len(ids)] * len(prompts),
        }

    return function


def canned(folder, function, prompt, rows=None, **fields):
    model, tokenizer = load_starter()
    settings = COMMON | {"max_steps": 1, "num_recovery_generations": 8, "shared_prefix": False} | fields
    given = {"reward_funcs": lambda completions, **_: [0.0] * len(completions)} if rows is None else {}
    data = Dataset.from_list(rows or [{"prompt": prompt, "n": n} for n in range(16)])
    trainer = FissionGRPOTrainer(
        model=model, args=FissionGRPOConfig(output_dir=str(folder), **settings), train_dataset=data,
        processing_class=tokenizer, rollout_func=function, **({"reward_funcs": StepReward()} | given),
    )  # fmt: skip
    trainer.train()
    return trainer


@pytest.mark.parametrize("prompt", ["Guess: ", [{"role": "user", "content": "Guess."}]])
@pytest.mark.parametrize("ends", [True, False])
def test_turns_that_a_rollout_function_put_together_are_kept_with_what_the_environment_said(tmp_path, prompt, ends):
    texts = ["guess crane", "EOS", " grey.", " guess cloud", *(["EOS"] if ends else [])]
    trainer = canned(tmp_path, rollouts(texts, [1, 1, 0, 1, 1][: len(texts)]), prompt)
    (item, *_) = trainer.fission.buffer
    assert item.failed.startswith("guess crane")
    assert item.failed.endswith(" grey. guess cloud")
    assert item.kind == ("low_reward" if ends else "truncated")


def test_an_end_by_padding_is_an_end_as_for_trl(tmp_path):
    _, tokenizer = load_starter()
    tool = {"name": "look", "description": "", "parameters": {"type": "object", "properties": {}}}
    task = Task("t", ({"role": "user", "content": "Look."},), (tool,), (ToolCall("look"),))
    texts = [render_call(ToolCall("look")), tokenizer.pad_token]
    trainer = canned(tmp_path, rollouts(texts), "", to_rows([task] * 16, tokenizer))
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert history(trainer, "completions/clipped_ratio") == [0.0]
    assert history(trainer, "fission/success") == [1.0]


def test_fields_of_only_some_step_tasks_stay_out_of_the_rows_of_recoveries(tmp_path):
    _, tokenizer = load_starter()
    tool = {"name": "look", "description": "", "parameters": {"type": "object", "properties": {}}}
    question = ({"role": "user", "content": "Look."},)
    fields = ({"difficulty": "hard", "images": 1, "completions": 2, "self": 3}, {})
    tasks = [Task(f"t{n}", question, (tool,), (ToolCall("look"),), fields[n % 2]) for n in range(16)]
    more = {"max_steps": 4, "num_recovery_generations": 4}
    trainer = canned(tmp_path, rollouts(["no", "EOS"]), "", to_rows(tasks, tokenizer), **more)
    assert history(trainer, "fission/phase") == [0.0, 1.0, 0.0, 1.0]


def test_results_beyond_the_length_limit_are_no_lack_of_turns(tmp_path):
    class Wordy(Desk):
        """Desk whose every tool says more than fits."""

    for name, method in tool_methods(Desk()).items():
        setattr(Wordy, name, functools.wraps(method.__func__)(lambda self, **_: "word " * 500))
    trainer = desk_trainer(tmp_path, factory=Wordy, max_steps=1, max_tool_calling_iterations=10)
    trainer.train()
    kinds = {one["kind"] for one in events(tmp_path, "pushed")}
    assert "out_of_turns" not in kinds
    assert "truncated" in kinds


class Open:
    """Every call succeeds and makes progress, but nothing is ever rewarded."""

    made = 0

    def reset(self, **_): ...

    def look(self) -> str:
        """Look."""
        Open.made += 1
        return "seen"

    def _progress(self):
        return float(Open.made)

    def get_reward(self):
        return 0.0


@pytest.mark.parametrize("ends", [True, False])
def test_a_corrective_turn_that_was_cut_off_is_not_resolved(tmp_path, ends):
    class Canned(FissionGRPOTrainer):
        """Its policy always calls `look`, with or without an end of the turn."""

        def _generate_single_turn(self, prompt_ids, *args, **kwargs):
            ids = self._tokenizer(render_call(ToolCall("look")))["input_ids"]
            return [[*ids, *([self._tokenizer.eos_token_id] if ends else [])] for _ in prompt_ids], None

    trainer = desk_trainer(tmp_path, Canned, factory=Open, max_steps=2, recovery_scope="turn", shared_prefix=False)
    trainer.train()
    assert history(trainer, "completions/clipped_ratio")[1] == float(not ends)
    assert history(trainer, "recovery/rate") == [float(ends)]


@pytest.mark.parametrize("calls", [None, [{"name": "look"}], ValueError("no idea"), 3])
def test_a_reference_that_an_environment_does_not_know_is_no_end_of_the_run(tmp_path, calls, caplog):
    class Unsure(Desk):
        """Desk that may not know what is right."""

        def _reference(self):
            if isinstance(calls, Exception):
                raise calls
            return calls

    trainer = desk_trainer(tmp_path, factory=Unsure, max_steps=1)
    trainer.train()
    assert history(trainer, "fission/pushed")[0] > 0
    assert ("Unsure._reference" in caplog.text) == (calls is not None)
