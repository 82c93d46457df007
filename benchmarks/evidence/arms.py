"""Ways of training that are arms of the evidence and no options of the library."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from accelerate.utils import gather_object

from fission_grpo.core.types import Task, ToolCall, ToolResult
from fission_grpo.envs.restore import get_progress
from fission_grpo.envs.step_calls import StepEnvironments
from fission_grpo.fission.algorithm import Fission
from fission_grpo.fission.failures import FailedRollout
from fission_grpo.fission.metrics import groups_of
from fission_grpo.fission.recovery import CorrectiveInstance
from fission_grpo.training.trainer import FissionGRPOTrainer


class UnscaledRecovery(FissionGRPOTrainer):
    """Recovery groups are centred on their mean but not divided by their standard deviation; explore groups are."""

    @contextmanager
    def _cycle_settings(self):
        before = self.scale_rewards
        if self.cycle.contexts:
            self.scale_rewards = "none"
        try:
            with super()._cycle_settings():
                yield
        finally:
            self.scale_rewards = before


class PositiveRecovery(FissionGRPOTrainer):
    """Recover cycles learn from recoveries above their group's mean only; what failed is not pushed down.

    In live episodes most failed recoveries end the turn after a tool's answer, which is right after one that worked.
    """

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        if self.cycle.contexts:
            output["advantages"] = output["advantages"].clamp(min=0)
        return output


TIE_BREAK = 0.1
"""Reward of a failed episode whose work is all done but the last of it. [ours]"""


class ProgressTieBreak(FissionGRPOTrainer):
    """Explored groups that failed altogether are ranked by the environments' `_progress`."""

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        if not self.model.training or not self.environments:
            return rewards
        progress = gather_object([get_progress(environment) or 0.0 for environment in self.environments])
        start = 0
        for group in groups_of(self.cycle.scores.weighted, self.cycle.sizes):
            end = start + len(group)
            if not self.cycle.is_recovery(start) and max(group) < self.args.failure_threshold:
                rewards[start:end, 0] += TIE_BREAK * rewards.new_tensor(progress[start:end])
            start = end
        del self.cycle.scores.weighted  # computed anew from the changed rewards
        return rewards


class ShuffledMessages(StepEnvironments):
    """Answers a failing call with the error of an earlier failing call of the same tool in another task, if any."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self._errors: dict[str, list[tuple[str, ToolResult]]] = defaultdict(list)
        self._random = random.Random(0)

    def results(self, task: Task, calls: Sequence[ToolCall]) -> tuple[ToolResult, ...] | None:
        results = super().results(task, calls)
        return None if results is None else tuple(self._exchanged(task, result) for result in results)

    def _exchanged(self, task: Task, result: ToolResult) -> ToolResult:
        if result.error is None:
            return result
        known = self._errors[result.call.name]
        others = [other for root, other in known if root != task.root and other.error != result.error]
        known.append((task.root, result))
        del known[:-64]
        other = self._random.choice(others) if others else result
        return replace(result, content=other.content, error=other.error)


class ShuffledMessagesTrainer(FissionGRPOTrainer):
    """The control of `fission`: real errors of the environment, but each of another failure."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.step_environments = ShuffledMessages(self._guarded, self._run_async)
        self._reader = replace(self._reader, step_environments=self.step_environments)


VARIANTS: dict[str, Any] = {
    "fission": FissionGRPOTrainer,
    "unscaled_recovery": UnscaledRecovery,
    "positive_recovery": PositiveRecovery,
    "shuffled_messages": ShuffledMessagesTrainer,
    "progress": ProgressTieBreak,
}


class OfflineFission(Fission):
    """Recovers from the corrective instances of another run only; the policy's own failures are not made into any."""

    def submit(self, failed: Iterable[FailedRollout], step: int) -> None:
        """Request nothing, so that nothing new enters the buffer."""


def recover_offline(trainer: FissionGRPOTrainer, buffer: Mapping[str, Any]) -> None:
    """Give a trainer the buffer of another run's checkpoint for good. Worlds are brought back by replay.

    Args:
        trainer: about to train.
        buffer: as `FissionBuffer.state` gave it.
    """
    fission, args = trainer.fission, trainer.args
    offline = OfflineFission(args, fission.sources, fission.event_log, fission.special_tokens)
    for item in buffer["items"]:
        offline.buffer.push(CorrectiveInstance.from_json(item))
    trainer.fission = offline
