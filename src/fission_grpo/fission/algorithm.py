"""Fission-GRPO between two cycles (paper, stages 2 and 3).

A cycle is one generation batch and the updates made with it. A training loop calls, cycle after cycle:

1. `next_contexts`: recover from these corrective instances, or explore if there are none;
2. `schedule.record_explore` or `record_recovery`: what the cycle's rollouts came to;
3. `submit`: request feedback on the failed rollouts;
4. `collect` and `push`: the feedback makes corrective instances, which enter the buffer.

`submit` and `collect` handle the failures of one rank; everything else is the same on every rank.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fission_grpo.core.serialization import faithful, recovery_id
from fission_grpo.core.special_tokens import SpecialTokenFilter
from fission_grpo.core.types import Failure, Task
from fission_grpo.feedback.request import FeedbackRequest
from fission_grpo.feedback.sources import FeedbackSource, counts_of
from fission_grpo.feedback.spec import make_chain
from fission_grpo.fission.buffer import FissionBuffer
from fission_grpo.fission.event_log import EventLog
from fission_grpo.fission.failures import FailedRollout
from fission_grpo.fission.metrics import RecoveryOutcome, outcomes_by_context, recovery_metrics
from fission_grpo.fission.recovery import CONTINUED, CorrectiveInstance, corrective_instance
from fission_grpo.fission.schedule import RecoverySchedule


@dataclass(frozen=True)
class PendingFeedback:
    """A feedback request under way, with what its corrective instances need."""

    request: FeedbackRequest  # on the chosen failures
    rollouts: Sequence[FailedRollout]  # the failed rollout of each failure
    snapshots: Sequence[Any]  # the environment's snapshot at each failure, None without one
    step: int  # optimizer step in which the rollouts failed
    duplicates: int  # number of failures left out because the buffer holds them already
    seconds: float  # time that submitting took (a source in this process answers at once)


@dataclass
class CollectedFeedback:
    """The corrective instances of one rank's failures, and what there is to count."""

    instances: list[tuple[CorrectiveInstance, Failure]] = field(default_factory=list)
    counts: Counter[str] = field(
        default_factory=Counter
    )  # duplicates, too_long, leaks, exempt, fallbacks, fallback/...
    source_counts: Counter[str] = field(default_factory=Counter)  # metrics that the sources keep, by full name
    seconds: float = 0.0  # spent on feedback alone: submitting it and waiting for it


