"""A cycle: one generation batch and what came of it."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fission_grpo.core.types import Message
from fission_grpo.envs.faults import FAULTS_KEY
from fission_grpo.envs.restore import TurnVerdict
from fission_grpo.fission.metrics import groups_of
from fission_grpo.fission.recovery import CorrectiveInstance

Row = dict[str, Any]


@dataclass
class CycleScores:
    """What TRL hands to the reward functions for this rank's rollouts, and the rewards of all ranks."""

    prompts: Sequence[str | Sequence[Message]]
    completions: Sequence[str | Sequence[Message]]
    completion_ids: Sequence[Sequence[int]]  # with those of tool results
    rewards: Any  # tensor of all ranks' rollouts x reward functions, NaN where a function gave none
    weights: Any  # of the reward functions
    corrective_turns: Mapping[int, TurnVerdict] = field(default_factory=dict)  # by local row, if judged by itself
    resolved: Mapping[int, bool] = field(default_factory=dict)  # by local row, of recoveries judged as right or wrong

    @functools.cached_property
    def weighted(self) -> list[float]:
        """The weighted sum of the rewards for every rollout of all ranks; NaN where no function gave one."""
        sums = (self.rewards * self.weights.to(self.rewards.device)).nansum(dim=1)
        return sums.masked_fill(self.rewards.isnan().all(dim=1), math.nan).tolist()


@dataclass
class Cycle:
    """One generation batch of this rank: what is sampled, and what came of it."""

    rows: list[Row]  # one per rollout; groups of equal rows; nobody but this package sees these objects
    sizes: Sequence[int]  # rollouts of each group of all ranks: G where rows are explored, then G' of each recovery
    offset: int = 0  # index of the first row in the batch of all ranks
    contexts: Sequence[CorrectiveInstance] = ()  # of the last groups, one each; none in an explore cycle
    single_turn: bool = False  # the corrective turn alone is sampled and judged (`recovery_scope="turn"`)
    masks: Sequence[Sequence[int]] | None = None  # per rollout, 1 for tokens the policy sampled
    scores: CycleScores | None = None  # set when the rewards are computed
    starts: Sequence[Any] = ()  # per rollout, the environment's first snapshot, if `reset` draws the tasks
    max_calling_turns: float = math.inf  # turns of an episode whose calls are made
    like_errors: int = 0  # results of this rank that begin like errors and count as successes
    paired: bool = False  # the groups of explored rows come in pairs, see `in_fault_pairs`

    @functools.cached_property
    def _groups(self) -> list[int]:
        """The index of each rollout's group, of all ranks."""
        return [group for group, size in enumerate(self.sizes) for _ in range(size)]

    def group_of(self, i: int) -> int:
        """The index of a rollout's group; `i` counts the rollouts of all ranks."""
        return self._groups[i]

    def is_recovery(self, i: int) -> bool:
        """Whether a rollout recovers; `i` counts the rollouts of all ranks."""
        return self._groups[i] >= len(self.sizes) - len(self.contexts)

    def rewards_of_pairs(self) -> dict[str, float]:
        """The mean rewards of explored rollouts without and with injected faults, of all ranks; {} if not paired."""
        if self.scores is None or not self.paired:
            return {}
        groups = groups_of(self.scores.weighted, self.sizes)
        explored, means = groups[: len(self.sizes) - len(self.contexts)], {}
        for at, name in enumerate(("without", "with")):
            judged = [reward for group in explored[at::2] for reward in group if not math.isnan(reward)]
            means |= {f"fission/reward_{name}_faults": sum(judged) / len(judged)} if judged else {}
        return means

    @property
    def recovery_share(self) -> float:
        """The share of the rollouts that recover, 0 to 1."""
        return sum(map(self.is_recovery, range(len(self._groups)))) / max(1, len(self._groups))

    def flat_rows(self) -> list[bool]:
        """Return for each local row whether all judged rewards of its group are equal.

        TRL's mean of equal rewards may differ from them by rounding, which leaves advantages of up to 0.001.
        """
        groups = [] if self.scores is None else groups_of(self.scores.weighted, self.sizes)
        flat = [len({one for one in group if not math.isnan(one)}) <= 1 for group in groups]
        return [flat[self.group_of(self.offset + i)] for i in range(len(self.rows))]


def in_fault_pairs(cycle: Cycle) -> Cycle:
    """The cycle with each explored group in two halves of the same task: without injected faults, and with them.

    The halves are groups by themselves, so that advantages compare rollouts with others that met the same conditions.
    """
    explored = len(cycle.sizes) - len(cycle.contexts)
    halves = [size // 2 for size in cycle.sizes[:explored] for _ in range(2)]
    paired = replace(cycle, sizes=[*halves, *cycle.sizes[explored:]], paired=True)
    for i, row in enumerate(cycle.rows):
        group = paired.group_of(cycle.offset + i)
        if group < len(halves):
            paired.rows[i] = {**row, FAULTS_KEY: group % 2 == 1}
    return paired
