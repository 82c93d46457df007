"""The reward, part by part, on numbers worked by hand."""

import math

import pytest

from fission_grpo.core.chat import render_call
from fission_grpo.core.rewards import (
    RewardConfig,
    StepReward,
    argument_f1,
    correctness_reward,
    format_reward,
    length_reward,
    match_calls,
    reward_weights,
    same_value,
    step_verdict,
)
from fission_grpo.core.serialization import task_from_json, task_to_json
from fission_grpo.core.types import Task, ToolCall, Turn

LS, CD = ToolCall("ls"), ToolCall("cd", {"dir": "a"})


def cd(folder: str) -> ToolCall:
    return ToolCall("cd", {"dir": folder})


@pytest.mark.parametrize(
    ("turn", "called_for", "expected"),
    [
        (Turn("", calls=(LS,)), True, 1),
        (Turn("", content="Done."), True, 0),  # no call where one is called for
        (Turn("", content="Done."), False, 1),
        (Turn("", content="Let me see", calls=(LS,)), False, 0),  # a call where none is called for
        (Turn("", content=""), False, 0),  # says nothing
        (Turn("", error="unclosed <tool_call>"), True, 0),
        (Turn("", calls=(LS,), truncated=True), True, 0),  # not finished
    ],
)
def test_form_is_all_or_nothing(turn, called_for, expected):
    assert format_reward(turn, called_for) == expected


@pytest.mark.parametrize(
    ("given", "expected", "equal"),
    [
        (1, 1.0, True),
        (2**53 + 1, float(2**53), False),
        (True, 1, False),
        (0, False, False),
        ("3", 3, False),
        ("Rome", "rome", False),
        (None, None, True),
        (None, "", False),
        ([1, 2], [1.0, 2], True),
        ([1, 2], [2, 1], False),
        ([True], [1], False),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True),
        ({"a": None}, {}, False),
        ({}, [], False),
    ],
)
def test_equality_of_values_is_strict_except_for_int_and_float(given, expected, equal):
    assert same_value(given, expected) is equal
    assert same_value(expected, given) is equal


def test_f1_counts_leaves_given_expected_and_equal():
    # given leaves a, b.c, b.d = 3; expected a, b.c = 2; equal 2: 2*2 / (3 + 2) = 0.8
    assert argument_f1({"a": 1, "b": {"c": 2, "d": 3}}, {"a": 1, "b": {"c": 2}}) == pytest.approx(0.8)
    # one of two right, none missing: 2*1 / (2 + 2) = 0.5
    assert argument_f1({"a": 1, "b": 2}, {"a": 1, "b": 3}) == 0.5
    # one given of two expected: 2*1 / (1 + 2) = 2/3, and the same with one too many
    assert argument_f1({"a": 1}, {"a": 1, "b": 2}) == pytest.approx(2 / 3)
    assert argument_f1({"a": 1, "b": 2}, {"a": 1}) == pytest.approx(2 / 3)


def test_null_is_a_value_and_not_the_same_as_nothing():
    assert argument_f1({"a": None}, {"a": None}) == 1
    assert argument_f1({"a": None}, {}) == 0  # 2*0 / (1 + 0)
    assert argument_f1({}, {}) == 1


def test_an_array_is_one_leaf_and_an_empty_object_is_one_too():
    assert argument_f1({"a": [1, 2, 3]}, {"a": [1, 2, 4]}) == 0
    assert argument_f1({"a": {}}, {"a": {}}) == 1
    assert argument_f1({"a": {}}, {"a": {"b": 1}}) == 0


