"""Supported versions of TRL and transformers, what we need of TRL's trainer, and how TRL's versions differ.

The only module that knows of differences between versions; docs/reliability.md lists what was tested.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from fission_grpo.core.errors import UnsupportedVersionError
from fission_grpo.core.terminal import get_logger

if TYPE_CHECKING:
    import torch
    from datasets import Dataset, IterableDataset
    from peft import PeftConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin, TrainerCallback
    from trl import GRPOTrainer as MixinBase

    from fission_grpo.feedback.spec import FeedbackSpec
    from fission_grpo.training.config import FissionGRPOConfig
else:
    MixinBase = object
"""Base of the trainer's mixins: GRPOTrainer for the type checker, nothing at run time."""

_log = get_logger(__name__)

ALLOW_VARIABLE = "FISSION_GRPO_ANY_TRL"
"""Environment variable: 1 turns the error for a TRL that lacks a name we need into a warning."""

NEEDED_METHODS = {
    "_calculate_rewards": ("inputs", "prompts", "completions", "completion_ids_list"),
    "_compute_loss": ("model", "inputs"),
    "_generate": ("prompts",),
    "_generate_and_score_completions": ("inputs",),
    "_get_per_token_logps_and_entropies": ("model",),
    "_load_optimizer_and_scheduler": ("checkpoint",),
    "_load_from_checkpoint": ("resume_from_checkpoint", "model"),
    "_prepare_inputs": ("generation_batch",),
    "_run_epoch": (),
    "_save": (),
    "_save_checkpoint": ("model", "trial"),
    "_generate_single_turn": ("prompt_ids", "images", "multimodal_fields"),
    "_get_output_dir": ("trial",),
    "_get_tool_suffix_ids": ("tool_messages",),
    "_get_train_sampler": (),
    "_push_from_checkpoint": ("checkpoint_folder",),
    "_tokenize_prompts": ("prompts",),
    "_tool_call_loop": ("prompts",),
}
"""Methods of `trl.GRPOTrainer` that we override or call, with their first parameters after `self`."""

NEEDED_ATTRIBUTES = (
    "_buffered_inputs",
    "_entropy_bonus_enabled",
    "_is_vlm",
    "_metrics",
    "_multi_environment",
    "_standalone_tools",
    "_tokenizer",
    "async_loop",
    "aux_loss_enabled",
    "beta",
    "chat_template_kwargs",
    "environment_factories",
    "environments",
    "eos_token_ids",
    "max_tool_calling_iterations",
    "num_generations",
    "reward_funcs",
    "reward_weights",
    "tools",
)
"""Attributes that `GRPOTrainer.__init__` sets and we read."""


Signature = TypeVar("Signature", bound=Callable[..., None])


def trainer_arguments(
    self: Any,
    model: str | PreTrainedModel | Any,
    reward_funcs: str | PreTrainedModel | Callable[..., Any] | Sequence[Any] | None = None,
    args: FissionGRPOConfig | None = None,
    train_dataset: Dataset | IterableDataset | None = None,
    eval_dataset: Dataset | IterableDataset | Mapping[str, Any] | None = None,
    processing_class: PreTrainedTokenizerBase | ProcessorMixin | None = None,
    reward_processing_classes: PreTrainedTokenizerBase | list[PreTrainedTokenizerBase] | None = None,
    callbacks: list[TrainerCallback] | None = None,
    optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LRScheduler | None] = (None, None),
    quantization_config: Any = None,
    peft_config: PeftConfig | None = None,
    tools: Sequence[Callable[..., Any]] | None = None,
    rollout_func: Callable[..., Any] | None = None,
    environment_factory: Callable[[], Any] | Mapping[str, Callable[[], Any]] | None = None,
    *,
    feedback: FeedbackSpec | Sequence[FeedbackSpec] = "rules",
    error_if: str | Callable[[str], bool] | None = None,
) -> None:
    """The arguments of `GRPOTrainer`, the same in all supported versions, and ours: for editors and type checkers."""


def with_signature(signature: Signature) -> Callable[[Callable[..., None]], Signature]:
    """Give a function that takes `*args` and `**kwargs` the signature of another one."""

    def decorate(function: Any) -> Any:
        function.__signature__ = inspect.signature(signature)
        return function

    return decorate


class VersionRange(NamedTuple):
    """Supported releases of a package."""

    pip: str  # the range in pip's syntax
    first: tuple[int, ...]
    last: tuple[int, ...]  # (1, 16) is any 1.16.x
    tested: tuple[str, ...]  # versions with which the tests were run
    reason: str  # why older ones are not supported
    excluded: tuple[tuple[int, ...], str] | None = None  # a minor release in between, and why


