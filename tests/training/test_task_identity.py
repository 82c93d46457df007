"""A rollout's task is the row as the data set has it and the prompt as sampled, whatever changes the row later."""

import datetime
from typing import ClassVar

import pytest
import torch
from datasets import Dataset, IterableDataset
from trainer_support import COMMON, events, history
from transformers import GPT2Config, GPT2LMHeadModel

from fission_grpo import FissionGRPOConfig, FissionGRPOTrainer
from fission_grpo.core.rewards import StepReward
from fission_grpo.core.types import Task, ToolCall
from fission_grpo.data.step_tasks import to_rows
from fission_grpo.inference.pretrained import load_starter


def never(completions, **_):
    return [0.0] * len(completions)


def says_no(prompts, trainer):
    """A rollout function: the policy answers everything with "no"."""
    tokenizer = trainer.processing_class
    asked = [tokenizer.apply_chat_template(prompt, tokenize=False) for prompt in prompts]
    answer = [*tokenizer("no")["input_ids"], tokenizer.eos_token_id]
    return {
        "prompt_ids": [tokenizer(text)["input_ids"] for text in asked],
        "completion_ids": [answer for _ in prompts],
        "logprobs": [[0.0] * len(answer) for _ in prompts],
    }


def questions(count, **columns):
    """Rows of `count` different questions; `columns` are lists or functions of the row's number."""
    rows = [{"prompt": [{"role": "user", "content": f"Question {n}?"}]} for n in range(count)]
    return [row | {name: make(n) for name, make in columns.items()} for n, row in enumerate(rows)]


def make(folder, rows, fields=None, model=None, **given):
    starter, tokenizer = load_starter()
    ours = {"num_recovery_generations": 8, "max_steps": 2, "max_completion_length": 24, "shared_prefix": False}
    args = FissionGRPOConfig(output_dir=str(folder), **(COMMON | ours | (fields or {})))
    data = Dataset.from_list(rows) if isinstance(rows, list) else rows
    given = {"reward_funcs": never} | given
    return FissionGRPOTrainer(
        model=model or starter, args=args, train_dataset=data, processing_class=tokenizer, **given
    )


class Shelf:
    """Takes an item from the list that its row gives it."""

    seen: ClassVar[list] = []

    def reset(self, items, nested, **_):
        Shelf.seen.append((list(items), list(nested["deep"])))
        self.taken = items.pop(), nested["deep"].pop()

    def look(self) -> str:
        """Look at the shelf."""
        return "empty"

    def get_reward(self):
        return 0.0


@pytest.mark.parametrize("guard", [True, None])
def test_every_rollout_gets_the_row_as_the_data_set_has_it(tmp_path, guard):
    Shelf.seen.clear()
    rows = questions(16, items=lambda n: ["a", "b"], nested=lambda n: {"deep": [1, 2]})
    trainer = make(
        tmp_path, rows, {"guard_tools": guard, "max_steps": 4, "save_steps": 2, "save_strategy": "steps"},
        reward_funcs=None, environment_factory=Shelf,
    )  # fmt: skip
    trainer.train()
    assert history(trainer, "fission/phase") == [0.0, 1.0, 0.0, 1.0]
    assert len(Shelf.seen) >= 64
    assert set(map(str, Shelf.seen)) == {"(['a', 'b'], [1, 2])"}
    for item in trainer.fission.buffer.state()["items"]:
        assert '"items": ["a", "b"]' in item["task"]


def test_a_reward_function_that_changes_its_columns_changes_no_other_rollout(tmp_path):
    seen = []

    def takes_one(completions, items, **_):
        seen.extend(list(one) for one in items)
        return [one.pop() and 0.0 for one in items]

    trainer = make(
        tmp_path, questions(16, items=lambda n: [0, 1]), reward_funcs=takes_one, rollout_func=says_no
    )  # fmt: skip
    trainer.train()
    assert len(seen) == 32
    assert all(one == [0, 1] for one in seen)


class Lottery:
    """Draws its task in `reset`."""

    drawn = 0

    def reset(self, **_):
        Lottery.drawn += 1
        self.number = Lottery.drawn
        return f"Guess {self.number}."

    def guess(self, number: int) -> str:
        """Guess.

        Args:
            number: the guess.
        """
        return "wrong"