def test_repeated_calls_are_matched_for_the_largest_total():
    # Calls x = {a:1,b:1}, y = {a:1,b:2}; reference p = {a:1,b:2}, q = {a:3,b:1}. F1: x-p 0.5, x-q 0.5, y-p 1, y-q 0.
    # In order: x-p, y-q = 0.5. Crossed: x-q, y-p = 1.5, the best. Scores at alpha 0.5: 0.5 + 0.5*0.5 = 0.75, and 1.
    calls = [ToolCall("f", {"a": 1, "b": 1}), ToolCall("f", {"a": 1, "b": 2})]
    reference = [ToolCall("f", {"a": 1, "b": 2}), ToolCall("f", {"a": 3, "b": 1})]
    assert match_calls(calls, reference, alpha=0.5) == ((0, 1, 0.75), (1, 0, 1.0))
    # R_corr = 2 * (0.75 + 1) / 2 = 1.75
    assert correctness_reward(calls, reference) == 1.75


def test_greedy_matching_would_be_worse_than_the_optimum():
    # F1s (rows calls, columns reference): [[1, 2/3], [2/3, 0]]. Greedy takes 1 then 0 = 1; the optimum is 4/3.
    calls = [ToolCall("f", {"a": 1, "b": 2}), ToolCall("f", {"a": 1})]
    reference = [ToolCall("f", {"a": 1, "b": 2}), ToolCall("f", {"b": 2})]
    assert [(i, j) for i, j, _ in match_calls(calls, reference)] == [(0, 1), (1, 0)]


def test_order_of_parallel_calls_does_not_matter():
    assert correctness_reward([CD, LS], [LS, CD]) == 2


@pytest.mark.parametrize(
    ("calls", "reference", "expected"),
    [
        ([], [], 2.0),
        ([CD], [CD], 2.0),
        ([LS], [CD], 0.0),  # another tool
        ([cd("b")], [CD], 1.0),  # name right, F1 0: 2 * (0.5 + 0.5*0) / 1
        ([LS], [LS, CD], 1.0),  # one of two: 2 * 1 / max(1, 2)
        ([LS, CD], [LS], 1.0),  # one too many costs as much
        ([LS, LS], [LS], 1.0),  # so does a repetition
        ([LS, cd("b")], [LS, CD], 1.5),  # 2 * (1 + 0.5) / 2
        ([LS, cd("b"), cd("c")], [LS, CD], 1.0),  # 2 * (1 + 0.5) / 3
        ([], [CD], 0.0),
        ([CD], [], 0.0),
    ],
)
def test_correctness_charges_missing_and_extra_calls_alike(calls, reference, expected):
    assert correctness_reward(calls, reference) == pytest.approx(expected)


def test_alpha_is_the_share_of_the_name():
    # alpha 0.2, F1 0.5: 2 * (0.2 + 0.8 * 0.5) = 1.2
    config = RewardConfig(alpha=0.2)
    calls, reference = [ToolCall("f", {"a": 1, "b": 2})], [ToolCall("f", {"a": 1, "b": 3})]
    assert correctness_reward(calls, reference, config) == pytest.approx(1.2)


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.3, 1 / 3, 0.7, 1.0])
def test_a_right_answer_earns_exactly_two_whatever_alpha(alpha):
    calls = [CD, LS, ToolCall("f", {"a": 1})]
    assert correctness_reward(calls, calls, RewardConfig(alpha=alpha)) == 2


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (32, 1.0),  # lower edge of the band: 128 - 96
        (128, 1.0),
        (224, 1.0),  # upper edge: 128 + 96
        (16, math.exp(-0.5)),  # 16 below the band, one short width: 0.6065
        (0, math.exp(-2.0)),  # 32 below, two: 0.1353
        (352, math.exp(-0.5)),  # 128 above, one long width
        (480, math.exp(-2.0)),  # 256 above, two
        (10**9, 0.0),
    ],
)
def test_length_is_full_within_the_band_and_gaussian_outside(length, expected):
    assert length_reward(length) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("progress", "expected"),
    [
        (0.0, (2.0, 1.0)),
        (0.25, (1.75, 1.125)),
        (0.5, (1.5, 1.25)),
        (1.0, (1.0, 1.5)),
        (-1, (2.0, 1.0)),
        (9, (1.0, 1.5)),
    ],
)
def test_weights_move_linearly_from_form_to_correctness(progress, expected):
    assert reward_weights(progress) == expected


