# pyright: reportMissingImports=false
"""Fission from verl's configuration: its top-level key `fission`, and those of verl's own keys that belong to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import OmegaConf
from verl.utils.config import omega_conf_to_dataclass

from fission_grpo.core.errors import UsageError
from fission_grpo.core.result_errors import error_rule
from fission_grpo.core.rewards import RewardConfig, StepReward
from fission_grpo.data.load import TrainingData, load_training_data
from fission_grpo.data.rows import own_task
from fission_grpo.engines.codec import ChatCodec
from fission_grpo.engines.episode import TaskRunner
from fission_grpo.envs.episode_reward import EpisodeReward
from fission_grpo.feedback.sources import FeedbackSource
from fission_grpo.feedback.spec import make_chain
from fission_grpo.fission.algorithm import Fission
from fission_grpo.fission.options import FissionSettings

PACKAGE = "fission_grpo.engines.verl"
MANAGER_KEY = "actor_rollout_ref.rollout.agent.agent_loop_manager_class"
REQUIRED: dict[str, Any] = {  # keys of verl's configuration and their values: the hooks, and what recovery needs
    "data.custom_cls.path": f"pkg://{PACKAGE}.worker",
    "data.custom_cls.name": "TaskDataset",
    "algorithm.adv_estimator": "fission_grpo",
    "actor_rollout_ref.rollout.agent.default_agent_loop": "fission",
    MANAGER_KEY: f"{PACKAGE}.driver.FissionLoopManager",
    "trainer.v1.sampler.custom_sampler.path": f"pkg://{PACKAGE}.driver",
    "trainer.v1.sampler.custom_sampler.name": "FissionReplayBuffer",
    "trainer.checkpoint_callback_class": f"{PACKAGE}.driver.FissionCheckpoint",
    "trainer.use_v1": True,
    "trainer.v1.trainer_mode": "sync",  # a recover cycle is a step of its own
    "algorithm.filter_groups.enable": False,  # refilled groups would belong to no cycle
    "data.gen_batch_size": None,  # a cycle is one `data.train_batch_size`
}
OWN = ("feedback", "max_turns")  # options under `fission` that are not of FissionSettings
NOT_HERE = ("beta", "shared_prefix", "skip_zero_signal", "max_generated_tokens", "log_instances", "log_recoveries")


def settings_of(config: Any) -> FissionSettings:
    """The settings under `fission`. Raises UsageError for one that is unknown, or does not fit to verl's own keys."""
    options = {name: value for name, value in _options_of(config).items() if name not in OWN}
    if ignored := sorted(options.keys() & set(NOT_HERE)):
        raise UsageError(f"fission.{ignored[0]} is for FissionGRPOTrainer alone, and does nothing here; leave it out")
    generations = config.actor_rollout_ref.rollout.n
    size = config.data.train_batch_size * generations
    try:
        return FissionSettings(
            **options, num_generations=generations, generation_batch_size=size, seed=config.data.get("seed") or 0
        )
    except (TypeError, ValueError) as error:
        where = "num_generations is actor_rollout_ref.rollout.n, generation_batch_size data.train_batch_size times it"
        raise UsageError(f"fission: {error} ({where})") from error


def check_config(config: Any) -> None:
    """Raise UsageError, which names the key and the fix, for settings of verl with which recovery cannot work."""
    for key, value in REQUIRED.items():
        if (found := OmegaConf.select(config, key)) != value:
            raise UsageError(f"{key} is {found!r}; Fission needs {value!r} there")
    rollouts = settings_of(config).generation_batch_size or 0
    mini_batch = config.actor_rollout_ref.actor.ppo_mini_batch_size * config.actor_rollout_ref.rollout.n
    if rollouts % mini_batch:
        raise UsageError(
            f"a cycle has {rollouts} rollouts, no multiple of a mini-batch of {mini_batch} (actor_rollout_ref.actor."
            "ppo_mini_batch_size times rollout.n): verl would add empty ones; lower ppo_mini_batch_size"
        )


def make_sources(config: Any) -> Sequence[FeedbackSource]:
    """The sources of feedback that `fission.feedback` names, checked."""
    sources = make_chain(_options_of(config).get("feedback", "rules"))
    for source in sources:
        source.check()
    return sources


def make_runner(config: Any, sources: Any = (), progress: Any = lambda: 0.0) -> tuple[TaskRunner, int]:
    """What runs the rows of `data.train_files` and recovery tasks of them, and the number of these rows."""
    options, data_config = _options_of(config), config.data
    model = omega_conf_to_dataclass(config.actor_rollout_ref.model)
    data = load_tasks(data_config.train_files, model.tokenizer, data_config, data_config.get("train_max_samples", -1))
    ends = getattr(model.generation_config, "eos_token_id", None) or []
    ends = ends if isinstance(ends, list) else [ends]
    fission = Fission(settings_of(config), sources)
    reward = data.reward
    functions = reward if isinstance(reward, list) else [reward] if reward else []
    runner = TaskRunner(
        fission,
        ChatCodec(model.tokenizer, data_config.get("apply_chat_template_kwargs"), ends),
        data.environments,
        EpisodeReward([one for one in functions if not isinstance(one, StepReward)]),
        reward.config if isinstance(reward, StepReward) else RewardConfig(),
        max_turns=options.get("max_turns", 5),
        max_completion_length=data_config.max_response_length,
        context_length=data_config.max_prompt_length + data_config.max_response_length,
        error_if=error_rule(fission.settings.error_pattern),
        progress=progress,
    )
    return runner, len(data.rows)


def _options_of(config: Any) -> Mapping[str, Any]:
    return OmegaConf.to_container(config.get("fission") or OmegaConf.create(), resolve=True)  # pyright: ignore


def load_tasks(data_files: Any, tokenizer: Any, config: Any, max_samples: int = -1) -> TrainingData:
    """Load the tasks that verl's `data` names. Raises UsageError or TaskFileError, with the file and the fix."""
    files = [data_files] if isinstance(data_files, str) else list(data_files)
    if len(files) != 1:
        raise UsageError(f"data.train_files and data.val_files take one file each, got {len(files)}; join them")
    environment = config.get("environment")
    own = own_task(environment, files[0], list(config.get("rewards") or ()), None) if environment else None
    if not tokenizer.chat_template:
        ChatCodec(tokenizer).check_tools()  # says so; templates without tools serve step tasks
    return load_training_data(
        files[0],
        tokenizer,
        own=own,
        num_tasks=max(0, max_samples),
        max_prompt_tokens=config.max_prompt_length,
        seed=config.get("seed") or 0,
        reward=RewardConfig(**(config.get("step_reward") or {})),
        chat_template_kwargs=dict(config.get("apply_chat_template_kwargs") or {}),
    )