class SnapshotLottery(Lottery):
    def _snapshot(self):
        return self.number

    def _restore(self, state):
        self.number = state


class BrokenLottery(SnapshotLottery):
    def _snapshot(self):
        raise OSError("no space")


def same_task(pairs):
    def reward(prompts, environments, **_):
        texts = [" ".join(str(message["content"]) for message in prompt) for prompt in prompts]
        pairs.extend(f"Guess {env.number}." in text for env, text in zip(environments, texts, strict=True))
        return [0.0] * len(prompts)

    return reward


def test_an_environment_that_draws_its_tasks_recovers_in_the_task_that_failed(tmp_path):
    pairs = []
    trainer = make(
        tmp_path, None, {"max_steps": 2}, reward_funcs=same_task(pairs), environment_factory=SnapshotLottery
    )  # fmt: skip
    trainer.train()
    assert history(trainer, "fission/phase") == [0.0, 1.0]
    assert len(pairs) == 32
    assert all(pairs)
    assert history(trainer, "fission/pushed")[0] == 16  # every rollout drew another task


class SecretLottery(SnapshotLottery):
    def reset(self, **_):
        super().reset()
        return "Guess."  # the prompt does not tell which number


def test_tasks_that_the_prompt_does_not_show_are_told_apart_by_their_snapshots(tmp_path):
    trainer = make(tmp_path, None, {"max_steps": 1}, reward_funcs=never, environment_factory=SecretLottery)
    trainer.train()
    assert history(trainer, "fission/pushed") == [16.0]


def test_an_environment_that_draws_its_tasks_without_snapshots_is_refused_before_training(tmp_path):
    with pytest.raises(ValueError, match=r"Lottery draws its own tasks.*_snapshot and _restore"):
        make(tmp_path, None, environment_factory=Lottery)
    plain = make(tmp_path, None, {"fission": False}, environment_factory=Lottery)  # plain GRPO needs no recovery
    plain.train()


@pytest.mark.parametrize("factory", [Lottery, BrokenLottery])
@pytest.mark.parametrize("has_rows", [True, False])
def test_recoveries_in_another_task_than_their_prompt_tells_get_no_reward_and_are_counted(tmp_path, factory, has_rows):
    if factory is Lottery and not has_rows:
        return  # refused, see above
    rows = questions(16) if has_rows else None
    trainer = make(tmp_path, rows, reward_funcs=same_task([]), environment_factory=factory)
    trainer.train()
    assert history(trainer, "env/other_tasks") == [16.0]
    assert history(trainer, "fission/infrastructure") == [0.0, 16.0]


@pytest.mark.parametrize("extra", ["text", "tensor", "one"])
def test_fields_that_a_rollout_function_adds_are_no_part_of_the_task(tmp_path, extra):
    received = []

    def adds_a_field(prompts, trainer):
        values = {
            "text": [f"rollout {n}" for n in range(len(prompts))],
            "tensor": [torch.tensor([float(n)]) for n in range(len(prompts))],
            "one": {"of": "all"},
        }[extra]
        return says_no(prompts, trainer) | {"note": values}

    def reward(completions, note, **_):
        received.extend(note)
        return [0.0] * len(completions)

    trainer = make(
        tmp_path, questions(2), {"per_device_train_batch_size": 8, "num_recovery_generations": 4,
        "save_strategy": "steps", "save_steps": 1}, reward_funcs=reward, rollout_func=adds_a_field,
    )  # fmt: skip
    trainer.train()
    assert len(received) == 16
    pushed = events(tmp_path, "pushed")
    assert len({instance["root"] for instance in pushed}) == len(pushed) == 2


@pytest.mark.parametrize("ids", [lambda n: "doc", lambda n: 7, lambda n: f"doc-{n % 4}", None])
def test_questions_that_share_an_id_are_different_tasks(tmp_path, ids):
    rows = questions(16, **({} if ids is None else {"id": ids}))
    trainer = make(
        tmp_path, rows, {"per_device_train_batch_size": 64, "max_steps": 1}, rollout_func=says_no
    )  # fmt: skip
    trainer.train()
    assert history(trainer, "fission/pushed") == [16.0]


