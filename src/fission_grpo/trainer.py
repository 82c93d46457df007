"""FissionGRPOTrainer: TRL's GRPOTrainer whose batches are, every other cycle, recovery tasks.

A cycle is one generation batch and the updates made with it. An *explore* cycle samples the data set's rows; its
failures, diagnosed, wait in the buffer. A *recover* cycle samples G' rollouts of each of the newest. Both are the
same call to TRL with other rows; nothing of TRL's is copied.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import time
from collections import Counter, deque
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from accelerate.utils import gather_object
from transformers.utils import get_json_schema
from trl import GRPOTrainer

from fission_grpo.buffer import CorrectiveInstance, FissionBuffer
from fission_grpo.config import FissionGRPOConfig
from fission_grpo.cycles import Outcome, by_context, count, explore_metrics, flat_groups, recover_metrics
from fission_grpo.diagnose import Diagnose, feedback_for, resolve
from fission_grpo.environment import restorable, without_task
from fission_grpo.failure import find_failure
from fission_grpo.journal import Journal
from fission_grpo.recovery import corrective_instance, select
from fission_grpo.rollouts import (
    STEP_KEY,
    Rollout,
    read_turns,
    row_of_task,
    sampled_segments,
    task_of_row,
)
from fission_grpo.run_state import (
    check_columns,
    has_state,
    load_state,
    pack_rows,
    save_state,
    split_batches,
    unpack_rows,
)
from fission_grpo.step_reward import StepReward, progress_of
from fission_grpo.trajectory import Failure, Trajectory, Verdict


class FissionGRPOTrainer(GRPOTrainer):
    """GRPO with recovery from the policy's own errors (arXiv 2601.15625).

    Takes every argument of `trl.GRPOTrainer`, with `args` a `FissionGRPOConfig`, and:

    Args:
        diagnose: where feedback on a failed rollout comes from: "rules" (default), "environment", "fixed", or a
            callable `Failure -> str | None` (None: nothing to say; the fixed text is used and counted).

    Logs `fission/*` every cycle and `recovery/*` on recover cycles (docs/metrics.md), and writes every corrective
    instance with its outcome to `output_dir/fission.jsonl`.
    """

    _tag_names: ClassVar = ["trl", "grpo", "fission-grpo"]
    _name = "Fission-GRPO"
    args: FissionGRPOConfig

    def __init__(self, *trl_args: Any, diagnose: str | Diagnose = "rules", **trl_kwargs: Any):
        given = inspect.signature(GRPOTrainer.__init__).bind(self, *trl_args, **trl_kwargs).arguments
        given.pop("self")
        given["args"] = args = _check_config(given.get("args"), given["model"])
        self._source, self._diagnose = resolve(diagnose)
        if args.fission and given.get("environment_factory") is not None:
            given["environment_factory"] = self._restorable(given["environment_factory"])
        if args.fission and hasattr(given.get("train_dataset"), "__len__"):
            check_columns(given["train_dataset"])
        super().__init__(**given)
        self.buffer = FissionBuffer(args.buffer_capacity, args.max_age_steps, args.buffer_order, seed=args.seed)
        self.generated_tokens = 0
        self._recoveries = args.num_recoveries or 0  # G'; the config has set it
        self._explored = False  # whether the last cycle explored: never two recover cycles in a row
        self._displaced: deque[Any] = deque()  # packed local batches that wait to be explored
        self._recovering: list[CorrectiveInstance] = []  # this cycle's contexts, one per recovery group
        writes = args.fission and args.journal and self.accelerator.is_main_process
        self.journal = Journal(Path(str(args.output_dir)) / "fission.jsonl" if writes else None)
        self._tool_schemas = [get_json_schema(tool) for tool in self.tools or ()]
        self._step_reward = next((f for f in self.reward_funcs if isinstance(f, StepReward)), None)

    def _restorable(self, factory: Any) -> Any:
        def run_async(coroutine: Any) -> Any:
            return asyncio.run_coroutine_threadsafe(coroutine, self.async_loop).result()

        if isinstance(factory, dict):
            return {name: restorable(make, run_async) for name, make in factory.items()}
        return restorable(factory, run_async)

    # -- one cycle ---------------------------------------------------------------------------------------------------

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if not self.model.training:  # pyright: ignore[reportOptionalMemberAccess]
            return super()._generate_and_score_completions(inputs)
        started = time.perf_counter()
        rows = self._next_rows(inputs) if self.args.fission else inputs
        spent = time.perf_counter() - started
        group_size = self._recoveries if self._recovering else self.num_generations or 0
        with self._groups_of(group_size):
            output = super()._generate_and_score_completions(rows)
        started = time.perf_counter()
        self._observe(rows, output, group_size)
        self._log_cycle({"fission/seconds": spent + time.perf_counter() - started})
        return output

    @contextmanager
    def _groups_of(self, size: int):
        explore_size, self.num_generations = self.num_generations, size
        try:
            yield
        finally:
            self.num_generations = explore_size

    def _next_rows(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """This cycle's rows on this rank. The data set's rows wait in a queue while a recover cycle runs."""
        step = self.state.global_step
        for item in self.buffer.expire(step):
            self.journal.dropped(item, step, "age")
        self._displaced.append(pack_rows(inputs))
        count = self.args.contexts_per_cycle
        recover = self._explored and len(self.buffer) >= (self.args.recover_trigger or count)
        self._explored = not recover
        self._recovering = self.buffer.pop(count) if recover else []
        if not recover:
            return unpack_rows(self._displaced.popleft())
        rows = [row_of_task(item.task, self.processing_class) for item in self._recovering]
        batch = [row for row in rows for _ in range(self._recoveries)]
        start = self.accelerator.process_index * len(inputs)
        return [dict(row) for row in batch[start : start + len(inputs)]]

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        rows = [without_task(row) for row in inputs] if self._recovering else inputs
        rewards = super()._calculate_rewards(rows, prompts, completions, completion_ids_list)
        self._judged = (prompts, completions, completion_ids_list, rewards)
        return rewards

    def _observe(self, rows: list[dict[str, Any]], output: dict[str, Any], group_size: int) -> None:
        """Read this rank's rollouts, share what matters with all ranks, fill the buffer, log."""
        rewards = self._weighted_rewards()
        flat = flat_groups(rewards, group_size)
        offset = self.accelerator.process_index * len(rows)
        rollouts = self._read(rows, output, rewards[offset : offset + len(rows)])
        failures = [(i, f) for i, r in enumerate(rollouts) if (f := self._failure(r)) is not None]
        counts = count(rollouts, [failure for _, failure in failures])
        instances: list[CorrectiveInstance] = []
        if self.args.fission:
            instances, more = self._fission(failures, [flat[(offset + i) // group_size] for i in range(len(rows))])
            counts.update(more)
        outcomes = [_outcome(rollout) for rollout in rollouts] if self._recovering else []
        shared = gather_object([(counts, instances, outcomes)])
        total = sum((counts for counts, _, _ in shared), Counter())
        self.generated_tokens += round(self._metrics["train"]["completions/mean_length"][-1] * len(rewards))
        if self._recovering:
            self._log_recoveries([outcome for *_, some in shared for outcome in some], flat)
        else:
            self._log_cycle(explore_metrics(total, flat))
        if self.args.fission:
            self._push([item for _, items, _ in shared for item in items], total)
        self._log_cycle(
            {
                "fission/phase": float(bool(self._recovering)),
                "fission/generated_tokens": float(self.generated_tokens),
                "fission/infrastructure": float(total["infrastructure"]),
            }
        )
        if 0 < self.args.max_generated_tokens <= self.generated_tokens:
            self.control.should_training_stop = True

    def _weighted_rewards(self) -> list[float]:
        """Weighted sum of the reward functions for every rollout of all ranks; NaN where none gave a reward."""
        *_, per_function = self._judged
        rewards = (per_function * self.reward_weights.to(per_function.device)).nansum(dim=1)
        return rewards.masked_fill(per_function.isnan().all(dim=1), math.nan).tolist()

    def _read(self, rows: list[dict[str, Any]], output: dict[str, Any], rewards: list[float]) -> list[Rollout]:
        prompts, completions, completion_ids, _ = self._judged
        masks = output["tool_mask"].tolist() if output.get("tool_mask") is not None else [None] * len(rows)
        progress = progress_of(self.state)
        rollouts = []
        for row, prompt, completion, ids, mask, reward in zip(
            rows, prompts, completions, completion_ids, masks, rewards, strict=True
        ):
            task = task_of_row(row, prompt)
            calls_tools = bool(self.tools) or STEP_KEY in row
            turns = read_turns(completion, sampled_segments(ids, mask), self._decode, self.eos_token_ids, calls_tools)
            verdict = Verdict(
                reward=None if math.isnan(reward) else reward, failed=reward < self.args.failure_threshold
            )
            if self._step_reward and task.reference is not None and verdict.reward is not None:
                judged = self._step_reward.verdict(task, turns[-1], len(ids), progress)
                verdict = replace(verdict, failed=judged.failed, parts=judged.parts)
            rollouts.append(Rollout(Trajectory(task, turns), verdict))
        return rollouts

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=False))

    def _failure(self, rollout: Rollout) -> Failure | None:
        tools = rollout.trajectory.task.tools or self._tool_schemas
        return find_failure(rollout.trajectory, rollout.verdict, tools)

    # -- fission -----------------------------------------------------------------------------------------------------

    def _fission(
        self, failures: list[tuple[int, Failure]], flat: list[bool]
    ) -> tuple[list[CorrectiveInstance], Counter[str]]:
        """Corrective instances of this rank's failures, and how often a feedback leaked or fell back."""
        place = {id(failure): i for i, failure in failures}
        chosen, duplicates = select((f for _, f in failures), self.args.max_depth, self.buffer.__contains__)
        instances, counts = [], Counter(duplicates=duplicates)
        for failure in chosen:
            feedback = feedback_for(failure, self._source, self._diagnose)
            counts.update(leaks=feedback.leaked, fallbacks=feedback.fallback is not None)
            step, zero_variance = self.state.global_step, flat[place[id(failure)]]
            instances.append(corrective_instance(failure, feedback, step, zero_variance))
        return instances, counts

    def _push(self, instances: list[CorrectiveInstance], counts: Counter[str]) -> None:
        """The same pushes in the same order on every rank: one per root task, even if its group straddled ranks."""
        pushed: set[str] = set()
        for item in instances:
            if item.task.root in pushed or item.task.id in self.buffer:
                continue
            pushed.add(item.task.root)
            self.journal.pushed(item)
            for dropped in self.buffer.push(item):
                self.journal.dropped(dropped, self.state.global_step, "capacity")
        self._log_cycle(
            {
                "fission/pushed": float(len(pushed)),
                "fission/buffer": float(len(self.buffer)),
                **{f"fission/{name}": float(counts[name]) for name in ("leaks", "fallbacks", "duplicates")},
            }
        )

    def _log_recoveries(self, outcomes: list[Outcome], flat: list[bool]) -> None:
        step = self.state.global_step
        groups = by_context(self._recovering, outcomes)
        for item in self._recovering:
            group = groups[item.task.id]
            self.journal.recovered(item, step, [one.reward for one in group], [one.text for one in group])
        self._log_cycle(recover_metrics(self._recovering, outcomes, flat, step))

    def _log_cycle(self, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self._metrics["train"][name].append(value)

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model, trial):
        super()._save_checkpoint(model, trial)
        state = {
            "buffer": self.buffer.state(),
            "explored": self._explored,
            "displaced": gather_object([list(self._displaced)]),
            "generated_tokens": self.generated_tokens,
        }
        if self.accelerator.is_main_process:
            folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
            save_state(folder, state)

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        self.journal.resumed(self.state.global_step)
        if checkpoint is None or not (self.args.fission or has_state(Path(checkpoint))):
            return
        state = load_state(Path(checkpoint))
        self.buffer.load_state(state["buffer"])
        self._explored = state["explored"]
        self._displaced = deque(
            split_batches(state["displaced"], self.accelerator.process_index, self.accelerator.num_processes)
        )
        self.generated_tokens = state["generated_tokens"]


def _outcome(rollout: Rollout) -> Outcome:
    return Outcome(rollout.trajectory.task.id, rollout.verdict.reward, rollout.verdict.failed, rollout.text)


def _check_config(args: Any, model: Any) -> FissionGRPOConfig:
    if args is None:
        name = model if isinstance(model, str) else model.config.name_or_path
        return FissionGRPOConfig(f"{str(name).split('/')[-1]}-Fission-GRPO")
    if not isinstance(args, FissionGRPOConfig):
        raise TypeError(
            f"args is a {type(args).__name__}; pass a fission_grpo.FissionGRPOConfig, which takes the same fields."
        )
    return args
