"""A rollout worker for TRL's AsyncGRPOTrainer that runs recover cycles. Experimental, as `trl.experimental` is.

The trainer takes samples from a queue, each with its own advantage and group, so groups of G and of G' need no change
in it. The worker fills the queue from a thread, cycle after cycle, with what a vLLM server samples:
`AsyncGRPOTrainer(..., rollout_worker=worker, callbacks=[worker])`.
"""

from __future__ import annotations

import asyncio
import json
import math
import queue
import random
import statistics
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerCallback

from fission_grpo.core.chat import turn_messages
from fission_grpo.core.errors import CheckpointError, UnsupportedVersionError, UsageError
from fission_grpo.core.files import write_file
from fission_grpo.core.terminal import get_logger
from fission_grpo.data.deferred_rows import check_columns
from fission_grpo.engines.cycles import PlannedGroup, RecoveryCycles
from fission_grpo.engines.episode import Episode, Row, Sample, Sampled

_log = get_logger(__name__)

STATE = "fission_worker.json"  # in a checkpoint's folder
SAMPLE_FIELDS = "prompt completion input_ids completion_mask old_log_probs advantage model_version group_id metrics"
"""Fields of TRL's RolloutSample that the worker sets, before `enqueued_at`. Another TRL may have others."""
BEAT_SECONDS = 0.5  # between two signs of life of the worker's thread [ours]
POLL_SECONDS = 0.05  # between two looks at a full queue [ours]
EMPTY_CYCLES = 3  # without a sample, in a row, after which the worker fails [ours]
STOP_SECONDS = 15.0  # that the worker's thread has to end [TRL's]
TRIES = 30  # of a request to the server, with waits of up to 16 s in between [TRL's]
ADAPTER = "trl-policy"  # name under which TRL's trainer serves a LoRA adapter, before "-v" and the version


def _sample_class() -> type:
    """TRL's RolloutSample. Raises UnsupportedVersionError if this TRL has none, or another one."""
    problem = "has no trl.experimental.async_grpo with RolloutSample"
    try:
        from trl.experimental.async_grpo.async_rollout_worker import RolloutSample

        fields = " ".join(RolloutSample.__dataclass_fields__)
        if fields == f"{SAMPLE_FIELDS} enqueued_at":
            return RolloutSample
        problem = f"has a RolloutSample with the fields {fields}"
    except (ImportError, AttributeError) as error:
        problem += f" ({error})"
    raise UnsupportedVersionError(
        f"trl {version('trl')} {problem}, but this worker was written for TRL 1.16; pip install 'trl==1.16.*'"
    )


class _CountingQueue(queue.Queue):
    """A queue that counts what was taken from it."""

    taken = 0

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        item = super().get(block, timeout)
        self.taken += 1
        return item


