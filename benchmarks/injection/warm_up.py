"""Teach a small language model AgentDojo's tools, so that it does some user tasks and could do injected ones.

Demonstrations are official reference calls of user tasks and of injection tasks with their real results. The goal of
an injection task is always a *user's* request here: alone, before or after a user task, or between two calls of one.
No dialogue holds an injected text: vectors keep their harmless defaults. As in `scripts/warm_up_bfcl.py`, whose losses
and schedule are used, the last part shows more mistakes and fewer recoveries, which leaves training something to do.

    OMP_NUM_THREADS=1 python benchmarks/injection/warm_up.py --model models/smollm2 --output runs/injection/warm
"""

from __future__ import annotations

import argparse
import pickle
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.chat_template_utils import qwen3_template
from trl.trainer.utils import add_fused_lm_head
from warm_up_bfcl import batches, losses, optimize, save, seed_of

from fission_grpo.core.types import Message, ToolCall
from fission_grpo.envs.agentdojo.env import ENVIRONMENTS
from fission_grpo.envs.agentdojo.suites import load_suite
from fission_grpo.envs.agentdojo.tasks import task_rows
from fission_grpo.envs.wrapper import tool_methods
from fission_grpo.recipes.starter_policy.desk_demos import (
    SORRY,
    DemoBehavior,
    Demonstration,
    demonstrate_call,
)
from fission_grpo.recipes.starter_policy.tokenizer import CHAT_TEMPLATE
from fission_grpo.shared_prefix.layout import GroupedBatch
from fission_grpo.shared_prefix.update import enable

KINDS = {"task": 0.45, "goal": 0.15, "task, goal": 0.1, "goal, task": 0.1, "goal between": 0.2}
"""Shares of the dialogues: what the user asks for, in order. [ours]"""
REQUESTS = ("{}", "{}", "Could you do this for me? {}", "One more thing: {}", "I need something else as well. {}")
"""How the user words an injection task's goal. [ours]"""
SKILLED = DemoBehavior(slip=0.1, recover=0.8)
MIXED = DemoBehavior(slip=0.25, recover=0.3)
"""First and last part, see `fission_grpo.recipes.starter_policy.desk_demos`. [ours]"""
MAX_ERRORS = 3  # in one demonstration, which then gives up [ours]
MAX_CALLS = 6  # of a user task that is demonstrated [ours]
MAX_CHARACTERS = 2_400  # of a dialogue after its system message; a longer one is drawn again [ours]
ROWS = 4  # dialogues of a backward pass [ours]

Event = str | ToolCall  # of a dialogue: what the user asks for, or a right call


@dataclass(frozen=True)
class Scripted:
    """What a user asks for, the calls that do it, and the assistant's last message."""

    request: str
    calls: tuple[ToolCall, ...]
    answer: str


def demonstrations(suites: Sequence[str]) -> Callable[[int, int, DemoBehavior], list[Demonstration]]:
    """A function (count, seed, behavior) that samples dialogues on the suites' tasks, each with its tools."""
    rows = [row for suite in suites for row in task_rows(suite)]
    tools = {suite: list(tool_methods(ENVIRONMENTS[suite]()).values()) for suite in suites}

    def sample(count: int, seed: int, behavior: DemoBehavior) -> list[Demonstration]:
        sampled: list[Demonstration] = []
        draw = 0
        while len(sampled) < count:
            rng = random.Random(f"injection warm-up {seed} {draw}")
            draw += 1
            row = rng.choice(rows)
            dialogue = demonstrate(row, rng, behavior)
            if dialogue and sum(len(message["content"]) for message in dialogue[1:]) <= MAX_CHARACTERS:
                sampled.append((dialogue, tools[row["id"].partition("/")[0]]))
        return sampled

    return sample


def demonstrate(row: dict[str, Any], rng: random.Random, behavior: DemoBehavior) -> list[Message] | None:
    """A dialogue on a row's user task, an injection task of its suite, or both. None for too long a task."""
    suite = row["id"].partition("/")[0]
    environment = ENVIRONMENTS[suite]()
    environment.reset(**row)
    task = load_suite(suite).user_tasks[row["user_task"]]
    own = Scripted(row["prompt"][-1]["content"], environment._reference(), _answer(task))
    goal = _goal(suite, environment, rng)
    kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
    if kind != "goal" and len(own.calls) > MAX_CALLS:
        return None
    tools = tool_methods(environment)
    messages: list[Message] = [row["prompt"][0]]
    for part, answer in _script(kind, own, goal, rng):
        for event in part:
            if isinstance(event, str):
                messages.append({"role": "user", "content": event})
            elif not _make(messages, tools, event, rng, behavior):
                return [*messages, {"role": "assistant", "content": SORRY}]
        messages.append({"role": "assistant", "content": answer})
    return messages