def verdict(turn: Turn, length: float = 100, progress: float = 0.0, config: RewardConfig | None = None):
    return step_verdict(Task("t", "go", reference=(CD,)), turn, length, progress, config)


def test_the_whole_reward_is_a_third_of_its_weighted_parts():
    # start: (2*1 + 1*2 + 1) / 3 = 5/3; end: (1*1 + 1.5*2 + 1) / 3 = 5/3: the largest reward does not move
    right = Turn("", calls=(CD,))
    assert verdict(right).reward == pytest.approx(5 / 3)
    assert verdict(right, progress=1.0).reward == pytest.approx(5 / 3)
    assert not verdict(right).failed
    # half right at half-way, 16 tokens: (1.5*1 + 1.25*1 + 0.6065) / 3 = 1.1188
    half = verdict(Turn("", calls=(cd("b"),)), length=16, progress=0.5)
    assert half.reward == pytest.approx((1.5 + 1.25 + math.exp(-0.5)) / 3)
    assert half.parts == {"format": 1.0, "correctness": 1.0, "length": pytest.approx(math.exp(-0.5))}
    # malformed: nothing, and by the paper's formula (2*0 + 1*0 + 1) / 3 = 1/3
    malformed = Turn("", error="unclosed <tool_call>")
    assert verdict(malformed).reward == 0
    assert verdict(malformed, config=RewardConfig(paper_formula=True)).reward == pytest.approx(1 / 3)


def test_failed_means_bad_form_or_correctness_below_the_threshold():
    half = Turn("", calls=(cd("b"),))  # R_corr 1
    assert verdict(half).failed
    assert not verdict(half, config=RewardConfig(correctness_threshold=1.0)).failed  # 1 is not below 1
    # all calls right but cut off: form 0
    assert verdict(Turn("", calls=(CD,), truncated=True)).failed


def test_malformed_text_is_not_right_even_where_no_call_is_called_for():
    judged = step_verdict(Task("t", "go", reference=()), Turn("", error="unclosed <tool_call>"), 100)
    assert (judged.parts["correctness"], judged.failed) == (0, True)


def test_a_task_without_reference_cannot_be_judged_on_a_turn():
    with pytest.raises(ValueError, match="task 't' has no reference calls"):
        step_verdict(Task("t", "go"), Turn(""), 1)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("paper_formula", 1), ("paper_formula", "yes")),
        *(("alpha", 1.5), ("alpha", True), ("correctness_threshold", 0), ("correctness_threshold", 2.5)),
        *(("length_band", -1), ("length_width_short", 0), ("length_width_long", math.nan), ("format_weight_end", "1")),
    ],
)
def test_a_constant_out_of_range_is_named(field, value):
    with pytest.raises(ValueError, match=f"RewardConfig.{field} must"):
        RewardConfig(**{field: value})


def test_the_reward_function_hands_out_the_verdicts_of_its_last_call():
    reward, row = StepReward(), task_to_json(Task("t", "go", reference=(CD,)))
    text = render_call(CD)
    rewards = reward([text, "no"], [[1, 2], [3]], [row, row])
    verdicts = [reward.verdict_of("t", [1, 2]), reward.verdict_of("t", (3,))]
    assert rewards == [verdict.reward for verdict in verdicts]
    assert [verdict.failed for verdict in verdicts] == [False, True]
    reward([text], [[4]], [row])
    with pytest.raises(KeyError):
        reward.verdict_of("t", [3])


# -- what earns how much ---------------------------------------------------------------------------------------------

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
        ((LS,), 0),  # the right part of it, which is worse than before
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
    assert [reward.verdict_of("t", one).failed for one in ids] == [False, False, True, True, True]
    parts = reward.verdict_of("t", ids[2]).parts
    assert parts == {"format": 0, "correctness": 0, "length": 0}
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