SUPPORTED = {
    "trl": VersionRange(
        ">=1.14,!=1.15.*,<1.17",
        (1, 14),
        (1, 16),
        ("1.14.2", "1.16.0"),
        "older ones are not tested",
        ((1, 15), "its update fails without Triton, which torch for CPUs has not, also in TRL's own trainer"),
    ),
    "transformers": VersionRange(
        ">=5.15,<6", (5, 15), (5,), ("5.15.0", "5.23.0", "5.24.0"), "older ones have no `parse_response` with tools"
    ),
}


def parse_version(version: str) -> tuple[int, ...]:
    """The numbers of a version: "1.17.0.dev0" gives (1, 17, 0), "unknown" ()."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def trl_release() -> tuple[int, ...]:
    """The minor release of the installed TRL, such as (1, 16)."""
    return parse_version(metadata.version("trl"))[:2]


def check_versions(get_version: Callable[[str], str] = metadata.version) -> None:
    """Check the versions of TRL and transformers; packages that are missing are left to their import.

    A newer version than those tested is tried, with a warning: `check_names` refuses it if it lacks what we need.

    Raises:
        UnsupportedVersionError: the message names the installed and the supported versions, and the pip command.
    """
    for package, supported in SUPPORTED.items():
        try:
            version = get_version(package)
        except metadata.PackageNotFoundError:
            continue
        release = parse_version(version)
        problem = f"{package} {version} is installed, but this fission-grpo runs on {package}{supported.pip}"
        fix = f"To fix it: pip install '{package}{supported.pip}'"
        if release < supported.first:
            raise UnsupportedVersionError(f"{problem} ({supported.reason}). {fix}")
        if supported.excluded is not None and release[:2] == supported.excluded[0]:
            raise UnsupportedVersionError(f"{problem} ({supported.excluded[1]}). {fix}")
        if release[: len(supported.last)] > supported.last:
            newest = f"newer than {package} {supported.tested[-1]}, the newest one tested; trying it"
            _log.warning(
                "%s %s is %s. If it fails: pip install '%s%s'", package, version, newest, package, supported.pip
            )


def missing_names(trainer: type) -> list[str]:
    """The methods (with their parameters) and attributes that we need and a `GRPOTrainer` class lacks."""
    missing = []
    for name, wanted in NEEDED_METHODS.items():
        method = getattr(trainer, name, None)
        if method is None:
            missing.append(f"{name}()")
            continue
        parameters = list(inspect.signature(method).parameters)[1:]
        if tuple(parameters[: len(wanted)]) != wanted:
            missing.append(f"{name}({', '.join(wanted)}), which takes ({', '.join(parameters)}) here")
    names: set[str] = set()  # a newer TRL may set an attribute in a parent
    for parent in trainer.__mro__:
        code = getattr(inspect.unwrap(vars(parent).get("__init__", parent.__init__)), "__code__", None)
        names |= set(code.co_names if code is not None else ())
    return missing + [f"the attribute {name}" for name in NEEDED_ATTRIBUTES if name not in names]


def check_names(trainer: type, get_version: Callable[[str], str] = metadata.version) -> None:
    """Raise UnsupportedVersionError if TRL lacks what we need: a newer release, a patch or a fork."""
    missing = missing_names(trainer)
    if not missing:
        return
    supported = SUPPORTED["trl"]
    lacks = f"{trainer.__name__} of trl {get_version('trl')} lacks what fission-grpo needs: {'; '.join(missing)}"
    if os.environ.get(ALLOW_VARIABLE, "") not in ("", "0"):
        _log.warning("%s; continuing, as %s is set", lacks, ALLOW_VARIABLE)
        return
    raise UnsupportedVersionError(
        f"{lacks}. It is too new, a fork, or patched by another package that was imported. To fix it: "
        f"pip install --force-reinstall --no-deps 'trl{supported.pip}'. To try it anyway: {ALLOW_VARIABLE}=1"
    )


def context_length(trainer: Any) -> int | None:
    """Longest sequence in tokens that the model, or the vLLM engine that samples from it, takes; None if unknown."""
    config = trainer.accelerator.unwrap_model(trainer.model).config.get_text_config()
    limits = [getattr(config, "max_position_embeddings", None)]
    if trainer.use_vllm:
        limits.append(trainer.args.vllm_max_model_length)
        if trainer.vllm_mode == "colocate":
            limits.append(trainer.vllm_generation.llm.llm_engine.model_config.max_model_len)
    return min((limit for limit in limits if isinstance(limit, int) and limit > 0), default=None)


def tools_of_every_row(trainer: Any) -> Sequence[Callable[..., Any]]:
    """Tools that all rows have, for a TRL that does not pass a row's tools to the parser of calls (before 1.16)."""
    if trainer.environment_factories is None:
        return trainer.tools
    first, *others = trainer._env_tools.values()
    names = [{tool.__name__ for tool in tools} for tools in others]
    return [tool for tool in first if all(tool.__name__ in known for known in names)]


def parser_knows_tools() -> bool:
    """Whether TRL passes a row's tools to the parser of calls: since 1.16."""
    return trl_release() >= (1, 16)
