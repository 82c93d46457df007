"""What TRL made of one batch on this rank, read back as judged rollouts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fission_grpo.corrective_turn import TurnVerdict
from fission_grpo.rollouts import Rollout, read_turns, sampled_segments, task_of_row
from fission_grpo.trajectory import Message, Trajectory, Turn, Verdict


@dataclass(frozen=True)
class Batch:
    """One rank's rollouts. All sequences have one entry per row.

    Args:
        rows: as given to TRL.
        prompts: as sampled from.
        completions: strings, or messages.
        completion_ids: token ids, tool results included.
        masks: 1 for ids the policy sampled, 0 for others; None where all were sampled.
        rewards: weighted sums, NaN where there is none.
        corrected: by row number, the verdict on a corrective turn whose calls we made ourselves.
    """

    rows: Sequence[Mapping[str, Any]]
    prompts: Sequence[str | Sequence[Message]]
    completions: Sequence[str | Sequence[Message]]
    completion_ids: Sequence[Sequence[int]]
    masks: Sequence[Sequence[int] | None]
    rewards: Sequence[float]
    corrected: Mapping[int, TurnVerdict] = field(default_factory=dict)


@dataclass(frozen=True)
class Reader:
    """How to read a batch.

    Args:
        decode: token ids to text, special tokens kept.
        eos_ids: ids that end a turn.
        threshold: a rollout with a smaller reward has failed.
        step_reward: judges step tasks, None if there is no StepReward.
    """

    decode: Callable[[list[int]], str]
    eos_ids: Sequence[int]
    threshold: float
    step_reward: Any = None

    def read(self, batch: Batch, has_tools: bool, progress: float) -> list[Rollout]:
        """The rollouts in order. `has_tools`: whether texts may hold tool calls; `progress`: of training, 0 to 1."""
        return [self._rollout(batch, i, has_tools, progress) for i in range(len(batch.rows))]

    def _rollout(self, batch: Batch, i: int, has_tools: bool, progress: float) -> Rollout:
        task = task_of_row(batch.rows[i], batch.prompts[i])
        segments = sampled_segments(batch.completion_ids[i], batch.masks[i])
        calls_tools = has_tools or task.reference is not None
        turns = read_turns(batch.completions[i], segments, self.decode, self.eos_ids, calls_tools)
        reward = None if math.isnan(batch.rewards[i]) else batch.rewards[i]
        verdict = Verdict(reward, failed=batch.rewards[i] < self.threshold)
        if reward is not None and task.reference is not None and self.step_reward is not None:
            judged = self.step_reward.verdict(task, turns[-1], len(batch.completion_ids[i]), progress)
            verdict = replace(verdict, failed=judged.failed, parts=judged.parts)
        if i in batch.corrected:
            turns = (with_results(turns[0], batch.corrected[i]),)
            verdict = replace(verdict, failed=not batch.corrected[i].resolved)
        return Rollout(Trajectory(task, turns), verdict)


def with_results(turn: Turn, verdict: TurnVerdict) -> Turn:
    """A corrective turn with what its calls answered."""
    if turn.error is not None or not verdict.results:
        return replace(turn, results=verdict.results)
    return replace(turn, calls=tuple(result.call for result in verdict.results), results=verdict.results)
