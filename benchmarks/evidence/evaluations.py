"""Evaluating a policy in memory on the sets of a suite: one line of raw results per set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from desk_sets import SETS, desk_plays
from suite import Set

from fission_grpo.evaluation.attempts import retry_loops, summarize
from fission_grpo.evaluation.intervals import total
from fission_grpo.evaluation.records import CaseRecord
from fission_grpo.evaluation.runner import RunningCase, run_cases
from fission_grpo.evaluation.task_sets import TaskSpec, task_set
from fission_grpo.inference.local import LocalPolicy

TASK_SEED = 1000
"""Of the desk's held-out tasks, the same for all arms and seeds. [ours]"""


def plays_of(one: Set) -> Mapping[str, Callable[[], RunningCase]]:
    """How to begin every case of a set, by id.

    Raises:
        ValueError: there are no such tasks.
    """
    if (name := one.tasks.removeprefix("desk:")) in SETS:
        return desk_plays(name, one.count, TASK_SEED, one.skip)
    return task_set(TaskSpec(one.tasks, one.count, one.skip, TASK_SEED, one.max_turns)).cases


def evaluate(model: Any, tokenizer: Any, one: Set, seed: int) -> list[CaseRecord]:
    """The records of a set's cases, in order. The state of random generators is left as it was."""
    policy = LocalPolicy(model, tokenizer, one.temperature, one.max_new_tokens, one.in_flight, seed)
    done: dict[str, CaseRecord] = {}
    plays = plays_of(one)
    run_cases(policy, iter(plays.values()), one.in_flight, lambda record: done.update({record.id: record}))
    return [done[name] for name in plays]


def raw_line(records: Sequence[CaseRecord]) -> dict[str, Any]:
    """What is kept of an evaluation: `outcomes` has a letter per case (see `outcome`)."""
    played = [summarize(record) for record in records if record.missing is None]
    calls, kinds = total([case.errors_and_calls for case in played])[1], Counter()
    for case in played:
        kinds.update(error.kind.value for error in case.own if error.kind is not None)
    return {
        "tasks": len(records),
        "outcomes": "".join(map(outcome, records)),
        "error_kinds": dict(kinds),
        "calls": calls,
        "loops": list(total([retry_loops(case) for case in played])),
        "eval_tokens": sum(step.tokens for case in played for step in case.record.steps),
    }


def outcome(record: CaseRecord) -> str:
    """s: success without an own error, r: after one; x: failure after one, f: without any; -: missing.

    An own error is a call that erred without a fault being injected, or a reply that could not be read.
    """
    case = summarize(record)
    if not case.judged:
        return "-"
    if record.success:
        return "r" if case.own else "s"
    return "x" if case.own else "f"


def card(records: Sequence[CaseRecord]) -> dict[str, list[str]]:
    """The ids and categories of a set's cases, in the order of `outcomes`."""
    return {"ids": [record.id for record in records], "categories": [record.category for record in records]}
