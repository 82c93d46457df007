"""verl's real `PPOTrainer` on a CPU: its `fit`, replay buffer, TransferQueue, advantages, metrics, agent loop workers.

In place of the GPU's parts: `ScriptedClient` answers as verl's LLM servers do, `ActorGroup` stands for the workers
that hold the model, `Replicas` for the manager that sends them its weights.
"""

import os
import re
from importlib import resources
from pathlib import Path
from types import SimpleNamespace

import ray
import torch
import transfer_queue as tq
from engine_contract import Script
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf, open_dict
from tensordict import TensorDict
from transformers import AutoTokenizer
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils.import_utils import load_class_from_fqn
from verl.workers.rollout.replica import TokenOutput

from fission_grpo.core.errors import InfrastructureError

ROOT = Path(__file__).parents[2]
STARTER = str(resources.files("fission_grpo") / "inference" / "starter_policy")
CPU = [  # of the recipes' values, those that a CPU and a test need otherwise
    f"actor_rollout_ref.model.path={STARTER}",
    "+actor_rollout_ref.model.override_config.attn_implementation=eager",
    "actor_rollout_ref.model.use_remove_padding=false",
    "actor_rollout_ref.actor.use_kl_loss=false",
    "actor_rollout_ref.rollout.agent.num_workers=2",
    "actor_rollout_ref.rollout.n=4",
    "actor_rollout_ref.actor.ppo_mini_batch_size=4",
    "data.train_batch_size=4",
    "data.shuffle=false",
    "data.max_prompt_length=768",
    "data.max_response_length=256",
    "trainer.device=cpu",
    "trainer.n_gpus_per_node=1",
    "trainer.logger=[]",
    "trainer.v1.sampler.sampler_kwargs.poll_interval=0.05",
    "transfer_queue.backend.SimpleStorage.num_data_storage_units=1",
    "fission.num_recovery_generations=8",
]


def composed(name, *overrides):
    """A recipe of configs/verl, as verl's own entry point composes it."""
    with initialize_config_dir(str(ROOT / "configs" / "verl"), version_base=None):
        return compose(name, list(overrides))


def start(config):
    """Ray and TransferQueue for the runs of this process; a Ray that runs is used if RAY_ADDRESS names it."""
    if ray.is_initialized():
        return
    os.environ |= {"RAY_worker_niceness": "0", "RAY_raylet_start_wait_time_s": "300"}  # for machines that are busy
    paths = [str(ROOT / "src"), str(ROOT / "tests" / "support")]
    variables = {"PYTHONPATH": os.pathsep.join(paths), "TRANSFER_QUEUE_ENABLE": "1", "OMP_NUM_THREADS": "1"}
    own = {} if os.environ.get("RAY_ADDRESS") else {"address": "local", "num_cpus": 4, "include_dashboard": False}
    ray.init(log_to_driver=False, runtime_env={"env_vars": variables}, **own)
    tq.init(config.transfer_queue)


class Vault:
    """Opens boxes with codes. A wrong code is refused, and the message has the right one."""

    def reset(self, box: str, code: str, broken: bool = False, **_):
        if broken:
            raise InfrastructureError("the vault's service is down")
        self._box, self._code, self._opened = box, code, False

    def open_box(self, name: str, code: str) -> str:
        """Open a box.

        Args:
            name: Of the box.
            code: Of its lock.

        Returns:
            A confirmation.
        """
        if code != self._code:
            raise ValueError(f"the code of {name} is {self._code}")
        self._opened = True
        return "open"

    def get_reward(self) -> float:
        return float(self._opened)

    def _snapshot(self):
        return [self._box, self._code, self._opened]

    def _restore(self, state):
        self._box, self._code, self._opened = state


class Unsteady(Vault):
    """A vault without snapshots. From its fifth reset in a process on, box3 opens with any code."""

    resets = 0
    _snapshot = _restore = None

    def reset(self, **row):
        super().reset(**row)
        Unsteady.resets += self._box == "box3"
        self._any_code = self._box == "box3" and Unsteady.resets > 4

    def open_box(self, name: str, code: str) -> str:
        return super().open_box(name, self._code if self._any_code else code)

    open_box.__doc__ = Vault.open_box.__doc__  # from which its schema is made


def vault_rows(count=16, broken=()):
    return [
        {"id": f"box-{i}", "prompt": f"open box{i}", "box": f"box{i}", "code": f"c{i}", "broken": i in broken}
        for i in range(count)
    ]


def opens(box, code):
    return f'<tool_call>\n{{"name": "open_box", "arguments": {{"name": "box{box}", "code": "{code}"}}}}\n</tool_call>'


def vault_policy(text, session):
    """What the scripted policy writes. First rollouts of a group open their box; the others fail in three ways.

    In a recovery, whose prompt has the right code or an error, every second one opens the box.
    """
    box = re.search(r"open box(\d+)", text)[1]
    if "\nopen" in text.split("open box", 1)[1]:
        return "done"
    answers = text.count("<|im_start|>assistant") - 1
    if not answers:
        return [opens(box, f"c{box}"), opens(box, "?"), "<tool_call>\n{broken", "I will not"][session % 4]
    recovers = session % 2 == 0 and session != 2
    return opens(box, f"c{box}") if recovers else "I give up"


