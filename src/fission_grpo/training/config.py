"""FissionGRPOConfig: TRL's GRPOConfig and the options of Fission-GRPO."""

from __future__ import annotations

import functools
import json
import math
import os
import sys
from collections.abc import MutableMapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from transformers.trainer_pt_utils import AcceleratorConfig
from trl import GRPOConfig

from fission_grpo.core.result_errors import error_rule
from fission_grpo.fission.options import BETA, REMOVED, RENAMED, FissionOptions, check_choices
from fission_grpo.inference.pretrained import model_path

Class = TypeVar("Class", bound=type)

_MAY_BE_INFINITE = {  # limits, of which infinity means none [ours]
    "delta",
    "epsilon",
    "epsilon_high",
    "failure_threshold",
    "max_grad_norm",
    "off_policy_mask_threshold",
    "vllm_importance_sampling_cap",
    "vllm_importance_sampling_clip_max",
}


_RANGES = {  # options by their least and largest value [of the libraries]
    (0, 1): "adam_beta1 adam_beta2 label_smoothing_factor min_p ref_model_mixup_alpha top_entropy_quantile top_p",
    (0, math.inf): "adam_epsilon beta dataloader_num_workers epsilon epsilon_high learning_rate max_generated_tokens "
    "max_grad_norm max_tool_calling_iterations neftune_noise_alpha repetition_penalty temperature weight_decay",
    (1, math.inf): "num_iterations ref_model_sync_steps steps_per_generation",
}
_ABOVE_LEAST = ("repetition_penalty", "temperature")
_CHOICES = {  # of TRL's options of text that it looks at in the first update
    "importance_sampling_level": ("token", "sequence"),
    "loss_type": ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
}


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


