"""The rollout worker for TRL's asynchronous trainer."""

import asyncio
import json
import time
from collections import defaultdict
from dataclasses import replace

import pytest

pytest.importorskip("trl")

import torch
from async_on_cpu import SamplerOnCPU, let_trl_train_on_cpu
from datasets import Dataset
from engine_contract import CYCLES, MAX_LENGTH, SETTINGS, Script, episode_rows, make_cycles, record, run_cycles
from openai_server import OpenAIServer
from trainer_settings import QUIETLY_ON_CPU
from transformers import TrainerControl, TrainerState
from trl.experimental.async_grpo import AsyncGRPOConfig, AsyncGRPOTrainer
from trl.experimental.async_grpo.async_rollout_worker import RolloutSample

from fission_grpo import group_advantages
from fission_grpo.core.errors import CheckpointError, InfrastructureError, UnsupportedVersionError, UsageError
from fission_grpo.engines import trl_async
from fission_grpo.engines.episode import Sampled
from fission_grpo.engines.trl_async import STATE, FissionRolloutWorker, VLLMSampler
from fission_grpo.envs.desk.env import Desk
from fission_grpo.feedback.sources import FunctionSource
from fission_grpo.inference.pretrained import load_starter, starter_path

MODEL, TOKENIZER = load_starter()


def scripted():
    script = Script(TOKENIZER)

    async def sample(ids, _):
        said = script(ids)
        return Sampled(said, [-0.5] * len(said))

    return sample


def make_worker(sample=None, dataset=None, max_length=MAX_LENGTH, options=None, **settings):
    rows = episode_rows() if dataset is None else dataset
    cycles = make_cycles(TOKENIZER, rows=24, **settings)
    cycles.runner.max_completion_length = max_length
    return FissionRolloutWorker(cycles, rows, sample or scripted(), **(options or {}))


def cycle(worker, step=None):
    worker.step = worker.step + 1 if step is None else step
    groups = defaultdict(list)
    for sample in asyncio.run(worker.run_cycle()):
        groups[sample.group_id].append(sample)
    return list(groups.values())


def text_of(sample):
    return "\n".join(
        message["content"] if message["role"] == "assistant" else f"[{message['name']}] {message['content']}"
        for message in sample.completion
    )


def test_groups_of_two_sizes_have_their_own_advantages_and_group_ids():
    worker = make_worker()
    sizes = [[len(group) for group in cycle(worker)] for _ in range(4)]
    assert sizes == [[4] * 4, [8] * 2, [4] * 4, [8] * 2]
    groups = cycle(make_worker())
    seen = {sample.group_id for group in groups for sample in group}
    assert len(seen) == 4
    for group in groups:
        rewards = [sample.metrics["reward"] for sample in group]
        assert len(set(rewards)) > 1
        assert [sample.advantage for sample in group] == group_advantages(rewards, [len(group)])


def test_the_samples_of_recoveries_begin_with_the_failed_turn_and_train_what_comes_after_it():
    worker = make_worker()
    cycle(worker)
    sample = cycle(worker)[0][0]
    prompt = [message["role"] for message in sample.prompt]
    assert prompt[-2:] == ["assistant", "tool"]
    first = sample.completion_mask.tolist().index(1)
    before = TOKENIZER.decode(sample.input_ids[:first])
    assert sample.prompt[-1]["content"] in before
    assert TOKENIZER.decode(sample.input_ids[first:]).startswith(sample.completion[0]["content"])
    assert set(sample.old_log_probs[sample.completion_mask == 1].tolist()) == {-0.5}
    assert set(sample.old_log_probs[sample.completion_mask == 0].tolist()) == {0.0}


def test_an_unreadable_call_is_answered_and_the_answer_is_not_trained():
    samples = [sample for group in cycle(make_worker()) for sample in group]
    sample = next(one for one in samples if '"name": "broken"' in one.completion[0]["content"])
    answer = sample.completion[1]
    assert answer["role"] == "tool"
    assert "not valid JSON" in answer["content"]
    assert sample.completion[2]["role"] == "assistant"
    trained = TOKENIZER.decode(sample.input_ids[sample.completion_mask == 1])
    assert "not valid JSON" not in trained
    assert sample.completion[2]["content"] in trained


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"recovery_reward": "strict", "failure_turn": "every", "buffer_order": "random"},
        {"recovery_scope": "turn"},
        {"recovery_batches": "mixed", "max_depth": 2},
    ],
    ids=str,
)
def test_the_worker_samples_what_the_contract_of_engines_says(settings):
    expected = run_cycles(TOKENIZER, episode_rows(), **settings)
    worker, records = make_worker(**settings), []
    buffer = worker.cycles.fission.buffer
    for step in range(CYCLES):
        before = {item.task.id for item in buffer}
        groups = cycle(worker, step)
        seen = [[(one.metrics["reward"], one.advantage, text_of(one)) for one in group] for group in groups]
        records.append(record([], seen, buffer, before))
    assert records == [replace(one, contexts=[]) for one in expected]


