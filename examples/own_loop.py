"""Fission in a training loop of one's own: no trainer, no torch, no trl.

    python examples/own_loop.py 20

Replace `Policy` by yours: `reply` samples one turn, `update` takes the rollouts with their advantages.
"""

import random
import sys
from dataclasses import replace

from fission_grpo import Fission, FissionSettings, Rollout, Trajectory, Verdict, failed_rollout, group_advantages
from fission_grpo.core.chat import parse, render_call, turn_messages
from fission_grpo.data.rows import row_of_task, task_of_row
from fission_grpo.envs.desk.env import Desk
from fission_grpo.envs.desk.tasks import make_rows, solution
from fission_grpo.envs.restore import make_call, make_restorable, run_awaitable
from fission_grpo.envs.wrapper import tool_methods


class Policy:
    """Makes the right call with a probability that training raises; else one with a wrong argument."""

    def __init__(self, seed=0):
        self.skill, self.random = 0.2, random.Random(seed)

    def reply(self, task, messages):
        done = sum(message["role"] == "tool" and "error" not in message["content"] for message in messages)
        calls = solution(task.columns)
        if done >= len(calls):
            return "Done."
        text = render_call(calls[done])
        return text if self.random.random() < self.skill else text.replace('"arguments": {', '"arguments": {"x": 1, ')

    def update(self, rollouts, advantages):
        right = [
            one.verdict.reward == 1 and advantage > 0 for one, advantage in zip(rollouts, advantages, strict=True)
        ]
        self.skill = min(1.0, self.skill + 0.02 * sum(right))


def sample(policy, row, make_environment, max_turns=3):
    """One episode: a rollout with its verdict, and the environment at its end."""
    environment = make_environment()
    observation = environment.reset(**row)  # brings it to the failed turn, if the row is a recovery task's
    messages = [dict(message) for message in row["prompt"]]
    messages[-1]["content"] += observation or ""
    task, tools, turns = task_of_row(row, messages), tool_methods(environment), []
    while len(turns) < max_turns:
        turn = parse(policy.reply(task, messages))
        turns.append(replace(turn, results=tuple(make_call(tools, call) for call in turn.calls)))
        messages += turn_messages(turns[-1])
        if not turn.calls:
            break
    reward = environment.get_reward()
    return Rollout(Trajectory(task, tuple(turns)), Verdict(reward, failed=reward < 1)), environment


def main():
    cycles = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    policy, rows = Policy(), make_rows(16, seed=0, split="train")
    fission = Fission(FissionSettings(num_generations=4, num_recovery_generations=8, generation_batch_size=16))
    make_environment = make_restorable(Desk, run_awaitable, fission.get_snapshot)
    for step in range(cycles):
        contexts = fission.next_contexts(step)  # recover from these, or explore if there are none
        batch = [row_of_task(item.task) for item in contexts] or random.Random(step).sample(rows, 4)
        size = 8 if contexts else 4
        sampled = [sample(policy, row, make_environment) for row in batch for _ in range(size)]
        rewards = [rollout.verdict.reward or 0.0 for rollout, _ in sampled]
        policy.update([rollout for rollout, _ in sampled], group_advantages(rewards, [size] * len(batch)))
        (fission.schedule.record_recovery if contexts else fission.schedule.record_explore)()
        fission.submit([failed_rollout(rollout, environment) for rollout, environment in sampled], step)
        fission.push([fission.collect()], step)
        phase, success = "recover" if contexts else "explore", sum(rewards) / len(rewards)
        print(f"cycle {step}: {phase}, success {success:.2f}, buffer {len(fission.buffer)}")


if __name__ == "__main__":
    main()
