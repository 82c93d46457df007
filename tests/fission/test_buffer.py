"""FissionBuffer: order, deduplication, capacity, age, state."""

import json
from collections import Counter

import pytest
from buffer_support import instance
from hypothesis import given
from hypothesis import strategies as st

from fission_grpo.core.types import (
    ErrorKind,
    Task,
    ToolCall,
    ToolResult,
)
from fission_grpo.fission.buffer import FissionBuffer
from fission_grpo.fission.recovery import CorrectiveInstance


def ids(items):
    return [item.task.id for item in items]


def test_newest_failure_is_retried_first():
    buffer = FissionBuffer(capacity=4)
    for name in "abc":
        buffer.push(instance(name))
    assert ids(buffer.sample(2)) == ["c", "b"]
    assert ids(buffer) == ["a"]


def test_random_order_is_fixed_by_its_seed():
    def popped(seed):
        buffer = FissionBuffer(capacity=50, order="random", seed=seed)
        for i in range(50):
            buffer.push(instance(f"i{i}"))
        return ids(buffer.sample(10))

    assert popped(1) == popped(1) != popped(2)


def test_full_buffer_drops_its_oldest():
    buffer = FissionBuffer(capacity=2)
    assert buffer.push(instance("a")) is None
    buffer.push(instance("b"))
    assert buffer.push(instance("c")).task.id == "a"
    assert ids(buffer) == ["b", "c"]


def test_same_failure_cannot_be_held_twice_but_may_come_again_later():
    buffer = FissionBuffer(capacity=2)
    buffer.push(instance("a"))
    assert "a" in buffer
    with pytest.raises(ValueError, match="in the buffer already"):
        buffer.push(instance("a"))
    buffer.sample(1)
    assert "a" not in buffer
    buffer.push(instance("a"))


def test_instances_past_the_age_limit_are_dropped():
    buffer = FissionBuffer(capacity=9, max_age=3)
    for name, step in (("a", 0), ("b", 1), ("c", 4)):
        buffer.push(instance(name, step))
    assert ids(buffer.expire(step=4)) == ["a"]  # a is 4 old, b is 3, which is still allowed
    assert ids(buffer.expire(step=5)) == ["b"]
    assert ids(FissionBuffer(capacity=1).expire(step=10**6)) == []


def test_popping_more_than_there_is_raises_and_takes_nothing():
    buffer = FissionBuffer(capacity=3)
    buffer.push(instance("a"))
    with pytest.raises(ValueError, match="asked for 2 instances, the buffer holds 1"):
        buffer.sample(2)
    assert len(buffer) == 1


@pytest.mark.parametrize("order", ["lifo", "random"])
def test_state_survives_json_and_goes_on_the_same(order):
    buffer = FissionBuffer(capacity=9, order=order, seed=3)
    for i in range(6):
        buffer.push(instance(f"i{i}", step=i, leaked=i == 2, fallback="no diagnosis", zero_std=True))
    buffer.sample(1)
    again = FissionBuffer(capacity=9, order=order, seed=99)
    again.load_state(json.loads(json.dumps(buffer.state())))
    assert list(again) == list(buffer)
    assert ids(again.sample(3)) == ids(buffer.sample(3))


def test_state_of_another_order_keeps_the_instances():
    buffer = FissionBuffer(capacity=9, order="lifo")
    buffer.push(instance("a"))
    again = FissionBuffer(capacity=9, order="random")
    again.load_state(json.loads(json.dumps(buffer.state())))
    assert ids(again.sample(1)) == ["a"]


ACTIONS = st.one_of(st.tuples(st.just("push"), st.just(1)), st.tuples(st.just("pop"), st.integers(1, 3)))


@given(st.lists(ACTIONS, max_size=30), st.sampled_from(["lifo", "random"]))
def test_every_order_takes_what_a_search_of_the_whole_buffer_would(actions, order):
    buffer, held = FissionBuffer(capacity=5, order=order), []
    for i, (action, count) in enumerate(actions):
        if action == "push":
            item = instance(f"i{i}")
            assert buffer.push(item) == (held[0] if len(held) == 5 else None)
            held = [*held, item][-5:]
        elif count <= len(held):
            popped = buffer.sample(count)
            assert popped == (held[::-1][:count] if order == "lifo" else popped)
            assert len({item.task.id for item in popped}) == count
            held = [item for item in held if item not in popped]
        assert list(buffer) == held


def test_random_order_takes_each_with_equal_chance():
    first = Counter()
    for seed in range(600):
        buffer = FissionBuffer(capacity=9, order="random", seed=seed)
        for name in "xabc":
            buffer.push(instance(name))
        buffer.sample(1)
        first[buffer.sample(1)[0].task.id] += 1
    assert set(first) == set("xabc")
    assert all(110 < count < 190 for count in first.values())  # 150 each, standard deviation 10.6


def test_instance_keeps_reference_and_history_through_json():
    task = Task(
        "t",
        "say",
        reference=(ToolCall("f", {"x": [1, {"y": None}]}),),
        history=(ToolResult(ToolCall("g", {}), "ok"),),
        depth=2,
    )
    item = instance("x", kind=ErrorKind.WRONG_CALL)
    item = CorrectiveInstance(**{**{n: getattr(item, n) for n in item.__dataclass_fields__}, "task": task})
    assert CorrectiveInstance.from_json(json.loads(json.dumps(item.to_json()))) == item


@pytest.mark.parametrize(
    ("arguments", "message"), [({"capacity": 0}, "at least 1"), ({"order": "newest"}, "'newest'")]
)
def test_bad_settings_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        FissionBuffer(**({"capacity": 1} | arguments))
