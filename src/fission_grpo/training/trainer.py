"""FissionGRPOTrainer: TRL's GRPOTrainer whose batches are, every other cycle, recovery tasks.

A cycle is one generation batch and the updates made with it. An *explore* cycle samples the data set's rows; its
failures, diagnosed, wait in the buffer. A *recover* cycle samples G' rollouts of each of the newest. Both are the
same call to TRL with other rows; nothing of TRL's is copied.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
import time
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from accelerate.utils import gather_object
from trl import GRPOTrainer

from fission_grpo.core.rewards import StepReward, progress_of
from fission_grpo.core.special_tokens import SpecialTokenFilter
from fission_grpo.core.types import Rollout
from fission_grpo.envs.restore import TurnVerdict, judge_corrective_turn, make_restorable, without_task
from fission_grpo.envs.wrapper import ToolLimits
from fission_grpo.feedback.sources import FeedbackFunction, FeedbackSource, make_chain
from fission_grpo.fission.algorithm import FailedRollout, Fission
from fission_grpo.fission.event_log import EventLog
from fission_grpo.fission.failures import LocalEnvironments
from fission_grpo.fission.metrics import (
    RecoveryOutcome,
    count,
    explore_metrics,
    group_success,
    zero_std_groups,
)
from fission_grpo.training.callbacks import TokenBudget
from fission_grpo.training.checkpoint import (
    ExactCheckpointMixin,
    check_columns,
    load_source_states,
    packed_snapshots,
    shard_for_rank,
    source_states,
)
from fission_grpo.training.config import FissionGRPOConfig, checked_config
from fission_grpo.training.deferred_batches import DeferredBatches, check_batches, split_batches
from fission_grpo.training.lockstep import LockstepToolCallsMixin
from fission_grpo.training.rollouts import RolloutBatch, RolloutReader, row_of_task
from fission_grpo.training.shared_prefix.trainer import SHARING_COUNTS, SharedPrefixMixin
from fission_grpo.training.tool_call_parser import enable_parse_errors, with_parse_errors
from fission_grpo.training.trl_compat import check_names, eos_token_ids

FeedbackSpec = str | FeedbackFunction | FeedbackSource


_log = logging.getLogger(__name__)


check_names(GRPOTrainer)


class FissionGRPOTrainer(LockstepToolCallsMixin, ExactCheckpointMixin, SharedPrefixMixin, GRPOTrainer):
    """GRPO with recovery from the policy's own errors (arXiv 2601.15625).

    Takes every argument of `trl.GRPOTrainer`, with `args` a `FissionGRPOConfig`, and:

    Args:
        feedback: where feedback on a failed rollout comes from: "rules" (default), "environment", "fixed", "none", a
            callable `Failure -> str | None` (None: nothing to say), a `diagnose.FeedbackSource` such as a simulator, or a list
            of these, asked one after another. After the last comes the fixed text; what is asked in vain is counted.

    Logs `fission/*` every cycle and `recovery/*` on recover cycles (docs/metrics.md), and writes every corrective
    instance with its outcome to `output_dir/fission.jsonl`.
    """

    _tag_names: ClassVar = ["trl", "grpo", "fission-grpo"]
    _name = "Fission-GRPO"
    args: FissionGRPOConfig

    def __init__(self, *trl_args: Any, feedback: FeedbackSpec | Sequence[FeedbackSpec] = "rules", **trl_kwargs: Any):
        given = inspect.signature(GRPOTrainer.__init__).bind(self, *trl_args, **trl_kwargs).arguments
        given.pop("self")
        given["args"] = args = checked_config(given.get("args"), given["model"])
        sources = make_chain(feedback) if args.fission else ()
        for source in sources:
            source.check()
        if args.guard_tools and given.get("environment_factory") is not None:
            given["environment_factory"] = self._restorable(given["environment_factory"], args)
        if args.guard_tools and given.get("tools"):
            given["tools"] = [with_parse_errors(tool) for tool in given["tools"]]
        if args.fission and hasattr(given.get("train_dataset"), "__len__"):
            check_columns(given["train_dataset"])
        super().__init__(**given)
        self.special_tokens = (
            SpecialTokenFilter.from_tokenizer(self._tokenizer) if args.guard_tools else SpecialTokenFilter()
        )
        if args.guard_tools and self.tools:
            enable_parse_errors(self)
        writes = args.fission and args.log_instances and self.accelerator.is_main_process
        self.event_log = EventLog(Path(str(args.output_dir)) / "fission.jsonl" if writes else None)
        self.fission = Fission(args, sources, self.event_log, self.special_tokens)
        self.generated_tokens = 0
        self.add_callback(TokenBudget(args.max_generated_tokens, self))
        rows = len(self.train_dataset) if hasattr(self.train_dataset, "__len__") else None  # pyright: ignore
        self.waiting = DeferredBatches(rows, (args.generation_batch_size or 0) // (args.num_generations or 1))
        self._corrected: dict[int, TurnVerdict] = {}  # this cycle's corrective turns, by local row
        self._schemas: dict[type, tuple[Any, ...]] = {}
        step_reward = next((f for f in self.reward_funcs if isinstance(f, StepReward)), None)
        self._reader = RolloutReader(self._decode, eos_token_ids(self), args.failure_threshold, step_reward)

    def _restorable(self, factory: Any, args: FissionGRPOConfig) -> Any:
        limits = ToolLimits(args.tool_timeout, args.max_tool_result_chars)

        def wrap(make: Any) -> Any:
            states = lambda task_id: self.fission.states.get(task_id)  # noqa: E731
            return make_restorable(
                make, self._run_async, states, limits, lambda text: self.special_tokens.sanitize(text)
            )

        if isinstance(factory, dict):
            return {name: wrap(make) for name, make in factory.items()}
        return wrap(factory)

    def _run_async(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.async_loop).result()

    def train(self, *args: Any, **kwargs: Any) -> Any:
        output = super().train(*args, **kwargs)
        self._collect()
        return output

    # -- one cycle ---------------------------------------------------------------------------------------------------

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if not self.model.training:  # pyright: ignore[reportOptionalMemberAccess]
            output = super()._generate_and_score_completions(inputs)
            self.take_sharing_counts()  # the next cycle tells its own only
            return output
        started = time.perf_counter()
        rows = self._next_rows(inputs) if self.args.fission else inputs
        spent = time.perf_counter() - started
        with self._cycle() as group_size:
            output = super()._generate_and_score_completions(rows)
        started = time.perf_counter()
        self._observe(rows, output, group_size)
        self._log_cycle({"fission/seconds": spent + time.perf_counter() - started})
        return output

    @contextmanager
    def _cycle(self):
        """TRL's settings for this cycle: in a recover cycle groups of G', and perhaps no turn after the corrective."""
        explore = self.num_generations, self.max_tool_calling_iterations
        if self.fission.recovering:
            self.num_generations = self.args.num_recovery_generations or 0
            if self._judges_turns():
                self.max_tool_calling_iterations = 0
        try:
            yield self.num_generations
        finally:
            self.num_generations, self.max_tool_calling_iterations = explore

    def _judges_turns(self) -> bool:
        by_turn = self.args.recovery_scope == "turn" and self.environment_factories is not None
        return by_turn and bool(self.fission.recovering)

    def _next_rows(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """This cycle's rows on this rank. The data set's rows wait in a queue while a recover cycle runs."""
        self._collect()
        self.waiting.add(inputs)
        contexts = self.fission.begin_cycle(self.state.global_step)
        if not contexts:
            return self.waiting.take()
        if self.waiting.skip_newest():
            self._log_cycle({"fission/skipped_batches": 1.0})
        rows = [row_of_task(item.task, self.processing_class) for item in contexts]
        batch = [row for row in rows for _ in range(self.args.num_recovery_generations or 0)]
        start = self.accelerator.process_index * len(inputs)
        return [dict(row) for row in batch[start : start + len(inputs)]]

    def _get_tool_suffix_ids(self, tool_messages):
        return super()._get_tool_suffix_ids(self.special_tokens.sanitize_tool_results(tool_messages))

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        rows = [without_task(row) for row in inputs] if self.fission.recovering else inputs
        self._corrected = {}
        if self._judges_turns():
            turns = zip(self.environments or (), completions, strict=True)
            self._corrected = {
                i: judge_corrective_turn(world, turn, self._run_async) for i, (world, turn) in enumerate(turns)
            }
        rewards = super()._calculate_rewards(rows, prompts, completions, completion_ids_list)
        if self._corrected:  # the corrective turn is judged, instead of the end of the episode
            resolved = gather_object([self._corrected[i].resolved for i in range(len(inputs))])
            counted = int(self.reward_weights.nonzero()[0])
            rewards[:] = math.nan
            rewards[:, counted] = rewards.new_tensor(resolved) / self.reward_weights[counted].item()
        if self.args.guard_tools and self.environments:
            broken = gather_object([world._fission_monitor.broken is not None for world in self.environments])
            rewards[broken] = math.nan
        self._judged = (prompts, completions, completion_ids_list, rewards)
        return rewards

    def _observe(self, rows: list[dict[str, Any]], output: dict[str, Any], group_size: int) -> None:
        """Read this rank's rollouts, share what matters with all ranks, fill the buffer, log."""
        rewards, step = self._weighted_rewards(), self.state.global_step
        flat = zero_std_groups(rewards, group_size)
        offset = self.accelerator.process_index * len(rows)
        rollouts = self._read(rows, output, rewards[offset : offset + len(rows)])
        success = group_success(gather_object([not rollout.verdict.failed for rollout in rollouts]), group_size)
        worlds = LocalEnvironments(
            self.environments, self._standalone_tools, bool(self.args.guard_tools), self._schemas
        )
        failed = []
        for i, rollout in enumerate(rollouts):
            group, failures = (offset + i) // group_size, worlds.failures(i, rollout, self.args.failure_turn)
            failed.append(FailedRollout(failures, flat[group], success[group], worlds.state_at(i)))
        counts = count(rollouts, [one.failures[0] for one in failed if one.failures])
        counts.update(worlds.take_counts())
        counts.update(self.take_sharing_counts(), special_tokens=self.special_tokens.pop_count())
        if self.args.fission:
            self.fission.ask(failed, step)
        outcomes = [_outcome(rollout) for rollout in rollouts] if self.fission.recovering else []
        shared = gather_object([(counts, outcomes)])
        total = sum((counts for counts, _ in shared), Counter())
        self.generated_tokens += round(self._metrics["train"]["completions/mean_length"][-1] * len(rewards))
        if self.fission.recovering:
            metrics = self.fission.recovered([outcome for _, some in shared for outcome in some], flat, step)
        else:
            self.fission.explored(total, flat)
            metrics = explore_metrics(total, flat)
        self._log_cycle(metrics | self._cycle_metrics(total))
        if not self.fission.later:
            self._collect()

    def _collect(self) -> None:
        """Turn the failures being diagnosed into corrective instances, the same on all ranks."""
        if not self.args.fission or self.fission.asked is None:
            return
        step, waited = self.fission.asked.step, self.fission.asked.seconds
        started = time.perf_counter()
        instances, *counts = self.fission.answers()
        waited += time.perf_counter() - started
        shared = gather_object([(instances, *counts, waited)])
        total, own = (sum((one[i] for one in shared), Counter()) for i in (1, 2))
        metrics = self.fission.push([one[0] for one in shared], total, step)
        self._log_cycle(metrics | dict(own) | {"feedback/seconds": max(one[3] for one in shared)})

    def _cycle_metrics(self, total: Counter[str]) -> dict[str, float]:
        return {
            "fission/phase": float(bool(self.fission.recovering)),
            "fission/generated_tokens": float(self.generated_tokens),
            **{f"fission/{name}": float(total[name]) for name in ("infrastructure", "special_tokens")},
            **{name: float(n) for name, n in total.items() if name.startswith("env/")},
            **{name: float(total[name]) for name in SHARING_COUNTS if any(total[one] for one in SHARING_COUNTS)},
        }

    def _weighted_rewards(self) -> list[float]:
        """Weighted sum of the reward functions for every rollout of all ranks; NaN where none gave a reward."""
        *_, per_function = self._judged
        rewards = (per_function * self.reward_weights.to(per_function.device)).nansum(dim=1)
        return rewards.masked_fill(per_function.isnan().all(dim=1), math.nan).tolist()

    def _read(self, rows: list[dict[str, Any]], output: dict[str, Any], rewards: list[float]) -> list[Rollout]:
        prompts, completions, completion_ids, _ = self._judged
        masks = output["tool_mask"].tolist() if output.get("tool_mask") is not None else [None] * len(rows)
        batch = RolloutBatch(rows, prompts, completions, completion_ids, masks, rewards, self._corrected)
        return self._reader.read(batch, bool(self.tools), progress_of(self.state))

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=False))

    def _log_cycle(self, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self._metrics["train"][name].append(value)

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def _on_fresh_start(self) -> None:
        self.event_log.begin()

    def _save_checkpoint(self, model, trial):
        self._collect()
        super()._save_checkpoint(model, trial)

    def _run_state(self) -> dict[str, Any]:
        return super()._run_state() | {
            "fission": self.fission.state(),
            "displaced": gather_object([list(self.waiting.batches)]),
            "snapshots": gather_object([packed_snapshots(self.fission.waiting_states())]),
            "sources": gather_object([source_states(self.fission.sources)]),
            "journal": self.event_log.mark(),
            "generated_tokens": self.generated_tokens,
        }

    def _load_run_state(self, state: dict[str, Any], checkpoint: Path) -> None:
        super()._load_run_state(state, checkpoint)
        rank = self.accelerator.process_index, self.accelerator.num_processes
        check_batches(state["displaced"], self.args.generation_batch_size or 0, self.num_generations)
        self.fission.load_state(state["fission"])
        self.waiting.batches = deque(split_batches(state["displaced"], *rank))
        self.fission.states = dict(shard_for_rank(state["snapshots"], *rank))
        if strangers := load_source_states(self.fission.sources, shard_for_rank(state["sources"], *rank)):
            _log.warning("%s knows nothing of these sources of diagnoses: %s", checkpoint, ", ".join(strangers))
        self.event_log.resumed(self.state.global_step, state["journal"])
        self.generated_tokens = state["generated_tokens"]


def _outcome(rollout: Rollout) -> RecoveryOutcome:
    return RecoveryOutcome(rollout.trajectory.task.id, rollout.verdict.reward, rollout.verdict.failed, rollout.text)
