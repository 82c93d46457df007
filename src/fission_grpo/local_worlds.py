"""The environments of this process's rollouts, as they stand after a cycle."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from fission_grpo.environment import state_after, tool_methods
from fission_grpo.failure import find_failures
from fission_grpo.rollouts import Rollout
from fission_grpo.trajectory import Failure


class LocalWorlds:
    """What the trainer asks of the environments when it looks at a cycle's rollouts.

    Args:
        environments: TRL's, one per local rollout; None without any.
        tools: functions that are tools beside the environments'.
        watched: whether they are wrapped by `environment.restorable`.
        schemas: remembers the tools' JSON schemas by class, from one cycle to the next.
    """

    def __init__(
        self,
        environments: Sequence[Any] | None,
        tools: Sequence[Callable[..., Any]] | None,
        watched: bool,
        schemas: dict[type, tuple[Any, ...]],
    ):
        self.environments, self.tools, self.watched = environments or (), tools or (), watched
        self._schemas = schemas

    def failures(self, i: int, rollout: Rollout, branch: str) -> list[Failure]:
        """The turns of local rollout `i` to recover from, with what its environment knows to be right (`_reference`).

        Args:
            branch: see `failure.find_failures`.
        """
        trajectory = rollout.trajectory
        found = find_failures(trajectory, rollout.verdict, trajectory.task.tools or self._tool_schemas(i), branch)
        known = getattr(self.environments[i], "_reference", None) if self.environments else None
        return [replace(failure, expected=tuple(known())) for failure in found] if known and found else found

    def state_at(self, i: int) -> Callable[[Failure], Any]:
        """From a failure of local rollout `i` to the snapshot of its environment there, None without one."""

        def state(failure: Failure) -> Any:
            if not self.environments or not self.watched:
                return None
            return state_after(self.environments[i], [r for turn in failure.turns for r in turn.results])

        return state

    def take_counts(self) -> Counter[str]:
        """What the environments' watches have counted since they were last asked."""
        counts: Counter[str] = Counter()
        for world in self.environments if self.watched else ():
            counts.update({f"world/{name}": n for name, n in world._fission_watch.counts.items()})
            world._fission_watch.counts.clear()
        return counts

    def _tool_schemas(self, i: int) -> tuple[Any, ...]:
        """The tools of local rollout `i` as JSON schemas."""
        from transformers.utils import get_json_schema

        world = self.environments[i] if self.environments else None
        if type(world) not in self._schemas:
            methods = tool_methods(world).values() if world is not None else ()
            self._schemas[type(world)] = tuple(get_json_schema(tool) for tool in (*self.tools, *methods))
        return self._schemas[type(world)]
