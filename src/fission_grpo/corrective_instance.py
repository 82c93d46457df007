"""CorrectiveInstance: a failure made into a task, x_corr, with where it came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fission_grpo.tasks import task_from_json, task_to_json
from fission_grpo.trajectory import ErrorKind, Task


@dataclass(frozen=True)
class CorrectiveInstance:
    """x_corr = [x; failed rollout; feedback] (paper, stage 2) with where it came from.

    `task.id` is derived from the task and the failed rollout's text, so equal ids mean the same failure.
    `zero_variance` tells whether all rewards of the group it came from were equal (no gradient there),
    `group_success` which share of that group's rollouts succeeded.
    """

    task: Task
    step: int
    kind: ErrorKind
    source: str
    feedback: str
    failed: str
    reward: float
    leaked: bool = False
    fallback: str | None = None
    zero_variance: bool = False
    group_success: float = 0.0

    def to_json(self) -> dict[str, Any]:
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in ("task", "kind")}
        return {**fields, "kind": str(self.kind), "task": task_to_json(self.task)}

    @staticmethod
    def from_json(state: dict[str, Any]) -> CorrectiveInstance:
        return CorrectiveInstance(**{**state, "kind": ErrorKind(state["kind"]), "task": task_from_json(state["task"])})
