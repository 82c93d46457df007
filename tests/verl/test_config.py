"""The recipes of configs/verl, composed and read by verl's own code, and what Fission refuses in a configuration."""

import json
import re

import pytest

pytest.importorskip("verl", reason="verl has an environment of its own: make test-verl")

from hydra import compose, initialize_config_module
from omegaconf import OmegaConf, open_dict
from transformers import AutoTokenizer
from verl.experimental.agent_loop.agent_loop import _agent_loop_registry
from verl.trainer.ppo.checkpoint_callback import build_checkpoint_callback
from verl.trainer.ppo.core_algos import get_adv_estimator_fn
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.utils.config import omega_conf_to_dataclass, validate_config
from verl.utils.dataset.rl_dataset import get_dataset_class
from verl.utils.import_utils import load_class_from_fqn, load_extern_object
from verl_support import CPU, ROOT, STARTER, composed

from fission_grpo.core.errors import UsageError
from fission_grpo.core.types import Task
from fission_grpo.engines.verl import driver, worker
from fission_grpo.engines.verl.config import REQUIRED, check_config, make_runner, settings_of
from fission_grpo.envs.desk.env import Desk
from fission_grpo.envs.desk.tasks import make_rows
from fission_grpo.envs.wrapper import tool_methods

RECIPES = ("fission_step_tasks", "fission_episodes")
SIZES = ("1.7b", "4b", "8b")


def keys_of(config, prefix=""):
    for name, value in config.items():
        if isinstance(value, dict) and value:
            yield from keys_of(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


@pytest.mark.parametrize("nodes", ["one", "four"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("recipe", RECIPES)
def test_verl_accepts_the_recipe(recipe, size, nodes):
    config = composed(recipe, f"size={size}", f"nodes={nodes}")
    check_config(config)
    OmegaConf.resolve(config)
    validate_config(config, need_reference_policy(config), need_critic(config))
    omega_conf_to_dataclass(config.actor_rollout_ref.rollout)
    omega_conf_to_dataclass(config.algorithm)
    settings = settings_of(config)
    assert settings.num_generations == settings.num_recovery_generations == 8
    assert config.actor_rollout_ref.model.path == f"Qwen/Qwen3-{size.upper()}"
    assert config.trainer.nnodes * 8 == config.data.train_batch_size  # queries: as many as GPUs
    limit = config.data.max_prompt_length + config.data.max_response_length
    assert config.actor_rollout_ref.actor.ppo_max_token_len_per_gpu >= limit


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "verl").rglob("*.yaml")), ids=lambda path: path.name)
def test_every_key_is_one_of_verl_or_ours(path):
    """A key that neither verl's own configuration nor Fission has would be ignored."""
    own = {"data.environment", "data.rewards", "data.step_reward"}
    with initialize_config_module("verl.trainer.config", version_base=None):
        base = dict(keys_of(OmegaConf.to_container(compose("ppo_trainer"))))
    values = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    for key, _ in keys_of(values):
        if key.split(".")[0] in ("defaults", "hydra", "fission") or key in own:
            continue
        assert key in base or key in REQUIRED or key.startswith("trainer.v1.sampler.sampler_kwargs."), key


def test_every_value_of_a_recipe_says_where_it_is_from():
    for path in (ROOT / "configs" / "verl").rglob("*.yaml"):
        for line in path.read_text().splitlines():
            names_a_value = re.match(r"\s+\w+: \S", line) and "hook" not in line
            if names_a_value and not re.match(r"\s+- |\s+(train_files|val_files|project_name|experiment_name|logger|"
                                              r"default_local_dir|environment|rewards|step_reward|test_freq|"
                                              r"val_before_train|resume_mode|searchpath)", line):  # fmt: skip
                assert re.search(r"\[(paper|inferred|ours)", line), f"{path.name}: {line}"


def test_verl_loads_every_hook_by_the_name_in_the_recipe():
    config = composed("fission_episodes", *CPU)
    assert get_dataset_class(config.data) is worker.TaskDataset
    agent = config.actor_rollout_ref.rollout.agent
    assert _agent_loop_registry[agent.default_agent_loop]["_target_"].endswith("worker.FissionAgentLoop")
    assert load_class_from_fqn(agent.agent_loop_manager_class) is driver.FissionLoopManager
    sampler = config.trainer.v1.sampler.custom_sampler
    assert load_extern_object(sampler.path, sampler.name) is driver.FissionReplayBuffer
    assert isinstance(build_checkpoint_callback(config), driver.FissionCheckpoint)
    assert get_adv_estimator_fn(config.algorithm.adv_estimator) is driver.group_advantages


def load_dataset(config):
    return get_dataset_class(config.data)


def load_agent_loop(config):
    return _agent_loop_registry[config.actor_rollout_ref.rollout.agent.default_agent_loop]


def load_manager(config):
    return load_class_from_fqn(config.actor_rollout_ref.rollout.agent.agent_loop_manager_class)


def load_sampler(config):
    return load_extern_object(*config.trainer.v1.sampler.custom_sampler.values())