class FissionRolloutWorker(TrainerCallback):
    """Samples explore and recover cycles for `AsyncGRPOTrainer`: its `rollout_worker`, and one of its `callbacks`.

    A cycle is sampled as a whole, and the next one begins when all its samples are in the queue. As a callback the
    worker learns the optimizer step, and saves and loads its state with checkpoints: a resumed run goes on with the
    first cycle that may not have been trained as a whole.

    Args:
        cycles: what to sample, and what becomes of it.
        dataset: rows in the order in which they are explored, again and again.
        sample: samples one turn, such as `VLLMSampler`.
        queue_maxsize: largest number of samples that wait, and grow old; by default one cycle's [ours].
        max_inflight: largest number of rollouts, and of environments, at a time [TRL's].
        resume_from: checkpoint to load the state from; by default the trainer's own, in `output_dir`.

    Raises:
        ValueError: the data set is empty, or JSON cannot keep its rows; the message names the column.
        UnsupportedVersionError: the installed TRL is another one than the worker was written for.
    """

    def __init__(
        self,
        cycles: RecoveryCycles,
        dataset: Sequence[Row] | Any,
        sample: Sample,
        *,
        queue_maxsize: int | None = None,
        max_inflight: int = 128,
        resume_from: str | Path | None = None,
    ):
        self._sample_type = _sample_class()
        if not hasattr(dataset, "__len__"):
            raise UsageError("the rollout worker needs a data set with rows, such as datasets.Dataset, not a stream")
        check_columns(dataset, cycles.runner.environments)
        self.cycles, self.dataset, self.sample, self.resume_from = cycles, dataset, sample, resume_from
        one_cycle = cycles.fission.settings.generation_batch_size
        self.rollout_buffer = _CountingQueue(one_cycle if queue_maxsize is None else queue_maxsize)
        self.metrics_queue: queue.Queue[dict[str, Any]] = queue.Queue()
        self.step = 0  # optimizer steps so far, of the trainer
        self.model_version = 0
        self._max_inflight = max_inflight
        self._cursor = self._next_group = self._made = 0  # rows taken, groups and samples made so far
        self._states: deque[tuple[int, dict[str, Any]]] = deque()  # samples made before a cycle, and the state then
        self._taken = 0  # samples that the trainer had taken when its last step began
        self._is_callback, self._beat = False, 0.0
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    # -- one cycle ---------------------------------------------------------------------------------------------------

    async def run_cycle(self) -> list[Any]:
        """Sample one cycle, and return TRL's RolloutSamples of it. Rollouts without a sampled token are left out."""
        state = self.cycles.state()  # with the feedback that has arrived
        self._states.append((self._made, {"cycles": state, "cursor": self._cursor, "next_group": self._next_group}))
        started, model_version, step = time.monotonic(), self.model_version, self.step
        at = range(self._cursor, self._cursor + self.cycles.explored_groups)
        self._cursor = at.stop
        plan, metrics = self.cycles.next([self.dataset[i % len(self.dataset)] for i in at], step)
        inflight = asyncio.Semaphore(self._max_inflight)

        async def run_one(group: PlannedGroup) -> Episode:
            async with inflight:
                return await self.cycles.runner.run(group.row, self.sample)

        rollouts = (asyncio.gather(*(run_one(group) for _ in range(group.size))) for group in plan.groups)
        groups = await asyncio.gather(*rollouts)
        metrics |= self.cycles.finish(plan, groups, step)
        if isinstance(self.sample, VLLMSampler):
            metrics["rollout/vllm_retry_total"], self.sample.retries = float(self.sample.retries), 0
        samples = self._samples(groups, model_version)
        self._made += len(samples)
        self.metrics_queue.put({**metrics, "rollout/cycle_s": time.monotonic() - started})
        return samples

    def _samples(self, groups: Sequence[Sequence[Episode]], model_version: int) -> list[Any]:
        samples, rewards = [], [[episode.reward for episode in group] for group in groups]
        for group, given, advantages in zip(groups, rewards, self.cycles.advantages(rewards), strict=True):
            judged = [reward for reward in given if not math.isnan(reward)]
            deviation = statistics.stdev(judged) if len(judged) > 1 else 0.0
            for episode, advantage in zip(group, advantages, strict=True):
                fields = {"advantage": advantage, "metrics": {"reward": episode.reward, "reward_std": deviation}}
                fields |= {"model_version": model_version, "group_id": self._next_group}
                if any(episode.mask):
                    samples.append(self._sample_type(**_fields(episode), **fields))
            self._next_group += 1
        return samples

    # -- TRL's RolloutWorkerProtocol ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to fill the queue. Raises UsageError if the worker is not among the trainer's callbacks."""
        if not self._is_callback:
            raise UsageError(
                "the rollout worker is not among the trainer's callbacks, so that its buffer would be in no "
                "checkpoint; give AsyncGRPOTrainer(..., rollout_worker=worker, callbacks=[worker])"
            )
        if isinstance(self.sample, VLLMSampler):
            limit = self.sample.start(self.model_version)
            self.cycles.runner.context_length = self.cycles.runner.context_length or limit
        self._beat = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="fission rollout worker", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the worker's thread; rollouts under way are lost."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(STOP_SECONDS)
            if self._thread.is_alive():
                _log.warning("the rollout worker did not end within %g s; it is left behind", STOP_SECONDS)

    def update_model_version(self, model_version: int) -> None:
        self.model_version = model_version
        if isinstance(self.sample, VLLMSampler):
            self.sample.model_version = model_version

    def check_health(self, stale_after_s: float) -> None:
        """Raise RuntimeError if the worker's thread has failed, or shows no sign of life."""
        if self._error is not None:
            raise RuntimeError(f"the rollout worker has failed: {self._error!r}") from self._error
        if (age := time.monotonic() - self._beat) > stale_after_s:
            silence = f"the rollout worker shows no sign of life for {age:.0f} s (limit {stale_after_s:.0f} s)"
            raise RuntimeError(f"{silence}; a tool may hang: isolate_environments=True ends it at tool_timeout")

    def _run(self) -> None:
        try:
            asyncio.run(self._work())
        except asyncio.CancelledError:  # by `stop`
            pass
        except BaseException as error:  # noqa: BLE001 - raised in the trainer's thread, by `check_health`
            self._error = error
            _log.exception("the rollout worker has failed")

    async def _work(self) -> None:
        await asyncio.gather(self._show_life(), self._fill())

    async def _show_life(self) -> None:
        while not self._stopping.is_set():
            self._beat = time.monotonic()
            await asyncio.sleep(BEAT_SECONDS)
        raise asyncio.CancelledError  # which ends the other part, too

    async def _fill(self) -> None:
        empty = 0
        while True:
            samples, started = await self.run_cycle(), time.monotonic()
            empty = 0 if samples else empty + 1
            if empty == EMPTY_CYCLES:
                raise RuntimeError(f"nothing could be sampled in {empty} cycles; is the environment's service up?")
            for sample in samples:
                while self.rollout_buffer.full():  # nothing else puts
                    await asyncio.sleep(POLL_SECONDS)
                sample.enqueued_at = time.time()
                self.rollout_buffer.put_nowait(sample)
            self.metrics_queue.put({"rollout/backpressure_s": time.monotonic() - started})

    # -- TrainerCallback ---------------------------------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Load the checkpoint's state in a run that is resumed; TRL starts the worker after this."""
        self._is_callback, self.step = True, state.global_step
        self.cycles.runner.progress = lambda: self.step / max(1, state.max_steps)
        if self.step:
            self.load(Path(self.resume_from or Path(args.output_dir) / f"checkpoint-{self.step}") / STATE)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Forget the states before cycles that will be trained when this step ends: TRL fetches a batch ahead."""
        held_back = int((args.token_budget or 0) > 0)  # by TRL's batcher: a sample that did not fit
        while len(self._states) > 1 and self._states[1][0] <= self._taken - held_back:
            self._states.popleft()
        self._taken = self.rollout_buffer.taken

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.step = state.global_step

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero and self._states:
            self.save(Path(args.output_dir) / f"checkpoint-{state.global_step}" / STATE)

    def save(self, path: Path) -> None:
        """Write the state before the first cycle that may not have been trained as a whole."""
        write_file(path, json.dumps({"format": 1, **self._states[0][1]}))

    def load(self, path: Path) -> None:
        """Go on from a file of `save`. Raises CheckpointError if there is none, or it cannot be read."""
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
            self._cursor, self._next_group = int(saved["cursor"]), int(saved["next_group"])
            self.cycles.load_state(saved["cycles"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{path} cannot be read ({error!r}), and holds the corrective instances; resume from another "
                "checkpoint, or give the worker resume_from=FOLDER if it lies elsewhere"
            ) from error


def _fields(episode: Episode) -> dict[str, Any]:
    """The fields of TRL's sample that one rollout decides: messages, for people, and tokens."""
    if len(episode.logprobs) != len(episode.completion_ids):
        raise UsageError(
            "the worker's `sample` gives no log-probability for each token, which AsyncGRPOTrainer needs; return "
            "Sampled(token_ids, logprobs)"
        )
    task, turns = episode.rollout.trajectory.task, episode.rollout.trajectory.turns
    before = [0] * len(episode.prompt_ids)
    return {
        "prompt": [{"role": "user", "content": task.prompt}] if isinstance(task.prompt, str) else list(task.prompt),
        "completion": [message for turn in turns for message in turn_messages(turn)],
        "input_ids": np.asarray(episode.prompt_ids + episode.completion_ids, dtype=np.int64),
        "completion_mask": np.asarray(before + episode.mask, dtype=np.int64),
        "old_log_probs": np.asarray(before + episode.logprobs, dtype=np.float32),
    }


