# pyright: reportMissingImports=false
"""Fission from verl's configuration: its top-level key `fission`, and those of verl's own keys that belong to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from omegaconf import OmegaConf

from fission_grpo.core.errors import UsageError
from fission_grpo.core.result_errors import error_rule
from fission_grpo.core.rewards import RewardConfig, StepReward
from fission_grpo.core.types import Task
from fission_grpo.data.load import TrainingData, load_training_data
from fission_grpo.data.rows import own_task
from fission_grpo.engines.codec import ChatCodec
from fission_grpo.engines.episode import TaskRunner
from fission_grpo.envs.episode_reward import EpisodeReward
from fission_grpo.envs.wrapper import tool_methods
from fission_grpo.feedback.spec import make_chain
from fission_grpo.fission.algorithm import Fission
from fission_grpo.fission.options import FissionSettings
from verl.utils.config import omega_conf_to_dataclass

PACKAGE = "fission_grpo.engines.verl"
HOOKS = {  # keys of verl's configuration, and what they must name
    "data.custom_cls.path": f"pkg://{PACKAGE}.worker",
    "data.custom_cls.name": "TaskDataset",
    "algorithm.adv_estimator": "fission_grpo",
    "actor_rollout_ref.rollout.agent.default_agent_loop": "fission",
    "actor_rollout_ref.rollout.agent.agent_loop_manager_class": f"{PACKAGE}.driver.FissionLoopManager",
    "trainer.v1.sampler.custom_sampler.path": f"pkg://{PACKAGE}.driver",
    "trainer.v1.sampler.custom_sampler.name": "FissionReplayBuffer",
    "trainer.checkpoint_callback_class": f"{PACKAGE}.driver.FissionCheckpoint",
}
OWN = ("feedback", "max_turns")  # options under `fission` that are not of FissionSettings
GIVEN = ("num_generations", "generation_batch_size", "seed")  # options that verl's own keys give


def settings_of(config: Any) -> FissionSettings:
    """The settings under `fission`. Raises UsageError, which names the key, for what verl or Fission cannot do."""
    given = _fission_of(config)
    rollout, data = config.actor_rollout_ref.rollout, config.data
    known = {one.name for one in fields(FissionSettings)} - set(GIVEN)
    if unknown := sorted(given.keys() - known - set(OWN)):
        raise UsageError(f"fission.{unknown[0]} is no option; those of verl are {', '.join(sorted(known | {*OWN}))}")
    try:
        return FissionSettings(
            **{name: value for name, value in given.items() if name in known},
            num_generations=rollout.n,
            generation_batch_size=data.train_batch_size * rollout.n,
            seed=data.get("seed") or 42,
        )
    except (TypeError, ValueError) as error:
        size = "num_generations is actor_rollout_ref.rollout.n, and generation_batch_size is data.train_batch_size"
        raise UsageError(f"fission: {error} ({size} times rollout.n)") from error


def check_config(config: Any) -> None:
    """Raise UsageError, which names the key and the fix, for settings of verl with which recovery cannot work."""
    for key, value in HOOKS.items():
        if (found := OmegaConf.select(config, key)) != value:
            raise UsageError(f"{key} is {found!r}; Fission needs {value!r} there")
    if config.trainer.v1.trainer_mode != "sync":
        raise UsageError(
            f"trainer.v1.trainer_mode is {config.trainer.v1.trainer_mode!r}: a recover cycle is a step of its own; "
            "set it to 'sync'"
        )
    if OmegaConf.select(config, "algorithm.filter_groups.enable"):
        raise UsageError("algorithm.filter_groups.enable: refilled groups would belong to no cycle; set it to false")
    gen_batch_size = config.data.get("gen_batch_size")
    if gen_batch_size not in (None, config.data.train_batch_size):
        raise UsageError(f"data.gen_batch_size is {gen_batch_size}; leave it out, a cycle is one train_batch_size")
    settings = settings_of(config)
    mini_batch = config.actor_rollout_ref.actor.ppo_mini_batch_size * config.actor_rollout_ref.rollout.n
    if (settings.generation_batch_size or 0) % mini_batch:
        raise UsageError(
            f"a cycle has {settings.generation_batch_size} rollouts, no multiple of a mini-batch of {mini_batch} "
            "(actor_rollout_ref.actor.ppo_mini_batch_size times rollout.n), and verl would pad it with empty "
            "ones; lower ppo_mini_batch_size"
        )


@dataclass(frozen=True)
class Parts:
    """What the driver and each agent loop worker make of the configuration."""

    fission: Fission
    runner: TaskRunner
    rows: int  # of `data.train_files`


def make_parts(config: Any, progress: Callable[[], float] = lambda: 0.0) -> Parts:
    """Fission, and what runs the rows of `data.train_files` and recovery tasks of them."""
    options, data_config = _fission_of(config), config.data
    model = omega_conf_to_dataclass(config.actor_rollout_ref.model)
    data = load_tasks(data_config.train_files, model.tokenizer, data_config, data_config.get("train_max_samples", -1))
    ends = getattr(model.generation_config, "eos_token_id", None) or []
    codec = ChatCodec(model.tokenizer, template_options(data_config), ends if isinstance(ends, list) else [ends])
    fission = Fission(settings_of(config), make_chain(options.get("feedback", "rules")))
    judges: dict[str, Any] = {"reward": EpisodeReward()}
    if isinstance(data.reward, StepReward):
        judges = {"step_reward": data.reward.config}
    elif data.reward is not None:
        judges = {"reward": EpisodeReward(data.reward if isinstance(data.reward, list) else [data.reward])}
    runner = TaskRunner(
        fission,
        codec,
        data.environments,
        **judges,
        max_turns=options.get("max_turns", 5),
        max_completion_length=data_config.max_response_length,
        error_if=error_rule(fission.settings.error_pattern),
        progress=progress,
    )
    fission.fits = lambda task: _prompt_length(task, runner) <= data_config.max_prompt_length
    return Parts(fission, runner, len(data.rows))


def _prompt_length(task: Task, runner: TaskRunner) -> int:
    """Tokens of a recovery task's prompt, with the tools of its environment."""
    row, make = runner.row_of(task), runner.environments
    if isinstance(row["prompt"], str) or make is None:
        return len(runner.codec.encode_prompt(row["prompt"]))
    environment = (make[row["environment"]] if isinstance(make, Mapping) else make)()
    return len(runner.codec.encode_prompt(row["prompt"], runner.codec.schemas(tool_methods(environment).values())))


