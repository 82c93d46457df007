"""FissionGRPOTrainer: TRL's GRPOTrainer in which some cycles recover from failed rollouts.

A cycle is one generation batch and the updates made with it. An explore cycle samples the rows of the data set; its
failures get feedback and become corrective instances in the buffer. A recover cycle samples G' rollouts of each of
several corrective instances. With `recovery_batches="mixed"` one cycle does both. All are the same call to TRL with
other rows; no code of TRL is copied.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from trl import GRPOTrainer

from fission_grpo.core.result_errors import error_rule
from fission_grpo.core.rewards import StepReward
from fission_grpo.core.special_tokens import SpecialTokenFilter
from fission_grpo.core.terminal import get_logger
from fission_grpo.core.types import Rollout, Task
from fission_grpo.data.deferred_rows import (
    DeferredRows,
    check_columns,
    check_row,
    check_rows,
    pack_rows,
    unpack_rows,
)
from fission_grpo.data.rows import row_of_task
from fission_grpo.envs.faults import FAULTS_KEY
from fission_grpo.envs.restore import TurnVerdict, judge_corrective_turn, make_restorable, run_awaitable, without_task
from fission_grpo.envs.step_calls import StepEnvironments
from fission_grpo.envs.worker import isolated
from fission_grpo.envs.wrapper import ToolLimits
from fission_grpo.feedback.sources import load_source_states, source_states
from fission_grpo.feedback.spec import FeedbackSpec, make_chain
from fission_grpo.fission.algorithm import Fission, packed_snapshots
from fission_grpo.fission.event_log import LOG, EventLog
from fission_grpo.fission.metrics import explore_metrics, zero_std_groups
from fission_grpo.training.callbacks import HealthWarnings, SkipZeroSignal, TokenBudget
from fission_grpo.training.checkpoint import ExactCheckpointMixin, shard_for_rank
from fission_grpo.training.config import FissionGRPOConfig, checked_config
from fission_grpo.training.cycle import Cycle, CycleScores, Row, in_fault_pairs
from fission_grpo.training.lockstep import LockstepToolCallsMixin
from fission_grpo.training.reporting import RecoveryTables, ReportingMixin
from fission_grpo.training.rewards import (
    calculate_usable_rewards,
    correct_advantages,
    judge_stopped,
    set_judgements,
    strict_judgements,
)
from fission_grpo.training.rollouts import LocalEnvironments, RolloutReader, count_cycle
from fission_grpo.training.shared_prefix import SHARING_COUNTS, SharedPrefixMixin
from fission_grpo.training.tool_call_parser import enable_parse_errors, with_parse_errors
from fission_grpo.training.trl_compat import check_names, context_length, trainer_arguments, with_signature

_log = get_logger(__name__)

check_names(GRPOTrainer)


class FissionGRPOTrainer(LockstepToolCallsMixin, ExactCheckpointMixin, SharedPrefixMixin, ReportingMixin, GRPOTrainer):
    """GRPO with recovery from the policy's own errors (arXiv 2601.15625).

    Takes every argument of `trl.GRPOTrainer`, with `args` a `FissionGRPOConfig`, and two more.

    Args:
        feedback: source of feedback on failed rollouts: "rules" (default), "environment", "fixed", "none" and the
            others of `--feedback`, such as "environment,rules"; a callable `Failure -> str | None` (None if it has
            nothing to say), a `feedback.sources.FeedbackSource`, or a list of these. A list is asked in order until
            one has a usable text; the fixed text comes last. Unused texts are counted by source and reason.
        error_if: whether a tool's result is an error, from its text, such as `lambda text: text.startswith("Error")`;
            beside raised errors and results like {"error": ...}. The same as `error_pattern` of the config.

    Logs `fission/*` and `feedback/*` every cycle and `recovery/*` in recover cycles, and writes every corrective
    instance with its outcome to `output_dir/fission.jsonl`. See docs/fission-grpo.md.
    """

    args: FissionGRPOConfig

    @with_signature(trainer_arguments)
    def __init__(
        self,
        *trl_args: Any,
        feedback: FeedbackSpec | Sequence[FeedbackSpec] = "rules",
        error_if: str | Callable[[str], bool] | None = None,
        **trl_kwargs: Any,
    ):
        given = inspect.signature(GRPOTrainer.__init__).bind(self, *trl_args, **trl_kwargs).arguments
        given.pop("self")
        given["args"] = args = checked_config(given)
        self.error_if = error_rule(args.error_pattern, error_if)
        sources = make_chain(feedback) if args.fission else ()
        for source in sources:
            source.check()
        source_states(sources)  # raises before the run, not at its first checkpoint
        self._draws_tasks = given.get("train_dataset") is None  # `reset` draws them, so that only snapshots restore
        if args.fission and not self._draws_tasks:
            check_columns(given["train_dataset"], given.get("environment_factory"))
        check_rows(given.get("train_dataset"), args.generation_batch_size or 0, args.num_generations or 1)
        if args.guard_tools:
            self._guard_tools(given, args)
        super().__init__(**given)
        self.special_tokens = SpecialTokenFilter()
        if args.guard_tools:
            self.special_tokens = SpecialTokenFilter.from_tokenizer(self._tokenizer)
            if self.tools:
                enable_parse_errors(self)
        writes = args.fission and args.log_instances and self.accelerator.is_main_process
        self.event_log = EventLog(Path(str(args.output_dir)) / LOG if writes else None)
        self.fission = Fission(args, sources, self.event_log, self.special_tokens, self._fits)
        self.generated_tokens = 0
        self.add_callback(TokenBudget(args.max_generated_tokens, self))
        self.health = HealthWarnings(self)
        self.add_callback(self.health)
        tables = args.log_recoveries if self.accelerator.is_main_process else 0
        self._recovery_tables = RecoveryTables(tables, args.report_to or ())
        if args.skip_zero_signal:
            self.add_callback(SkipZeroSignal(self))
        rows = len(self.train_dataset) if hasattr(self.train_dataset, "__len__") else None  # pyright: ignore
        self.deferred = DeferredRows(rows, (args.generation_batch_size or 0) // (args.num_generations or 1))
        self.cycle = Cycle([], [])
        self._tool_schemas: dict[type, tuple[Any, ...]] = {}
        step_rewards = [f for f in self.reward_funcs if isinstance(f, StepReward)]
        ends: Any = frozenset([*self.eos_token_ids, self._tokenizer.pad_token_id])  # as for TRL
        for step_reward in step_rewards:
            step_reward.eos_ids, step_reward.decode = ends, self._decode  # it reads what the reader reads
        self.step_environments = StepEnvironments(self._guarded, self._run_async)
        judges = next(iter(step_rewards), None), self.step_environments if args.fission else None
        reading = self.special_tokens, self.error_if
        self._reader = RolloutReader(self._decode, ends, args.failure_threshold, *judges, *reading)

    def _guard_tools(self, given: dict[str, Any], args: FissionGRPOConfig) -> None:
        """Wrap the environments and tools among TRL's arguments: limits, snapshots, answers to unreadable calls."""
        replays = not (args.fission and self._draws_tasks)
        factory = given.get("environment_factory")
        if isinstance(factory, Mapping):
            given["environment_factory"] = {name: self._guarded(make, args, replays) for name, make in factory.items()}
        elif factory is not None:
            given["environment_factory"] = self._guarded(factory, args, replays)
        if given.get("tools"):
            given["tools"] = [
                with_parse_errors(tool, lambda: self._is_vlm, args.tool_timeout) for tool in given["tools"]
            ]

    def _guarded(self, factory: Any, args: Any = None, replays: bool = True) -> Any:
        """The factory of environments that can be brought back to a failed turn, with the limits of `args`."""
        args = args or self.args
        if args.isolate_environments:
            factory = isolated(factory, args.tool_timeout)
        limits = ToolLimits(args.tool_timeout, args.max_tool_result_chars, lambda: self._is_vlm, self.error_if)
        return make_restorable(
            factory,
            self._run_async,
            lambda task_id: self.fission.get_snapshot(task_id),
            limits,
            lambda text: self.special_tokens.sanitize(text),
            replays,
        )

    def _run_async(self, coroutine: Any) -> Any:
        loop = getattr(self, "async_loop", None)  # TRL starts one for its own async tools and rewards only
        return run_awaitable(coroutine) if loop is None else asyncio.run_coroutine_threadsafe(coroutine, loop).result()

    def train(self, *args: Any, **kwargs: Any) -> Any:
        output = super().train(*args, **kwargs)
        self._buffer_feedback()
        return output

    # -- one cycle ---------------------------------------------------------------------------------------------------

    def _generate_and_score_completions(self, inputs: list[Row]) -> dict[str, Any]:
        if not self.model.training:  # pyright: ignore[reportOptionalMemberAccess]
            self.cycle = Cycle(inputs, [])
            output = super()._generate_and_score_completions(inputs)
            self.take_sharing_counts()  # of the evaluation; the next cycle logs its own
            return output
        started = time.perf_counter()
        self._buffer_feedback()
        cycle = self._next_cycle(inputs)
        self.cycle = in_fault_pairs(cycle) if self.args.fault_pairs else cycle
        seconds = time.perf_counter() - started
        with self._cycle_settings():
            copied = self.args.fission or self.args.fault_pairs
            rows = [copy.deepcopy(row) for row in self.cycle.rows] if copied else inputs
            output = super()._generate_and_score_completions(rows)  # which, like environments, may change its rows
        if self.multi_objective_aggregation == "sum_then_normalize":
            correct_advantages(output["advantages"], self.cycle, str(self.scale_rewards), self.args.skip_zero_signal)
        started = time.perf_counter()
        self._complete_cycle()
        self._observe(self._reader.read(self.cycle, bool(self.tools)))
        if not self.fission.is_asynchronous:
            self._buffer_feedback()
        self._log_cycle({"fission/seconds": seconds + time.perf_counter() - started})
        return output

    def _next_cycle(self, inputs: list[Row]) -> Cycle:
        """Choose this cycle's rows: those of the data set, corrective instances in their place, or some of both."""
        offset, size = self.accelerator.process_index * len(inputs), self.args.generation_batch_size or 0
        explores, recovers = self.num_generations, self.args.num_recovery_generations or 0
        if not self.args.fission:
            return Cycle(inputs, [explores] * (size // explores), offset)
        for row in inputs[::explores]:  # one of each group; a stream may bring other columns late
            check_row(row, "a row")
        arrived = [row for part in gather_object([pack_rows(inputs)]) for row in unpack_rows(part)][::explores]
        self.deferred.add(arrived)
        contexts = self.fission.next_contexts(self.state.global_step)
        explored = self.deferred.take((size - len(contexts) * recovers) // explores)
        if skipped := self.deferred.skip_newest():
            self._log_cycle({"fission/skipped_batches": skipped / len(arrived)})
        options, columns = self.chat_template_kwargs, {*inputs[0], FAULTS_KEY}
        recovered = [row_of_task(item.task, self.processing_class, options, columns) for item in contexts]
        sizes = [explores] * len(explored) + [recovers] * len(contexts)
        batch = [row for row, count in zip(explored + recovered, sizes, strict=True) for _ in range(count)]
        own = batch[offset : offset + len(inputs)]
        single_turn = self.args.recovery_scope == "turn" and self.environment_factories is not None
        return Cycle(own, sizes, offset, contexts, single_turn and bool(contexts))

    def _complete_cycle(self) -> None:
        """Add to the cycle what its rollouts are read with."""
        cycle = self.cycle
        cycle.max_calling_turns = 0 if cycle.single_turn else self.max_tool_calling_iterations or math.inf
        if self._draws_tasks and self.args.guard_tools:
            snapshots = [environment._fission_monitor.snapshots for environment in self.environments or ()]
            cycle.starts = [taken[0] if taken else None for taken in snapshots]

    @contextmanager
    def _cycle_settings(self) -> Iterator[None]:
        """Set TRL's group size, and in a single-turn cycle its number of tool-calling iterations, for this cycle."""
        explore = self.num_generations, self.max_tool_calling_iterations
        self.num_generations = math.gcd(*self.cycle.sizes)  # of groups of two sizes, `group_advantages` come after
        if self.cycle.single_turn:
            self.max_tool_calling_iterations = 0
        try:
            yield
        finally:
            self.num_generations, self.max_tool_calling_iterations = explore

    def _generate(self, prompts):
        output = super()._generate(prompts)
        masks = output[2]  # TRL zeroes its copy of them for `mask_truncated_completions`
        self.cycle.masks = None if masks is None else [list(mask) for mask in masks]
        return output

    def _get_tool_suffix_ids(self, tool_messages):
        return super()._get_tool_suffix_ids(self.special_tokens.sanitize_tool_results(tool_messages))

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        cycle = self.cycle
        rows = [without_task(row) for row in inputs] if cycle.contexts or cycle.paired else inputs
        corrective: dict[int, TurnVerdict] = {}
        if cycle.single_turn:
            for i, (environment, turn) in enumerate(zip(self.environments or (), completions, strict=True)):
                ends = bool(completion_ids_list[i]) and completion_ids_list[i][-1] in self._reader.eos_ids
                turn = turn if ends else []  # calls of a turn that was cut off are not made, as in an episode
                corrective[i] = judge_corrective_turn(environment, turn, self._run_async)
        given = rows, prompts, completions, completion_ids_list
        rewards = calculate_usable_rewards(self, super()._calculate_rewards, *given)
        if cycle.single_turn:  # the verdict on the turn replaces the rewards, which judge the end of an episode
            judged = gather_object([float(corrective[i].resolved) for i in range(len(inputs))])
            set_judgements(rewards, self.reward_weights, dict(enumerate(judged)))
        if self.args.guard_tools and self.environments:
            judge_stopped(rewards, [environment._fission_monitor for environment in self.environments])
        resolved = {i: turn.resolved for i, turn in corrective.items()}
        if cycle.contexts and not cycle.single_turn and self.args.recovery_reward == "strict":
            verdicts = gather_object([self._reader.is_resolved(row, i) for i, row in enumerate(inputs)])
            strict = strict_judgements(cycle, rewards, self.reward_weights, verdicts, self.args.failure_threshold)
            set_judgements(rewards, self.reward_weights, strict)
            resolved = {i - cycle.offset: value == 1.0 for i, value in strict.items()}
        given = prompts, completions, completion_ids_list, rewards, self.reward_weights
        cycle.scores = CycleScores(*given, corrective, resolved)
        return rewards

    # -- after a cycle -----------------------------------------------------------------------------------------------

    def _observe(self, rollouts: list[Rollout]) -> None:
        """Share this rank's rollouts with all ranks, request feedback on the failed ones, and log the cycle."""
        cycle, step = self.cycle, self.state.global_step
        rewards = cycle.scores.weighted if cycle.scores is not None else []
        zero_std = zero_std_groups(rewards, cycle.sizes)
        environments = LocalEnvironments(
            self.environments or (), self._standalone_tools or (), bool(self.args.guard_tools), self._tool_schemas
        )
        failed = environments.failed_rollouts(cycle, rollouts, self.args.failure_turn, zero_std)
        counts, outcomes = count_cycle(cycle, rollouts, failed)
        continued = self._reader.continuations(cycle, rollouts) if self.args.recovery_continues else []
        counts.update(environments.pop_counts() + self.step_environments.pop_counts())
        counts.update(self.take_sharing_counts(), special_tokens=self.special_tokens.pop_count())
        if self.args.fission:
            self.fission.submit(failed, step)
        shared = gather_object([(counts, outcomes)])
        total = sum((counts for counts, _ in shared), Counter())
        self.generated_tokens += round(self._metrics["train"]["completions/mean_length"][-1] * len(rewards))
        first_recovery = len(cycle.sizes) - len(cycle.contexts)
        if cycle.contexts:
            all_outcomes = [outcome for _, outcomes in shared for outcome in outcomes]
            flat = zero_std[first_recovery:]
            self._log_cycle(self.fission.record_recovery(cycle.contexts, all_outcomes, flat, step))
            self._recovery_tables.log(cycle.contexts, all_outcomes, step)
            if self.args.recovery_continues:
                self._log_cycle(self.fission.push_continued(cycle.contexts, gather_object(continued), step))
        if first_recovery:
            self.fission.schedule.record_explore()
            self._log_cycle(explore_metrics(total, zero_std[:first_recovery]) | cycle.rewards_of_pairs())
        self._log_cycle(self._common_metrics(total))

    def _buffer_feedback(self) -> None:
        """Push the corrective instances of the pending feedback into the buffer, the same on all ranks."""
        if self.fission.pending is None:
            return
        step = self.fission.pending.step
        ranks = gather_object([self.fission.collect()])
        metrics = self.fission.push(ranks, step)
        if self._draws_tasks:  # another rank may recover from this rank's failure
            for snapshots in gather_object([packed_snapshots(self.fission.buffered_snapshots())]):
                self.fission.snapshots.update(snapshots)
        metrics.update(sum((rank.source_counts for rank in ranks), Counter()))
        self._log_cycle(metrics | {"feedback/seconds": max(rank.seconds for rank in ranks)})

    def _common_metrics(self, counts: Counter[str]) -> dict[str, float]:
        """Return the metrics that explore and recover cycles have in common, from the counts of all ranks."""
        metrics = {
            "fission/phase": self.cycle.recovery_share,
            "fission/generated_tokens": float(self.generated_tokens),
            "fission/infrastructure": float(counts["infrastructure"]),
            "fission/special_tokens": float(counts["special_tokens"]),
        }
        metrics.update({name: float(n) for name, n in counts.items() if name.startswith("env/")})
        if any(counts[name] for name in SHARING_COUNTS):
            metrics.update({name: float(counts[name]) for name in SHARING_COUNTS})
        return metrics

    def _fits(self, task: Task) -> bool:
        """Whether a recovery task's prompt and a completion of full length fit into the model's context."""
        limit = context_length(self)
        if limit is None or self._is_vlm:
            return True
        prompt = row_of_task(task, self.processing_class, self.chat_template_kwargs, ())["prompt"]
        self._batch_environments = [task.columns.get("environment") if self._multi_environment else None]
        (prompt_ids,), *_ = self._tokenize_prompts([prompt])
        return len(prompt_ids) + (self.max_completion_length or 0) <= limit

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=False))

    def _log_cycle(self, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._metrics["train"][name].append(value)

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def _on_claim(self, state: Mapping[str, Any] | None) -> None:
        if state is not None:
            self.event_log.resumed(self.state.global_step, state.get("event_log"))
        elif self.generated_tokens:  # train() once more in this process is another run
            self.fission = Fission(self.args, self.fission.sources, self.event_log, self.special_tokens, self._fits)
            self.deferred.rows.clear()
            self.generated_tokens = 0
            self.event_log.start()

    def _is_at_end(self) -> bool:
        return super()._is_at_end() or 0 < self.args.max_generated_tokens <= self.generated_tokens

    def _save_checkpoint(self, model, trial):
        self._buffer_feedback()
        super()._save_checkpoint(model, trial)

    def _run_state(self) -> dict[str, Any]:
        sources = source_states(self.fission.sources, strict=False)
        if faults := sum("failed" in saved for saved in sources):
            self._log_cycle({"feedback/source_faults": float(faults)})
        return super()._run_state() | {
            "fission": self.fission.state(),
            "deferred": list(self.deferred.rows),
            "snapshots": gather_object([packed_snapshots(self.fission.buffered_snapshots())]),
            "sources": gather_object([sources]),
            "event_log": self.event_log.mark(),
            "generated_tokens": self.generated_tokens,
        }

    def _load_run_state(self, state: dict[str, Any], checkpoint: Path) -> None:
        super()._load_run_state(state, checkpoint)
        rank = self.accelerator.process_index, self.accelerator.num_processes
        self.fission.load_state(state["fission"])
        self.fission.snapshots = dict(shard_for_rank(state["snapshots"], *rank))
        self.deferred.rows = deque(state["deferred"])
        if unknown := load_source_states(self.fission.sources, shard_for_rank(state["sources"], *rank)):
            _log.warning("%s has no state for these sources of feedback: %s", checkpoint, ", ".join(unknown))
        self.generated_tokens = state["generated_tokens"]
