"""What earns how much: garbage, truncated and repeated answers against wrong and right calls; the reward function."""

import math

import pytest

from fission_grpo.core.chat import parse, render_call
from fission_grpo.core.rewards import RewardConfig, StepReward, length_reward, step_verdict
from fission_grpo.core.serialization import task_from_json, task_to_json
from fission_grpo.core.types import Task, ToolCall, Turn

LS, CD = ToolCall("ls"), ToolCall("cd", {"dir": "a"})


def cd(folder: str) -> ToolCall:
    return ToolCall("cd", {"dir": folder})


GARBAGE = {
    "unreadable": Turn("", error="unclosed <tool_call>"),
    "empty": Turn(""),
    "a thought only": Turn("<think>so</think>"),
    "cut off": Turn("", content="Well, then", truncated=True),
    "cut off after a right call": Turn("", calls=(CD,), truncated=True),
}


def f(**arguments) -> ToolCall:
    return ToolCall("f", arguments)


RIGHT = (f(a=1, b=2),)


def reward_of(turn: Turn, reference=RIGHT, length=100, progress=0.0, config=None, failed=()):
    task = Task("t", "go", reference=reference, **({"failed": failed} if failed else {}))
    return step_verdict(task, turn, length, progress, config).reward


@pytest.mark.parametrize(
    ("progress", "wrong_tool", "no_argument", "one_argument"),
    [
        # (w_fmt + w_corr * R_corr + 1) / 3 with R_corr 0; 2 * 0.5 = 1; 2 * (0.5 + 0.5 * 0.5) = 1.5
        (0.0, 3 / 3, 4 / 3, 4.5 / 3),  # weights 2 and 1
        (0.5, 2.5 / 3, 3.75 / 3, 4.375 / 3),  # 1.5 and 1.25
        (1.0, 2 / 3, 3.5 / 3, 4.25 / 3),  # 1 and 1.5
    ],
)
def test_garbage_earns_less_than_a_wrong_tool_that_less_than_wrong_arguments_and_right_calls_the_most(
    progress, wrong_tool, no_argument, one_argument
):
    tries = (Turn("", calls=(ToolCall("g", {"a": 1, "b": 2}),)), Turn("", calls=(f(a=0, b=0),)),
             Turn("", calls=(f(a=1, b=0),)), Turn("", calls=(f(a=1, b=2),)))  # fmt: skip
    rewards = [reward_of(turn, progress=progress) for turn in tries]
    assert rewards == pytest.approx([wrong_tool, no_argument, one_argument, 5 / 3])
    worst = [reward_of(turn, progress=progress) for turn in (*GARBAGE.values(), Turn("", content="I cannot."))]
    assert worst == [0] * len(worst)
    assert 0 < wrong_tool < no_argument < one_argument < 5 / 3


@pytest.mark.parametrize("length", [0, 1, 16, 100, 224, 500, 4096])
@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_garbage_is_the_worst_whatever_its_length_and_the_other_answers(progress, length):
    poorest = reward_of(Turn("", calls=(ToolCall("g"),)), length=10**6, progress=progress)  # wrong tool, far too long
    for turn in GARBAGE.values():
        assert reward_of(turn, length=length, progress=progress) == 0 < poorest
        assert reward_of(turn, (), length, progress) == 0


@pytest.mark.parametrize("length", [1, 2, 16, 100, 600, 4096])
def test_where_no_call_is_expected_a_short_answer_earns_as_much_as_a_ramble(length):
    # the length of a right text is unknown, so R_len is 1: (2*1 + 1*2 + 1) / 3
    assert reward_of(Turn("Done.", content="Done."), (), length) == pytest.approx(5 / 3)
    # a call that nobody wants earns nothing, as garbage
    assert reward_of(Turn("", calls=(CD,)), (), length) == 0
    # where calls are expected, the paper's Gaussian stays
    assert reward_of(Turn("", calls=(CD,)), (CD,), length) == pytest.approx((4 + length_reward(length)) / 3)


