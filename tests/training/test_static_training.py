"""Static tasks through the real trainer: failed calls are made in the environment, and its words are used."""

import itertools
import json
import time

import pytest
from datasets import Dataset
from trainer_settings import QUIETLY_ON_CPU
from trainer_support import events, history

from fission_grpo import FissionGRPOConfig, FissionGRPOTrainer
from fission_grpo.core.chat import render_call
from fission_grpo.core.errors import InfrastructureError
from fission_grpo.core.rewards import StepReward
from fission_grpo.core.types import ToolCall
from fission_grpo.data.step_tasks import load_step_tasks, to_rows
from fission_grpo.inference.pretrained import load_starter

ITEM = {"type": "string"}
TOOLS = [
    {
        "name": name,
        "description": "",
        "parameters": {"type": "object", "properties": {"item": ITEM, "count": {"type": "integer"}}},
    }
    for name in ("put", "take")
]


class Shop:
    """Items on shelves. `put` needs a shelf that exists; what was put before can be taken."""

    resets = 0

    def reset(self, stock=(), **row):
        Shop.resets += 1
        self._stock = list(stock)

    def put(self, item: str, count: int = 1) -> str:
        """Put an item on its shelf."""
        if item == "hang":
            time.sleep(5)
        if item == "broken":
            raise InfrastructureError("the shelf is gone")
        if item not in self._stock:
            raise KeyError(f"no shelf for {item!r}; try {self._stock[0]!r}")
        self._stock.append(f"{item}x{count}")
        return f"{item} is there {count} times"

    def take(self, item: str, count: int = 1) -> str:
        """Take an item."""
        if item not in self._stock:
            raise KeyError(f"nothing to take: {item}")
        self._stock.remove(item)
        return "taken"

    def _snapshot(self):
        return list(self._stock)

    def _restore(self, state):
        self._stock = list(state)


def call(name, **arguments):
    return {"name": name, "arguments": arguments}


def said(*calls):
    return "".join(render_call(ToolCall(one["name"], one["arguments"])) for one in calls)


def row(number=0, **fields):
    return {
        "id": f"shop-{number}",
        "messages": [{"role": "user", "content": f"Put plums away, please ({number})."}],
        "tools": TOOLS,
        "reference": [call("put", item="plum_7")],
        "environment": f"{__name__}:Shop",
        "stock": ["plum_7", "pear_3"],
    } | fields


def train(folder, rows, answers, **fields):
    """Train on step tasks; the policy answers each prompt with the next of `answers(prompt)`, in turn."""
    model, tokenizer = load_starter()
    path = folder / "tasks.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    turns = {}

    def rollouts(prompts, trainer):
        ids = []
        for prompt in prompts:
            text = next(turns.setdefault(prompt, itertools.cycle(answers(prompt))))
            ids.append([*tokenizer(text)["input_ids"], tokenizer.eos_token_id])
        prompt_ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
        return {"prompt_ids": prompt_ids, "completion_ids": ids, "logprobs": [[0.0] * len(one) for one in ids]}

    options = {
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 128,
        "max_steps": 2,
        "tool_timeout": 0.3,
        "shuffle_dataset": False,
    }
    feedback = fields.pop("feedback", "environment,rules")
    trainer = FissionGRPOTrainer(
        model=model,
        args=FissionGRPOConfig(output_dir=str(folder / "run"), **(QUIETLY_ON_CPU | options | fields)),
        train_dataset=Dataset.from_list(to_rows(load_step_tasks(path), tokenizer)),
        processing_class=tokenizer,
        reward_funcs=StepReward(),
        rollout_func=rollouts,
        feedback=feedback,
    )
    trainer.train()
    return trainer


WRONG = said(call("put", item="plum"))
RIGHT = said(call("put", item="plum_7"))


def test_the_recovery_prompt_holds_the_environments_message_word_for_word(tmp_path):
    trainer = train(
        tmp_path, [row(0), row(1)], lambda prompt: [WRONG, RIGHT] if "no shelf" in prompt else [WRONG], max_steps=3
    )
    first, second = events(tmp_path / "run", "pushed")[:2]
    message = "\"no shelf for 'plum'; try 'plum_7'\""
    assert first["kind"] == "raised"
    assert first["source"] == "environment"
    assert first["feedback"] == message
    assert first["prompt"][-2:] == [
        {"role": "assistant", "content": WRONG},
        {"role": "tool", "name": "put", "content": str({"error": message})},
    ]
    assert second["prompt"][-1] == first["prompt"][-1]
    assert history(trainer, "feedback/exempt")[0] == 2.0  # it names the reference's value, as it does at test time
    assert history(trainer, "feedback/leaks")[0] == 0.0
    assert history(trainer, "fission/kind/raised")[0] == 8.0
    recovered = events(tmp_path / "run", "recovered")[0]
    assert [reward > 1 for reward in recovered["rewards"]] == [False, True, False, True]


