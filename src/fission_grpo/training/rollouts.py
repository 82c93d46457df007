"""One cycle's rows and completions as Rollouts and Failures, and a Task as a row of TRL."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

from fission_grpo.core.chat import parse, read_result
from fission_grpo.core.result_errors import like_errors
from fission_grpo.core.rewards import StepReward
from fission_grpo.core.serialization import STEP_KEY
from fission_grpo.core.special_tokens import SpecialTokenFilter
from fission_grpo.core.terminal import get_logger
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
from fission_grpo.data.rows import task_of_row
from fission_grpo.envs.step_calls import StepEnvironments, names_environment
from fission_grpo.envs.wrapper import tool_methods
from fission_grpo.fission.failures import FailedRollout, failed_rollout
from fission_grpo.fission.metrics import RecoveryOutcome, count_rollouts
from fission_grpo.fission.recovery import continued_task
from fission_grpo.training.cycle import Cycle, CycleScores, Row

_log = get_logger(__name__)


def read_turns(
    completion: str | Sequence[Message],
    sampled: Sequence[Sequence[int]],
    decode: Callable[[list[int]], str],
    eos_ids: Iterable[int],
    reads_calls: bool,
    error_if: Callable[[str], bool] | None = None,
) -> tuple[Turn, ...]:
    """Return the assistant turns of one completion, each with exactly the text the policy wrote.

    Args:
        completion: TRL's: a string, or messages `assistant, tool, tool, assistant, ...`.
        sampled: token ids the policy sampled, one list per assistant turn (see `sampled_segments`).
        decode: token ids to text, special tokens kept.
        eos_ids: ids that end a turn.
        reads_calls: whether to look for tool calls in the texts.
        error_if: whether a result's text is an error, beside those that `chat.read_result` finds.
    """
    eos = set(eos_ids)
    texts = [decode([*ids[:-1]] if ids and ids[-1] in eos else [*ids]) for ids in sampled]
    truncated = [not ids or ids[-1] not in eos for ids in sampled] or [True]
    if isinstance(completion, str):
        text, cut = "".join(texts), truncated[-1]
        return (parse(text, truncated=cut) if reads_calls else Turn(text, content=text, truncated=cut),)
    groups = _assistant_groups(completion)
    turns = []
    for index, (message, results) in enumerate(groups):
        known = len(texts) == len(groups)  # otherwise the template hid a turn, and the parsed content must do
        text = texts[index] if known else str(message.get("content") or "")
        cut = truncated[index] if known else truncated[-1] and index == len(groups) - 1
        plain = Turn(text, content=text, truncated=cut)
        turns.append(_turn(text, cut, message, results, error_if) if reads_calls else plain)
    return tuple(turns)


def _assistant_groups(completion: str | Sequence[Message]) -> list[tuple[Message, list[Message]]]:
    """The assistant messages of a completion, each with the tool results after it; a string is one message."""
    if isinstance(completion, str):
        return [({"role": "assistant", "content": completion}, [])]
    groups: list[tuple[Message, list[Message]]] = []
    for message in completion:
        if message["role"] == "assistant":
            groups.append((message, []))
        elif groups:
            groups[-1][1].append(message)
    return groups


def _turn(
    text: str,
    truncated: bool,
    message: Message,
    results: Sequence[Message],
    error_if: Callable[[str], bool] | None,
) -> Turn:
    turn = parse(text, truncated=truncated)
    calls = []
    for call in message.get("tool_calls") or ():
        function = call.get("function")
        if isinstance(function, Mapping):
            arguments = function.get("arguments")
            calls.append(ToolCall(str(function.get("name")), arguments if isinstance(arguments, Mapping) else {}))
    if not calls:
        return turn
    unreadable = next((call for call in calls if PARSE_ERROR in call.arguments), None)
    if unreadable is not None and len(results) == 1:
        error = str(unreadable.arguments[PARSE_ERROR])
        result = ToolResult(unreadable, str(results[0]["content"]), error)
        return replace(turn, calls=(), error=error, results=(result,))
    calls = _in_order_of_results(calls, [answer.get("name") for answer in results])
    answered = zip(calls, [str(answer["content"]) for answer in results], strict=False)
    answers = tuple(read_result(call, content, error_if) for call, content in answered)
    return replace(turn, calls=tuple(calls), error=None, results=answers)


def _in_order_of_results(calls: Sequence[ToolCall], names: Sequence[Any]) -> list[ToolCall]:
    """Return the calls as they were executed, given the tool names of their results; those without a result last.

    TRL executes a turn's sync calls first, then its async ones together; results of one tool keep the calls' order.
    """
    waiting, executed = [*calls], []
    for name in names:
        call = next((call for call in waiting if call.name == name), None)
        if call is not None:
            waiting.remove(call)
            executed.append(call)
    return executed + waiting


def sampled_segments(ids: Sequence[int], mask: Sequence[int] | None) -> list[list[int]]:
    """Split completion ids into the runs the policy sampled (mask 1), leaving out tool results (mask 0).

    >>> sampled_segments([5, 6, 7, 8, 9], [1, 1, 0, 0, 1])
    [[5, 6], [9]]
    """
    if mask is None:
        return [list(ids)]
    pairs = groupby(zip(ids, mask, strict=False), key=lambda pair: pair[1])
    return [[token for token, _ in run] for sampled, run in pairs if sampled]


def _until_sampled(ids: Sequence[int], mask: Sequence[int]) -> list[int]:
    """The ids up to the last one that was sampled, with those from outside between them."""
    last = max(at for at, sampled in enumerate(mask) if sampled)
    return list(ids[: last + 1])


@dataclass(frozen=True)
class RolloutReader:
    """Reads the rollouts of a cycle."""

    decode: Callable[[list[int]], str]  # token ids to text, special tokens kept
    eos_ids: Collection[int]  # ids that end a turn, or pad it
    threshold: float  # a rollout with a smaller reward has failed
    step_reward: StepReward | None = None  # has judged the step tasks; None without any
    step_environments: StepEnvironments | None = None  # where the calls of step tasks are made
    special_tokens: SpecialTokenFilter | None = None  # of the policy's tokenizer
    error_if: Callable[[str], bool] | None = None  # whether a result's text is an error
    warnings: list[str] = field(default_factory=list)  # given in this run

    def read(self, cycle: Cycle, has_tools: bool) -> list[Rollout]:
        """Return this rank's rollouts of a scored cycle, in order; `has_tools`: whether texts may hold tool calls."""
        if cycle.scores is None:
            raise RuntimeError("the cycle was not scored")
        rewards = cycle.scores.weighted[cycle.offset : cycle.offset + len(cycle.rows)]
        rollouts = [self._rollout(cycle, cycle.scores, i, rewards[i], has_tools) for i in range(len(cycle.rows))]
        results = [result for one in rollouts for turn in one.trajectory.turns for result in turn.results]
        cycle.like_errors, note = like_errors((result.content, result.error) for result in results)
        if note and not self.warnings:
            self.warnings.append(note)
            _log.warning("In this cycle %s. Such results are counted as env/like_errors", note)
        return rollouts

    def _rollout(self, cycle: Cycle, scores: CycleScores, i: int, reward: float, has_tools: bool) -> Rollout:
        task = task_of_row(cycle.rows[i], scores.prompts[i], cycle.starts[i] if cycle.starts else None)
        mask = cycle.masks[i] if cycle.masks else None
        segments = sampled_segments(scores.completion_ids[i], mask)
        if mask is not None and len(segments) > len(_assistant_groups(scores.completions[i])) == 1:
            segments = [_until_sampled(scores.completion_ids[i], mask)]  # turns that a `rollout_func` put together
        reads_calls = has_tools or task.reference is not None
        turns = read_turns(scores.completions[i], segments, self.decode, self.eos_ids, reads_calls, self.error_if)
        executes = has_tools and task.reference is None and len(turns) <= cycle.max_calling_turns
        if executes and turns[-1].calls and not turns[-1].results:
            turns = (*turns[:-1], replace(turns[-1], truncated=True))  # TRL left out results beyond the length limit
        is_judged = not math.isnan(reward)
        verdict = Verdict(reward if is_judged else None, failed=reward < self.threshold)  # never if not judged
        if is_judged and task.reference is not None and self.step_reward is not None:
            step = self.step_reward.verdicts[i]
            verdict = replace(verdict, failed=step.failed, parts=step.parts)
        if (corrective := scores.corrective_turns.get(i)) is not None:
            turns = (with_results(turns[0], corrective.results),)
        if i in scores.resolved:
            verdict = replace(verdict, failed=not scores.resolved[i])
        if verdict.failed and self.step_environments is not None and names_environment(task):
            turns = (self.step_environments.answered(task, turns[0]),)
        return Rollout(Trajectory(task, turns), verdict)

    def continuations(self, cycle: Cycle, rollouts: Sequence[Rollout]) -> list[tuple[str, Task]]:
        """The turns after right recoveries in step tasks, each with the id of the recovery task it goes on from."""
        found: dict[str, Task] = {}
        for i, rollout in enumerate(rollouts):
            task, turn = rollout.trajectory.task, rollout.trajectory.turns[0]
            if not cycle.is_recovery(cycle.offset + i) or rollout.verdict.failed or rollout.verdict.reward is None:
                continue
            if task.id in found or self.step_environments is None or not names_environment(task):
                continue
            results = self.step_environments.results(task, turn.calls) or ()
            if results and all(result.error is None for result in results):
                following = continued_task(task, turn, results, self.special_tokens)
                found |= {} if following is None else {task.id: following}
        return list(found.items())

    def is_resolved(self, row: Row, i: int) -> bool | None:
        """Whether the step reward found local rollout `i` right; None if it does not judge its row."""
        if STEP_KEY not in row or self.step_reward is None:
            return None
        return not self.step_reward.verdicts[i].failed


