"""Fission-GRPO in one file, without TRL: an own training loop to read from top to bottom.

    python examples/fission_in_one_file.py --cycles 20

The policy is the package's starter policy and the environment its desk (files and a calendar). All of the algorithm is
in this file. A test checks that advantages, loss and buffer order equal the library's.
"""

import argparse
import copy
import json
import re
from dataclasses import dataclass, field

import torch
from transformers.utils import get_json_schema

FIXED_FEEDBACK = "error: you made a mistake. please try again."  # the paper's fallback text
TOOL_CALL = re.compile(r"<tool_call>\s*(\{.*?\})\s*</tool_call>", re.DOTALL)


# -- 1. a task, and a rollout of it ------------------------------------------------------------------------------


@dataclass
class Task:
    """A task: a rendered prompt, and the calls that bring the environment to the prompt's end."""

    name: str
    prompt: str
    row: dict  # the environment's scenario
    history: list = field(default_factory=list)  # calls made before the prompt's end
    depth: int = 0


@dataclass
class Rollout:
    """A sampled episode. `mask` is 1 for the policy's tokens, which are trained, and 0 for tool results."""

    task: Task
    ids: list = field(default_factory=list)
    mask: list = field(default_factory=list)
    text: str = ""
    calls: list = field(default_factory=list)
    failed_at: tuple | None = None  # (text up to and including the first failing result, calls up to there)
    reward: float = 0.0


def user_block(text):
    """Return a user message, as it follows the policy's <|im_end|>."""
    return f"\n<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


# -- 2. explore: sample G rollouts per task ------------------------------------------------------------------------


@torch.no_grad()
def generate(model, tokenizer, prompts, max_new_tokens, temperature):
    """Sample one continuation per prompt; token ids up to and including <|im_end|>."""
    batch = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
    out = model.generate(
        **batch,
        do_sample=True,
        temperature=temperature,
        top_k=0,
        max_new_tokens=max_new_tokens,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    rows = out[:, batch["input_ids"].shape[1] :].tolist()
    return [r[: r.index(tokenizer.eos_token_id) + 1] if tokenizer.eos_token_id in r else r for r in rows]


def call_tool(environment, tools, text):
    """Execute the first tool call in `text`: (call, result, whether it failed), or None if there is no valid call."""
    found = TOOL_CALL.search(text)
    try:
        call = json.loads(found[1]) if found else None
        name, arguments = (call["name"], call["arguments"]) if call else (None, None)
    except (ValueError, KeyError, TypeError):
        return None
    if name is None or not isinstance(arguments, dict):
        return None
    try:
        if name not in tools:
            raise ValueError(f"Tool {name} not found.")
        return (name, arguments), str(getattr(environment, name)(**copy.deepcopy(arguments))), False
    except Exception as error:  # noqa: BLE001 - the tool's answer to a bad call
        return (name, arguments), str({"error": str(error)}), True


def sample(model, tokenizer, tasks, make_environment, tools, *, max_turns=3, max_new_tokens=48, temperature=1.0):
    """One rollout per entry of `tasks` (repeat a task to get its group), judged by the environment's end state."""
    rollouts, environments = [Rollout(task) for task in tasks], []
    for task in tasks:
        environment = make_environment()
        environment.reset(**task.row)
        for name, arguments in task.history:  # restore the state that the failed call left
            if name in tools:
                try:
                    getattr(environment, name)(**copy.deepcopy(arguments))
                except Exception:  # noqa: BLE001 - it failed the first time as well
                    continue
        environments.append(environment)
    active = list(range(len(tasks)))
    for turn in range(max_turns + 1):
        prompts = [rollouts[i].task.prompt + rollouts[i].text for i in active]
        still = []
        for i, ids in zip(active, generate(model, tokenizer, prompts, max_new_tokens, temperature), strict=True):
            rollout, written = rollouts[i], tokenizer.decode(ids)
            rollout.ids, rollout.mask = rollout.ids + ids, rollout.mask + [1] * len(ids)
            rollout.text += written
            outcome = call_tool(environments[i], tools, written) if turn < max_turns else None
            if outcome is None:
                continue  # the episode ends: no readable call
            call, result, failed = outcome
            rollout.calls.append(call)
            shown = user_block(f"<tool_response>\n{result}\n</tool_response>")
            shown_ids = tokenizer.encode(shown, add_special_tokens=False)
            rollout.ids, rollout.mask = rollout.ids + shown_ids, rollout.mask + [0] * len(shown_ids)
            rollout.text += shown
            if failed and rollout.failed_at is None:
                rollout.failed_at = (rollout.text, list(rollout.calls))
            still.append(i)
        active = still
        if not active:
            break
    for rollout, environment in zip(rollouts, environments, strict=True):
        rollout.reward = float(environment.get_reward())
    return rollouts


# -- 3. fission: a failed rollout becomes a task -------------------------------------------------------------------


def fission(rollout):
    """x_corr = [x; failed rollout; feedback], cut at the first failing call, whose error message is the feedback."""
    if rollout.failed_at is not None:
        text, calls = rollout.failed_at
    else:  # every call succeeded, but the goal was missed
        text, calls = rollout.text + user_block(FIXED_FEEDBACK), rollout.calls
    task = rollout.task
    return Task(task.name, task.prompt + text, task.row, task.history + calls, task.depth + 1)


class Buffer:
    """Corrective tasks, newest first, each failed rollout once."""

    def __init__(self, capacity=256):
        self.capacity, self.items = capacity, {}

    def push(self, key, item):
        if key in self.items:
            return
        self.items[key] = item
        if len(self.items) > self.capacity:
            del self.items[next(iter(self.items))]  # the oldest

    def pop(self, count):
        return [self.items.popitem()[1] for _ in range(count)]


# -- 4. update: the same for explore and recovery groups -----------------------------------------------------------


def group_advantages(rewards, group_size):
    """A = (r - mean) / (std + 1e-4) within each group; std with n - 1. Shape [groups * group_size]."""
    groups = torch.tensor(rewards).view(-1, group_size)
    return ((groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)).flatten()


def grpo_loss(model, prompt_ids, completion_ids, mask, advantages, pad_id):
    """-A log pi averaged over each rollout's own tokens, then over rollouts (one update per batch: the ratio is 1)."""
    rows = [p + c for p, c in zip(prompt_ids, completion_ids, strict=True)]
    width = max(map(len, rows))
    ids = torch.tensor([r + [pad_id] * (width - len(r)) for r in rows])
    attention = torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in rows])
    trained = torch.zeros_like(ids, dtype=torch.float)
    for i, (prompt, m) in enumerate(zip(prompt_ids, mask, strict=True)):
        trained[i, len(prompt) : len(prompt) + len(m)] = torch.tensor(m, dtype=torch.float)
    logits = model(input_ids=ids, attention_mask=attention).logits[:, :-1].float()
    logps = logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    ratio = torch.exp(logps - logps.detach())
    per_token, trained = -ratio * advantages[:, None], trained[:, 1:]
    return ((per_token * trained).sum(1) / trained.sum(1).clamp(min=1.0)).mean()