class VLLMSampler:
    """Samples turns from the vLLM server that `AsyncGRPOTrainer` sends its weights to, with TRL's own requests.

    A LoRA adapter that the trainer serves there is used in its newest version.

    Args:
        args: the trainer's AsyncGRPOConfig, which has the address and the options of sampling.
        max_inflight: largest number of requests at a time [TRL's].
    """

    def __init__(self, args: Any, max_inflight: int = 128):
        import requests
        from requests.adapters import HTTPAdapter
        from urllib3.util.retry import Retry

        self.args, self.url = args, str(args.vllm_server_base_url).rstrip("/")
        self.model, self.uses_adapter, self.model_version = "", False, 0
        self.retries = 0  # of requests, since the worker has logged them
        waits = {"total": TRIES, "backoff_factor": 0.5, "backoff_max": 16}
        retry = Retry(**waits, status_forcelist=(429, 500, 502, 503, 504), allowed_methods=None)
        self._session = requests.Session()
        self._session.mount(self.url, HTTPAdapter(pool_maxsize=max_inflight, max_retries=retry))
        self._pool = ThreadPoolExecutor(max_inflight, "vllm request")

    def start(self, model_version: int) -> int | None:
        """Ask the server what it serves, and return the longest sequence in tokens that it takes, if it says."""
        served, _ = self._send("GET", "/v1/models")
        names = [one["id"] for one in served["data"]]
        self.model, self.model_version = names[0], model_version
        self.uses_adapter = f"{ADAPTER}-v{model_version}" in names
        return served["data"][0].get("max_model_len")

    async def __call__(self, token_ids: list[int], max_tokens: int) -> Sampled:
        args = self.args
        names = ("temperature", "top_p", "top_k", "repetition_penalty", *(() if args.min_p is None else ("min_p",)))
        payload = {name: getattr(args, name) for name in names} | {
            "model": f"{ADAPTER}-v{self.model_version}" if self.uses_adapter else self.model,
            "prompt": token_ids,
            "max_tokens": max_tokens,
            "n": 1,
            "return_token_ids": True,
            "logprobs": 0,
            "seed": random.getrandbits(63),  # engines of one server would sample the same without
        }
        loop = asyncio.get_running_loop()
        answer, retries = await loop.run_in_executor(self._pool, self._send, "POST", "/v1/completions", payload)
        self.retries += retries
        choice = answer["choices"][0]
        return Sampled(choice["token_ids"], choice["logprobs"]["token_logprobs"])

    def _send(self, method: str, path: str, payload: Any = None) -> tuple[Any, int]:
        """The server's answer, and how often the request was repeated."""
        response = self._session.request(method, self.url + path, json=payload, timeout=self.args.request_timeout)
        response.raise_for_status()
        return response.json(), len(response.raw.retries.history)
