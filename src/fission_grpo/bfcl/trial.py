"""A policy's calls on a case, executed and judged user turn by user turn."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from fission_grpo.bfcl.cases import MultiTurnCase
from fission_grpo.bfcl.decoding import OfficialCall, clean
from fission_grpo.bfcl.docs import class_docs, official_schema
from fission_grpo.bfcl.execution import execute, hidden_names
from fission_grpo.bfcl.verify import judge_turn
from fission_grpo.bfcl.worlds import World, new_world
from fission_grpo.chat import read_result
from fission_grpo.evaluation.records import CallRecord
from fission_grpo.schema import check_call
from fission_grpo.trajectory import ErrorKind, ToolCall

FORCED = "multi_turn:force_terminated"
INFERENCE_ERROR = "multi_turn:inference_error"
"""Official `error_type`s of cases that are not judged: not every turn was played, or the handler itself failed."""


class Trial:
    """One case being played, in a world of its own beside the reference's.

    Attributes:
        verdict: the official `error_type` of the first turn that was wrong, None so far.
    """

    def __init__(self, case: MultiTurnCase):
        self._case = case
        self._world, self._truth = (new_world(case.classes, case.config, case.long_context) for _ in range(2))
        self._hidden = hidden_names(self._world, case.id)
        self._results: list[str] = []
        self._turn, self._called = 0, False
        self.verdict: str | None = None

    def make(self, calls: Sequence[OfficialCall]) -> tuple[CallRecord, ...]:
        """Make the calls of one step, in order. What the policy is shown stands in each record's `result`."""
        self._called = self._called or bool(calls)
        return tuple(self._make(call) for call in calls)

    def end_turn(self) -> bool:
        """End the user turn: whether everything up to here is right. A turn beyond the reference's never is."""
        if self._turn >= len(self._case.reference):
            self.verdict = self.verdict or FORCED
        if self.verdict is None:
            wanted = [self._truth.call(call) for call in self._case.reference[self._turn]]
            verdict = judge_turn(self._world, self._truth, self._results, wanted, self._called, self._turn)
            self.verdict = verdict.error
        self._turn, self._called = self._turn + 1, False
        return self.verdict is None

    def _make(self, call: OfficialCall) -> CallRecord:
        result = execute(self._world, call.source, self._hidden)
        self._results.append(result)
        made = ToolCall(call.name, call.arguments)
        if self._world.error is not None:
            error = str(self._world.error) or type(self._world.error).__name__
        else:
            error = read_result(made, result).error if '"error"' in result else None
        if error is None:
            return CallRecord(call.name, call.arguments, clean(result))
        return CallRecord(call.name, call.arguments, clean(result), clean(error), _kind(made, self._world))


def _kind(call: ToolCall, world: World) -> ErrorKind:
    problem = check_call(call, _schemas(tuple(world.instances)))
    return ErrorKind.RAISED if problem is None else problem.kind


@cache
def _schemas(classes: tuple[str, ...]) -> tuple[dict[str, Any], ...]:
    return tuple(official_schema(name) for class_name in classes for name in class_docs(class_name))