class Fission:
    """Turns failed rollouts into recovery tasks, and decides when to train on them.

    Args:
        settings: a FissionSettings, or a FissionGRPOConfig, which has the same fields.
        sources: sources of feedback, asked one after another; by default `make_chain("rules")`.
        event_log: file of all instances and their outcomes; by default none is written.
        special_tokens: filter of the policy's tokenizer, see `recovery.recovery_task`.
        fits: whether a recovery task fits into the policy's context. Others are left out and counted.
    """

    def __init__(
        self,
        settings: Any,
        sources: Sequence[FeedbackSource] | None = None,
        event_log: EventLog | None = None,
        special_tokens: SpecialTokenFilter | None = None,
        fits: Callable[[Task], bool] = lambda task: True,
    ):
        self.settings, self.event_log = settings, event_log or EventLog(None)
        self.sources = make_chain("rules") if sources is None else sources
        self.special_tokens = special_tokens or SpecialTokenFilter()
        self.fits = fits
        self.buffer = FissionBuffer(
            settings.buffer_capacity, settings.max_age_steps, settings.buffer_order, seed=settings.seed
        )
        self.schedule = RecoverySchedule(settings.recovery_ratio)
        self.pending: PendingFeedback | None = None
        self.snapshots: dict[str, Any] = {}  # of this rank's environments, by instance id

    @property
    def is_asynchronous(self) -> bool:
        """Whether feedback is best collected when the next cycle begins, as its first source answers later."""
        return bool(self.sources) and self.sources[0].asynchronous

    def next_contexts(self, step: int) -> list[CorrectiveInstance]:
        """Return the instances to recover from in the next cycle; an empty list to explore."""
        for expired in self.buffer.expire(step):
            self.event_log.dropped(expired, step, "age")
        contexts = self.buffer.sample(self._number_of_contexts())
        needed = {item.task.id for item in contexts}
        self.snapshots = {
            name: snapshot for name, snapshot in self.snapshots.items() if name in needed or name in self.buffer
        }
        return contexts

    def _number_of_contexts(self) -> int:
        """How many instances to recover from in the next cycle, 0 to explore only."""
        count, at_a_time = self.settings.contexts_per_cycle, self.settings.contexts_at_a_time
        if len(self.buffer) < (self.settings.min_buffered or at_a_time):
            return 0
        if not self.settings.is_mixed:
            return count if self.schedule.recovery_due() else 0
        return min(count, len(self.buffer)) // at_a_time * at_a_time

    def submit(self, failed: Iterable[FailedRollout], step: int) -> None:
        """Request feedback on this rank's failures, on one rollout per root task."""
        rollouts = list(failed)
        chosen, duplicates = select_failures(
            [rollout.failures for rollout in rollouts], self.settings.max_depth, self.buffer.__contains__
        )
        rollout_of = {id(failure): rollout for rollout in rollouts for failure in rollout.failures}
        origins = [rollout_of[id(failure)] for failure in chosen]
        snapshots = [rollout.get_snapshot(failure) for rollout, failure in zip(origins, chosen, strict=True)]
        started = time.perf_counter()
        request = FeedbackRequest(chosen, self.sources)
        self.pending = PendingFeedback(
            request, origins, snapshots, step, duplicates, seconds=time.perf_counter() - started
        )

    def collect(self) -> CollectedFeedback:
        """Wait for the requested feedback, `feedback_timeout` at most, and build this rank's instances."""
        collected, pending, self.pending = CollectedFeedback(), self.pending, None
        if pending is None:
            return collected
        started = time.perf_counter()
        feedbacks = pending.request.feedback(self.settings.feedback_timeout)
        collected.counts["duplicates"] = pending.duplicates
        for failure, feedback, rollout, snapshot in zip(
            pending.request.failures, feedbacks, pending.rollouts, pending.snapshots, strict=True
        ):
            collected.counts.update(leaks=feedback.leaked, exempt=feedback.exempt)
            collected.counts["fallbacks"] += feedback.fallback is not None
            for source, reason in feedback.rejected:
                slug = re.sub(r"\W+", "_", reason.lower())
                collected.counts[f"fallback/{source}/{slug}"] += 1
            instance = corrective_instance(failure, feedback, pending.step, rollout.zero_std, self.special_tokens)
            if not self.fits(instance.task):
                collected.counts["too_long"] += 1
                continue
            if snapshot is not None:
                self.snapshots[instance.task.id] = snapshot
            collected.instances.append((instance, failure))
        for source in self.sources:
            counts, faults = counts_of(source)
            collected.source_counts.update(counts)  # pyright: ignore[reportArgumentType] - costs are floats
            if faults:
                collected.source_counts["feedback/source_faults"] += faults
        collected.seconds = pending.seconds + time.perf_counter() - started
        return collected

    def push(self, ranks: Sequence[CollectedFeedback], step: int) -> dict[str, float]:
        """Add the instances of all ranks to the buffer, in rank order, so that every rank holds the same buffer.

        Each root task gives the instances of one rollout per cycle, even if its group lies across ranks. Returns
        metrics; `step` is the optimizer step of the failures.
        """
        pushed: Counter[int] = Counter()
        roots: set[str] = set()
        for rank in ranks:
            fresh = [
                (instance, failure)
                for instance, failure in rank.instances
                if instance.task.root not in roots and instance.task.id not in self.buffer
            ]
            for instance, failure in fresh:
                pushed[instance.task.depth] += 1
                self.event_log.pushed(instance)
                self.event_log.failed(failure, instance.task.id, step)
                self._add_to_buffer(instance, step)
            roots |= {instance.task.root for instance, _ in fresh}
        counts = sum((rank.counts for rank in ranks), Counter())
        return {
            "fission/pushed": float(pushed.total()),
            "fission/buffer": float(len(self.buffer)),
            "fission/recoveries_per_explore": self.schedule.rate,
            "fission/duplicates": float(counts["duplicates"]),
            "fission/too_long": float(counts["too_long"]),
            "feedback/leaks": float(counts["leaks"]),
            "feedback/exempt": float(counts["exempt"]),
            "feedback/fallbacks": float(counts["fallbacks"]),
            **{f"fission/pushed_depth_{depth}": float(n) for depth, n in pushed.items() if depth > 1},
            **{f"feedback/{name}": float(n) for name, n in counts.items() if name.startswith("fallback/")},
        }

    def push_continued(
        self, contexts: Sequence[CorrectiveInstance], tasks: Iterable[tuple[str, Task]], step: int
    ) -> dict[str, float]:
        """Add the turns after right recoveries to the buffer, one for each recovery task, and return metrics.

        Args:
            contexts: the instances of the cycle.
            tasks: of all ranks, in rank order: the id of a recovery task, and the task of the turn after it.
            step: optimizer step of the recoveries.
        """
        origins = {item.task.id: item for item in contexts}
        pushed = 0
        for origin, task in tasks:
            item = origins.pop(origin, None)
            if item is None or task.id in self.buffer or not self.fits(task):
                continue
            instance = replace(item, task=task, step=step, source=CONTINUED, feedback="", failed="", zero_std=False)
            self.event_log.pushed(instance)
            self._add_to_buffer(instance, step)
            pushed += 1
        return {"recovery/continued": float(pushed)}

    def _add_to_buffer(self, instance: CorrectiveInstance, step: int) -> None:
        if (dropped := self.buffer.push(instance)) is not None:
            self.event_log.dropped(dropped, step, "capacity")

    def record_recovery(
        self,
        contexts: Sequence[CorrectiveInstance],
        outcomes: Sequence[RecoveryOutcome],
        zero_std: Sequence[bool],
        step: int,
    ) -> dict[str, float]:
        """Record a recover cycle of all ranks and return its metrics, see `metrics.recovery_metrics`."""
        self.schedule.record_recovery()
        groups = outcomes_by_context(contexts, outcomes)
        for item in contexts:
            group = groups[item.task.id]
            self.event_log.recovered(item, step, [o.reward for o in group], [o.text for o in group])
        return recovery_metrics(contexts, outcomes, zero_std, step)

    def get_snapshot(self, task_id: str) -> Any:
        """This rank's snapshot of the environment where a recovery task begins; None if there is none."""
        return self.snapshots.get(task_id)

    def buffered_snapshots(self) -> dict[str, Any]:
        """Return this rank's snapshots of the instances in the buffer, for a checkpoint."""
        return {name: snapshot for name, snapshot in self.snapshots.items() if name in self.buffer}

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, the same on all ranks. Snapshots are each rank's own."""
        return {"buffer": self.buffer.state(), "schedule": self.schedule.state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.buffer.load_state(state["buffer"])
        self.schedule.load_state(state["schedule"])


def select_failures(
    failures: Iterable[Sequence[Failure]], max_depth: int, is_buffered: Callable[[str], bool]
) -> tuple[list[Failure], int]:
    """Choose the failures of one rollout per root task: the first rollout with new failures that is not too deep.

    Args:
        failures: the failures of each failed rollout, in order.
        max_depth: largest depth of a recovery task. A failed task of this depth is not recovered from.
        is_buffered: whether the buffer holds the instance of this `recovery_id`.

    Returns:
        The chosen failures, and the number of those left out because the buffer holds them.
    """
    chosen: dict[str, list[Failure]] = {}
    duplicates = 0
    for rollout in failures:
        if not rollout or rollout[0].task.depth >= max_depth or rollout[0].task.root in chosen:
            continue
        new = [failure for failure in rollout if not is_buffered(recovery_id(failure))]
        duplicates += len(rollout) - len(new)
        if new:
            chosen[rollout[0].task.root] = new
    return [failure for rollout in chosen.values() for failure in rollout], duplicates


def packed_snapshots(states: Mapping[str, Any]) -> dict[str, Any]:
    """The environment snapshots that JSON preserves; other environments are restored by repeating their calls."""
    return {name: state for name, state in states.items() if faithful(state) is not None}