def with_results(turn: Turn, results: tuple[ToolResult, ...]) -> Turn:
    """Return a corrective turn with the results of its calls."""
    if turn.error is not None or not results:
        return replace(turn, results=results)
    return replace(turn, calls=tuple(result.call for result in results), results=results)


def count_cycle(
    cycle: Cycle, rollouts: Sequence[Rollout], failed: Sequence[FailedRollout]
) -> tuple[Counter[str], list[RecoveryOutcome]]:
    """Count this rank's explored rollouts, and return the outcomes of those that recover."""
    recovers = [cycle.is_recovery(cycle.offset + i) for i in range(len(rollouts))]
    explored = [i for i, recovery in enumerate(recovers) if not recovery]
    counts = count_rollouts(
        [rollouts[i] for i in explored], [failed[i].failures[0] for i in explored if failed[i].failures]
    )
    outcomes = [RecoveryOutcome.of(one) for one, recovery in zip(rollouts, recovers, strict=True) if recovery]
    counts["infrastructure"] += sum(outcome.reward is None for outcome in outcomes)
    counts["env/like_errors"] = cycle.like_errors
    return counts, outcomes


@dataclass(frozen=True)
class LocalEnvironments:
    """The environments of this rank's rollouts, as they are at the end of a cycle."""

    environments: Sequence[Any]  # one per local rollout; empty without any
    tools: Sequence[Callable[..., Any]]  # functions that are tools beside the environments'
    guarded: bool  # whether the environments are wrapped by `envs.restore.make_restorable`
    schemas: dict[type, tuple[Any, ...]]  # cache of the tools' JSON schemas by environment class

    def failed_rollouts(
        self, cycle: Cycle, rollouts: Sequence[Rollout], failure_turn: str, zero_std: Sequence[bool]
    ) -> list[FailedRollout]:
        """Return the failures of this rank's rollouts; `zero_std` is that of every group."""
        groups = [cycle.group_of(cycle.offset + i) for i in range(len(rollouts))]
        found = []
        for i, (rollout, group) in enumerate(zip(rollouts, groups, strict=True)):
            environment = self.environments[i] if self.environments else None
            tools = rollout.trajectory.task.tools or self._tool_schemas(i)
            found.append(failed_rollout(rollout, environment, tools, failure_turn, zero_std[group]))
        return found

    def pop_counts(self) -> Counter[str]:
        """Return and reset the events that the environments' monitors have counted, as `env/<event>`."""
        counts: Counter[str] = Counter()
        for environment in self.environments if self.guarded else ():
            counts.update({f"env/{name}": n for name, n in environment._fission_monitor.counts.items()})
            environment._fission_monitor.counts.clear()
        return counts

    def _tool_schemas(self, i: int) -> tuple[Any, ...]:
        """Return the JSON schemas of the tools of local rollout `i`."""
        from transformers.utils import get_json_schema

        environment = self.environments[i] if self.environments else None
        if type(environment) not in self.schemas:
            methods = tool_methods(environment).values() if environment is not None else ()
            self.schemas[type(environment)] = tuple(get_json_schema(tool) for tool in (*self.tools, *methods))
        return self.schemas[type(environment)]
