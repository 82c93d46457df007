"""The reward, part by part, on numbers worked by hand."""

import math
from decimal import Decimal
from fractions import Fraction

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
    usable_reward,
)
from fission_grpo.core.serialization import task_to_json
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
    assert rewards == [verdict.reward for verdict in reward.verdicts]
    assert [verdict.failed for verdict in reward.verdicts] == [False, True]
    reward([text], [[4]], [row])
    assert [verdict.failed for verdict in reward.verdicts] == [False]


@pytest.mark.parametrize(
    ("value", "number"),
    [(1, 1.0), (True, 1.0), (-0.5, -0.5), (Decimal("0.5"), 0.5), (Fraction(1, 4), 0.25), (10**18, 1e18)],
)
def test_numbers_of_all_kinds_are_rewards(value, number):
    assert usable_reward(value) == number


@pytest.mark.parametrize(
    "value",
    [
        *(10**400, -(10**400), 1e19, float("inf"), float("-inf"), float("nan"), Decimal("1e999"), Decimal("sNaN")),
        *("1.0", b"1", "", [1], [], {"a": 1}, 1j, object, range(2)),
    ],
    ids=repr,
)
def test_what_training_cannot_compute_with_is_no_reward(value):
    assert usable_reward(value) is None


def test_scalars_of_numpy_and_torch_are_rewards_and_arrays_are_not():
    numpy, torch = pytest.importorskip("numpy"), pytest.importorskip("torch")
    for one in (numpy.float32(0.5), numpy.float64(0.5), torch.tensor(0.5)):
        assert usable_reward(one) == 0.5
    for none in (numpy.array([1, 2]), torch.tensor([1, 2]), numpy.float32("inf"), torch.tensor(float("inf"))):
        assert usable_reward(none) is None