def test_the_papers_formula_pays_every_completion_for_its_parts():
    done = Turn("Done.", content="Done.")
    # 2 tokens are 30 below the range of lengths: exp(-(30/16)^2 / 2) = 0.1724
    assert reward_of(done, (), 2, config=RewardConfig(paper_formula=True)) == pytest.approx(
        (2 + 2 + math.exp(-((30 / 16) ** 2) / 2)) / 3
    )
    assert reward_of(Turn("", error="unclosed"), (), config=RewardConfig(paper_formula=True)) == pytest.approx(1 / 3)
    assert reward_of(Turn("", calls=(CD,)), (), config=RewardConfig(paper_formula=True)) == pytest.approx(1 / 3)
    again = Turn("", calls=(f(a=1, b=0),))
    assert reward_of(again, config=RewardConfig(paper_formula=True), failed=((f(a=1, b=0),),)) == pytest.approx(
        4.5 / 3
    )


# -- repeated failures -----------------------------------------------------------------------------------------------

WRONG = f(a=1, b=0)  # earns 1.5 of 1.67 as a first try, the most of all wrong answers
LS_AND_WRONG, LS_AND_RIGHT = (LS, WRONG), (LS, f(a=1, b=2))


@pytest.mark.parametrize(
    ("failed", "again"),
    [
        ((WRONG,), (WRONG,)),
        ((WRONG,), (ToolCall("f", {"b": 0, "a": 1}),)),  # in another order
        ((WRONG,), (f(a=1.0, b=0),)),  # an equal number
        ((WRONG,), (WRONG, WRONG)),  # twice
        ((WRONG, WRONG), (WRONG,)),
        ((f(a=1, b={"c": 1, "d": 2}),), (f(b={"d": 2, "c": 1}, a=1),)),  # in another order, nested
        ((f(a=1),), (f(a=1),)),  # an argument is missing
        ((f(a=1, b=2, c=3),), (f(c=3, b=2, a=1),)),  # one too many
        ((ToolCall("g"),), (ToolCall("g"),)),  # another tool
    ],
)
@pytest.mark.parametrize("progress", [0.0, 1.0])
def test_a_repeated_failed_call_earns_less_than_any_other_readable_call(failed, again, progress):
    repeated = reward_of(Turn("", calls=again), failed=(failed,), progress=progress)
    others = [(f(a=7, b=7),), (f(a=7),), (ToolCall("h"),), (ToolCall("h"), ToolCall("i")), (f(a=1, b=5),)]
    rewards = [reward_of(Turn("", calls=calls), failed=(failed,), progress=progress, length=n) for calls in others
               for n in (1, 100, 5000)]  # fmt: skip
    assert repeated == 0 < min(rewards)
    assert reward_of(Turn("", calls=(f(a=1, b=2),)), failed=(failed,), progress=progress) == pytest.approx(5 / 3)


def test_in_a_group_without_a_right_answer_the_same_again_has_not_the_top_advantage():
    answers = [(WRONG,), (f(a=7, b=7),), (ToolCall("g"),), ()]
    turns = [Turn("", content="" if calls else "I give up.", calls=calls) for calls in answers]
    rewards = [reward_of(turn, failed=((WRONG,),)) for turn in turns]
    assert rewards == pytest.approx([0, 4 / 3, 1, 0])
    # and nothing to gain where all others are garbage
    assert reward_of(turns[0], failed=((WRONG,),)) == reward_of(GARBAGE["unreadable"], failed=((WRONG,),)) == 0


@pytest.mark.parametrize(
    ("calls", "reward"),
    [
        (LS_AND_WRONG, 0),  # the same turn again
        (LS_AND_WRONG[::-1], 0),  # in another order
        ((WRONG,), 0),  # a part of it
        ((LS,), (2 + 1 + 1) / 3),  # the right part of it, without the wrong call: 2 * 1 / 2
        ((LS, f(a=7, b=0)), (2 + 2 * (1 + 0.5) / 2 + 1) / 3),  # another second call
        ((WRONG, ToolCall("h")), (2 + 0 + 1) / 3),  # the wrong call among others matches nothing
        ((LS, WRONG, ToolCall("h")), (2 + 2 * 1 / 3 + 1) / 3),  # nor here, while ls still does
        (LS_AND_RIGHT, 5 / 3),
        (LS_AND_RIGHT[::-1], 5 / 3),
    ],
)
def test_of_several_calls_those_count_that_are_new_or_right(calls, reward):
    given = reward_of(Turn("", calls=calls), reference=LS_AND_RIGHT, failed=(LS_AND_WRONG,))
    assert given == pytest.approx(reward)


