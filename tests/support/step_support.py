"""Step tasks whose completions are scripted token by token, and a trainer that keeps what each cycle made of them."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from advantages import group_advantages
from datasets import Dataset
from trainer_settings import QUIETLY_ON_CPU

from fission_grpo import FissionGRPOConfig, FissionGRPOTrainer
from fission_grpo.core.chat import render_call
from fission_grpo.core.rewards import RewardConfig, StepReward
from fission_grpo.core.types import Rollout, Task, ToolCall
from fission_grpo.data.step_tasks import to_rows
from fission_grpo.fission.recovery import CorrectiveInstance
from fission_grpo.inference.pretrained import load_starter

LENGTH = 40
"""Tokens of a completion for which R_len is 1: 32 to 224 are."""

ASSISTANT = "<|im_start|>assistant"


def _tool(name: str, *parameters: str) -> dict[str, Any]:
    properties = {parameter: {"type": "string"} for parameter in parameters}
    schema = {"type": "object", "properties": properties, "required": [*parameters]}
    return {"name": name, "description": f"The tool {name}.", "parameters": schema}


TOOLS = (_tool("move", "name", "folder"), _tool("find", "name"), _tool("list_files"))


def call(tool: str, /, **arguments: Any) -> str:
    return render_call(ToolCall(tool, arguments))


MOVE = ToolCall("move", {"name": "plan.txt", "folder": "archive"})
FIND = ToolCall("find", {"name": "plan.txt"})
PUT_AWAY, TO_TRASH, TO_DESK = (call("move", name="plan.txt", folder=name) for name in ("archive", "trash", "desk"))
LOOK, LIST = call("find", name="plan.txt"), call("list_files")


@dataclass(frozen=True)
class Written:
    """A completion: its text, after as many letters `a` as make up the length in tokens, with the end token."""

    text: str
    length: int = LENGTH
    ends: bool = True

    def ids(self, tokenizer: Any) -> list[int]:
        (letter,) = tokenizer("a")["input_ids"]
        ids = [*tokenizer(self.text)["input_ids"], *([tokenizer.eos_token_id] if self.ends else [])]
        assert len(ids) <= self.length, f"{self.text!r} has {len(ids)} tokens, more than {self.length}"
        return [letter] * (self.length - len(ids)) + ids


@dataclass(frozen=True)
class Script:
    """A step task and the completions of its group: of the task, of a recovery from it, of a recovery from that.

    What comes unforeseen, such as a recovery of a task that should not fail, gets those of the last group.
    """

    reference: tuple[ToolCall, ...]
    completions: tuple[tuple[Written, ...], ...]  # by depth

    def task(self, name: str) -> Task:
        return Task(name, ({"role": "user", "content": f"[{name}] Put plan.txt away."},), TOOLS, self.reference)


@dataclass(frozen=True)
class Entry:
    """One rollout of a cycle."""

    name: str  # of the script
    prompt: str  # that was sampled from
    reward: float
    advantage: float  # that TRL's loss is given
    rollout: Rollout


class StepTrainer(FissionGRPOTrainer):
    """Writes what the scripts say in the place of the policy; everything after it is real."""

    scripts: dict[str, Script]
    entries: list[list[Entry]]  # of each cycle
    contexts: list[list[CorrectiveInstance]]  # of each cycle
    used: list[list[float]]  # the advantages that each cycle's losses were computed with

    def name_of(self, prompt: str) -> str:
        return next(name for name in self.scripts if f"[{name}]" in prompt)

    def write(self, prompts: list[str]) -> dict[str, Any]:
        tokenizer: Any = self.processing_class
        self.prompts, counts, completions = prompts, Counter(), []
        for prompt in prompts:
            groups = self.scripts[self.name_of(prompt)].completions
            group = groups[min(prompt.count(ASSISTANT), len(groups)) - 1]
            completions.append(group[counts[prompt] % len(group)].ids(tokenizer))
            counts[prompt] += 1
        asked = [tokenizer(prompt)["input_ids"] for prompt in prompts]
        zeros = [[0.0] * len(ids) for ids in completions]
        return {"prompt_ids": asked, "completion_ids": completions, "logprobs": zeros}

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        names = [self.name_of(prompt) for prompt in self.prompts]
        scores: Any = self.cycle.scores
        given = names, self.prompts, scores.weighted, output["advantages"].tolist(), self.rollouts
        self.entries.append([Entry(*fields) for fields in zip(*given, strict=True)])
        self.contexts.append([*self.cycle.contexts])
        self.used.append([])
        return output

    def _compute_loss(self, model, inputs):
        self.used[-1] += inputs["advantages"].tolist()
        return super()._compute_loss(model, inputs)

    def _observe(self, rollouts):
        self.rollouts = rollouts
        super()._observe(rollouts)

    def group(self, cycle: int, name: str) -> list[Entry]:
        return [entry for entry in self.entries[cycle] if entry.name == name]

    def instance(self, cycle: int, name: str) -> CorrectiveInstance:
        """The one that a recover cycle used of a script."""
        found = {self.name_of(str(item.task.prompt[0])): item for item in self.contexts[cycle]}
        assert name in found, f"no instance of {name!r} among those of cycle {cycle}: {sorted(found)}"
        return found[name]


def step_config(folder: Path, **options: Any) -> FissionGRPOConfig:
    """The options of these runs: explore and recover cycles of one update each, in turn, in the order of the data."""
    ours = {
        "learning_rate": 1e-4,
        "max_steps": 4,  # a cycle at progress 0, 1/4, 1/2, 3/4
        "max_completion_length": 300,
        "shuffle_dataset": False,
        "shared_prefix": False,
    }
    return FissionGRPOConfig(output_dir=str(folder), **(QUIETLY_ON_CPU | ours | options))


def step_trainer(
    folder: Path, scripts: dict[str, Script], reward: RewardConfig | None = None, more: Any = None, **options: Any
) -> StepTrainer:
    """A trainer with the tasks of all scripts in every generation batch; `more` are arguments beside the config."""
    model, tokenizer = load_starter()
    tasks = [script.task(name) for name, script in scripts.items()]
    trainer = StepTrainer(
        model=model,
        reward_funcs=StepReward(reward),
        args=step_config(folder, **options),
        train_dataset=Dataset.from_list(to_rows(tasks, tokenizer)),
        processing_class=tokenizer,
        rollout_func=lambda prompts, trainer: trainer.write(prompts),
        **(more or {}),
    )
    trainer.scripts, trainer.entries, trainer.contexts, trainer.used = scripts, [], [], []
    return trainer


def check_group(entries: list[Entry], thirds: list[float], failed: list[bool]) -> None:
    """Compare a group's rewards, given as three times their values, its own advantages, and which rollouts failed."""
    rewards = [value / 3 for value in thirds]
    advantages = group_advantages(rewards, len(rewards))
    compared = {
        "rewards": ([entry.reward for entry in entries], pytest.approx(rewards, abs=1e-6)),
        "advantages": ([entry.advantage for entry in entries], pytest.approx(advantages, abs=2e-4)),
        "failed": ([entry.rollout.verdict.failed for entry in entries], failed),
    }
    for what, (got, expected) in compared.items():
        assert got == expected, f"{what} of the group are {got}, not {expected}"
