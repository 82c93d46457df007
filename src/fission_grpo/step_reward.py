"""StepReward: the paper's reward as a TRL reward function, for step tasks (rows made by `tasks.to_rows`)."""

from __future__ import annotations

from typing import Any

from fission_grpo.chat import parse
from fission_grpo.rollouts import step_task
from fission_grpo.trajectory import Task, Turn, Verdict
from fission_grpo.verify import RewardConfig, step_verdict


class StepReward:
    """R = 1/3 [w_fmt(t) R_fmt + w_corr(t) R_corr + R_len] against the reference calls in column `fission_task`.

    Lengths are in tokens; t is the share of training steps done. Logs the mean of each part as `reward_parts/*`.
    """

    __name__ = "step_reward"

    def __init__(self, config: RewardConfig | None = None):
        self.config = config or RewardConfig()

    def verdict(self, task: Task, turn: Turn, length: int, progress: float) -> Verdict:
        """Judge one turn; `length` in tokens, `progress` in [0, 1]."""
        return step_verdict(task, turn, length, progress, self.config)

    def __call__(
        self,
        completions: list[str],
        completion_ids: list[list[int]],
        fission_task: list[str],
        trainer_state: Any = None,
        log_metric: Any = None,
        **_: Any,
    ) -> list[float | None]:
        progress = progress_of(trainer_state)
        verdicts = [
            self.verdict(step_task(task), parse(text), len(ids), progress)
            for task, text, ids in zip(fission_task, completions, completion_ids, strict=True)
        ]
        if log_metric is not None:
            for part in ("format", "correctness", "length"):
                log_metric(f"reward_parts/{part}", sum(v.parts[part] for v in verdicts) / len(verdicts))
        return [verdict.reward for verdict in verdicts]


def progress_of(trainer_state: Any) -> float:
    """Share of training done, in [0, 1]; 0 before training starts."""
    if trainer_state is None or not trainer_state.max_steps:
        return 0.0
    return min(1.0, trainer_state.global_step / trainer_state.max_steps)