def update(model, tokenizer, optimizer, rollouts, group_size):
    """Take one optimizer step on judged rollouts, ordered group by group."""
    advantages = group_advantages([rollout.reward for rollout in rollouts], group_size)
    prompts = [tokenizer.encode(rollout.task.prompt, add_special_tokens=False) for rollout in rollouts]
    ids, mask = [rollout.ids for rollout in rollouts], [rollout.mask for rollout in rollouts]
    loss = grpo_loss(model, prompts, ids, mask, advantages, tokenizer.pad_token_id)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


# -- 5. the loop -------------------------------------------------------------------------------------------------


def main():
    from fission_grpo.envs.desk.env import Desk
    from fission_grpo.envs.desk.tasks import make_rows
    from fission_grpo.inference.pretrained import load_starter

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cycles", type=int, default=20, help="explore and recover cycles together")
    parser.add_argument(
        "--queries", type=int, default=8, help="tasks per explore cycle, corrective tasks per recovery"
    )
    parser.add_argument("--group", type=int, default=8, help="G and G': rollouts per task")
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    model, tokenizer = load_starter()
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, weight_decay=0.0)
    names = [n for n in dir(Desk) if not n.startswith("_") and n not in ("reset", "get_reward")]
    tools = {name: get_json_schema(getattr(Desk(), name)) for name in names}

    def as_task(row):
        prompt = tokenizer.apply_chat_template(
            row["prompt"], tools=list(tools.values()), tokenize=False, add_generation_prompt=True
        )
        return Task(row["id"], prompt, row)

    rows = iter(make_rows(args.cycles * args.queries, seed=args.seed, split="train"))
    buffer, explored = Buffer(), False
    for cycle in range(args.cycles):
        recover = explored and len(buffer.items) >= args.queries  # never two recover cycles in a row
        tasks = buffer.pop(args.queries) if recover else [as_task(next(rows)) for _ in range(args.queries)]
        explored = not recover
        group = [task for task in tasks for _ in range(args.group)]
        rollouts = sample(model, tokenizer, group, Desk, tools)
        update(model, tokenizer, optimizer, rollouts, args.group)
        if not recover:
            failed = set()
            for rollout in rollouts:  # one failure per task
                if rollout.reward < 0.5 and rollout.task.name not in failed:
                    failed.add(rollout.task.name)
                    corrective = fission(rollout)
                    buffer.push(corrective.prompt, corrective)
        success = sum(rollout.reward >= 0.5 for rollout in rollouts) / len(rollouts)
        print(f"{cycle:3d} {'recover' if recover else 'explore'} success {success:.2f} buffer {len(buffer.items)}")


if __name__ == "__main__":
    main()