def unreliable_policy(text, session):
    """The policy of a server that fails: for one rollout of box0, all of box2, and all but one of box3."""
    box = re.search(r"open box(\d+)", text)[1]
    if session in {"0": (1,), "2": range(4), "3": (1, 2, 3)}.get(box, ()):
        raise ConnectionError("the server is gone")
    return vault_policy(text, session)


class ScriptedClient:
    """What agent loops ask verl's `LLMServerClient`: token ids for token ids.

    The text is `policy(text, session)`, or the contract's `Script`, if there is no policy.
    """

    def __init__(self, policy=None):
        self.policy, self.tokenizer, self.script = policy, None, None

    async def generate(self, request_id, *, prompt_ids, sampling_params, **_):
        if self.tokenizer is None:  # in the worker
            self.tokenizer = AutoTokenizer.from_pretrained(STARTER)
            self.script = Script(self.tokenizer)
        if self.policy is None:
            ids = self.script(prompt_ids)
        else:
            text = self.policy(self.tokenizer.decode(prompt_ids), int(request_id.rsplit("-", 1)[1]))
            ids = [*self.tokenizer(text, add_special_tokens=False)["input_ids"], self.tokenizer.eos_token_id]
        ids = ids[: sampling_params["max_tokens"]]
        versions = {"min_global_steps": 0, "max_global_steps": 0}
        return TokenOutput(token_ids=ids, log_probs=[-0.5] * len(ids), extra_fields=versions)


class ActorGroup:
    """Stands for the worker group of the actor: log-probabilities of -0.5, and a list of all updates."""

    def __init__(self):
        self._dispatch_info, self.updates = {}, []

    def _query_dispatch_info(self, role):
        return [0]

    def compute_log_prob(self, batch):
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=["input_ids"])
        same = [torch.full((len(ids),), -0.5) for ids in data["input_ids"].unbind()]
        nested = torch.nested.as_nested_tensor(same, layout=torch.jagged)
        fields = TensorDict({"log_probs": nested, "entropy": nested.clone()}, batch_size=len(batch))
        return tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=fields)

    def update_actor(self, batch):
        names = ["uid", "advantages", "response_mask", "rm_scores", "responses", "prompts"]
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=names)
        rows = []
        for i, (key, tag) in enumerate(zip(batch.keys, batch.tags, strict=True)):
            mask, values = data["response_mask"][i].bool(), data["advantages"][i]
            rows.append(
                {
                    "key": key, "uid": key.split("_")[0], "padding": bool(tag.get("is_padding")),
                    "reward": float(data["rm_scores"][i].sum()), "advantages": sorted(set(values[mask].tolist())),
                    "untrained": float(values[~mask].abs().sum()),
                }
            )  # fmt: skip
        self.updates.append(rows)
        return {"metrics": {"pg_loss": [0.0], "grad_norm": [0.0], "mfu": [0.0]}}

    def save_checkpoint(self, folder, *_, **__):
        Path(folder).mkdir(parents=True, exist_ok=True)

    def load_checkpoint(self, local_path, **_):
        assert Path(local_path).is_dir()


def groups_of_update(rows):
    """The rows of an update, group by group."""
    groups = {}
    for row in rows:
        groups.setdefault(row["uid"], []).append(row)
    return list(groups.values())


class Replicas:
    """Stands for the manager that sends the weights to the replicas of the LLM server."""

    def sleep_replicas(self):
        pass

    def update_weights(self, step):
        pass


class CPUTrainer(PPOTrainerSync):
    """verl's synchronous trainer, without the parts that need GPUs.

    `logged` are the metrics of every step, `validated` those of the last validation.
    """

    def _setup(self):
        self._init_tokenizer()
        self._init_dataloader()
        self._init_dump_executor()
        self.actor_rollout_wg, self.checkpoint_manager = ActorGroup(), Replicas()
        self.resource_pool_manager = SimpleNamespace(get_n_gpus=lambda: 1)
        self.reward_loop_manager = SimpleNamespace(reward_loop_worker_handles=[])
        self.logged = []
        self._load_checkpoint()

    def _validate(self):
        self.validated = super()._validate()
        return self.validated

    def _compute_metrics(self, batch, metrics, *args, **kwargs):
        super()._compute_metrics(batch, metrics, *args, **kwargs)
        self.logged.append(metrics)


def train(config, client=None):
    """What verl's `TaskRunnerV1.run` does, in this process; returns the trainer and the loop manager."""
    OmegaConf.resolve(config)
    with open_dict(config):
        config.transfer_queue.enable = True
    start(config)
    workers = []
    try:
        trainer = CPUTrainer(config=config)
        trainer.init()
        name = config.actor_rollout_ref.rollout.agent.agent_loop_manager_class
        manager = load_class_from_fqn(name).create(
            config=config, llm_client=client or ScriptedClient(), teacher_client=None, reward_loop_worker_handles=[]
        )
        workers = manager.agent_loop_workers
        trainer.fit(manager)
    finally:
        for worker in workers:
            ray.kill(worker)
        for partition, keys in (tq.kv_list() or {}).items():  # of a run that ended early
            if keys:
                tq.kv_clear(keys=list(keys), partition_id=partition)
    return trainer, manager
