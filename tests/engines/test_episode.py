"""One rollout, token by token, without a trainer. Needs transformers for the tokenizer."""

import asyncio

import pytest

pytest.importorskip("transformers")

from engine_contract import SETTINGS, Script, episode_rows, step_rows
from trl import GRPOTrainer

from fission_grpo import Fission, FissionSettings
from fission_grpo.core.chat import render_call
from fission_grpo.core.errors import InfrastructureError
from fission_grpo.core.types import ErrorKind, ToolCall
from fission_grpo.engines.codec import ChatCodec
from fission_grpo.engines.episode import Sampled, TaskRunner
from fission_grpo.envs.desk.env import Desk
from fission_grpo.envs.desk.tasks import solution
from fission_grpo.inference.pretrained import load_starter


@pytest.fixture(scope="module")
def tokenizer():
    return load_starter()[1]


def make_runner(tokenizer, environments=Desk, settings=None, **more):
    fission = Fission(FissionSettings(**SETTINGS, **(settings or {})))
    return TaskRunner(fission, ChatCodec(tokenizer), environments, **({"max_completion_length": 400} | more))


def run(runner, row, texts, ends=True):
    """An episode in which the policy writes these texts."""
    tokenizer, left = runner.codec.tokenizer, list(texts)

    async def sample(ids, most):
        own = tokenizer(left.pop(0), add_special_tokens=False)["input_ids"]
        own = [*own, tokenizer.eos_token_id] if ends else own
        return Sampled(own[:most], [-0.5] * len(own[:most]))

    return asyncio.run(runner.run(row, sample))


def test_the_tokens_of_an_episode_are_its_text_and_only_sampled_ones_count(tokenizer):
    row = next(row for row in episode_rows() if len(solution(row)) == 1)
    call = render_call(solution(row)[0])
    episode = run(make_runner(tokenizer), row, [call, "Done."])
    assert episode.reward == 1.0
    sampled = [token for token, own in zip(episode.completion_ids, episode.mask, strict=True) if own]
    eos = tokenizer.eos_token
    assert tokenizer.decode(sampled) == f"{call}{eos}Done.{eos}"
    whole = tokenizer.decode(episode.prompt_ids + episode.completion_ids)
    assert whole.index(row["prompt"][0]["content"]) < whole.index(call) < whole.index("ok") < whole.index("Done.")
    assert episode.logprobs == [-0.5 if own else 0.0 for own in episode.mask]


def test_results_are_encoded_as_trl_encodes_them(tokenizer):
    class Trainer:
        processing_class = _tokenizer = tokenizer
        chat_template, chat_template_kwargs, _is_vlm = None, {}, False

    messages = [{"role": "tool", "name": "find", "content": "a"}, {"role": "tool", "name": "find", "content": "b"}]
    trainer = Trainer()
    assert ChatCodec(tokenizer).encode_results(messages) == GRPOTrainer._get_tool_suffix_ids(trainer, messages)  # pyright: ignore


def test_an_unreadable_call_is_answered_and_the_episode_goes_on(tokenizer):
    row = episode_rows()[0]
    episode = run(make_runner(tokenizer), row, ["<tool_call>\n{oops\n</tool_call>", "I give up."])
    turns = episode.rollout.trajectory.turns
    assert len(turns) == 2
    assert turns[0].results[0].error == turns[0].error
    (failure,) = episode.failed().failures
    assert failure.kind is ErrorKind.UNPARSED


def test_results_that_do_not_fit_end_the_episode_as_cut_off(tokenizer):
    row = episode_rows()[0]
    call = render_call(solution(row)[0])
    length = len(tokenizer(call)["input_ids"]) + 2
    episode = run(make_runner(tokenizer, max_completion_length=length), row, [call, "never sampled"])
    assert episode.rollout.trajectory.turns[-1].truncated
    assert not episode.rollout.trajectory.turns[-1].results
    assert len(episode.completion_ids) <= length


def test_an_environment_that_breaks_gives_no_reward_and_is_counted(tokenizer):
    class Broken(Desk):
        def find_file(self, name: str) -> str:
            """Find a file.

            Args:
                name: of the file.
            """
            raise InfrastructureError("the disk is gone")

    runner = make_runner(tokenizer, Broken)
    episode = run(runner, episode_rows()[0], [render_call(ToolCall("find_file", {"name": "a"}))])
    assert episode.reward != episode.reward
    assert not episode.failed().failures
    assert runner.pop_counts()["env/broken"] == 1


def test_a_recovery_too_long_for_the_model_is_left_out_and_counted(tokenizer):
    for limit, pushed in ((4096, 1), (420, 0)):
        runner = make_runner(tokenizer, context_length=limit)
        episode = run(runner, episode_rows()[0], ["I cannot."])
        runner.fission.submit([episode.failed()], 0)
        metrics = runner.fission.push([runner.fission.collect()], 0)
        assert (metrics["fission/pushed"], metrics["fission/too_long"]) == (pushed, 1 - pushed)


def test_a_step_task_gets_the_real_answer_to_its_wrong_call(tokenizer):
    row = step_rows(tokenizer)[0]
    text = Script(tokenizer).text(tokenizer.decode(tokenizer(row["prompt"])["input_ids"]), 0)
    episode = run(make_runner(tokenizer, None), row, [text])
    (failure,) = episode.failed().failures
    assert "no_such" in (failure.turns[-1].results[0].error or "")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda t: make_runner(t, settings={"recovery_continues": True}), "recovery_continues"),
        (lambda t: make_runner(t, settings={"fault_pairs": True}), "fault_pairs"),
        (lambda t: make_runner(t, max_turns=0), "max_turns"),
        (lambda t: make_runner(_without_tools(t)), "does not show tools"),
        (lambda t: make_runner(_without_template(t)), "no chat template"),
        (lambda t: run(make_runner(t, None), episode_rows()[0], ["x"]), "give `environments`"),
    ],
)
def test_what_cannot_work_is_one_clear_error(make, message, tokenizer):
    with pytest.raises(ValueError, match=message):
        make(tokenizer)


def _without_tools(tokenizer):
    tokenizer = load_starter()[1]
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    return tokenizer


def _without_template(tokenizer):
    tokenizer = load_starter()[1]
    tokenizer.chat_template = None
    return tokenizer
