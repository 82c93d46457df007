"""From TRL's rows and completions to our Tasks, Turns and Verdicts, and from a Task back to a row."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

from fission_grpo.core.chat import parse, read_result, render
from fission_grpo.core.serialization import STEP_KEY, step_task, task_to_json
from fission_grpo.core.types import (
    PARSE_ERROR,
    Message,
    Rollout,
    Task,
    ToolCall,
    ToolResult,
    Trajectory,
    Turn,
    Verdict,
)
from fission_grpo.envs.restore import TASK_KEY, TurnVerdict


def task_of_row(row: Mapping[str, Any], prompt: str | Sequence[Message]) -> Task:
    """The Task a TRL row stands for. `prompt` is the prompt as sampled from (with the environment's observation)."""
    if TASK_KEY in row:
        return row[TASK_KEY]
    if STEP_KEY in row:
        task = step_task(row[STEP_KEY])
        columns = {key: value for key, value in row.items() if key not in ("prompt", STEP_KEY)}
        return replace(task, columns={**task.columns, **columns})
    name = row.get("id")
    if not isinstance(name, str):
        text = json.dumps(row, sort_keys=True, default=str)
        name = "t" + hashlib.sha1(text.encode("utf-8", "surrogatepass")).hexdigest()[:15]
    return Task(id=name, prompt=prompt if isinstance(prompt, str) else tuple(prompt), columns=dict(row))


def row_of_task(task: Task, tokenizer: Any) -> dict[str, Any]:
    """The TRL row of a recovery task: the root's columns, the recovery prompt, and the Task itself."""
    row = {**task.columns, TASK_KEY: task}
    if task.reference is not None:
        row[STEP_KEY] = task_to_json(task)
    if isinstance(task.prompt, str):
        return {**row, "prompt": task.prompt}
    if task.reference is not None:
        return {**row, "prompt": render([dict(message) for message in task.prompt], task.tools, tokenizer)}
    return {**row, "prompt": [dict(message) for message in task.prompt]}


def read_turns(
    completion: str | Sequence[Message],
    sampled: Sequence[Sequence[int]],
    decode: Callable[[list[int]], str],
    eos_ids: Iterable[int],
    calls_tools: bool,
) -> tuple[Turn, ...]:
    """The assistant turns of one completion, each with exactly the text the policy wrote.

    Args:
        completion: TRL's: a string, or messages `assistant, tool, tool, assistant, ...`.
        sampled: token ids the policy sampled, one list per assistant turn (see `sampled_segments`).
        decode: token ids to text, special tokens kept.
        eos_ids: ids that end a turn.
        calls_tools: whether text is to be read for tool calls at all.
    """
    eos = set(eos_ids)
    texts = [decode([*ids[:-1]] if ids and ids[-1] in eos else [*ids]) for ids in sampled]
    truncated = [not ids or ids[-1] not in eos for ids in sampled]
    if isinstance(completion, str):
        text, cut = ("".join(texts), truncated[-1] if truncated else True)
        return (parse(text, truncated=cut) if calls_tools else Turn(text, content=text, truncated=cut),)
    groups = _assistant_groups(completion)
    turns = []
    for index, (message, results) in enumerate(groups):
        known = len(texts) == len(groups)  # else the template hid a turn: fall back to the parsed content
        text = texts[index] if known else str(message.get("content") or "")
        cut = truncated[index] if known else False
        turns.append(_turn(text, cut, message, results) if calls_tools else Turn(text, content=text, truncated=cut))
    return tuple(turns)


def _assistant_groups(completion: Sequence[Message]) -> list[tuple[Message, list[Message]]]:
    groups: list[tuple[Message, list[Message]]] = []
    for message in completion:
        if message["role"] == "assistant":
            groups.append((message, []))
        elif groups:
            groups[-1][1].append(message)
    return groups


def _turn(text: str, truncated: bool, message: Message, results: Sequence[Message]) -> Turn:
    turn = parse(text, truncated=truncated)
    if len(results) == 1 and (told := _told(message, str(results[0]["content"]))):
        return replace(turn, calls=(), error=told.error, results=(told,))
    called = [
        call["function"] for call in message.get("tool_calls") or () if isinstance(call.get("function"), Mapping)
    ]
    if not called:
        return turn
    calls = tuple(
        ToolCall(str(c.get("name")), c["arguments"] if isinstance(c.get("arguments"), Mapping) else {}) for c in called
    )
    answers = tuple(read_result(call, str(answer["content"])) for call, answer in zip(calls, results, strict=False))
    return replace(turn, calls=calls, error=None, results=answers)


def _told(message: Message, content: str) -> ToolResult | None:
    """What was answered to a turn that could not be read, None for any other turn."""
    for call in message.get("tool_calls") or ():
        function = call.get("function")
        if isinstance(function, Mapping) and PARSE_ERROR in (function.get("arguments") or ()):
            arguments = function["arguments"]
            return ToolResult(ToolCall(function["name"], arguments), content, str(arguments[PARSE_ERROR]))
    return None


def sampled_segments(ids: Sequence[int], mask: Sequence[int] | None) -> list[list[int]]:
    """Split completion ids into the runs the policy sampled (mask 1), leaving out tool results (mask 0).

    >>> sampled_segments([5, 6, 7, 8, 9], [1, 1, 0, 0, 1])
    [[5, 6], [9]]
    """
    if mask is None:
        return [list(ids)]
    pairs = groupby(zip(ids, mask, strict=False), key=lambda pair: pair[1])
    return [[token for token, _ in run] for sampled, run in pairs if sampled]


@dataclass(frozen=True)
class RolloutBatch:
    """One rank's rollouts. All sequences have one entry per row.

    Args:
        rows: as given to TRL.
        prompts: as sampled from.
        completions: strings, or messages.
        completion_ids: token ids, tool results included.
        masks: 1 for ids the policy sampled, 0 for others; None where all were sampled.
        rewards: weighted sums, NaN where there is none.
        corrected: by row number, the verdict on a corrective turn whose calls we made ourselves.
    """

    rows: Sequence[Mapping[str, Any]]
    prompts: Sequence[str | Sequence[Message]]
    completions: Sequence[str | Sequence[Message]]
    completion_ids: Sequence[Sequence[int]]
    masks: Sequence[Sequence[int] | None]
    rewards: Sequence[float]
    corrected: Mapping[int, TurnVerdict] = field(default_factory=dict)


@dataclass(frozen=True)
class RolloutReader:
    """How to read a batch.

    Args:
        decode: token ids to text, special tokens kept.
        eos_ids: ids that end a turn.
        threshold: a rollout with a smaller reward has failed.
        step_reward: judges step tasks, None if there is no StepReward.
    """

    decode: Callable[[list[int]], str]
    eos_ids: Sequence[int]
    threshold: float
    step_reward: Any = None

    def read(self, batch: RolloutBatch, has_tools: bool, progress: float) -> list[Rollout]:
        """The rollouts in order. `has_tools`: whether texts may hold tool calls; `progress`: of training, 0 to 1."""
        return [self._rollout(batch, i, has_tools, progress) for i in range(len(batch.rows))]

    def _rollout(self, batch: RolloutBatch, i: int, has_tools: bool, progress: float) -> Rollout:
        task = task_of_row(batch.rows[i], batch.prompts[i])
        segments = sampled_segments(batch.completion_ids[i], batch.masks[i])
        calls_tools = has_tools or task.reference is not None
        turns = read_turns(batch.completions[i], segments, self.decode, self.eos_ids, calls_tools)
        reward = None if math.isnan(batch.rewards[i]) else batch.rewards[i]
        verdict = Verdict(reward, failed=batch.rewards[i] < self.threshold)
        if reward is not None and task.reference is not None and self.step_reward is not None:
            judged = self.step_reward.verdict_of(task.id, batch.completion_ids[i])
            verdict = replace(verdict, failed=judged.failed or turns[-1].truncated, parts=judged.parts)
        if i in batch.corrected:
            turns = (with_results(turns[0], batch.corrected[i]),)
            verdict = replace(verdict, failed=not batch.corrected[i].resolved)
        return Rollout(Trajectory(task, turns), verdict)


def with_results(turn: Turn, verdict: TurnVerdict) -> Turn:
    """A corrective turn with what its calls answered."""
    if turn.error is not None or not verdict.results:
        return replace(turn, results=verdict.results)
    return replace(turn, calls=tuple(result.call for result in verdict.results), results=verdict.results)