def test_dropping_a_superfluous_call_is_no_repetition():
    # of ls, cd and two extra calls one extra call is dropped: 2 * 2 / 3 instead of 2 * 2 / 4
    extra = (ToolCall("g"), ToolCall("h"))
    given = reward_of(Turn("", calls=(LS, CD, extra[0])), reference=(LS, CD), failed=((LS, CD, *extra),))
    assert given == pytest.approx((2 + 4 / 3 + 1) / 3)
    assert reward_of(Turn("", calls=(LS, CD)), reference=(LS, CD), failed=((LS, CD, *extra),)) == pytest.approx(5 / 3)
    # a call that is there once and needed twice
    assert reward_of(Turn("", calls=(LS,)), reference=(LS, LS), failed=((LS,),)) == 0
    assert reward_of(Turn("", calls=(LS, LS)), reference=(LS, LS), failed=((LS,),)) == pytest.approx(5 / 3)


def test_dropping_only_the_wrong_call_earns_more_than_an_unrelated_call():
    reference, failed = (LS, f(a=1, b=2)), ((LS, ToolCall("rm")),)
    kept, unrelated = Turn("", calls=(LS,)), Turn("", calls=(ToolCall("g"),))
    assert reward_of(kept, reference, failed=failed) == pytest.approx((2 + 1 + 1) / 3)
    assert reward_of(unrelated, reference, failed=failed) == pytest.approx(1)
    for again in ((ToolCall("rm"),), (LS, ToolCall("rm")), (LS, LS, ToolCall("rm"))):  # the wrong call is still there
        assert reward_of(Turn("", calls=again), reference, failed=failed) == 0
    assert reward_of(kept, reference, failed=(*failed, (LS,))) == 0  # now it is the same again
    assert reward_of(kept, reference, failed=((LS, LS),)) == pytest.approx((2 + 1 + 1) / 3)  # one too many dropped
    assert reward_of(Turn("", calls=(LS, LS)), reference, failed=((LS,),)) == 0


@pytest.mark.parametrize(
    "content",
    [
        "\u200b",
        "\x00",
        "\u2060\ufe0f \u00a0",
        "\u3164",
        '{"name": "cd", "arguments": {}}',
        ' {"name": "cd", "parameters": {"dir": "a"}}\n',
        '[{"name": "cd", "arguments": {}}, {"name": "ls", "arguments": {}}]',
        '{"type": "function", "function": {"name": "cd", "arguments": "{}"}}',
        '```json\n{"name": "cd", "arguments": {}}\n```',
    ],
)
def test_where_no_call_is_wanted_an_invisible_text_or_a_call_without_tags_is_no_answer(content):
    verdict = step_verdict(Task("t", "go", reference=()), parse(content), 10)
    assert (verdict.reward, verdict.failed, verdict.parts["format"]) == (0, True, 0)


@pytest.mark.parametrize(
    "content", ["Done.", "好", "👍", "?", "42", '{"name": "Ann", "age": 3}', "[]", "{}", '["name", "arguments"]',
                'It would be {"name": "cd", "arguments": {}}.']
)  # fmt: skip
def test_where_no_call_is_wanted_a_visible_text_is_an_answer(content):
    assert step_verdict(Task("t", "go", reference=()), parse(content), 10).reward == pytest.approx(5 / 3)


def test_a_call_that_was_right_and_failed_for_another_reason_stays_right():
    right = Turn("", calls=LS_AND_RIGHT)
    assert reward_of(right, reference=LS_AND_RIGHT, failed=(LS_AND_RIGHT,)) == pytest.approx(5 / 3)  # it was cut off
    # a part of a right turn is judged as at first sight: 2 * 1 / 2
    part = Turn("", calls=(LS,))
    assert reward_of(part, reference=LS_AND_RIGHT, failed=(LS_AND_RIGHT,)) == pytest.approx((2 + 1 + 1) / 3)
    # right enough for the threshold is right
    lenient = RewardConfig(correctness_threshold=1.5)
    again = step_verdict(Task("t", "go", reference=(f(a=1, b=2),), failed=((WRONG,),)), Turn("", calls=(WRONG,)), 100,
                         config=lenient)  # fmt: skip
    assert (again.failed, again.reward) == (False, pytest.approx(4.5 / 3))


