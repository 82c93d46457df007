# pyright: reportMissingImports=false
"""What verl loads in every agent loop worker: the data set `data.custom_cls`, and with it the agent loop "fission"."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from torch.utils.data import Dataset
from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopMetrics, AgentLoopOutput, register

from fission_grpo.core.errors import error_message
from fission_grpo.core.terminal import get_logger, warn_once
from fission_grpo.core.types import Failure, Rollout, Task, Trajectory, Verdict
from fission_grpo.data.deferred_rows import check_row
from fission_grpo.engines.episode import Episode, Sampled
from fission_grpo.engines.verl.config import load_tasks, make_runner
from fission_grpo.envs.restore import TASK_KEY
from fission_grpo.fission.failures import FailedRollout

_log = get_logger(__name__)

ROW = "fission_row"  # column of verl's batches: a data set row as JSON; of a recovery its row and snapshot, pickled
EPISODE = "fission_episode"  # in an output's `extra_fields`: a `SentEpisode`, or the text of an error, pickled
LOST = Episode(Rollout(Trajectory(Task("", ""), ()), Verdict(None, False)), [], [], [], [])


class TaskDataset(Dataset):
    """What `data.train_files` and `data.val_files` name: step tasks, cases, the desk, or rows of an own environment.

    Args:
        data_files: as `fission-grpo train --tasks`; with `data.environment`, as its `--rows`.
        tokenizer: of the policy; its chat template must render tools.
        config: verl's `data`, with `environment` and `rewards` of an own task, and `step_reward`.
        max_samples: number of tasks to take; negative for all.
    """

    def __init__(self, data_files: Any, tokenizer: Any, config: Any, max_samples: int = -1, **_: Any):
        self.rows = load_tasks(data_files, tokenizer, config, max_samples).rows
        for number, row in enumerate(self.rows, start=1):
            check_row(row, f"row {number}")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return verl_row(index, json.dumps(self.rows[index]))


def verl_row(index: int, row: str | bytes) -> dict[str, Any]:
    """A row with the columns that verl reads; our own is opaque to it."""
    return {"index": index, ROW: row, "raw_prompt": "", "data_source": "fission", "reward_model": {}}


@dataclass
class SentEpisode(Episode):
    """What the driver needs of an episode that a worker ran: without the environment, and of the tokens the mask."""

    failures: Sequence[Failure] = ()
    snapshots: Sequence[Any] = ()  # of the environment at each failure; None where none can be sent
    counts: Counter[str] = field(default_factory=Counter)  # events in environments, by metric

    def failed(self, failure_turn: str = "first", zero_std: bool = False) -> FailedRollout:
        """As `Episode.failed`; the worker has found the failures."""
        by_failure = dict(zip(map(id, self.failures), self.snapshots, strict=True))
        return FailedRollout(self.failures, zero_std, lambda failure: by_failure.get(id(failure)))


def send(episode: Episode, failure_turn: str, counts: Counter[str]) -> bytes:
    """Pickle what the driver needs of an episode. Snapshots that cannot be pickled are counted and left out."""
    failed = episode.failed(failure_turn)
    snapshots = [failed.get_snapshot(one) for one in failed.failures]
    found = {"failures": failed.failures, "snapshots": snapshots, "counts": counts}
    sent = SentEpisode(episode.rollout, [], [], episode.mask, [], **found)
    try:
        return pickle.dumps(sent)
    except Exception as error:  # noqa: BLE001 - of the user's values; without them the calls are repeated
        warn_once(_log, f"a snapshot cannot be sent to another worker ({error}); calls are repeated there instead")
        counts = counts + Counter({"env/snapshots_not_sent": len(snapshots)})
        return pickle.dumps(replace(sent, snapshots=[None] * len(snapshots), counts=counts))


class _Shared:
    """What the agent loops of a worker share: verl makes one loop for each rollout."""

    current: ClassVar[_Shared | None] = None

    def __init__(self, config: Any):
        self.config, self.step = config, 1
        self.runner = make_runner(config, progress=self._progress)[0]  # without sources: the driver asks them

    @classmethod
    def of(cls, config: Any) -> _Shared:
        if cls.current is None or cls.current.config is not config:
            cls.current = cls(config)
        return cls.current

    def _progress(self) -> float:
        return min(1.0, (self.step - 1) / max(1, self.config.actor_rollout_ref.actor.optim.total_training_steps))

    def row(self, sent: str | bytes, step: int) -> dict[str, Any]:
        """The row of a rollout, from column `ROW`; keeps the snapshot of a recovery until the next step."""
        if step != self.step:
            self.step = step
            self.runner.fission.snapshots.clear()
        if isinstance(sent, str):
            return json.loads(sent)
        row, snapshot = pickle.loads(sent)
        if snapshot is not None:
            self.runner.fission.snapshots[row[TASK_KEY].id] = snapshot
        return row


@register("fission")
class FissionAgentLoop(AgentLoopBase):
    """Runs one rollout of a row that `FissionLoopManager` chose: of the data set, or a recovery."""

    async def run(self, sampling_params: dict[str, Any], **columns: Any) -> AgentLoopOutput:
        try:
            return await self._run(sampling_params, columns)
        except Exception as error:  # noqa: BLE001 - of environments, rewards, servers: the others of the group go on
            _log.exception("a rollout raised an error; it is left out, and counted as fission/lost_rollouts")
            return self._output(LOST, pickle.dumps(f"{type(error).__name__}: {error_message(error)}"), [{}])

    async def _run(self, sampling_params: dict[str, Any], columns: dict[str, Any]) -> AgentLoopOutput:
        shared = _Shared.of(self.config)
        row = shared.row(columns[ROW], int(columns["global_steps"]))
        versions: list[Any] = [{}]  # of the weights, turn by turn

        async def sample(token_ids: list[int], room: int) -> Sampled:
            output = await self.server_manager.generate(
                request_id=f"{columns['uid']}-{columns['session_id']}",  # all turns go to the server with its cache
                prompt_ids=token_ids,
                sampling_params={**sampling_params, "max_tokens": room},
            )
            versions.append(output.extra_fields)
            return Sampled(output.token_ids, output.log_probs or ())

        episode = await shared.runner.run(row, sample)
        counts = shared.runner.pop_counts() + Counter(special_tokens=shared.runner.special_tokens.pop_count())
        return self._output(episode, send(episode, shared.runner.settings.failure_turn, counts), versions)

    def _output(self, episode: Episode, sent: bytes, versions: list[Any]) -> AgentLoopOutput:
        """A rollout as verl takes it. One that could not be judged is taken out by the driver, whatever is in it."""
        reward, end = episode.rollout.verdict.reward, self.tokenizer.eos_token_id  # verl takes no empty sequences
        return AgentLoopOutput(
            prompt_ids=episode.prompt_ids or [end],
            response_ids=episode.completion_ids or [end],
            response_mask=episode.mask or [0],
            response_logprobs=episode.logprobs or (None if episode.completion_ids else [0.0]),
            reward_score=0.0 if reward is None else reward,
            num_turns=2 * len(episode.rollout.trajectory.turns),
            metrics=AgentLoopMetrics(),
            extra_fields={
                EPISODE: sent,
                "min_global_steps": versions[:2][-1].get("min_global_steps"),
                "max_global_steps": versions[-1].get("max_global_steps"),
            },
        )