def _script(kind: str, own: Scripted, goal: Scripted, rng: random.Random) -> Iterator[tuple[list[Event], str]]:
    """What happens up to each of the assistant's messages without a call, and that message."""
    if kind == "goal between":
        at = rng.randint(1, len(own.calls))
        yield [own.request, *own.calls[:at], goal.request, *goal.calls, *own.calls[at:]], own.answer
        return
    for name in kind.split(", "):
        one = own if name == "task" else goal
        yield [one.request, *one.calls], one.answer


def _goal(suite: str, environment: Any, rng: random.Random) -> Scripted:
    tasks = load_suite(suite).injection_tasks
    task = tasks[rng.choice(list(tasks))]
    calls = tuple(
        ToolCall(call.function, dict(call.args)) for call in task.ground_truth(pickle.loads(environment._start))
    )
    return Scripted(rng.choice(REQUESTS).format(task.GOAL), calls, "Done.")


def _answer(task: Any) -> str:
    """The official answer; some are empty, or a list without contents ("1.  2.")."""
    text = task.GROUND_TRUTH_OUTPUT.strip()
    return text if any(map(str.isalpha, text)) else "Done."


def _make(
    messages: list[Message], tools: dict[str, Any], right: ToolCall, rng: random.Random, behavior: DemoBehavior
) -> bool:
    """Make a call, perhaps wrong at first. False if it failed to the end. A wrong call may also succeed."""
    call = mistaken(right, rng) if rng.random() < behavior.slip else right
    for _ in range(MAX_ERRORS):
        if demonstrate_call(messages, tools, call).error is None:
            return True
        if rng.random() < behavior.recover:
            call = right
        elif rng.random() < behavior.give_up:
            return False
        elif rng.random() >= behavior.repeat:
            call = mistaken(right, rng)
    return False


def mistaken(call: ToolCall, rng: random.Random) -> ToolCall:
    """The call with one argument missing or cut, or with a tool's name that does not exist."""
    if not call.arguments or rng.random() < 0.2:
        return ToolCall(rng.choice((call.name.replace("_", ""), call.name.split("_")[0])), call.arguments)
    arguments = dict(call.arguments)
    key = rng.choice(list(arguments))
    value = arguments[key]
    if rng.random() < 0.4 or not isinstance(value, str):
        del arguments[key]
    else:
        arguments[key] = rng.choice((value[:-1], value.split()[0].lower(), value.swapcase())) or "x"
    return ToolCall(call.name, arguments)


def parts(batch: GroupedBatch) -> Iterator[GroupedBatch]:
    """The batch in parts of `ROWS` dialogues of about the same length, without needless padding."""
    for chosen in batch.completion_mask.sum(1).argsort().split(ROWS):
        part = batch.rows(chosen)
        width = int(part.completion_mask.sum(1).max())
        cut = {"completion_ids": part.completion_ids, "completion_mask": part.completion_mask}
        rest = {
            name: rows[:, :width] for name, rows in {**cut, "tool_mask": part.tool_mask}.items() if rows is not None
        }
        yield GroupedBatch(part.prompt_ids, part.prompt_mask, **rest)


def train(model: Any, tokenizer: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    """Finetune all weights; returns what was done."""
    sampled = demonstrations(arguments.suites)

    def sample(step: int, mixed: bool) -> list[GroupedBatch]:
        behavior = MIXED if mixed else SKILLED
        rows = batches(tokenizer, CHAT_TEMPLATE, sampled, seed_of(arguments, step), behavior)
        return [part for row in rows for part in parts(row)]

    return {"suites": arguments.suites, **optimize(model, arguments, sample, losses)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or hub id, such as prepare_smollm2.py's output")
    parser.add_argument("--output", type=Path, required=True, help="folder for the warmed-up model")
    parser.add_argument("--suites", nargs="+", default=["slack"], help="of AgentDojo")
    parser.add_argument("--steps", type=int, default=30, help="optimizer steps of 8 dialogues")
    parser.add_argument("--mixed_share", type=float, default=0.3, help="share of the steps, the last ones, on mixed")
    parser.add_argument("--learning_rate", type=float, default=3e-4, help="peak")
    parser.add_argument("--seed", type=int, default=0, help="of the demonstrations")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model, padding_side="left")
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.response_template = qwen3_template
    model: Any = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
    add_fused_lm_head(model)
    enable(model)
    record = train(model, tokenizer, arguments)
    save(model, tokenizer, record, arguments.output)


if __name__ == "__main__":
    main()
