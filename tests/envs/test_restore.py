"""Bringing back an environment that knows nothing of us."""

import asyncio

import pytest

from fission_grpo.core.types import PARSE_ERROR, Task, ToolCall, ToolResult
from fission_grpo.envs.restore import (
    TASK_KEY,
    make_call,
    make_restorable,
    replay,
    snapshot_after,
    without_task,
)
from fission_grpo.envs.wrapper import tool_methods


class Counter:
    """A user's environment."""

    def reset(self, start, **_):
        self.value = start
        return f"starts at {start}"

    def add(self, amount: int) -> int:
        self.value += amount
        if amount > 9:
            raise ValueError("too much, though added")  # a failing call that changed state
        return self.value

    async def double(self) -> int:
        self.value *= 2
        return self.value

    def get_reward(self):
        return float(self.value)

    def _secret(self):
        raise AssertionError("never a tool")


def task(*history):
    columns = {"start": 5, "prompt": "old", "environment": "c"}
    return Task("x", "p", columns=columns, history=tuple(past(call) for call in history), depth=1)


def past(call, content=""):
    return ToolResult(call, content)


def test_public_methods_are_the_tools():
    assert sorted(tool_methods(Counter())) == ["add", "double"]


def test_reset_with_a_recovery_row_replays_the_calls_and_adds_no_observation():
    counter = make_restorable(Counter, asyncio.run)()
    history = (ToolCall("add", {"amount": 1}), ToolCall("add", {"amount": 10}), ToolCall("double"))
    row = {"prompt": "new", "start": 5, TASK_KEY: task(*history)}
    assert counter.reset(**row) is None
    assert counter.value == (5 + 1 + 10) * 2  # the failing call's effect is replayed as well


def test_reset_with_the_users_own_row_is_untouched():
    counter = make_restorable(Counter, asyncio.run)()
    assert counter.reset(start=3) == "starts at 3"
    assert type(counter) is Counter


def test_replay_leaves_out_what_is_no_tool():
    counter = Counter()
    counter.reset(start=0)
    hostile = [ToolCall(name, {}) for name in ("_secret", "reset", "get_reward", "__class__", "nowhere")]
    replay(counter, [past(call) for call in (*hostile, ToolCall("add", {"amount": 2}))], asyncio.run)
    assert counter.value == 2


def test_replay_counts_answers_that_are_not_what_they_were():
    counter = Counter()
    counter.reset(start=0)
    add = ToolCall("add", {"amount": 2})
    first = str(counter.add(amount=2))
    assert replay(counter, [past(add, "something else"), past(add, first)], asyncio.run) == 2
    counter.reset(start=0)
    assert replay(counter, [past(add, first)], asyncio.run) == 0


def test_tools_cannot_change_the_recorded_arguments():
    class Taker:
        def reset(self): ...

        def take(self, items: list) -> int:
            items.clear()
            return 0

    call = ToolCall("take", {"items": [1, 2]})
    replay(make_restorable(Taker, asyncio.run)(), [past(call)], asyncio.run)
    assert call.arguments == {"items": [1, 2]}


def test_environment_whose_reset_cannot_be_replaced_is_named():
    class Slotted:
        __slots__ = ()

        def reset(self): ...

    with pytest.raises(TypeError, match="Slotted does not let `_fission_monitor` be replaced"):
        make_restorable(Slotted, asyncio.run)()


def test_reward_functions_see_the_users_columns_only():
    assert without_task({"prompt": "p", TASK_KEY: task()}) == {"prompt": "p"}


def test_the_snapshot_after_some_calls_is_of_the_state_that_they_left():
    class Saved(Counter):
        def _snapshot(self):
            return self.value

        def _restore(self, state):
            self.value = state

    counter = make_restorable(Saved, asyncio.run)()
    counter.reset(start=5)
    tools, results, values = tool_methods(counter), [], [5]
    for amount in (1, 20, 3):  # the second one fails, though it adds
        results.append(make_call(tools, ToolCall("add", {"amount": amount})))
        values.append(counter.value)
    assert values == [5, 6, 26, 29]
    assert [snapshot_after(counter, results[:n]) for n in range(4)] == values
    # an unreadable call and an unknown tool change nothing, and have no snapshot of their own
    unreadable = past(ToolCall("add", {PARSE_ERROR: "unclosed"}))
    assert snapshot_after(counter, [results[0], unreadable, past(ToolCall("fly"))]) == 6
    assert snapshot_after(counter, [*results, past(ToolCall("add", {"amount": 1}))]) is None  # never made
