"""One scripted policy and what every engine must do with it, cycle by cycle. For the contract test of engines."""

import asyncio
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import pytest

from fission_grpo import Fission, FissionSettings
from fission_grpo.core.chat import render_call
from fission_grpo.data.step_tasks import to_rows
from fission_grpo.engines.codec import ChatCodec
from fission_grpo.engines.cycles import RecoveryCycles
from fission_grpo.engines.episode import Sampled, TaskRunner
from fission_grpo.envs.desk.env import Desk
from fission_grpo.envs.desk.steps import make_steps
from fission_grpo.envs.desk.tasks import make_rows, solution

CYCLES, MAX_TURNS, MAX_LENGTH = 6, 4, 400
SETTINGS = {"num_generations": 4, "num_recovery_generations": 8, "generation_batch_size": 16, "seed": 0}


def episode_rows(count=24):
    return make_rows(count, seed=5, split="train")


def step_rows(tokenizer, count=24):
    """Rows of step tasks of the same requests, with the environment in which their calls are made."""
    return to_rows(make_steps(count, seed=5, split="train"), tokenizer)


class Script:
    """Answers every dialogue with one of a few texts, in turn: right, refused, unreadable, or no call."""

    def __init__(self, tokenizer):
        self.tokenizer, self.seen = tokenizer, Counter()
        self.calls = {row["prompt"][-1]["content"]: solution(row) for row in episode_rows()}

    def __call__(self, prompt_ids):
        """Token ids of the next turn, with the one that ends it."""
        text = self.next_text(self.tokenizer.decode(prompt_ids))
        return [*self.tokenizer(text, add_special_tokens=False)["input_ids"], self.tokenizer.eos_token_id]

    def next_text(self, dialogue):
        self.seen[dialogue] += 1
        return self.text(dialogue, self.seen[dialogue] - 1)

    def text(self, dialogue, number):
        calls = next(calls for request, calls in self.calls.items() if request in dialogue)
        right = render_call(calls[0])
        refused = right.replace('"arguments": {', '"arguments": {"no_such": 1, ')
        unreadable = '<tool_call>\n{"name": "broken"\n</tool_call>'
        if "<tool_response>" not in dialogue and "error" not in dialogue:
            return (refused, right, unreadable, "I cannot do that.")[number % 4]
        return ("Done.", render_call(calls[-1]), refused, "".join(map(render_call, calls)))[number % 4]


@dataclass
class CycleRecord:
    """What an engine did in one cycle; rollouts of a group are alike in any order."""

    contexts: list[str]
    groups: list[list[tuple[float, float, str]]]  # reward, advantage, text of each rollout, sorted
    failures: list[tuple[str, str]]  # id and kind of the instances that were pushed
    feedback: list[str]
    buffer: list[str]


def record(contexts, groups, buffer, before):
    new = [item for item in buffer if item.task.id not in before]
    return CycleRecord(
        [item.task.id for item in contexts],
        [sorted(((round(r, 6), a, text) for r, a, text in group), key=without_advantage) for group in groups],
        [(item.task.id, str(item.kind)) for item in new],
        [item.feedback for item in new],
        [item.task.id for item in buffer],
    )


def without_advantage(rollout):
    reward, _, text = rollout
    return reward, text


def assert_same_cycle(found, expected):
    """Everything is equal, and advantages to 1e-6."""
    bare = [
        replace(one, groups=[list(map(without_advantage, group)) for group in one.groups]) for one in (found, expected)
    ]
    assert bare[0] == bare[1]
    numbers = [[a for group in one.groups for _, a, _ in group] for one in (found, expected)]
    assert numbers[0] == pytest.approx(numbers[1], abs=1e-6)


def make_cycles(tokenizer, environment: Any = Desk, rows=24, sources=None, **settings):
    fission = Fission(FissionSettings(**SETTINGS, **settings), sources)
    limits = {"max_turns": MAX_TURNS, "max_completion_length": MAX_LENGTH}
    return RecoveryCycles(fission, TaskRunner(fission, ChatCodec(tokenizer), environment, **limits), rows)


def run_cycle(cycles, script, rows, step):
    """One cycle by `RecoveryCycles` and `TaskRunner` alone; returns the plan and the episodes of its groups."""

    async def sample(ids, most):
        return Sampled(script(ids)[:most])

    plan, _ = cycles.next(rows, step)
    run = cycles.runner.run
    groups = [[asyncio.run(run(group.row, sample)) for _ in range(group.size)] for group in plan.groups]
    cycles.finish(plan, groups, step)
    return plan, groups


def run_cycles(tokenizer, rows, count=CYCLES, environment: Any = Desk, **settings):
    """The contract without an engine: what an engine must do that adds nothing."""
    cycles, script, records = make_cycles(tokenizer, environment, len(rows), **settings), Script(tokenizer), []
    cycles.runner.progress = lambda: len(records) / count
    buffer = cycles.fission.buffer
    for step in range(count):
        before = {item.task.id for item in buffer}
        arrived = [rows[(4 * step + i) % len(rows)] for i in range(4)]
        plan, groups = run_cycle(cycles, script, arrived, step)
        advantages = cycles.advantages([[episode.reward for episode in group] for group in groups])
        seen = [
            [(episode.reward, advantage, episode.rollout.text) for episode, advantage in zip(*both, strict=True)]
            for both in zip(groups, advantages, strict=True)
        ]
        records.append(record(plan.contexts, seen, buffer, before))
    return records
