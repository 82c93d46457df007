# pyright: reportMissingImports=false, reportMissingModuleSource=false
"""The driver's parts on verl: the rows of a cycle, what came of them, their advantages, the buffer in checkpoints.

In a step of verl's trainer `FissionLoopManager.generate_sequences` gives the batch the rows of the cycle, and
`FissionReplayBuffer.sample` waits for their rollouts, which `FissionLoopManager.finish` hands to the algorithm.
"""

from __future__ import annotations

import json
import math
import pickle
import uuid
from collections import defaultdict
from os.path import abspath
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import transfer_queue as tq
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.checkpoint_callback import CheckpointCallback
from verl.trainer.ppo.core_algos import register_adv_est
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer
from verl.utils import tensordict_utils
from verl.utils.checkpoint.checkpoint_manager import find_latest_ckpt_path

from fission_grpo.core.errors import CheckpointError, UsageError
from fission_grpo.core.files import write_file
from fission_grpo.core.terminal import get_logger
from fission_grpo.data.deferred_rows import check_rows
from fission_grpo.engines.cycles import Plan, PlannedGroup, RecoveryCycles
from fission_grpo.engines.verl.config import MANAGER_KEY, REQUIRED, check_config, make_runner, make_sources
from fission_grpo.engines.verl.worker import EPISODE, ROW, SentEpisode, verl_row
from fission_grpo.fission.metrics import group_advantages as advantages_of

_log = get_logger(__name__)

STATE = "fission.json"  # in a checkpoint's folder


class FissionLoopManager(AgentLoopManagerTQ):
    """Chooses each cycle's rows: those of verl's batch, corrective instances in their place, or some of both.

    A recovery group takes over the uid of a displaced row, which waits and gets another one with its own turn.
    """

    current: ClassVar[FissionLoopManager | None] = None  # of this process; verl makes its parts by themselves

    def __init__(self, config: Any, *args: Any, **kwargs: Any):
        check_config(config)
        super().__init__(config, *args, **kwargs)
        runner, rows = make_runner(config, make_sources(config))
        check_rows(range(rows), runner.settings.generation_batch_size, runner.settings.num_generations)
        self.cycles = RecoveryCycles(runner.fission, runner, rows)
        self.plan: Plan | None = None
        self.uids: list[str] = []  # of the plan's groups
        self.metrics: dict[str, float] = {}  # of the plan
        self._load(config.trainer)
        FissionLoopManager.current = self

    def generate_sequences(self, prompts: Any) -> None:
        if "validate" in prompts:
            return super().generate_sequences(prompts)
        step = int(prompts["global_steps"])
        self.plan, self.metrics = self.cycles.next([json.loads(row) for row in prompts[ROW]], step - 1)
        self.uids = self._register(list(prompts["uid"]), len(self.plan.groups), step)
        sent = [
            {**verl_row(number, self._sent(group)), "uid": uid, "__rollout_n__": group.size}
            for number, (uid, group) in enumerate(zip(self.uids, self.plan.groups, strict=True))
        ]
        batch = tensordict_utils.get_tensordict({name: [row[name] for row in sent] for name in sent[0]})
        tensordict_utils.assign_non_tensor_data(batch, "global_steps", step)
        super().generate_sequences(batch)

    def _register(self, uids: list[str], groups: int, step: int) -> list[str]:
        """As many uids as there are groups: verl has registered one for each row of its batch."""
        if surplus := uids[groups:]:
            tq.kv_clear(keys=surplus, partition_id="train")
        if more := [str(uuid.uuid4()) for _ in range(groups - len(uids))]:
            tag = {"is_prompt": True, "status": "pending", "global_steps": step}
            tq.kv_batch_put(keys=more, partition_id="train", tags=[dict(tag) for _ in more])
        return uids[:groups] + more

    def _sent(self, group: PlannedGroup) -> str | bytes:
        """A group's row as workers read it; a recovery with the snapshot to begin with."""
        if group.context is None:
            return json.dumps(group.row)
        return pickle.dumps((group.row, self.cycles.fission.snapshots.get(group.context.task.id)))

    def finish(self, batch: KVBatchMeta, step: int) -> tuple[KVBatchMeta, dict[str, float]]:
        """Hand a cycle's rollouts to Fission; returns those that were judged, and the cycle's metrics."""
        assert self.plan is not None  # verl generates before it samples
        fields = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=["extra_fields"])
        sent = [pickle.loads(extra[EPISODE]) for extra in list(fields["extra_fields"])]
        by_uid: dict[str, dict[int, SentEpisode]] = defaultdict(dict)
        errors: list[str] = []
        judged: list[int] = []
        for at, (key, episode) in enumerate(zip(batch.keys, sent, strict=True)):
            uid, session, _ = key.split("_")
            if isinstance(episode, str):
                errors.append(episode)
                continue
            by_uid[uid][int(session)] = episode
            self.cycles.runner.special_tokens.broken += episode.counts.pop("special_tokens", 0)
            self.cycles.runner.counts.update(episode.counts)
            if not math.isnan(episode.reward):
                judged.append(at)
        why = f"{len(errors)} rollouts raised errors, such as {errors[0]}" if errors else "the environments are broken"
        if not judged:
            raise RuntimeError(f"no rollout of step {step} could be judged: {why}; see the log of the workers")
        if errors:
            _log.warning("step %d: %s", step, why)
        groups = [[episode for _, episode in sorted(by_uid[uid].items())] for uid in self.uids]
        metrics = self.cycles.finish(self.plan, groups, step - 1)
        lost = sum(self.plan.sizes) - len(sent) + len(errors)  # the first: those that verl itself lost
        self.plan = None
        return _rows(batch, judged), {**self.metrics, **metrics, "fission/lost_rollouts": float(lost)}

    def _load(self, trainer: Any) -> None:
        """Load the state of the checkpoint that verl resumes from."""
        if trainer.resume_mode == "disable":
            return
        latest = trainer.resume_mode == "auto"
        folder = find_latest_ckpt_path(abspath(trainer.default_local_dir)) if latest else trainer.resume_from_path
        if folder is None:
            return
        file = Path(folder) / STATE
        if not file.is_file():
            _log.warning("%s is missing: the run it belongs to had no Fission; recovery begins without a buffer", file)
            return
        try:
            self.cycles.load_state(json.loads(file.read_text("utf-8")))
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{file} cannot be read ({error}); resume from another checkpoint") from error


