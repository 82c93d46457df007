"""The options of Fission-GRPO: their defaults, help texts and choices. Nothing here needs TRL."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from fission_grpo.core.result_errors import error_rule
from fission_grpo.fission.buffer import ORDERS
from fission_grpo.fission.failures import FAILURE_TURNS

CHOICES: Mapping[str, tuple[str, ...]] = {
    "buffer_order": tuple(ORDERS),
    "failure_turn": tuple(FAILURE_TURNS),
    "recovery_scope": ("episode", "turn"),
    "recovery_batches": ("alternate", "mixed"),
    "recovery_reward": ("graded", "strict"),
}
"""Values of the options that are words."""

RENAMED = {
    "branch": "failure_turn",
    "diagnose": "feedback",
    "diagnose_seconds": "feedback_timeout",
    "journal": "log_instances",
    "judge_recovery": "recovery_scope",
    "num_recoveries": "num_recovery_generations",
    "recover_share": "recovery_ratio",
    "recover_trigger": "min_buffered",
    "simulator": "feedback_model",
    "tool_characters": "max_tool_result_chars",
    "tool_seconds": "tool_timeout",
    "watch_tools": "guard_tools",
}
"""Present names of options, by the names they had before the first release. An old name is an error."""

REMOVED = {
    "adaptive_recovery_ratio": "had no measured effect; leave it out",
    "adaptive_share": "had no measured effect; leave it out",
}
"""Options that are gone, and why. A name of these is an error."""
Class = TypeVar("Class", bound=type)

_SUM = "sum_then_normalize"  # how TRL adds several rewards by default

BETA = 0.04
"""Coefficient of the KL term with fission. [ours] In live episodes 8 policies of 66 ran away at 0, at this 0 of 15."""


def refuse_old_names(config: Class) -> Class:
    """Class decorator: an old option name raises a TypeError that gives the new one, or says that it is gone."""
    construct = config.__init__

    @functools.wraps(construct)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        for name in kwargs.keys() & RENAMED.keys():
            raise TypeError(f"{config.__name__}: the option `{name}` is now called `{RENAMED[name]}`")
        for name in kwargs.keys() & REMOVED.keys():
            raise TypeError(f"{config.__name__}: the option `{name}` was removed: it {REMOVED[name]}")
        construct(self, *args, **kwargs)

    config.__init__ = __init__  # pyright: ignore[reportAttributeAccessIssue]
    return config


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


def _experimental(default: Any, text: str) -> Any:
    """An option without a measured effect: it may change or go."""
    return _option(default, f"Experimental. {text}")


@dataclass
class FissionOptions:
    """The fields that `FissionGRPOConfig` adds to `trl.GRPOConfig`.

    The help text of each field marks where its default comes from: [paper], [inferred] from it, or [ours].
    """

    _size_is = ""  # what generation_batch_size is made of, for an error message

    fission: bool = _option(
        True,
        "Run recover cycles [paper]. False trains as TRL's GRPO does: the same samples and losses, to the bit with"
        " shared_prefix=False, else up to rounding.",
    )
    beta: float | None = _option(
        None,
        "Coefficient of the KL term. At 0 some policies of docs/evidence.md no longer stopped calling. It costs a "
        "reference model in memory, none with LoRA. Default: 0.04 with fission [ours], TRL's without.",
    )
    num_recovery_generations: int | None = _option(
        None,
        "G', recovery rollouts sampled per corrective instance: at least 2, and a divisor of "
        "generation_batch_size. Default: num_generations [ours; the paper's value is not known].",
    )
    failure_threshold: float = _option(
        0.5,
        "A rollout has failed if its weighted reward sum is below this, in the unit of your rewards. Step tasks "
        "judged by StepReward use its correctness_threshold instead [ours].",
    )
    buffer_capacity: int = _option(
        256, "Largest number of corrective instances held; a new one replaces the oldest [ours]."
    )
    max_age_steps: int = _option(32, "Optimizer steps after which a buffered instance expires; 0 for never [ours].")
    max_depth: int = _experimental(
        1,
        "1: recover from failures of data set tasks. 2: also from failed recoveries, and so on. 0: never "
        "recover [ours].",
    )
    failure_turn: str = _experimental(
        "first", "Failing turn of an episode to recover from: first, last, or every one of them [ours]."
    )
    recovery_scope: str = _experimental(
        "episode",
        "How recoveries in environments are judged. episode: to the end of the episode, by your rewards. "
        "turn: by the one corrective turn [paper], 1 if its calls succeed and the environment's _progress() rises, "
        "else 0; nothing is sampled after it. The default did better on average in LOG.md [ours].",
    )
    recovery_batches: str = _experimental(
        "alternate",
        "alternate: a recover cycle is a whole batch between explore cycles [paper]. mixed: every batch holds the "
        "recovery groups that are due, up to the share recovery_ratio, beside the rows it explores [ours].",
    )
    recovery_reward: str = _experimental(
        "graded",
        "Reward of recovery rollouts. graded: your rewards [paper]. strict: 1 if the rollout is no failure, else 0, "
        "so that a nearly right repetition earns nothing [ours].",
    )
    recovery_continues: bool = _experimental(
        False,
        "A right recovery of a step task goes on: the turn after it becomes a recovery task too, with the "
        "error in its dialogue. Needs the task's environment and its column `following` [ours].",
    )
    fault_pairs: bool = _experimental(
        False,
        "With an environment_factory of inject_faults: half of each explored group meets the faults, the other half "
        "does the same task without any, and advantages are normalised within each half, so that faults from outside "
        "are not blamed on the policy. num_generations must be even and at least 4 [ours].",
    )
    buffer_order: str = _experimental(
        "lifo",
        "Instances to recover from first: lifo, the newest [paper], or random [ours].",
    )
    recovery_ratio: float = _option(
        0.5,
        "Largest ratio of recover cycles to all cycles, above 0 to 0.5; with recovery_batches=mixed the largest share "
        "of a batch, above 0 and below 1 [ours].",
    )
    min_buffered: int | None = _experimental(
        None,
        "Instances that the buffer must hold before a recover cycle runs. Default: one full batch, "
        "generation_batch_size / num_recovery_generations, which is also the smallest value allowed [ours; the "
        "paper's is not known].",
    )
    guard_tools: bool | None = _option(
        None,
        "Guard tool calls: a call that cannot be read is answered with an error (TRL ends the episode), "
        "tool_timeout and max_tool_result_chars hold, and a broken environment gives no reward. Default: the value"
        " of `fission`. True with fission=False is plain GRPO in the same environments [ours].",
    )
    tool_timeout: float = _option(
        60.0,
        "Time limit of a tool call, in seconds. A call in an environment that exceeds it ends the episode with reward "
        "0. It also holds for the environment's other methods; an episode in which these exceed it is not judged. 0 "
        "for none [ours].",
    )
    isolate_environments: bool = _option(
        False,
        "Run each environment in a process of its own, which is killed at tool_timeout even in C code, and whose "
        "crash ends only its episode. The class must be at the top of a module [ours].",
    )
    max_tool_result_chars: int = _option(
        20_000,
        "Largest length of an environment's tool result in characters. A longer one is cut, with a note. 0 for no "
        "limit [ours].",
    )
    error_pattern: str | None = _option(
        None,
        "Regular expression: a tool's result with a match in its first 1,000 characters is an error, as if the tool "
        "had raised it, such as '^Error'. The policy reads the same text. Default: only raised errors and results "
        'like {"error": ...}; results that begin like errors are counted and named in a warning [ours].',
    )
    feedback_timeout: float = _option(
        30.0,
        "Seconds that a cycle waits at most for feedback from asynchronous sources, such as an endpoint. They work"
        " while the policy is updated. Feedback that is late is replaced and counted [ours].",
    )
    max_generated_tokens: int = _option(
        0,
        "Stop at the end of the cycle in which the policy has sampled this many tokens, explore and recover cycles"
        " together, to compare methods at equal cost. 0 for no limit [ours].",
    )
    skip_zero_signal: bool | None = _option(
        None,
        "Leave out the optimizer step of an update whose gradient is exactly zero, as when every group's rewards are "
        "equal and beta is 0. Adam's momentum and weight decay would move the policy without a reason. The learning "
        "rate schedule goes on. Default: the value of `fission`; False steps as TRL does [ours].",
    )
    shared_prefix: bool = _option(
        True,
        "Compute what prompts have in common (system message, tools, the prompt of a group) once, in generation and "
        "in the update: the same tokens, losses and gradients up to rounding, in less time and memory. If the "
        "model does not allow it, a warning says why and TRL's own computation is used [ours].",
    )
    log_instances: bool = _option(
        True, "Write every corrective instance and its outcome to output_dir/fission.jsonl [paper: on disk]."
    )
    log_recoveries: int = _option(
        0,
        "Log a table of recoveries (request, failed call, feedback, rewards, best and worst recovery) to W&B or "
        "trackio, as report_to says, in the first and then every N-th recover cycle; 0 for none [ours].",
    )

    def _complete(self: Any) -> None:
        """Set the defaults that depend on other options, and check what belongs together. Raises ValueError."""
        if self.num_recovery_generations is None:
            self.num_recovery_generations = self.num_generations
        if self.guard_tools is None:
            self.guard_tools = self.fission
        if self.isolate_environments and not self.guard_tools:
            raise ValueError("isolate_environments needs guard_tools: set guard_tools to true, or leave it out.")
        error_rule(self.error_pattern)  # refuses one that cannot be used
        if self.skip_zero_signal is None:
            self.skip_zero_signal = self.fission
        if self.fault_pairs and (self.num_generations % 2 or self.num_generations < 4):
            raise ValueError(
                f"fault_pairs halves groups, but num_generations is {self.num_generations}; set it to an even number "
                "of at least 4."
            )
        if self.fission:
            _check_recovery(self)

    @property
    def is_mixed(self: Any) -> bool:
        """Whether recovery groups share their batches with rows that are explored."""
        return self.recovery_batches == "mixed"

    @property
    def contexts_at_a_time(self: Any) -> int:
        """Least number of corrective instances whose rollouts take the place of whole explore groups."""
        explores, recovers = self.num_generations or 1, self.num_recovery_generations or 1
        return math.lcm(explores, recovers) // recovers if self.is_mixed else self.contexts_per_cycle

    @property
    def contexts_per_cycle(self: Any) -> int:
        """Largest number of corrective instances in one cycle."""
        size, recovers = self.generation_batch_size or 0, self.num_recovery_generations or 1
        if not self.is_mixed:
            return size // recovers
        most = min(int(size * self.recovery_ratio + 1e-9), size - (self.num_generations or 1))
        at_a_time = self.contexts_at_a_time
        return most // (recovers * at_a_time) * at_a_time


@refuse_old_names
@dataclass(kw_only=True)
class FissionSettings(FissionOptions):
    """The options of `Fission` without a trainer, for a training loop of one's own: plain values, no torch, no trl.

    Options that only a trainer can follow (`beta`, `shared_prefix`, `skip_zero_signal`, `max_generated_tokens`) are
    here so that one set of settings can be handed on.

    Args:
        num_generations: G, rollouts of each explored task.
        generation_batch_size: rollouts in one cycle, of all groups; by default one group.
        seed: of the buffer's order "random".

    Raises:
        ValueError: a value is out of range.
        TypeError: an option is given by its old name, or is gone.
    """

    num_generations: int = 8
    generation_batch_size: int | None = None
    seed: int = 42

    def __post_init__(self):
        if self.generation_batch_size is None:
            self.generation_batch_size = self.num_generations
        check_numbers(self, ("failure_threshold",))
        check_least(self, num_generations=2)
        if self.generation_batch_size % self.num_generations:
            raise ValueError(
                f"generation_batch_size ({self.generation_batch_size}) is not a multiple of num_generations "
                f"({self.num_generations}): a cycle holds whole groups."
            )
        self._complete()


def check_choices(values: Mapping[str, Any]) -> None:
    """Raise ValueError for the first option among `values` that has a choice of words, and another value."""
    for name, known in CHOICES.items():
        if name in values and values[name] not in known:
            raise ValueError(f"{name} is {values[name]!r}; set it to one of {', '.join(known)}.")


def check_numbers(settings: Any, may_be_infinite: Collection[str] = ()) -> None:
    """Raise ValueError for the first field of a dataclass that is not a number, infinite, or too large for one."""
    for option in fields(settings):
        value = getattr(settings, option.name)
        for number in value if isinstance(value, list) else [value]:
            infinite = isinstance(number, float) and math.isinf(number) and option.name not in may_be_infinite
            if infinite or (isinstance(number, float) and math.isnan(number)):
                raise ValueError(f"{option.name} is {number}; give a number.")
            if isinstance(number, int) and abs(number) > sys.maxsize:
                raise ValueError(f"{option.name} is too large; give a number of at most {sys.maxsize}.")


def check_least(settings: Any, **least_values: int) -> None:
    """Raise ValueError for the first of these options that is below its least value."""
    for name, least in least_values.items():
        value = getattr(settings, name)
        if value is not None and value < least:
            raise ValueError(f"{name} is {value}, but must be at least {least}.")


def _check_recovery(settings: Any) -> None:
    """Refuse settings with which no recovery groups can be formed."""
    size = settings.generation_batch_size or 0
    recoveries = settings.num_recovery_generations or 0
    if recoveries < 2:
        raise ValueError(
            f"num_recovery_generations is {recoveries}, but advantages are normalised within each recovery group, "
            "which takes at least 2. Set num_recovery_generations to 2 or more."
        )
    if size % recoveries and not settings.is_mixed:
        divisors = [n for n in range(2, size + 1) if size % n == 0]
        raise ValueError(
            f"num_recovery_generations ({recoveries}) does not divide generation_batch_size "
            f"({size}{settings._size_is}), so recovery groups would not fill a batch. Set num_recovery_generations to "
            f"one of {divisors}, or change the batch size."
        )
    check_choices(vars(settings))
    _check_ratio(settings)
    contexts = settings.contexts_per_cycle
    check_least(settings, buffer_capacity=contexts, max_age_steps=0, max_depth=0, log_recoveries=0)
    check_least(settings, tool_timeout=0, feedback_timeout=0, max_tool_result_chars=0)
    least = settings.contexts_at_a_time
    if settings.min_buffered is not None and not least <= settings.min_buffered <= settings.buffer_capacity:
        what = "recovery groups that take the place of whole explore groups"
        what = what if settings.is_mixed else "one full batch of recovery groups"
        raise ValueError(
            f"min_buffered is {settings.min_buffered}, but must lie between {least} ({what}) "
            f"and buffer_capacity ({settings.buffer_capacity}). Leave it unset for {least}."
        )


def _check_ratio(settings: Any) -> None:
    if not settings.is_mixed:
        if not 0 < settings.recovery_ratio <= 0.5:
            raise ValueError(
                f"recovery_ratio is {settings.recovery_ratio}, but must lie above 0 and up to 0.5: there are never "
                "two recover cycles in a row. Set fission to false for none at all."
            )
        return
    if not 0 < settings.recovery_ratio < 1:
        raise ValueError(
            f"recovery_ratio is {settings.recovery_ratio}, but with recovery_batches=mixed must lie above 0 and below "
            "1. Set fission to false for no recovery at all."
        )
    if settings.recovery_scope == "turn":
        raise ValueError(
            "recovery_scope=turn judges corrective turns in batches of their own; set recovery_batches=alternate."
        )
    one_size = settings.num_recovery_generations == settings.num_generations // (2 if settings.fault_pairs else 1)
    if not one_size and getattr(settings, "multi_objective_aggregation", _SUM) != _SUM:
        raise ValueError(
            "recovery_batches=mixed with groups of two sizes needs multi_objective_aggregation="
            "sum_then_normalize; or set num_recovery_generations to num_generations."
        )
    if not settings.contexts_per_cycle:
        groups = settings.contexts_at_a_time
        raise ValueError(
            f"recovery_batches=mixed: {groups} recovery groups of {settings.num_recovery_generations} take the place "
            f"of whole explore groups of {settings.num_generations}, which is more than recovery_ratio "
            f"({settings.recovery_ratio}) of the batch of {settings.generation_batch_size}, or all of it. Raise "
            "one of the last two, or lower num_recovery_generations."
        )
