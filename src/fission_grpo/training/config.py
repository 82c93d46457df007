"""FissionGRPOConfig: TRL's GRPOConfig and the options of Fission-GRPO."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.trainer_pt_utils import AcceleratorConfig
from trl import GRPOConfig

from fission_grpo.fission.options import (
    BETA,
    FissionOptions,
    check_least,
    check_numbers,
    refuse_old_names,
)
from fission_grpo.inference.pretrained import model_path

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


@refuse_old_names
@dataclass
class FissionGRPOConfig(FissionOptions, GRPOConfig):
    """Options of `FissionGRPOTrainer`: every field of `trl.GRPOConfig`, and of `FissionOptions`.

    Raises:
        ValueError: a value is out of range. It is raised before anything is loaded.
        TypeError: an option is given by its old name, or is gone.
    """

    _size_is = " = per_device_train_batch_size x processes x steps_per_generation"

    def __post_init__(self):
        if self.beta is None:
            self.beta = BETA if self.fission else GRPOConfig.__dataclass_fields__["beta"].default
        self._check_numbers()
        self._read_accelerator_config()
        if self.report_to is None:
            raise ValueError("report_to is None; set it to none for no reports.")
        super().__post_init__()
        self._complete()

    def _check_numbers(self) -> None:
        """Refuse values that would end in a library's traceback, or in weights that are not numbers."""
        check_numbers(self, _MAY_BE_INFINITE)
        check_least(self, num_generations=2, per_device_train_batch_size=1)
        check_least(self, gradient_accumulation_steps=1, max_completion_length=1)
        check_least(self, top_k=-1 if self.use_vllm else 0)  # vLLM takes -1 for all tokens
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


def checked_config(given: MutableMapping[str, Any]) -> FissionGRPOConfig:
    """Return the `args` among a trainer's arguments, with an absolute output_dir; named after the model by default.

    The model "starter" among the arguments becomes its folder.

    Raises:
        TypeError: `args` is the config of another trainer.
        ValueError: there are environments, which recovery needs guarded, and they would not be; or `fault_pairs` is
            set, and they have no faults.
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
    factory = given.get("environment_factory")
    factories = factory.values() if isinstance(factory, Mapping) else [factory]
    if args.fault_pairs and not all(getattr(make, "injects_faults", False) for make in factories):
        raise ValueError(
            "fault_pairs needs environments with faults: give an environment_factory of fission_grpo.inject_faults, "
            "or leave fault_pairs out."
        )
    args.output_dir = os.path.abspath(str(args.output_dir))  # a tool may change the working directory
    return args