def _rows(batch: KVBatchMeta, kept: list[int]) -> KVBatchMeta:
    """Rows of a batch; the others are removed. verl fills the batch up."""
    if removed := [key for at, key in enumerate(batch.keys) if at not in set(kept)]:
        tq.kv_clear(keys=removed, partition_id=batch.partition_id)
    keys, tags = [batch.keys[at] for at in kept], [batch.tags[at] for at in kept]
    return KVBatchMeta(partition_id=batch.partition_id, keys=keys, tags=tags)


class FissionReplayBuffer(ReplayBuffer):
    """Waits for the groups of a cycle, of whichever number, and hands them to the loop manager."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs, poll_interval=kwargs["sampler_kwargs"].get("poll_interval", 2.0))

    def sample(self, global_steps: int, partition_id: str, batch_size: int) -> tuple[KVBatchMeta, dict]:
        manager = FissionLoopManager.current
        if partition_id == "val":
            return super().sample(global_steps, partition_id, batch_size)
        if manager is None:
            raise UsageError(f"this sampler needs the loop manager of the key {MANAGER_KEY}: {REQUIRED[MANAGER_KEY]}")
        batch, metrics = super().sample(global_steps, partition_id, len(manager.uids))
        batch, ours = manager.finish(batch, global_steps)
        return batch, {**metrics, **ours}


class FissionCheckpoint(CheckpointCallback):
    """Writes the buffer, and what else a run needs to go on, into each checkpoint."""

    def on_save(self, trainer: Any, global_step: int, checkpoint_dir: str, **kwargs: Any) -> None:
        write_file(Path(checkpoint_dir) / STATE, json.dumps(trainer.agent_loop_manager.cycles.state()))


@register_adv_est("fission_grpo")
def group_advantages(
    token_level_rewards: torch.Tensor, response_mask: torch.Tensor, index: np.ndarray, config: Any = None, **_: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """verl's advantage estimator "fission_grpo": as FissionGRPOTrainer's; those of a group of one are 0."""
    rewards = token_level_rewards.sum(dim=-1).tolist()
    rows: dict[str, list[int]] = defaultdict(list)
    for row, uid in enumerate(index):
        rows[uid].append(row)
    order = [row for group in rows.values() for row in group]
    values = advantages_of([rewards[row] for row in order], [len(group) for group in rows.values()])
    advantages = torch.zeros(len(rewards))
    advantages[order] = torch.tensor(values)
    spread = advantages.unsqueeze(-1) * response_mask
    return spread, spread
