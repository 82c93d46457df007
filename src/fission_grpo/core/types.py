"""The types that all packages share: frozen dataclasses, no torch. Also the glossary of the project.

In the order of one training example: a data set row is a `Task`. The policy answers it with `Turn`s, each
with `ToolCall`s and `ToolResult`s; all turns together are a `Trajectory`. A judge adds a `Verdict`, which
makes it a `Rollout`. A failed rollout is cut to a `Failure`, and `fission.recovery.recovery_task` turns the
failure and feedback on it into a new `Task`, one level deeper.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

Message = Mapping[str, Any]
"""A chat message as Hugging Face templates take it: `role`, `content`; tool messages have a `name` too."""

PARSE_ERROR = "_fission_unreadable"
"""Argument name of a placeholder call that stands for an unparsable one. Its value is the parser's message."""


class ToolCallParseError(ValueError):
    """A tool call could not be parsed; the message is what the policy reads as the call's result."""


class ErrorKind(StrEnum):
    """Why a rollout failed. Derived from structure (parser, schema, exceptions), never from the wording of a text."""

    UNPARSED = "unparsed"  # the text starts a tool call that is not valid
    UNKNOWN_TOOL = "unknown_tool"  # no tool has the called name
    BAD_ARGUMENTS = "bad_arguments"  # the arguments violate the tool's JSON schema
    RAISED = "raised"  # the tool itself reported an error
    WRONG_CALL = "wrong_call"  # valid calls, but not those of the reference
    NO_CALL = "no_call"  # a call was expected, none was made
    TRUNCATED = "truncated"  # the completion reached its length limit
    OUT_OF_TURNS = "out_of_turns"  # the episode reached its limit of turns
    LOW_REWARD = "low_reward"  # the reward is below the threshold and nothing more specific is known
    INFRASTRUCTURE = "infrastructure"  # not the policy's fault: never scored, never used for recovery


@dataclass(frozen=True)
class ToolCall:
    """A call of one tool. `arguments` holds JSON values only, by parameter name."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ToolResult:
    """A call with the environment's answer to it.

    Args:
        call: the call.
        content: the answer as the policy reads it.
        error: the environment's error message, None if the call succeeded.
    """

    call: ToolCall
    content: str
    error: str | None = None


@dataclass(frozen=True)
class Turn:
    """One assistant message and the results of its calls.

    Args:
        text: exactly what the policy generated; the other fields are parsed from it.
        content: the text outside of thoughts and tool calls, stripped.
        calls: the calls in order. Empty if `error` is set: no call of an invalid turn is executed.
        error: why the text is not a valid turn, None if it is.
        results: one per call once the turn was executed; empty in step tasks, which execute nothing. A turn
            with an `error` has one result if the policy was shown the error within its episode.
        truncated: the text ends because the length limit was reached.
    """

    text: str
    content: str = ""
    calls: tuple[ToolCall, ...] = ()
    error: str | None = None
    results: tuple[ToolResult, ...] = ()
    truncated: bool = False


@dataclass(frozen=True)
class Task:
    """A prompt to sample from, and what is needed to judge the answer.

    There are two sorts. A *step task* has a `reference` and is judged on one assistant turn; nothing is
    executed. An *episode* has none: its calls are executed in an environment, and a reward function judges it.
    Either may come from the data set (depth 0) or be a *recovery task* made of a failure (depth 1 and more).

    Args:
        id: unique name; that of a recovery task is derived from its failure (`serialization.recovery_id`).
        prompt: what the policy reads: chat messages, or one plain string.
        tools: the tools as `{"name", "description", "parameters": JSON schema}`. Step tasks only: the trainer
            holds the tools of episodes.
        reference: the calls expected of the next turn; empty if it should call nothing; None for episodes.
        columns: the data set row, which reward functions and `environment.reset` receive.
        history: all calls, with results, between `environment.reset(**columns)` and the end of the prompt.
            Repeating them restores an environment that has no snapshots.
        root: id of the depth-0 task this one descends from; its own id at depth 0.
        parent: id of the task whose rollout failed; None at depth 0.
        depth: 0 for the data set, 1 for a recovery, 2 for the recovery of a failed recovery, and so on.
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
    """The policy's answer to a task: its turns in order. A step task has exactly one."""

    task: Task
    turns: tuple[Turn, ...]


@dataclass(frozen=True)
class Verdict:
    """The judgement of a trajectory.

    Args:
        reward: in the unit of the reward function, None if it could not be judged (infrastructure error).
        failed: whether it counts as a failure to recover from.
        parts: of a step task R_fmt (0 or 1), R_corr (0 to 2) and R_len (0 to 1) without their weights, under
            "format", "correctness" and "length"; empty for episodes.
    """

    reward: float | None
    failed: bool
    parts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Rollout:
    """A trajectory with its verdict."""

    trajectory: Trajectory
    verdict: Verdict

    @property
    def text(self) -> str:
        """The turns and their results as text for people to read."""
        parts = []
        for turn in self.trajectory.turns:
            parts += [turn.text, *(f"[{result.call.name}] {result.content}" for result in turn.results)]
        return "\n".join(parts)

    @property
    def erred(self) -> bool:
        """Whether a tool call of an episode failed. False for step tasks, which execute nothing."""
        if self.trajectory.task.reference is not None:
            return False
        return any(turn.error or any(result.error for result in turn.results) for turn in self.trajectory.turns)


@dataclass(frozen=True)
class Failure:
    """A failed trajectory, cut after the turn to recover from.

    Args:
        task: the task that was attempted.
        turns: the turns up to and including the failing one.
        kind: why it failed.
        detail: the message of the parser, the schema or the environment. It is derived without the reference,
            so it cannot reveal it.
        call_index: index of the failing call in the last turn, None if the turn as a whole failed.
        reward: the trajectory's reward, if known.
        expected: calls that would have completed an episode, if its environment knows them (`_reference()`).
            They are secret like a step task's reference and are not used for judging.
        tools: schemas of the tools that were available; by default the task's.
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
        """The calls that no feedback may reveal: the step task's reference, else `expected`."""
        return self.task.reference if self.task.reference is not None else self.expected
