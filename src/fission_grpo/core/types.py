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

Message = Mapping[str, Any]  # as Hugging Face templates take it: `role`, `content`; tool messages have a `name` too
FOLLOWING = "following"  # column of a step task: the reference calls of the turns after it, the last one without any
PARSE_ERROR = "_fission_unreadable"  # argument of a placeholder for an unparsable call: the parser's message


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
    """A call with the environment's answer to it."""

    call: ToolCall
    content: str  # the answer as the policy reads it
    error: str | None = None  # the environment's error message, None if the call succeeded


@dataclass(frozen=True)
class Turn:
    """One assistant message and the results of its calls."""

    text: str  # exactly what the policy generated; the other fields are parsed from it
    content: str = ""  # the text outside of thoughts and tool calls, stripped
    calls: tuple[ToolCall, ...] = ()  # in order; none if there is an error, as an invalid turn is not executed
    error: str | None = None  # why the text is not a valid turn, None if it is
    results: tuple[ToolResult, ...] = ()  # one per executed call, or one that showed the policy the turn's error
    truncated: bool = False  # whether the text ends because the length limit was reached


@dataclass(frozen=True)
class Task:
    """A prompt to sample from, and what is needed to judge the answer.

    There are two sorts. A *step task* has a `reference` and is judged on one assistant turn; nothing is
    executed. An *episode* has none: its calls are executed in an environment, and a reward function judges it.
    Either may come from the data set (depth 0) or be a *recovery task* made of a failure (depth 1 and more).
    An environment without snapshots is restored by `reset(**columns)` and a repetition of the calls in `history`.
    """

    id: str  # unique; that of a recovery task is derived from its failure (`serialization.recovery_id`)
    prompt: str | tuple[Message, ...]  # what the policy reads: chat messages, or one plain string
    tools: tuple[Mapping[str, Any], ...] = ()  # `{"name", "description", "parameters": JSON schema}`; step tasks only
    reference: tuple[ToolCall, ...] | None = None  # the calls expected of the next turn, maybe none; None for episodes
    columns: Mapping[str, Any] = field(default_factory=dict)  # the data set row, for rewards and `environment.reset`
    history: tuple[ToolResult, ...] = ()  # all calls, with results, between `reset` and the end of the prompt
    root: str = ""  # id of the depth-0 task this one descends from; its own at depth 0
    parent: str | None = None  # id of the task whose rollout failed, None at depth 0
    depth: int = 0  # 0 for the data set, 1 for a recovery, 2 for the recovery of a failed recovery, and so on
    failed: tuple[tuple[ToolCall, ...], ...] = ()  # of a recovery: the calls of each failed turn before it

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

    `parts` are R_fmt (0 or 1), R_corr (0 to 2) and R_len (0 to 1) of a step task without their weights, under
    "format", "correctness" and "length"; empty for episodes.
    """

    reward: float | None  # in the reward function's unit; None if it could not be judged (infrastructure error)
    failed: bool  # whether it is a failure to recover from
    parts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Rollout:
    """A trajectory with its verdict."""

    trajectory: Trajectory
    verdict: Verdict

    @property
    def text(self) -> str:
        """The turns and their results as text for people to read; further lines of a result are indented."""
        parts = []
        for turn in self.trajectory.turns:
            answers = [(result.call.name, result.content.replace("\n", "\n  ")) for result in turn.results]
            parts += [turn.text, *(f"[{name}] {content}" for name, content in answers)]
        return "\n".join(parts)

    @property
    def erred(self) -> bool:
        """Whether a tool call of an episode failed. False for step tasks, which execute nothing."""
        if self.trajectory.task.reference is not None:
            return False
        turns = self.trajectory.turns
        return any(t.error is not None or any(r.error is not None for r in t.results) for t in turns)


@dataclass(frozen=True)
class Failure:
    """A failed trajectory, cut after the turn to recover from.

    `detail` is derived without the reference, so it cannot reveal it. `expected` is for episodes whose environment
    knows calls that complete them (`_reference()`): secret like a step task's reference, and not used for judging.
    """

    task: Task
    turns: tuple[Turn, ...]  # up to and including the failing one
    kind: ErrorKind
    detail: str = ""  # the message of the parser, the schema or the environment
    call_index: int | None = None  # index of the failing call in the last turn, None if the turn as a whole failed
    reward: float | None = None
    expected: tuple[ToolCall, ...] | None = None
    tools: tuple[Mapping[str, Any], ...] = ()  # schemas of the available tools; by default the task's

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