def test_a_wrong_call_that_works_gets_its_result_and_then_the_next_source(tmp_path):
    pears = said(call("put", item="pear_3", count=2))
    train(tmp_path, [row(0), row(1)], lambda prompt: [pears], max_steps=1)
    pushed = events(tmp_path / "run", "pushed")[0]
    assert pushed["kind"] == "wrong_call"
    assert pushed["source"] == "rules"
    said_by_tool, *rest = pushed["prompt"][-1]["content"].split("\n")
    assert said_by_tool == "pear_3 is there 2 times"
    assert rest == [pushed["feedback"]]
    assert "plum_7" not in pushed["feedback"]


def test_the_dialogues_calls_bring_the_environment_to_the_turn(tmp_path):
    dialogue = [
        {"role": "user", "content": "Two pears, then take one."},
        {"role": "assistant", "content": said(call("put", item="pear_3", count=2))},
        {"role": "tool", "name": "put", "content": "pear_3 is there 2 times"},
    ]
    taken = [call("take", item="pear_3x2")]
    rows = [row(n, messages=[*dialogue, {"role": "user", "content": str(n)}], reference=taken) for n in range(2)]
    # `put` again works only as the environment holds what the dialogue put there
    answers = [said(call("put", item="pear_3x2"))]
    trainer = train(tmp_path, rows, lambda prompt: answers, max_steps=1)
    assert events(tmp_path / "run", "pushed")[0]["prompt"][-1]["content"].startswith("pear_3x2 is there 1 times\n")
    assert history(trainer, "env/replayed") == [2.0]  # equal calls of a task are made once in a cycle
    assert history(trainer, "env/step_calls") == [2.0]


def test_a_tool_that_changes_the_folder_does_not_make_later_turns_unreachable(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "moving.py").write_text(
        "import os\n\n\nclass Moving:\n    def reset(self, **row): ...\n\n"
        "    def put(self, item: str, count: int = 1) -> str:\n"
        "        os.chdir('/')\n        raise KeyError('moved')\n"
        "\n    def take(self, item: str, count: int = 1) -> str:\n        return 'taken'\n"
    )
    rows = [row(n, environment="moving.py:Moving") for n in range(2)]
    trainer = train(tmp_path, rows, lambda prompt: [WRONG], max_steps=2, recovery_batches="alternate")
    assert {one["feedback"] for one in events(tmp_path / "run", "pushed")} == {"'moved'"}
    assert sum(history(trainer, "env/no_step_calls")) == 0


def test_a_snapshot_takes_the_place_of_the_dialogues_calls(tmp_path):
    rows = [row(n, stock=[], snapshot=["plum_7", "fig"]) for n in range(2)]
    train(tmp_path, rows, lambda prompt: [WRONG], max_steps=1)
    assert "try 'plum_7'" in events(tmp_path / "run", "pushed")[0]["feedback"]


def test_a_failed_recovery_is_recovered_from_after_both_failed_calls(tmp_path):
    figs = said(call("put", item="pear_3"))  # works, but is wrong: the shelf then holds it
    again = said(call("put", item="pear_3x1"), call("put", item="fig"))

    def answers(prompt):
        return [again] if "pear_3 is there" in prompt else [figs]

    train(tmp_path, [row(0), row(1)], answers, max_depth=2, max_steps=2)
    deep = next(one for one in events(tmp_path / "run", "pushed") if one["depth"] == 2)
    results = [message["content"] for message in deep["prompt"] if message["role"] == "tool"]
    assert results[0].startswith("pear_3 is there 1 times\n")
    assert results[1] == "pear_3x1 is there 1 times"  # only after the first failed call was made again
    assert "no shelf for" in results[2]


@pytest.mark.parametrize(
    ("item", "fields", "counted"),
    [
        ("hang", {}, {"env/timeouts": 2.0}),
        ("broken", {}, {"env/broken": 2.0}),
        ("plum", {"snapshot": {"not": 1}, "environment": f"{__name__}:Stubborn"}, {}),
        ("plum", {"environment": f"{__name__}:NoReset"}, {}),
    ],
)
def test_where_no_call_can_be_made_the_next_source_is_asked_and_the_run_goes_on(tmp_path, item, fields, counted):
    trainer = train(
        tmp_path, [row(0, **fields), row(1, **fields)], lambda prompt: [said(call("put", item=item))], max_steps=2
    )
    assert trainer.state.global_step == 2
    pushed = events(tmp_path / "run", "pushed")[0]
    assert pushed["kind"] == "wrong_call"
    assert pushed["source"] == "rules"
    assert history(trainer, "env/no_step_calls")[0] == 2.0
    for name, value in counted.items():
        assert history(trainer, name)[0] == value


class Stubborn(Shop):
    def _restore(self, state):
        raise ValueError("no such state")


class NoReset(Shop):
    def reset(self, **row):
        raise OSError("the service is down")