@refuse_old_names
@dataclass
class FissionGRPOConfig(FissionOptions, GRPOConfig):
    """Options of `FissionGRPOTrainer`: every field of `trl.GRPOConfig`, and of `FissionOptions`.

    Raises:
        ValueError: a value is out of range. It is raised before anything is loaded.
        TypeError: an option is given by its old name, or is gone.
    """

    def __post_init__(self):
        if self.beta is None:
            self.beta = BETA if self.fission else GRPOConfig.__dataclass_fields__["beta"].default
        self._check_numbers()
        self._read_accelerator_config()
        if self.report_to is None:
            raise ValueError("report_to is None; set it to none for no reports.")
        super().__post_init__()
        if self.num_recovery_generations is None:
            self.num_recovery_generations = self.num_generations
        if self.guard_tools is None:
            self.guard_tools = self.fission
        if self.isolate_environments and not self.guard_tools:
            raise ValueError("isolate_environments needs guard_tools: set guard_tools to true, or leave it out.")
        error_rule(self.error_pattern)  # refuses one that cannot be used
        if self.skip_zero_signal is None:
            self.skip_zero_signal = self.fission
        if self.fission:
            self._check_fission()

    def _check_numbers(self) -> None:
        """Refuse values that would end in a library's traceback, or in weights that are not numbers."""
        for option in fields(self):
            value = getattr(self, option.name)
            for number in value if isinstance(value, list) else [value]:
                infinite = isinstance(number, float) and math.isinf(number) and option.name not in _MAY_BE_INFINITE
                if infinite or (isinstance(number, float) and math.isnan(number)):
                    raise ValueError(f"{option.name} is {number}; give a number.")
                if isinstance(number, int) and abs(number) > sys.maxsize:
                    raise ValueError(f"{option.name} is too large; give a number of at most {sys.maxsize}.")
        self._check_least(num_generations=2, per_device_train_batch_size=1)
        self._check_least(gradient_accumulation_steps=1, max_completion_length=1)
        self._check_least(top_k=-1 if self.use_vllm else 0)  # vLLM takes -1 for all tokens
        for (least, largest), names in _RANGES.items():
            for name in names.split():
                value = getattr(self, name, None)
                if value is None or (least <= value <= largest and not (value == least and name in _ABOVE_LEAST)):
                    continue
                limits = f"{'above' if name in _ABOVE_LEAST else 'at least'} {least}"
                limits += "" if largest == math.inf else f" and at most {largest}"
                raise ValueError(f"{name} is {value}, but must be {limits}.")
        if str(self.scale_rewards).lower() not in ("batch", "group", "none", "true", "false"):
            raise ValueError(f"scale_rewards is {self.scale_rewards!r}; set it to one of batch, group, none.")
        for name, known in _CHOICES.items():
            if getattr(self, name, known[0]) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; set it to one of {', '.join(known)}.")

    def _read_accelerator_config(self) -> None:
        """Make it of a mapping or a JSON file, as transformers does, with the option's name in every error."""
        given = self.accelerator_config
        if given is None or isinstance(given, AcceleratorConfig | type):
            return
        try:
            if isinstance(given, str):
                given = json.loads(given if given.startswith("{") else Path(given).read_text(encoding="utf-8"))
            self.accelerator_config = AcceleratorConfig(**given)  # pyright: ignore[reportAttributeAccessIssue]
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(
                f"accelerator_config is no mapping or JSON file of accelerate's options: {error}"
            ) from error

    def _check_least(self, **least_values: int) -> None:
        for name, least in least_values.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}, but must be at least {least}.")

    def _check_fission(self) -> None:
        size = self.generation_batch_size or 0
        recoveries = self.num_recovery_generations or 0
        if recoveries < 2:
            raise ValueError(
                f"num_recovery_generations is {recoveries}, but advantages are normalised within each recovery group, "
                "which takes at least 2. Set num_recovery_generations to 2 or more."
            )
        if size % recoveries and not self.is_mixed:
            divisors = [n for n in range(2, size + 1) if size % n == 0]
            raise ValueError(
                f"num_recovery_generations ({recoveries}) does not divide generation_batch_size ({size} = "
                "per_device_train_batch_size x processes x steps_per_generation), so recovery groups would not fill "
                f"a batch. Set num_recovery_generations to one of {divisors}, or change the batch size."
            )
        check_choices(vars(self))
        self._check_ratio()
        contexts = self.contexts_per_cycle
        self._check_least(buffer_capacity=contexts, max_age_steps=0, max_depth=0, log_recoveries=0)
        self._check_least(tool_timeout=0, feedback_timeout=0, max_tool_result_chars=0)
        least = self.contexts_at_a_time
        if self.min_buffered is not None and not least <= self.min_buffered <= self.buffer_capacity:
            what = "recovery groups that take the place of whole explore groups"
            what = what if self.is_mixed else "one full batch of recovery groups"
            raise ValueError(
                f"min_buffered is {self.min_buffered}, but must lie between {least} ({what}) "
                f"and buffer_capacity ({self.buffer_capacity}). Leave it unset for {least}."
            )

    def _check_ratio(self) -> None:
        if not self.is_mixed:
            if not 0 < self.recovery_ratio <= 0.5:
                raise ValueError(
                    f"recovery_ratio is {self.recovery_ratio}, but must lie above 0 and up to 0.5: there are never "
                    "two recover cycles in a row. Set fission to false for none at all."
                )
            return
        if not 0 < self.recovery_ratio < 1:
            raise ValueError(
                f"recovery_ratio is {self.recovery_ratio}, but with recovery_batches=mixed must lie above 0 and below "
                "1. Set fission to false for no recovery at all."
            )
        if self.recovery_scope == "turn":
            raise ValueError(
                "recovery_scope=turn judges corrective turns in batches of their own; set recovery_batches=alternate."
            )
        if self.num_recovery_generations != self.num_generations and (
            self.multi_objective_aggregation != "sum_then_normalize"
        ):
            raise ValueError(
                "recovery_batches=mixed with groups of two sizes needs multi_objective_aggregation="
                "sum_then_normalize; or set num_recovery_generations to num_generations."
            )
        if not self.contexts_per_cycle:
            groups = self.contexts_at_a_time
            raise ValueError(
                f"recovery_batches=mixed: {groups} recovery groups of {self.num_recovery_generations} take the place "
                f"of whole explore groups of {self.num_generations}, which is more than recovery_ratio "
                f"({self.recovery_ratio}) of the batch of {self.generation_batch_size}, or all of it. Raise one of "
                "the last two, or lower num_recovery_generations."
            )

    @property
    def is_mixed(self) -> bool:
        """Whether recovery groups share their batches with rows that are explored."""
        return self.recovery_batches == "mixed"

    @property
    def contexts_at_a_time(self) -> int:
        """Least number of corrective instances whose rollouts take the place of whole explore groups."""
        explores, recovers = self.num_generations or 1, self.num_recovery_generations or 1
        return math.lcm(explores, recovers) // recovers if self.is_mixed else self.contexts_per_cycle

    @property
    def contexts_per_cycle(self) -> int:
        """Largest number of corrective instances in one cycle."""
        size, recovers = self.generation_batch_size or 0, self.num_recovery_generations or 1
        if not self.is_mixed:
            return size // recovers
        most = min(int(size * self.recovery_ratio + 1e-9), size - (self.num_generations or 1))
        at_a_time = self.contexts_at_a_time
        return most // (recovers * at_a_time) * at_a_time


def checked_config(given: MutableMapping[str, Any]) -> FissionGRPOConfig:
    """Return the `args` among a trainer's arguments, with an absolute output_dir; named after the model by default.

    The model "starter" among the arguments becomes its folder.

    Raises:
        TypeError: `args` is the config of another trainer.
        ValueError: there are environments, which recovery needs guarded, and they would not be.
    """
    args, model = given.get("args"), given["model"]
    if isinstance(model, str) and model == "starter":
        given["model"] = model_path(model)
    if args is None:
        name = model if isinstance(model, str) else model.config.name_or_path
        args = FissionGRPOConfig(f"{str(name).split('/')[-1]}-Fission-GRPO")
    if not isinstance(args, FissionGRPOConfig):
        raise TypeError(
            f"args is a {type(args).__name__}; pass a fission_grpo.FissionGRPOConfig, which takes the same fields."
        )
    if given.get("environment_factory") is not None and args.fission and not args.guard_tools:
        raise ValueError(
            "guard_tools=False with environments: recovery brings a guarded environment back to the failed turn. "
            "Leave guard_tools unset, or set fission=False."
        )
    args.output_dir = os.path.abspath(str(args.output_dir))  # a tool may change the working directory
    return args
