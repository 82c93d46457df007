"""What corruptions work on: a step task, its reference call, its tools' schemas and the values of its dialogue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fission_grpo.schema import parameter_schema, tool_names
from fission_grpo.simulator.plausible import seen_values
from fission_grpo.trajectory import Task, ToolCall


@dataclass(frozen=True)
class Ground:
    """What a corruption works on.

    Args:
        task: a step task.
        call: its reference call; None where no call is needed.
        seen: values of the dialogue (`plausible.seen_values`).
    """

    task: Task
    call: ToolCall | None
    seen: Sequence[tuple[str, Any]]

    def schemas(self, name: str) -> Mapping[str, Any]:
        """The schemas of a tool's parameters by name."""
        found = dict(zip(tool_names(self.task.tools), self.task.tools, strict=True)).get(name)
        return {} if found is None else parameter_schema(found).get("properties", {})

    def required(self, name: str) -> Sequence[str]:
        """The parameters a tool needs."""
        found = dict(zip(tool_names(self.task.tools), self.task.tools, strict=True)).get(name)
        return [] if found is None else list(parameter_schema(found).get("required", ()))


def ground_of(task: Task) -> Ground:
    """The ground of a step task. Raises ValueError if it has no reference, or one of several calls."""
    if task.reference is None or len(task.reference) > 1:
        raise ValueError(f"task {task.id!r}: corruptions need a reference of one call or none")
    return Ground(task, task.reference[0] if task.reference else None, seen_values(task))