def test_a_saved_buffer_is_restored_to_equality(tmp_path):
    worker = make_worker()
    for _ in range(4):
        cycle(worker)
    while len(worker._states) > 1:
        worker._states.popleft()
    worker.save(tmp_path / STATE)
    other = make_worker()
    other.load(tmp_path / STATE)
    saved = json.loads((tmp_path / STATE).read_text())
    assert saved["cycles"]["fission"]["buffer"]
    assert json.loads(json.dumps(other.cycles.state())) == saved["cycles"]
    assert (other._cursor, other._next_group) == (12, 10)


def test_a_checkpoint_holds_the_state_before_the_first_cycle_that_was_not_trained_as_a_whole(tmp_path):
    worker, args = (
        make_worker(options={"queue_maxsize": 100}),
        AsyncGRPOConfig(str(tmp_path), use_cpu=True, bf16=False),
    )
    args.token_budget = 0
    state, control = TrainerState(is_world_process_zero=True), TrainerControl()
    states = []
    for step in range(1, 4):
        states.append(json.loads(json.dumps(worker.cycles.state())))
        for sample in asyncio.run(worker.run_cycle()):
            worker.rollout_buffer.put(sample)
        if step > 1:  # the trainer has fetched one batch more than it trains
            for _ in range(16 if step > 2 else 32):
                worker.rollout_buffer.get()
            worker.on_step_begin(args, state, control)
    state.global_step = 2
    worker.on_save(args, state, control)
    saved = json.loads((tmp_path / "checkpoint-2" / STATE).read_text())
    assert saved["cycles"] == states[2]
    assert saved["cursor"] == 8


@pytest.mark.parametrize("content", [None, "{", "{}", '{"cursor": 1, "next_group": 1, "cycles": {}}'])
def test_a_checkpoint_without_a_readable_state_is_refused(content, tmp_path):
    folder = tmp_path / "checkpoint-7"
    folder.mkdir()
    if content is not None:
        (folder / STATE).write_text(content)
    args = AsyncGRPOConfig(str(tmp_path), use_cpu=True, bf16=False)
    with pytest.raises(CheckpointError, match=r"checkpoint-7/fission_worker.json .*resume from another checkpoint"):
        make_worker().on_train_begin(args, TrainerState(global_step=7), TrainerControl())


def wait_until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def started(worker, tmp_path):
    args = AsyncGRPOConfig(str(tmp_path), use_cpu=True, bf16=False)
    worker.on_train_begin(args, TrainerState(), TrainerControl())
    worker.start()
    return worker


def test_the_death_of_the_thread_is_seen_by_check_health(tmp_path):
    async def sample(ids, _):
        raise ConnectionError("the server is gone")

    worker = started(make_worker(sample), tmp_path)
    wait_until(lambda: not worker._thread.is_alive())
    with pytest.raises(RuntimeError, match="the server is gone"):
        worker.check_health(300)
    worker.stop()


def test_a_tool_that_hangs_is_seen_by_check_health(tmp_path):
    answer, waits = scripted(), [1.0]

    async def sample(ids, _):
        if waits:
            time.sleep(waits.pop())  # as a tool would, in the worker's thread
        return await answer(ids, _)

    worker = started(make_worker(sample), tmp_path)
    time.sleep(0.7)
    with pytest.raises(RuntimeError, match="no sign of life"):
        worker.check_health(0.5)
    worker.stop()


def test_the_queue_holds_no_more_than_one_cycle_and_the_worker_stops(tmp_path):
    worker = started(make_worker(), tmp_path)
    wait_until(lambda: worker.rollout_buffer.full())
    worker.check_health(300)
    sample = worker.rollout_buffer.get(timeout=5)
    assert isinstance(sample, RolloutSample)
    assert sample.enqueued_at is not None
    assert worker.rollout_buffer.qsize() <= SETTINGS["generation_batch_size"]
    worker.stop()
    assert not worker._thread.is_alive()
    metrics = [worker.metrics_queue.get_nowait() for _ in range(worker.metrics_queue.qsize())]
    assert {"fission/phase", "fission/success", "fission/pushed"} <= metrics[0].keys()


def test_a_worker_that_is_no_callback_does_not_start():
    with pytest.raises(UsageError, match="callbacks=\\[worker\\]"):
        make_worker().start()


def test_samples_without_log_probabilities_are_refused():
    script = Script(TOKENIZER)

    async def sample(ids, _):
        return Sampled(script(ids))

    with pytest.raises(UsageError, match="log-probability for each token"):
        cycle(make_worker(sample))


def test_another_trl_is_refused_at_the_start(monkeypatch):
    monkeypatch.setattr(trl_async, "SAMPLE_FIELDS", trl_async.SAMPLE_FIELDS + " reward")
    with pytest.raises(
        UnsupportedVersionError, match=r"trl 1\.\d+.* RolloutSample with the fields prompt .*pip install 'trl"
    ):
        make_worker()


class Later(FunctionSource):
    """A source whose answers are collected when the next cycle begins."""

    asynchronous = True


