"""The types everything else passes around. Frozen, plain, no torch.

The order of a task's life is the order of this file: a Task becomes Turns (calls and their results), the turns
a Trajectory, the trajectory a Verdict; a failed verdict a Failure, which `recovery.recovery_task` turns into a
Task again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

Message = Mapping[str, Any]
"""A chat message as Hugging Face templates take it: `role`, `content`, and for tools `name`."""


class ErrorKind(StrEnum):
    """Why a rollout failed. Decided from structure (parser, schema, exceptions), never from the wording."""

    UNPARSED = "unparsed"  # a tool call was begun but is no valid call
    UNKNOWN_TOOL = "unknown_tool"  # no tool of that name
    BAD_ARGUMENTS = "bad_arguments"  # arguments violate the tool's JSON schema
    RAISED = "raised"  # the tool itself reported an error
    WRONG_CALL = "wrong_call"  # valid calls, but not the reference's
    NO_CALL = "no_call"  # a call was needed, none was made
    TRUNCATED = "truncated"  # the completion hit its length limit
    OUT_OF_TURNS = "out_of_turns"  # the episode hit its limit of turns
    LOW_REWARD = "low_reward"  # the user's reward is below the threshold and nothing finer is known
    INFRASTRUCTURE = "infrastructure"  # not the policy's fault: never scored, never fissioned


@dataclass(frozen=True)
class ToolCall:
    """One tool call. `arguments` holds JSON values only."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ToolResult:
    """What the environment answered to one call. `error` is None, or the environment's own error message."""

    call: ToolCall
    content: str
    error: str | None = None


@dataclass(frozen=True)
class Turn:
    """One assistant turn: `text` is exactly what the policy wrote, the rest is read from it.

    `error` says why the text is not a valid turn (None if it is). `results` has one entry per call once the turn
    was executed, and is empty for turns that never were (step tasks). A turn that could not be read has no calls, but
    one result if the policy was told so within the episode.
    """

    text: str
    content: str = ""
    calls: tuple[ToolCall, ...] = ()
    error: str | None = None
    results: tuple[ToolResult, ...] = ()
    truncated: bool = False


@dataclass(frozen=True)
class Task:
    """Something the policy can be asked: straight from the data set (depth 0) or a recovery task (depth >= 1).

    A *step task* has a `reference` and is judged on one turn. Without one, the user's reward judges.

    Args:
        id: unique name; a recovery task's is derived from its failure.
        prompt: what the policy sees: chat messages, or one plain string.
        tools: JSON schemas `{"name", "description", "parameters"}` of this task's tools (step tasks only; with
            TRL `tools`/`environment_factory` the trainer holds them).
        reference: the calls expected of the next turn, or None.
        columns: the data set row it came from, handed to reward functions and `environment.reset`.
        history: calls made, with their answers, between `environment.reset(**columns)` and the prompt's end; making
            them again is how an environment without snapshots is brought back.
        root: id of the depth-0 task it descends from (its own id at depth 0).
        parent: id of the task whose rollout failed, None at depth 0.
        depth: 0 for data, 1 for a recovery, 2 for the recovery of a failed recovery, ...
    """

    id: str
    prompt: str | tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    reference: tuple[ToolCall, ...] | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    history: tuple[ToolResult, ...] = ()
    root: str = ""
    parent: str | None = None
    depth: int = 0

    def __post_init__(self):
        if not self.root:
            object.__setattr__(self, "root", self.id)


@dataclass(frozen=True)
class Trajectory:
    """A rollout of a task: its turns in order."""

    task: Task
    turns: tuple[Turn, ...]


@dataclass(frozen=True)
class Verdict:
    """How a rollout was judged. `reward` None means it could not be judged (infrastructure)."""

    reward: float | None
    failed: bool
    parts: Mapping[str, float] = field(default_factory=dict)  # "format", "correctness", "length"


@dataclass(frozen=True)
class Failure:
    """A failed rollout, cut after the turn to recover from.

    `turns` ends with the failing turn. `call_index` is the failing call within it (None if the turn as a whole
    failed). `detail` is the parser's, the schema's or the environment's own message: it is derived without the
    reference, so it cannot leak it. `expected` are calls that would have done an episode's task, where its environment
    knows them (`_reference()`): secret as a step task's reference is, and judging nothing. `tools` are the schemas of
    the tools it had, by default its task's.
    """

    task: Task
    turns: tuple[Turn, ...]
    kind: ErrorKind
    detail: str = ""
    call_index: int | None = None
    reward: float | None = None
    expected: tuple[ToolCall, ...] | None = None
    tools: tuple[Mapping[str, Any], ...] = ()

    def __post_init__(self):
        if not self.tools:
            object.__setattr__(self, "tools", self.task.tools)

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        """The calls of the failing turn."""
        return self.turns[-1].calls if self.turns else ()

    @property
    def reference(self) -> tuple[ToolCall, ...] | None:
        """The calls that no diagnosis may give away: the step task's reference, else `expected`."""
        return self.task.reference if self.task.reference is not None else self.expected


UNREADABLE = "_fission_unreadable"
"""Argument that stands for a call nobody could read; its value says why."""


class UnreadableCall(ValueError):
    """The answer to a tool call that could not be read."""


@dataclass(frozen=True)
class Rollout:
    """One judged rollout."""

    trajectory: Trajectory
    verdict: Verdict

    @property
    def text(self) -> str:
        """What was said, for people to read."""
        parts = []
        for turn in self.trajectory.turns:
            parts += [turn.text, *(f"[{result.call.name}] {result.content}" for result in turn.results)]
        return "\n".join(parts)

    @property
    def erred(self) -> bool:
        """Whether at least one tool call of an episode failed. Step tasks end with their first turn: never."""
        if self.trajectory.task.reference is not None:
            return False
        return any(turn.error or any(result.error for result in turn.results) for turn in self.trajectory.turns)
