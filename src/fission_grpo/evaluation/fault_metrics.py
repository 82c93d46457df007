"""Recovery from injected faults, by cell: explicit or implicit, transient or permanent.

The cells, and the names recovery rate and recovery cost, are those of ToolMaze (arXiv 2606.05806); what counts as a
response to a fault, and as a call that was not needed, is ours. Of each case the first fault of a cell counts.
"""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from fission_grpo.envs.faults import CELLS
from fission_grpo.evaluation.attempts import Attempt, CaseSummary
from fission_grpo.evaluation.intervals import Pair, mean_interval
from fission_grpo.evaluation.rates import Passes, Proportion, bootstrap_of, by_task, passes_of, share_of, success_of

RETRY, ANOTHER_WAY, STOP = "retry", "another way", "justified stop"
NOT_NEEDED = "no response needed"  # a success that the fault could not prevent
TAKES_EFFECT = {"empty", "partial"}  # kinds of fault whose call does what it should; only its result is lost
MAX_REPEATS = 1  # repetitions of the call before a stop that is justified [ours]
SAYS_SO = re.compile(
    r"\b(cannot|can't|could ?n[o']t|could not|unable|fail(ed|s|ure)?|errors?|unavailable|not available|no longer"
    r"|denied|no permission|not permitted|not allowed|not possible|impossible|sorry)\b",
    re.IGNORECASE,
)
"""What a last message says that reports a failure. [ours]"""


@dataclass(frozen=True)
class Cost:
    """Calls after the fault beyond those of the reference that were still to be made, in recovered cases.

    Counted is a success by retry or by another way, where the environment has a reference. `mean` and `median` are
    calls; the interval of the mean is a 95% bootstrap over tasks.
    """

    cases: int
    mean: float | None
    interval: tuple[float, float] | None
    median: float | None


@dataclass(frozen=True)
class FaultCell:
    """The judged cases that met a fault of a cell. Shares by response are over those in which one was needed."""

    name: str
    faults: int  # injected into these cases
    success: Proportion
    recovery: Proportion  # the next three together
    retry: Proportion  # the same call again, which succeeded, and the task
    another_way: Proportion  # the task, without that call
    justified_stop: Proportion  # see `response`
    not_needed: int  # cases left out of the four shares above: successes that the fault could not prevent
    cost: Cost
    retry_loops: Proportion  # of calls that a fault made fail, those whose next attempt is the same and fails again
    own_errors: int  # the policy's, in these cases
    passes: Passes | None  # for the largest k; None where every task has one sample


def fault_cells(judged: Sequence[CaseSummary]) -> tuple[FaultCell, ...]:
    """The cells of the faults that these cases met, in the order of `CELLS`. A case can be in several."""
    return tuple(_cell(name, cases) for name in CELLS if (cases := [one for one in judged if _met(one, name)]))


def response(case: CaseSummary, cell: str) -> str | None:
    """The right response to the first fault of a cell, or None where there was none.

    "retry": the task succeeded, and the same call was made again without a fault. "another way": it succeeded without.
    "no response needed": so it did, and the reference has no more calls of this tool, beside this one if it had its
    effect all the same. "justified stop": the fault is permanent and a call of the tool was still needed; after it the
    call was repeated at most `MAX_REPEATS` times, no own error followed, and the last reply makes no call and says
    that something failed (`SAYS_SO`). That no other way existed is not known.
    """
    at, fault = _first(case, cell)
    later, is_known = case.attempts[at + 1 :], bool(case.record.needed)
    needed = _still_needed(case, at)[fault.content[0]]
    if case.record.success:
        if any(_is_fine(one) and not one.fault and one.content == fault.content for one in later):
            return RETRY
        return NOT_NEEDED if is_known and needed <= (fault.kind_of_fault in TAKES_EFFECT) else ANOTHER_WAY
    last = case.record.steps[-1]
    stopped = not (last.calls or last.unread or last.truncated) and bool(SAYS_SO.search(last.text))
    is_right = sum(one.content == fault.content for one in later) <= MAX_REPEATS and not any(one.kind for one in later)
    return STOP if cell.endswith("permanent") and (needed or not is_known) and is_right and stopped else None


def calls_not_needed(case: CaseSummary, cell: str) -> int | None:
    """Attempts after the first fault of a cell beyond the reference's calls still to be made; None without one.

    Example: the reference is a, b, b; the policy calls a, then b, which meets a fault, then b, c, b: 1.
    """
    if not case.record.needed:
        return None
    at, _ = _first(case, cell)
    return max(0, len(case.attempts) - at - 1 - _still_needed(case, at).total())


def _still_needed(case: CaseSummary, at: int) -> Counter[str]:
    """The reference's calls by tool less those made before attempt `at`, which may have lost its result."""
    return Counter(case.record.needed) - Counter(one.content[0] for one in case.attempts[:at] if _is_fine(one))


def _is_fine(attempt: Attempt) -> bool:
    """Whether an attempt is a call without an error or a fault that kept it from its effect."""
    if attempt.call is None or attempt.call.error is not None:
        return False
    return not attempt.fault or attempt.kind_of_fault in TAKES_EFFECT


def _met(case: CaseSummary, cell: str) -> bool:
    return any(attempt.fault == cell for attempt in case.attempts)


def _first(case: CaseSummary, cell: str) -> tuple[int, Attempt]:
    return next((at, attempt) for at, attempt in enumerate(case.attempts) if attempt.fault == cell)


def _cell(name: str, cases: Sequence[CaseSummary]) -> FaultCell:
    responses = {id(case): response(case, name) for case in cases}
    counted = [case for case in cases if responses[id(case)] != NOT_NEEDED]

    def share(*kinds: str) -> Proportion:
        return share_of(counted, lambda case: responses[id(case)] in kinds)

    return FaultCell(
        name=name,
        faults=sum(attempt.fault == name for case in cases for attempt in case.attempts),
        success=success_of(cases),
        recovery=share(RETRY, ANOTHER_WAY, STOP),
        retry=share(RETRY),
        another_way=share(ANOTHER_WAY),
        justified_stop=share(STOP),
        not_needed=len(cases) - len(counted),
        cost=_cost(name, [case for case in cases if responses[id(case)] in (RETRY, ANOTHER_WAY)]),
        retry_loops=bootstrap_of(cases, lambda case: _loops(case, name)),
        own_errors=sum(len(case.own) for case in cases),
        passes=next(iter(passes_of(cases)[-1:]), None),
    )


def _cost(name: str, cases: Sequence[CaseSummary]) -> Cost:
    known = [case for case in cases if case.record.needed]
    costs = {id(case): calls_not_needed(case, name) or 0 for case in known}
    pairs = list(by_task(known, lambda case: (costs[id(case)], 1)).values())
    mean, median = (statistics.fmean(costs.values()), statistics.median(costs.values())) if known else (None, None)
    return Cost(len(known), mean, mean_interval(pairs), median)


def _loops(case: CaseSummary, cell: str) -> Pair:
    """Calls that a fault of the cell made fail and whose next attempt is the same and fails so again, and all such."""
    failed = [attempt.injected and attempt.fault == cell for attempt in case.attempts]
    following = zip(case.attempts, case.attempts[1:], failed, failed[1:], strict=False)
    return sum(a_failed and b_failed and a.content == b.content for a, b, a_failed, b_failed in following), sum(failed)
