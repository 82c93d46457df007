"""Explore and recover cycles for an engine whose rollouts come together in one process.

A cycle is one generation batch and the updates made with it. `RecoveryCycles.next` says what to sample, and `finish`
turns what failed into recoveries of later cycles.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fission_grpo.core.terminal import get_logger
from fission_grpo.data.deferred_rows import DeferredRows
from fission_grpo.engines.episode import Episode, Row, TaskRunner
from fission_grpo.feedback.sources import load_source_states, source_states
from fission_grpo.fission.algorithm import Fission, packed_snapshots
from fission_grpo.fission.metrics import (
    RecoveryOutcome,
    count_rollouts,
    explore_metrics,
    group_advantages,
    zero_std_groups,
)
from fission_grpo.fission.recovery import CorrectiveInstance

_log = get_logger(__name__)


@dataclass(frozen=True)
class PlannedGroup:
    """Rollouts to sample of one row."""

    row: Row
    size: int  # G, or G' of a recovery
    context: CorrectiveInstance | None = None  # what it recovers from; None: a row of the data set is explored

    @property
    def id(self) -> str | None:
        """The id of the corrective instance; None for a row of the data set."""
        return None if self.context is None else self.context.task.id


@dataclass(frozen=True)
class Plan:
    """One cycle: groups that are explored, then those that recover."""

    groups: Sequence[PlannedGroup]

    @property
    def sizes(self) -> list[int]:
        return [group.size for group in self.groups]

    @property
    def contexts(self) -> list[CorrectiveInstance]:
        return [group.context for group in self.groups if group.context is not None]

    @property
    def recovery_share(self) -> float:
        """The share of the rollouts that recover, 0 to 1."""
        return sum(group.size for group in self.groups if group.context is not None) / max(1, sum(self.sizes))


class RecoveryCycles:
    """Decides what each cycle samples, and takes its failures, as `FissionGRPOTrainer` does.

    Args:
        fission: the algorithm, with its settings.
        runner: makes the rows of recovery tasks, and counts events in environments.
        rows: number of rows of the data set; None if it is streamed.
        scale: what advantages are divided by, see `group_advantages`.
    """

    def __init__(self, fission: Fission, runner: TaskRunner, rows: int | None = None, scale: str = "group"):
        self.fission, self.runner, self.scale = fission, runner, scale
        settings = fission.settings
        self.explored_groups = settings.generation_batch_size // settings.num_generations
        self.deferred = DeferredRows(rows, self.explored_groups)
        self.generated_tokens = 0
        self._collected: dict[str, float] = {}  # metrics of feedback that `state` has collected

    def next(self, rows: Sequence[Row], step: int) -> tuple[Plan, dict[str, float]]:
        """Plan the next cycle; returns metrics, too, of feedback that has arrived since.

        Args:
            rows: the next `generation_batch_size / num_generations` rows of the data set. Those whose place recoveries
                take wait for a later cycle.
            step: optimizer step.
        """
        if len(rows) != self.explored_groups:
            raise ValueError(f"{len(rows)} rows for a cycle of {self.explored_groups} explored groups; give as many.")
        metrics, self._collected = self._collected | self._push(), {}
        settings = self.fission.settings
        self.deferred.add([dict(row) for row in rows])
        contexts = self.fission.next_contexts(step) if settings.fission else []
        size, recovers = settings.generation_batch_size, settings.num_recovery_generations
        explored = self.deferred.take((size - len(contexts) * recovers) // settings.num_generations)
        if skipped := self.deferred.skip_newest():
            metrics["fission/skipped_batches"] = skipped / len(rows)
        groups = [PlannedGroup(row, settings.num_generations) for row in explored]
        groups += [PlannedGroup(self.runner.row_of(item.task), recovers, item) for item in contexts]
        return Plan(groups), metrics

    def finish(self, plan: Plan, groups: Sequence[Sequence[Episode]], step: int) -> dict[str, float]:
        """Take the rollouts of a cycle, group by group in the plan's order, and return its metrics.

        Feedback of sources that answer later is collected by the next call of `next`.
        """
        flat = [episode for group in groups for episode in group]
        zero_std = zero_std_groups([episode.reward for episode in flat], [len(group) for group in groups])
        settings = self.fission.settings
        failed = [
            [episode.failed(settings.failure_turn, same) for episode in group]
            for group, same in zip(groups, zero_std, strict=True)
        ]
        first = len(plan.groups) - len(plan.contexts)
        explored = [episode.rollout for group in groups[:first] for episode in group]
        failures = [one.failures[0] for group in failed[:first] for one in group if one.failures]
        counts = count_rollouts(explored, failures)
        metrics: dict[str, float] = {}
        if settings.fission:
            self.fission.submit([one for group in failed for one in group], step)
        if plan.contexts:
            outcomes = [RecoveryOutcome.of(episode.rollout) for group in groups[first:] for episode in group]
            counts["infrastructure"] += sum(outcome.reward is None for outcome in outcomes)
            metrics |= self.fission.record_recovery(plan.contexts, outcomes, zero_std[first:], step)
        if first:
            self.fission.schedule.record_explore()
            metrics |= explore_metrics(counts, zero_std[:first])
        if not self.fission.is_asynchronous:
            metrics |= self._push()
        self.generated_tokens += sum(sum(episode.mask) for episode in flat)
        return metrics | self._common_metrics(plan, counts)

    def advantages(self, groups: Sequence[Sequence[float]]) -> list[list[float]]:
        """The advantages of rollouts from their rewards, group by group; see `group_advantages`."""
        sizes = [len(group) for group in groups]
        flat = iter(group_advantages([reward for group in groups for reward in group], sizes, self.scale))
        return [[next(flat) for _ in group] for group in groups]

    def _push(self) -> dict[str, float]:
        """Push the instances of the pending feedback into the buffer."""
        pending = self.fission.pending
        if pending is None:
            return {}
        collected = self.fission.collect()
        metrics = self.fission.push([collected], pending.step)
        metrics |= {name: float(value) for name, value in collected.source_counts.items()}
        return metrics | {"feedback/seconds": collected.seconds}

    def _common_metrics(self, plan: Plan, counts: Counter[str]) -> dict[str, float]:
        events = self.runner.pop_counts()
        return {
            "fission/phase": plan.recovery_share,
            "fission/generated_tokens": float(self.generated_tokens),
            "fission/infrastructure": float(counts["infrastructure"]),
            "fission/special_tokens": float(self.runner.special_tokens.pop_count()),
            **{name: float(n) for name, n in events.items()},
        }

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON values: buffer, schedule, waiting rows, snapshots, sources."""
        self._collected |= self._push()
        return {
            "fission": self.fission.state(),
            "deferred": list(self.deferred.rows),
            "snapshots": packed_snapshots(self.fission.buffered_snapshots()),
            "sources": source_states(self.fission.sources, strict=False),
            "generated_tokens": self.generated_tokens,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from `state()`. A source of feedback without a state is named in a warning."""
        self.fission.load_state(state["fission"])
        self.deferred.rows = deque(state["deferred"])
        self.fission.snapshots = dict(state["snapshots"])
        self.generated_tokens = state["generated_tokens"]
        if unknown := load_source_states(self.fission.sources, state["sources"]):
            _log.warning("there is no state for these sources of feedback: %s", ", ".join(unknown))