def test_a_dialogue_that_is_answered_otherwise_gives_no_results(tmp_path):
    dialogue = [
        {"role": "user", "content": "Take a fig."},
        {"role": "assistant", "content": said(call("take", item="fig"))},  # which this stock does not have
        {"role": "tool", "name": "take", "content": "taken"},
    ]
    rows = [row(n, messages=[*dialogue, {"role": "user", "content": str(n)}]) for n in range(2)]
    trainer = train(tmp_path, rows, lambda prompt: [WRONG], max_steps=1)
    assert history(trainer, "env/other_tasks") == [2.0]
    assert events(tmp_path / "run", "pushed")[0]["source"] == "rules"


def test_calls_that_are_no_right_answer_are_not_made_where_none_can_be(tmp_path):
    before = Shop.resets
    answers = ["words", "<tool_call>\nno\n</tool_call>", RIGHT]
    train(tmp_path, [row(0), row(1)], lambda prompt: answers, max_steps=1)
    assert Shop.resets == before


def test_plain_grpo_makes_no_call_of_a_step_task(tmp_path):
    before = Shop.resets
    trainer = train(tmp_path, [row(0), row(1)], lambda prompt: [WRONG], max_steps=1, fission=False)
    assert Shop.resets == before
    assert history(trainer, "fission/success") == [0.0]


def test_strict_recovery_rewards_are_one_or_nothing_and_repetitions_are_counted(tmp_path):
    other = said(call("put", item="pear_3"))

    def answers(prompt):
        return [WRONG, RIGHT, other, "words"] if "no shelf" in prompt else [WRONG]

    trainer = train(
        tmp_path, [row(0), row(1)], answers, recovery_reward="strict", recovery_batches="alternate", max_steps=2
    )
    recovered = events(tmp_path / "run", "recovered")
    assert [one["rewards"] for one in recovered] == [[0.0, 1.0, 0.0, 0.0]] * 2
    assert history(trainer, "recovery/rate") == [0.25]
    assert history(trainer, "recovery/repeats") == [0.25]
    assert history(trainer, "recovery/reward") == [0.25]
    assert history(trainer, "rewards/step_reward/mean")[0] > 0.25  # explored turns keep their partial credit


def test_graded_recovery_rewards_give_the_repeated_call_the_least_of_its_group(tmp_path):
    nearly = said(call("put", item="plum_7", count=2))
    train(
        tmp_path,
        [row(0), row(1)],
        lambda prompt: [WRONG, nearly, RIGHT, "words"] if "no shelf" in prompt else [WRONG],
        recovery_reward="graded",
        recovery_batches="alternate",
    )
    repeated, near, right, text = events(tmp_path / "run", "recovered")[0]["rewards"]
    assert repeated == text == 0.0
    assert 0 < near < right


def test_a_right_recovery_goes_on_in_its_dialogue_with_the_error_in_it(tmp_path):
    following = [[call("take", item="plum_7x1")], []]

    def answers(prompt):
        if "plum_7 is there 1 times" in prompt:
            return [said(call("take", item="plum_7x1"))]
        return [RIGHT] if "no shelf" in prompt else [WRONG]

    trainer = train(
        tmp_path,
        [row(n, following=following) for n in range(2)],
        answers,
        buffer_order="random",
        recovery_continues=True,
        recovery_batches="alternate",
        max_steps=12,
    )
    continued = [one for one in events(tmp_path / "run", "pushed") if one["source"] == "continued"]
    prompt = continued[0]["prompt"]
    assert [message["role"] for message in prompt] == ["user", "assistant", "tool", "assistant", "tool"]
    assert "no shelf for" in prompt[2]["content"]
    assert prompt[3]["content"] == RIGHT
    assert prompt[4] == {"role": "tool", "name": "put", "content": "plum_7 is there 1 times"}
    outcomes = {one["id"]: one["rewards"] for one in events(tmp_path / "run", "recovered")}
    rewards = next(outcomes[one["id"]] for one in continued if one["id"] in outcomes and len(one["prompt"]) == 5)
    assert rewards == [pytest.approx(rewards[0])] * 4
    assert rewards[0] > 1  # judged by the next reference call
    ends = [
        one for one in continued if [m["role"] for m in one["prompt"]] == [*(["user"] + ["assistant", "tool"] * 3)]
    ]
    assert ends  # and then by the end of the dialogue
    assert sum(history(trainer, "recovery/continued")) == len(continued)
    assert history(trainer, "env/step_calls")[:2] == [2.0, 2.0]  # of two failures; of two right recoveries


def test_without_what_follows_or_with_the_option_off_nothing_goes_on(tmp_path):
    for name, fields, options in (("a", {}, {"recovery_continues": True}), ("b", {"following": [[]]}, {})):
        folder = tmp_path / name
        folder.mkdir()
        train(
            folder,
            [row(n, **fields) for n in range(2)],
            lambda prompt: [RIGHT] if "no shelf" in prompt else [WRONG],
            recovery_batches="alternate",
            **options,
        )
        assert {one["source"] for one in events(folder / "run", "pushed")} == {"environment"}