def load_estimator(config):
    return get_adv_estimator_fn(config.algorithm.adv_estimator)


@pytest.mark.parametrize(
    ("override", "load"),
    [
        ("data.custom_cls.name=NoSuch", load_dataset),
        ("data.custom_cls.path=pkg://fission_grpo.engines.verl.no_such", load_dataset),
        ("actor_rollout_ref.rollout.agent.default_agent_loop=no_such", load_agent_loop),
        ("actor_rollout_ref.rollout.agent.agent_loop_manager_class=no.such", load_manager),
        ("trainer.v1.sampler.custom_sampler.name=NoSuch", load_sampler),
        ("trainer.checkpoint_callback_class=no.such", build_checkpoint_callback),
        ("algorithm.adv_estimator=no_such", load_estimator),
    ],
)
def test_verl_looks_for_each_hook_by_the_key_of_the_recipe(override, load):
    load(composed("fission_episodes", *CPU))
    with pytest.raises((AttributeError, ImportError, KeyError, ValueError)):
        load(composed("fission_episodes", *CPU, override))


@pytest.mark.parametrize("key", REQUIRED)
def test_another_value_in_the_place_of_a_hook_is_refused(key):
    config = composed("fission_episodes", *CPU)
    with open_dict(config):
        OmegaConf.update(config, key, "another")
    with pytest.raises(UsageError, match=re.escape(key)):
        check_config(config)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("fission.num_recovery_generations=3", "one of [2, 4, 8, 16]"),
        ("fission.num_recovery_generations=1", "at least 2"),
        ("actor_rollout_ref.rollout.n=1", "num_generations is 1, but must be at least 2"),
        ("actor_rollout_ref.actor.ppo_mini_batch_size=3", "lower ppo_mini_batch_size"),
        ("trainer.v1.trainer_mode=colocate_async", "Fission needs 'sync' there"),
        ("algorithm.filter_groups.enable=true", "Fission needs False there"),
        ("data.gen_batch_size=2", "Fission needs None there"),
        ("+fission.buffer_size=3", "unexpected keyword argument 'buffer_size'"),
        ("+fission.recover_share=0.5", "is now called `recovery_ratio`"),
        ("fission.buffer_order=fifo", "set it to one of"),
        ("+fission.beta=0.04", "does nothing here; leave it out"),
    ],
)
def test_settings_with_which_recovery_cannot_work_are_refused(override, says):
    with pytest.raises(UsageError, match=re.escape(says)):
        check_config(composed("fission_episodes", *CPU, override))


def test_several_files_are_refused():
    config = composed("fission_episodes", *CPU)
    with pytest.raises(UsageError, match="take one file each, got 2"):
        worker.TaskDataset(["a.jsonl", "b.jsonl"], AutoTokenizer.from_pretrained(STARTER), config.data)


def test_a_tokenizer_without_a_chat_template_is_refused():
    config, tokenizer = composed("fission_step_tasks", *CPU), AutoTokenizer.from_pretrained(STARTER)
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="has no chat template"):
        worker.TaskDataset("desk:steps", tokenizer, config.data)


def test_a_template_without_tools_is_refused_for_episodes():
    template = "actor_rollout_ref.model.custom_chat_template='{{ messages[0].content }}'"
    with pytest.raises(ValueError, match="does not show tools to the policy"):
        make_runner(composed("fission_episodes", *CPU, template))


def test_a_data_set_with_too_few_rows_for_a_cycle_is_refused():
    config = composed("fission_episodes", *CPU, "data.train_max_samples=3")
    with pytest.raises(ValueError, match="train_dataset has 3 rows, but a generation batch of this run takes 4"):
        driver.FissionLoopManager(config, llm_client=None)


def test_the_rows_of_a_data_set_are_handed_on_as_they_are():
    config = composed("fission_episodes", *CPU, "data.train_max_samples=4")
    rows = worker.TaskDataset("desk", AutoTokenizer.from_pretrained(STARTER), config.data, 4)
    assert [json.loads(rows[i][worker.ROW]) for i in range(4)] == make_rows(4, config.data.seed, "train")


def test_settings_reach_fission_and_the_runner():
    options = "fission.failure_turn=last", "fission.max_turns=2", "data.max_prompt_length=700"
    runner, rows = make_runner(composed("fission_episodes", *CPU, *options))
    assert (runner.settings.failure_turn, runner.max_turns, runner.context_length, rows) == ("last", 2, 956, 512)


def test_whether_a_recovery_fits_is_known_before_anything_has_run():
    runner, _ = make_runner(composed("fission_episodes", *CPU))
    tools = runner.codec.schemas(tool_methods(Desk()).values())
    message = {"role": "user", "content": "a " * 500}
    length = len(runner.codec.encode_prompt([message], tools))
    for limit, fits in ((length, True), (length - 1, False)):
        runner.context_length = limit + runner.max_completion_length
        assert runner.fission.fits(Task("t", prompt=(message,))) is fits
