"""Fission in a training loop of one's own: no trainer, no torch, no trl.

    python examples/own_loop.py 20

Replace `Policy` by yours: `reply` samples one turn, `update` takes the rollouts with their advantages.
"""

import random
import sys
from dataclasses import replace
from itertools import cycle

from fission_grpo import Fission, FissionSettings, Rollout, Trajectory, Verdict, failed_rollout, group_advantages
from fission_grpo.core.chat import parse, render_call, turn_messages
from fission_grpo.data.rows import row_of_task, task_of_row
from fission_grpo.envs.desk.env import Desk
from fission_grpo.envs.desk.tasks import make_rows, solution
from fission_grpo.envs.restore import answer_turn, make_restorable, run_awaitable
from fission_grpo.envs.wrapper import tool_methods


class Policy:
    """Makes the right call with a probability that training raises; else one with a wrong argument."""

    def __init__(self):
        self.skill, self.random = 0.2, random.Random(0)

    def reply(self, messages, task):
        done = sum(message["role"] == "tool" and "error" not in message["content"] for message in messages)
        calls = solution(task.columns)
        text = render_call(calls[done]) if done < len(calls) else "Done."
        return text if self.random.random() < self.skill else text.replace('"arguments": {', '"arguments": {"x": 1, ')

    def update(self, rollouts, advantages):
        better = sum(rollout.verdict.reward * max(0.0, a) for rollout, a in zip(rollouts, advantages, strict=True))
        self.skill = min(1.0, self.skill + 0.02 * better)


def sample(policy, row, make_environment, max_turns):
    """One episode: a rollout with its verdict, and the environment at its end."""
    environment, turns = make_environment(), []
    observation = environment.reset(**row)  # brings it to the failed turn, if the row is a recovery task's
    messages = [dict(message) for message in row["prompt"]]
    messages[-1]["content"] += observation or ""
    task, tools = task_of_row(row, messages), tool_methods(environment)
    while not turns or (turns[-1].results and len(turns) < max_turns):
        turn = parse(policy.reply(messages, task))
        results = answer_turn(turn, tools) if len(turns) < max_turns - 1 else ()
        turns.append(replace(turn, results=results))
        messages = [*messages, *turn_messages(turns[-1])]
    reward = environment.get_reward()
    return Rollout(Trajectory(task, tuple(turns)), Verdict(reward, failed=reward < 0.5)), environment


def train(policy, rows, fission, cycles, max_turns=4, tools=()):
    """Explore and recover; yields the contexts, rollouts and advantages of each cycle. `tools`: their schemas."""
    rows, settings = cycle(rows), fission.settings
    make_environment = make_restorable(Desk, run_awaitable, fission.get_snapshot)
    for step in range(cycles):
        contexts = fission.next_contexts(step)  # recover from these, or explore if there are none
        size = settings.num_recovery_generations if contexts else settings.num_generations
        explored = [] if contexts else [next(rows) for _ in range(settings.generation_batch_size // size)]
        batch = [row_of_task(item.task) for item in contexts] or explored
        sampled = [sample(policy, row, make_environment, max_turns) for row in batch for _ in range(size)]
        rollouts = [rollout for rollout, _ in sampled]
        advantages = group_advantages([one.verdict.reward or 0.0 for one in rollouts], [size] * len(batch))
        policy.update(rollouts, advantages)
        (fission.schedule.record_recovery if contexts else fission.schedule.record_explore)()
        fission.submit([failed_rollout(*one, tools) for one in sampled], step)
        fission.push([fission.collect()], step)
        yield contexts, rollouts, advantages


if __name__ == "__main__":
    algorithm = Fission(FissionSettings(num_generations=4, num_recovery_generations=8, generation_batch_size=16))
    tasks = make_rows(16, seed=0, split="train")
    for contexts, rollouts, _ in train(Policy(), tasks, algorithm, int((*sys.argv[1:], 20)[0])):
        success = sum(not one.verdict.failed for one in rollouts) / len(rollouts)
        print(f"{'recover' if contexts else 'explore'}, success {success:.2f}, buffer {len(algorithm.buffer)}")