def test_step_tasks_that_share_an_id_are_judged_by_their_own_references(tmp_path):
    _, tokenizer = load_starter()
    question = ({"role": "user", "content": "Look?"},)
    tool = {"name": "look", "description": "", "parameters": {"type": "object", "properties": {}}}
    tasks = [Task("t", question, (tool,), (ToolCall("look"),) * (n % 2)) for n in range(16)]

    def text_rollouts(prompts, trainer):
        answer = [*tokenizer("no")["input_ids"], tokenizer.eos_token_id]
        prompt_ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
        return {
            "prompt_ids": prompt_ids, "completion_ids": [answer] * len(prompts), "logprobs": [[0.0] * 2] * len(prompts)
        }  # fmt: skip

    trainer = make(
        tmp_path, to_rows(tasks, tokenizer), {"max_steps": 1, "per_device_train_batch_size": 64},
        reward_funcs=StepReward(), rollout_func=text_rollouts,
    )  # fmt: skip
    trainer.train()
    assert history(trainer, "fission/success") == [0.5]
    assert history(trainer, "fission/pushed") == [1.0]  # the eight rows that failed are one and the same task


DAY = datetime.date(2026, 1, 31)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (datetime.datetime(2026, 1, 31, 12), "timestamp"),
        (DAY, "date32"),
        (b"bytes", "binary"),
        (datetime.timedelta(1), "duration"),
        ([DAY], "date32"),
        ({"deep": {"er": [DAY]}}, "date32"),
        ([{"when": DAY}], "date32"),
    ],
)
def test_a_column_that_json_cannot_give_back_is_refused_though_its_first_rows_are_empty(tmp_path, value, kind):
    rows = questions(4, due=lambda n: value if n == 3 else None)
    with pytest.raises(ValueError, match=rf"train_dataset, column 'due' holds values of type {kind}.*JSON"):
        make(tmp_path, rows, rollout_func=says_no)
    stream = Dataset.from_list(rows).to_iterable_dataset()
    with pytest.raises(ValueError, match="column 'due'"):
        make(tmp_path, stream, rollout_func=says_no)
    make(tmp_path, rows, {"fission": False}, rollout_func=says_no)


@pytest.mark.parametrize("late", [DAY, torch.ones(2), (1, 2), {3: 4}])
def test_a_stream_that_brings_such_a_value_late_is_stopped_with_the_columns_name(tmp_path, late):
    rows = questions(32, due=lambda n: late if n == 7 else None)
    stream = IterableDataset.from_generator(lambda: iter(rows))
    trainer = make(tmp_path, stream, {"max_steps": 3}, rollout_func=says_no)
    with pytest.raises(ValueError, match=r"column 'due(\.3)?' holds a .*JSON cannot give back"):
        trainer.train()


def test_instances_that_do_not_fit_the_models_context_are_left_out_and_counted(tmp_path):
    _, tokenizer = load_starter()
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=128, n_embd=16, n_layer=1, n_head=2,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    rows = questions(16)
    prompt = tokenizer.apply_chat_template(rows[0]["prompt"], add_generation_prompt=True, return_dict=False)
    trainer = make(
        tmp_path, rows, {"max_completion_length": 128 - len(prompt) - 2, "max_steps": 3}, GPT2LMHeadModel(config)
    )  # fmt: skip
    trainer.train()
    assert history(trainer, "fission/too_long") == [4.0, 4.0, 4.0]
    assert history(trainer, "fission/pushed") == [0.0, 0.0, 0.0]
    assert history(trainer, "fission/phase") == [0.0, 0.0, 0.0]


def test_instances_that_fit_exactly_are_kept(tmp_path):
    _, tokenizer = load_starter()
    trainer = make(tmp_path, questions(16), {"max_steps": 1}, rollout_func=says_no)
    trainer.train()
    (item, *_) = trainer.fission.buffer.state()["items"]
    task = trainer.fission.buffer.sample(1)[0].task
    assert item
    length = len(tokenizer.apply_chat_template(list(task.prompt), add_generation_prompt=True, return_dict=False))
    trainer.model.config.max_position_embeddings = length + 24
    assert trainer._fits(task)
    trainer.model.config.max_position_embeddings -= 1
    assert not trainer._fits(task)


def test_environments_that_are_not_guarded_are_refused_as_they_cannot_be_brought_back(tmp_path):
    with pytest.raises(ValueError, match="guard_tools=False with environments"):
        make(tmp_path, questions(4), {"guard_tools": False}, environment_factory=Shelf)