def _fission_of(config: Any) -> Mapping[str, Any]:
    if "fission" not in config:
        raise UsageError("the configuration has no key 'fission'; configs/verl has complete ones")
    return OmegaConf.to_container(config.fission, resolve=True)  # pyright: ignore[reportReturnType]


def load_tasks(data_files: Any, tokenizer: Any, config: Any, max_samples: int = -1) -> TrainingData:
    """Load the tasks that verl's `data` names. Raises UsageError or TaskFileError, with the file and the fix."""
    files = [data_files] if isinstance(data_files, str) else list(data_files)
    if len(files) != 1:
        raise UsageError(f"data.train_files and data.val_files take one file each, got {len(files)}; join them")
    environment = config.get("environment")
    own = own_task(environment, files[0], list(config.get("rewards") or ()), None) if environment else None
    step_reward: Mapping[str, Any] = config.get("step_reward") or {}
    if not tokenizer.chat_template:
        _check_tools(tokenizer, config)
    data = load_training_data(
        files[0],
        tokenizer,
        own=own,
        num_tasks=max(0, max_samples),
        max_prompt_tokens=config.max_prompt_length,
        seed=config.get("seed") or 42,
        reward=RewardConfig(**step_reward),
        chat_template_kwargs=template_options(config),
    )
    if data.environments is not None:  # step tasks have their tools in the system message, if need be
        _check_tools(tokenizer, config)
    return data


def _check_tools(tokenizer: Any, config: Any) -> None:
    try:
        ChatCodec(tokenizer, template_options(config)).check_tools()
    except ValueError as error:
        raise UsageError(f"actor_rollout_ref.model.path, or its custom_chat_template: {error}") from error


def template_options(config: Any) -> dict[str, Any]:
    """The arguments of the chat template, which verl's `data` names."""
    return dict(config.get("apply_chat_template_kwargs") or {})
