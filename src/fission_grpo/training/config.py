"""FissionGRPOConfig: TRL's GRPOConfig plus the fields of fission. All of TRL's fields pass through untouched."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any

from trl import GRPOConfig

from fission_grpo.fission.buffer import ORDERS
from fission_grpo.fission.failures import BRANCHES


@dataclass
class FissionGRPOConfig(GRPOConfig):
    """Every `trl.GRPOConfig` field, and these. Marks: [paper] known, [inferred], [ours] our own choice.

    Raises ValueError for a value out of range, before anything is loaded.
    """

    fission: bool = field(
        default=True,
        metadata={
            "help": "Run recover cycles [paper]. False is TRL's GRPO: same seeds, same losses; to the last bit with "
            "shared_prefix false, too, else up to rounding."
        },
    )
    num_recoveries: int | None = field(
        default=None,
        metadata={
            "help": "G', recovery rollouts sampled per corrective instance; at least 2, must divide "
            "generation_batch_size. None: as many as num_generations [ours; the paper's value is not known]."
        },
    )
    failure_threshold: float = field(
        default=0.5,
        metadata={
            "help": "With reward functions of your own: a rollout whose weighted reward sum is below this has failed "
            "(in your rewards' unit). Step tasks judged by StepReward use its correctness_threshold instead [ours]."
        },
    )
    buffer_capacity: int = field(
        default=256, metadata={"help": "Most corrective instances held; the oldest is dropped for a new one [ours]."}
    )
    max_age_steps: int = field(
        default=32,
        metadata={"help": "Optimizer steps after which a waiting corrective instance is dropped; 0: never [ours]."},
    )
    max_depth: int = field(
        default=1,
        metadata={
            "help": "1: only failures of data set tasks are recovered from. 2: failures of recoveries too, and so on. "
            "0: nothing is ever fissioned [ours]."
        },
    )
    branch: str = field(
        default="first",
        metadata={
            "help": "Which failing turn of an episode is recovered from: first, last, or every (each of them) [ours]."
        },
    )
    judge_recovery: str = field(
        default="episode",
        metadata={
            "help": "How recoveries in environments are judged: episode (to its end, by your rewards), or turn (the "
            "one corrective turn [paper], 1 if its calls work and the environment's _progress() rises, else 0; "
            "nothing is sampled after it). The default did better on average in LOG.md [ours]."
        },
    )
    buffer_order: str = field(
        default="lifo",
        metadata={
            "help": "Which waiting instances are recovered first: lifo (newest) [paper]; variance (greatest expected "
            "reward variance, from the group's success and the running recovery rate of its kind of failure) [ours]; "
            "fifo, random: ablations."
        },
    )
    recover_share: float = field(
        default=0.5,
        metadata={"help": "Largest share of cycles that recover, above 0 to 0.5 (every second cycle) [ours]."},
    )
    adaptive_share: bool = field(
        default=False,
        metadata={
            "help": "Recover less often while fewer recovery groups than explore groups have differing rewards [ours]."
        },
    )
    recover_trigger: int | None = field(
        default=None,
        metadata={
            "help": "Unique instances that must wait before a recover cycle runs. None: one full batch, "
            "generation_batch_size / num_recoveries, which is also the least allowed [ours; the paper's is unknown]."
        },
    )
    watch_tools: bool | None = field(
        default=None,
        metadata={
            "help": "Tell the policy when a tool call cannot be read (TRL ends the episode), keep to tool_seconds and "
            "tool_characters, and give no reward in a broken environment. None: as `fission`; true with fission "
            "false is plain GRPO in the same worlds, for comparisons [ours]."
        },
    )
    tool_seconds: float = field(
        default=60.0,
        metadata={"help": "Time limit of one tool call in an environment, after which it counts as broken; 0: none."},
    )
    tool_characters: int = field(
        default=20_000,
        metadata={"help": "Longest tool result of an environment; what is longer is cut, and says so; 0: no limit."},
    )
    diagnose_seconds: float = field(
        default=30.0,
        metadata={
            "help": "Longest a cycle waits for diagnoses that come from elsewhere (an endpoint); what is late by then "
            "falls back, counted. They are asked for while the update runs, so mostly nothing is waited for [ours]."
        },
    )
    max_generated_tokens: int = field(
        default=0,
        metadata={
            "help": "Stop at the end of the cycle in which the policy has sampled this many tokens, explore and "
            "recover cycles together, so that methods are compared at equal cost; 0: no limit [ours]."
        },
    )
    shared_prefix: bool = field(
        default=True,
        metadata={
            "help": "Compute the prompt of a group once, in generation and in the update: same tokens, losses and "
            "gradients up to rounding, in less time and memory. Where the model does not allow it, a warning says why "
            "and TRL's own computation is used. False: always TRL's own [ours]."
        },
    )
    journal: bool = field(
        default=True,
        metadata={
            "help": "Write every corrective instance and its outcome to output_dir/fission.jsonl [paper: on disk]."
        },
    )

    def __post_init__(self):
        self._check_numbers()
        super().__post_init__()
        if self.num_recoveries is None:
            self.num_recoveries = self.num_generations
        if self.watch_tools is None:
            self.watch_tools = self.fission
        if self.fission:
            self._check_fission()

    def _check_numbers(self) -> None:
        """What would else end in a traceback of a library, or in weights that are not numbers."""
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, float) and math.isnan(value):
                raise ValueError(f"{one.name} is nan; give a number.")
        least_values = {
            "num_generations": 2,
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 1,
            "max_completion_length": 1,
        }
        for name, least in least_values.items():
            value = getattr(self, name)
            if isinstance(value, int) and value < least:
                raise ValueError(f"{name} is {value}, but must be at least {least}.")

    def _check_fission(self) -> None:
        size, recoveries = self.generation_batch_size or 0, self.num_recoveries or 0
        if recoveries < 2:
            raise ValueError(
                f"num_recoveries is {recoveries}, but advantages are normalised within each recovery group, "
                "which takes at least 2. Set num_recoveries to 2 or more."
            )
        if size % recoveries:
            divisors = [n for n in range(2, size + 1) if size % n == 0]
            raise ValueError(
                f"num_recoveries ({recoveries}) does not divide generation_batch_size ({size} = "
                "per_device_train_batch_size x processes x steps_per_generation), so recovery groups would not fill "
                f"a batch. Set num_recoveries to one of {divisors}, or change the batch size."
            )
        contexts, trigger = self.contexts_per_cycle, self.recover_trigger
        least_values = {
            "buffer_capacity": contexts,
            "max_age_steps": 0,
            "max_depth": 0,
            "tool_seconds": 0,
            "diagnose_seconds": 0,
        }
        for name, least in {**least_values, "tool_characters": 0}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be at least {least}.")
        choices = {"buffer_order": tuple(ORDERS), "branch": BRANCHES, "judge_recovery": ("episode", "turn")}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; set it to one of {', '.join(known)}.")
        if not 0 < self.recover_share <= 0.5:
            raise ValueError(
                f"recover_share is {self.recover_share}, but must lie above 0 and up to 0.5: there are never two "
                "recover cycles in a row. Set fission to false for none at all."
            )
        if trigger is not None and not contexts <= trigger <= self.buffer_capacity:
            raise ValueError(
                f"recover_trigger is {trigger}, but must lie between {contexts} (one full batch of recovery groups) "
                f"and buffer_capacity ({self.buffer_capacity}). Leave it unset for one full batch."
            )

    @property
    def contexts_per_cycle(self) -> int:
        """Corrective instances used by one recover cycle: generation_batch_size / num_recoveries."""
        return (self.generation_batch_size or 0) // (self.num_recoveries or 1)


def checked_config(args: Any, model: Any) -> FissionGRPOConfig:
    """The trainer's `args`, by default named after its model.

    Raises:
        TypeError: they are another trainer's.
    """
    if args is None:
        name = model if isinstance(model, str) else model.config.name_or_path
        return FissionGRPOConfig(f"{str(name).split('/')[-1]}-Fission-GRPO")
    if not isinstance(args, FissionGRPOConfig):
        raise TypeError(
            f"args is a {type(args).__name__}; pass a fission_grpo.FissionGRPOConfig, which takes the same fields."
        )
    return args