def test_every_failed_turn_before_counts_in_a_recovery_of_a_recovery():
    failed = ((WRONG,), (f(a=7, b=7),))
    for calls in failed:
        assert reward_of(Turn("", calls=calls), failed=failed) == 0
    assert reward_of(Turn("", calls=(f(a=1, b=7),)), failed=failed) == pytest.approx(4.5 / 3)


def test_a_task_brings_its_failed_calls_through_json():
    task = Task("x", "go", reference=(CD,), parent="t", root="t", depth=1, failed=((WRONG,), (LS, cd("b"))))
    assert task_from_json(task_to_json(task)) == task
    text = render_call(WRONG)
    row = task_to_json(Task("x", "go", reference=(f(a=1, b=2),), failed=((WRONG,),)))
    assert StepReward()([text, render_call(f(a=1, b=5))], [[1] * 100, [2] * 100], [row, row]) == [0, 4.5 / 3]
    assert "failed" not in task_to_json(Task("t", "go", reference=(CD,)))  # as files of earlier versions


# -- the reward function ---------------------------------------------------------------------------------------------

END, ROW = 9, task_to_json(Task("t", "go", reference=(CD,)))


def test_a_completion_without_end_token_is_truncated_and_earns_nothing():
    reward, text = StepReward(eos_ids=[END, 8]), render_call(CD)
    ids = [[1] * 99 + [END], [1] * 99 + [8], [1] * 100, [END, 1], []]
    rewards = reward([text] * 5, ids, [ROW] * 5)
    assert rewards == pytest.approx([5 / 3, 5 / 3, 0, 0, 0])
    assert [verdict.failed for verdict in reward.verdicts] == [False, False, True, True, True]
    assert reward.verdicts[2].parts == {"format": 0, "correctness": 0, "length": 0}
    by_the_paper = StepReward(RewardConfig(paper_formula=True), [END])([text], [[1] * 100], [ROW])
    assert by_the_paper == pytest.approx([1 / 3])  # for its length alone


def test_without_end_tokens_every_completion_counts_as_complete():
    assert StepReward()([render_call(CD)], [[1] * 100], [ROW]) == pytest.approx([5 / 3])


class State:
    def __init__(self, global_step, max_steps):
        self.global_step, self.max_steps = global_step, max_steps


@pytest.mark.parametrize(
    ("step", "steps", "expected"),
    # text of 8 tokens, R_len = exp(-(24/16)^2 / 2) = 0.3247, wrong argument (R_corr 1)
    [(0, 10, (2 + 1 + 0.3247) / 3), (5, 10, (1.5 + 1.25 + 0.3247) / 3), (10, 10, (1 + 1.5 + 0.3247) / 3),
     (20, 10, (1 + 1.5 + 0.3247) / 3), (0, 0, (2 + 1 + 0.3247) / 3)],
)  # fmt: skip
def test_the_reward_function_counts_tokens_and_follows_the_progress_of_training(step, steps, expected):
    text = render_call(cd("a much longer folder than eight tokens would be in characters"))
    (reward,) = StepReward()([text], [[1] * 8], [ROW], trainer_state=State(step, steps))
    assert reward == pytest.approx(expected, abs=1e-4)


def test_the_reward_function_judges_each_completion_and_logs_the_mean_of_each_part():
    logged = {}
    texts = [render_call(CD), render_call(cd("b")), render_call(LS), "no call", "<tool_call>{"]
    rewards = StepReward()(texts, [[i] * 100 for i in range(5)], [ROW] * 5, log_metric=logged.__setitem__)
    assert rewards == pytest.approx([5 / 3, 4 / 3, 1, 0, 0])
    assert logged == pytest.approx(
        {"reward_parts/format": 3 / 5, "reward_parts/correctness": 3 / 5, "reward_parts/length": 3 / 5}
    )