def test_feedback_that_arrives_later_is_counted_in_the_next_cycle():
    worker = make_worker(sources=[Later("later", lambda failure: "try unlock_file first")])
    cycle(worker)
    cycle(worker)
    first, second = (worker.metrics_queue.get_nowait() for _ in range(2))
    assert "fission/pushed" not in first
    assert second["fission/pushed"] == 4
    assert second["fission/phase"] == 1


class Broken(Desk):
    """A desk whose service is gone."""

    def reset(self, **row):
        super().reset(**row)
        raise InfrastructureError("connection lost")


def test_rollouts_in_a_broken_environment_are_counted_and_not_trained():
    worker = make_worker(environment=Broken)
    assert cycle(worker) == []
    metrics = worker.metrics_queue.get_nowait()
    assert metrics["fission/infrastructure"] == metrics["env/broken"] == 16
    assert metrics["fission/buffer"] == 0


def test_a_worker_whose_environment_stays_broken_fails_instead_of_waiting(tmp_path):
    worker = started(make_worker(environment=Broken), tmp_path)
    wait_until(lambda: not worker._thread.is_alive())
    with pytest.raises(RuntimeError, match="nothing could be sampled in 3 cycles"):
        worker.check_health(300)
    worker.stop()


def test_a_data_set_that_a_checkpoint_cannot_keep_is_refused():
    with pytest.raises(UsageError, match="not a stream"):
        make_worker(dataset=iter(episode_rows()))
    with pytest.raises(ValueError, match="empty"):
        make_worker(dataset=[])
    with pytest.raises(ValueError, match="'when'"):
        make_worker(dataset=[{**episode_rows()[0], "when": {1, 2}}])


def served(body):
    token_ids = TOKENIZER("Done.", add_special_tokens=False)["input_ids"]
    choice = {"token_ids": token_ids, "logprobs": {"token_logprobs": [-0.25] * len(token_ids)}}
    return json.dumps({"choices": [choice]}).encode()


def test_requests_to_the_server_are_those_of_trl_and_a_busy_server_is_asked_again(tmp_path):
    with OpenAIServer(served, models=("policy", "trl-policy-v3")) as server:
        server.faults = ["503"]
        args = AsyncGRPOConfig(str(tmp_path), use_cpu=True, bf16=False, temperature=0.7, min_p=0.1)
        args.vllm_server_base_url = server.url.removesuffix("/v1")
        sampler = VLLMSampler(args)
        sampler.start(model_version=2)
        sampled = asyncio.run(sampler([5, 6, 7], 9))
        assert server.paths == ["/v1/completions"] * 2
        body = server.asked[1]
        assert {key: body[key] for key in ("model", "prompt", "max_tokens", "temperature", "min_p", "logprobs")} == {
            "model": "policy",
            "prompt": [5, 6, 7],
            "max_tokens": 9,
            "temperature": 0.7,
            "min_p": 0.1,
            "logprobs": 0,
        }
        assert sampler.retries == 1
        assert sampled.logprobs == [-0.25] * len(sampled.token_ids)
        assert sampler.start(model_version=3) is None  # the trainer serves its adapter now
        sampler.model_version = 4
        asyncio.run(sampler([5], 9))
        assert server.asked[-1]["model"] == "trl-policy-v4"


def train(folder, policy, steps, monkeypatch, resume=None):
    let_trl_train_on_cpu(monkeypatch)
    worker = make_worker(policy, max_length=96)
    args = AsyncGRPOConfig(
        str(folder),
        **{name: value for name, value in QUIETLY_ON_CPU.items() if name not in ("beta", "save_strategy")},
        max_steps=steps,
        save_steps=3,
        per_device_train_batch_size=16,
        token_budget=0,
        learning_rate=1e-3,
    )
    trainer = AsyncGRPOTrainer(
        str(starter_path()),
        args=args,
        train_dataset=Dataset.from_list(episode_rows()),
        processing_class=TOKENIZER,
        rollout_worker=worker,
        weight_transfer=policy,
        callbacks=[worker],
    )
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    trainer.train(resume_from_checkpoint=resume)
    return trainer, worker, before


def test_the_starter_policy_trains_and_a_resumed_run_goes_on_with_the_same_buffer(tmp_path, monkeypatch):
    policy = SamplerOnCPU(load_starter()[0], TOKENIZER)
    trainer, _, before = train(tmp_path, policy, 3, monkeypatch)
    assert all(not torch.equal(before[name], value) for name, value in trainer.model.named_parameters())
    logs = [entry for entry in trainer.state.log_history if "fission/phase" in entry]
    assert any(entry["fission/phase"] > 0 for entry in logs)
    first = trainer.state.log_history[0]
    assert first["ratio"] == pytest.approx(1.0, abs=1e-4)  # the sampler and the packing agree on log-probabilities
    saved = json.loads((tmp_path / "checkpoint-3" / STATE).read_text())
    checkpoint = str(tmp_path / "checkpoint-3")
    trainer, worker, _ = train(tmp_path, policy, 4, monkeypatch, checkpoint)
    assert trainer.state.global_step == 4
    assert worker._states[0][1]["cycles"] == saved["cycles"]
    assert worker._states[0][1]["cursor"] == saved["cursor"]
