"""Fission between two cycles: failures become corrective instances, and corrective instances become the next batch.

Everything here is the same on every rank, except `ask` and `answers`, which look at one rank's own failures.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fission_grpo.core.special_tokens import SpecialTokenFilter
from fission_grpo.core.types import Failure
from fission_grpo.feedback.request import Feedback, FeedbackRequest
from fission_grpo.feedback.sources import FeedbackSource
from fission_grpo.fission.buffer import FissionBuffer
from fission_grpo.fission.event_log import EventLog
from fission_grpo.fission.metrics import RecoveryOutcome, by_context, recover_metrics
from fission_grpo.fission.recovery import CorrectiveInstance, corrective_instance, select
from fission_grpo.fission.schedule import RecoveryRateEstimator, RecoverySchedule


@dataclass(frozen=True)
class FailedRollout:
    """One failed rollout of this rank.

    Args:
        failures: where to branch from (`failure.find_failures`).
        flat: whether all rewards of its group were equal.
        success: share of its group that succeeded.
        state_of: the snapshot of its environment at a failure, None if there is none.
    """

    failures: Sequence[Failure]
    flat: bool
    success: float
    state_of: Callable[[Failure], Any]


@dataclass(frozen=True)
class PendingFeedback:
    """Failures that are being diagnosed, with all that their corrective instances need.

    Args:
        enquiry: of the failures.
        origins: the failed rollout of each.
        states: the snapshot of its environment of each, None where there is none.
        step: optimizer step in which they failed.
        duplicates: failures left out, as they wait in the buffer already.
        seconds: that asking took (a model in this process answers at once).
    """

    enquiry: FeedbackRequest
    origins: Sequence[FailedRollout]
    states: Sequence[Any]
    step: int
    duplicates: int
    seconds: float

    def answers(self, seconds: float) -> Iterator[tuple[Failure, Feedback, FailedRollout, Any]]:
        """Each failure with its feedback, origin and state, after at most so many seconds."""
        feedback = self.enquiry.feedback(seconds)
        return zip(self.enquiry.failures, feedback, self.origins, self.states, strict=True)


Made = tuple[CorrectiveInstance, Failure]
"""A corrective instance and the failure that it is of."""


class Fission:
    """The buffer with all that decides what goes in and out.

    Args:
        args: a FissionGRPOConfig.
        sources: write the feedback, asked one after another.
        journal: where instances and outcomes are written down.
        control: of the policy's tokenizer; keeps recovery prompts free of forged turns.
    """

    def __init__(
        self,
        args: Any,
        sources: Sequence[FeedbackSource],
        journal: EventLog,
        control: SpecialTokenFilter | None = None,
    ):
        self.args, self.sources, self.event_log = args, sources, journal
        self.control = control or SpecialTokenFilter()
        self.buffer = FissionBuffer(args.buffer_capacity, args.max_age_steps, args.buffer_order, seed=args.seed)
        self.share = RecoverySchedule(args.recovery_ratio, args.adaptive_recovery_ratio)
        self.odds = RecoveryRateEstimator()
        self.asked: PendingFeedback | None = None
        """Failures that are being diagnosed."""
        self.recovering: list[CorrectiveInstance] = []
        """This cycle's contexts, one per recovery group; empty while exploring."""
        self.states: dict[str, Any] = {}
        """Snapshots of this process, by instance: of those in the buffer and those being recovered from."""

    def begin_cycle(self, step: int) -> list[CorrectiveInstance]:
        """Decide what the next cycle does: the contexts to recover from, or an empty list to explore."""
        expired = self.buffer.expire(step)
        for item in expired:
            self.event_log.dropped(item, step, "age")
        self._forget((*self.recovering, *expired))
        count = self.args.contexts_per_cycle
        recover = self.share.due() and len(self.buffer) >= (self.args.min_buffered or count)
        self.recovering = self.buffer.pop(count, self.odds.variance) if recover else []
        return self.recovering

    def _forget(self, items: Iterable[CorrectiveInstance]) -> None:
        """Drop snapshots of instances that do not wait (any more); never a look at the whole buffer."""
        for item in items:
            if item.task.id not in self.buffer:
                self.states.pop(item.task.id, None)

    @property
    def later(self) -> bool:
        """Whether answers are best collected when the next cycle begins."""
        return bool(self.sources) and self.sources[0].asynchronous

    def ask(self, failed: Sequence[FailedRollout], step: int) -> None:
        """Begin to diagnose this rank's failures, except those that wait in the buffer already."""
        known = self.buffer.__contains__
        chosen, duplicates = select((one.failures for one in failed), self.args.max_depth, known)
        origin = {id(failure): one for one in failed for failure in one.failures}
        origins = [origin[id(failure)] for failure in chosen]
        states = [one.state_of(failure) for one, failure in zip(origins, chosen, strict=True)]
        began = time.perf_counter()
        enquiry = FeedbackRequest(chosen, self.sources)
        self.asked = PendingFeedback(enquiry, origins, states, step, duplicates, time.perf_counter() - began)

    def answers(self) -> tuple[list[Made], Counter[str], Counter[str]]:
        """Corrective instances of the failures asked about, waiting for feedback as long as the configuration allows.

        Returns:
            the instances with their failures; how often feedback leaked or fell back, and why; the sources' counts.
        """
        asked, self.asked = self.asked, None
        if asked is None:
            return [], Counter(), Counter()
        made: list[Made] = []
        counts: Counter[str] = Counter(duplicates=asked.duplicates)
        for failure, feedback, one, state in asked.answers(self.args.feedback_timeout):
            counts.update(leaks=feedback.leaked, fallbacks=feedback.fallback is not None)
            counts.update(f"fallback/{source}/{_slug(reason)}" for source, reason in feedback.rejected)
            item = corrective_instance(failure, feedback, asked.step, one.flat, one.success, self.control)
            if state is not None:
                self.states[item.task.id] = state
            made.append((item, failure))
        own: Counter[str] = Counter()
        for source in self.sources:
            own.update(source.counts())  # pyright: ignore[reportArgumentType] - costs are fractions
        return made, counts, own

    def push(self, by_rank: Sequence[Sequence[Made]], counts: Mapping[str, int], step: int) -> dict[str, float]:
        """The same pushes in the same order on every rank: one rollout's per root task, even if it straddled ranks."""
        pushed: Counter[int] = Counter()
        roots: set[str] = set()
        for made in by_rank:
            fresh = [one for one in made if one[0].task.root not in roots and one[0].task.id not in self.buffer]
            for item, failure in fresh:
                pushed[item.task.depth] += 1
                self.event_log.failed(failure, item.task.id, step)
                self.event_log.pushed(item)
                for dropped in self.buffer.push(item):
                    self.event_log.dropped(dropped, step, "capacity")
                    self._forget([dropped])
            roots |= {item.task.root for item, _ in fresh}
            self._forget(item for item, _ in made)
        return {
            "fission/pushed": float(pushed.total()),
            "fission/buffer": float(len(self.buffer)),
            "fission/recoveries_per_explore": self.share.rate,
            **{f"fission/pushed_depth_{depth}": float(n) for depth, n in pushed.items() if depth > 1},
            **{f"feedback/{name}": float(counts[name]) for name in ("leaks", "fallbacks")},
            "fission/duplicates": float(counts["duplicates"]),
            **{f"feedback/{name}": float(n) for name, n in counts.items() if name.startswith("fallback/")},
        }

    def explored(self, counts: Mapping[str, int], flat: Sequence[bool]) -> None:
        """Take note of an explore cycle of all ranks."""
        self.share.explored(sum(flat) / max(1, len(flat)))
        self.odds.explored(counts["succeeded"], counts["judged"])

    def recovered(self, outcomes: Sequence[RecoveryOutcome], flat: Sequence[bool], step: int) -> dict[str, float]:
        """Take note of a recover cycle of all ranks; returns its metrics."""
        self.share.recovered(sum(flat) / max(1, len(flat)))
        groups = by_context(self.recovering, outcomes)
        metrics = recover_metrics(self.recovering, outcomes, flat, step)
        for item in self.recovering:
            group = groups[item.task.id]
            judged = [one for one in group if one.reward is not None]
            self.odds.recovered(str(item.kind), sum(not one.failed for one in judged), len(judged))
            self.event_log.recovered(item, step, [one.reward for one in group], [one.text for one in group])
        return metrics

    def waiting_states(self) -> dict[str, Any]:
        """This process's snapshots of instances in the buffer; those being recovered from are not needed again."""
        return {name: state for name, state in self.states.items() if name in self.buffer}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, the same on all ranks. Snapshots are each rank's own, see `waiting_states`."""
        return {"buffer": self.buffer.state(), "share": self.share.state(), "odds": self.odds.state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.buffer.load_state(state["buffer"])
        self.share.load_state(state["share"])
        self.odds.load_state(state["odds"])


def _slug(reason: str) -> str:
    return re.sub(r"\W+", "_", reason.lower())
