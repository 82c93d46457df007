"""Bringing back an environment that knows nothing of us."""

import asyncio
from dataclasses import replace

import pytest
from error_words import Orders

from fission_grpo.core.result_errors import error_rule
from fission_grpo.core.types import PARSE_ERROR, Task, ToolCall, ToolResult
from fission_grpo.envs.restore import (
    TASK_KEY,
    judge_corrective_turn,
    make_call,
    make_restorable,
    replay,
    run_awaitable,
    snapshot_after,
    without_task,
)
from fission_grpo.envs.wrapper import ToolLimits, tool_methods


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


class Pile:
    """Changes the columns that it gets, and shares its live state with whoever asks for a snapshot."""

    def reset(self, prompt, items, **_):
        items.append("reset")
        self.items = items
        return f"{prompt[-1]['content']} {len(items)}"

    def put(self, item: str) -> str:
        self.items.append(item)
        return str(self.items)

    def get_reward(self):
        return float(len(self.items))


class SharedPile(Pile):
    def _snapshot(self):
        return {"items": self.items}

    def _restore(self, state):
        self.items = state["items"]


class FailingPile(SharedPile):
    def _restore(self, state):
        raise OSError("gone")


ASKED = [{"role": "user", "content": "Pile"}]


def pile_task(observed="Pile 2", *history):
    prompt = ({"role": "user", "content": "Pile" + observed}, {"role": "assistant", "content": "x"})
    columns = {"prompt": ASKED, "items": ["a"]}
    return Task("x", prompt, columns=columns, history=tuple(past(call) for call in history), depth=1)


def restored(make, task, snapshot=None, **options):
    environment = make_restorable(make, asyncio.run, lambda name: snapshot, **options)()
    assert environment.reset(prompt="new", items=["a"], **{TASK_KEY: task}) is None
    return environment


@pytest.mark.parametrize("make", [Pile, SharedPile, FailingPile])
def test_every_recovery_begins_with_the_columns_and_the_snapshot_as_they_were(make):
    task, snapshot = pile_task("Pile 2", ToolCall("put", {"item": "b"})), {"items": ["a", "reset", "b"]}
    for _ in range(3):
        environment = restored(make, task, snapshot)
        assert environment.items == ["a", "reset", "b"]
        environment.put(item="c")
    assert task.columns["items"] == ["a"]
    assert snapshot == {"items": ["a", "reset", "b"]}


def test_a_snapshot_is_the_state_at_its_time_also_if_it_shares_the_live_state():
    environment = make_restorable(SharedPile, asyncio.run)()
    environment.reset(prompt=ASKED, items=["a"])
    environment.put(item="b")
    environment.put(item="c")
    kept = [len(snapshot["items"]) for snapshot in environment._fission_monitor.snapshots]
    assert kept == [2, 3, 4]
    once = ToolResult(ToolCall("put", {"item": "b"}), "")
    assert snapshot_after(environment, [once])["items"] == ["a", "reset", "b"]


@pytest.mark.parametrize(
    ("observed", "prompt", "same"),
    [
        ("Pile 2", ASKED, True),
        ("Pile 3", ASKED, False),
        ("", ASKED, False),
        ("Pile 2", "text", True),  # nothing is added to text
        ("Pile 2", None, False),
    ],
)
def test_a_replay_needs_the_observation_that_the_failed_episode_began_with(observed, prompt, same, caplog):
    task = pile_task(observed)
    task = replace(task, columns={**task.columns, "prompt": prompt or [{"role": "user", "content": "Other"}]})
    if prompt == "text":
        task = replace(task, prompt="text", columns={**task.columns, "prompt": ASKED})
    environment = restored(Pile, task)
    counts = environment._fission_monitor.counts
    assert (environment.get_reward() is not None) == same
    assert counts["other_tasks"] == counts["broken"] == (not same)


def test_an_observation_of_special_tokens_is_compared_as_the_policy_read_it():
    environment = restored(Pile, pile_task("PILE 2"), sanitize=str.upper)
    assert environment.get_reward() is not None


def test_without_replays_a_task_needs_its_snapshot():
    assert restored(SharedPile, pile_task(), {"items": ["s"]}, replays=False).items == ["s"]
    assert restored(SharedPile, pile_task(), None, replays=False).get_reward() is None
    with pytest.raises(ValueError, match="Pile draws its own tasks"):
        make_restorable(Pile, asyncio.run, replays=False)()


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


class Flaky(Pile):
    """Fails in every other episode."""

    episodes = 0

    def reset(self, prompt, items, **_):
        Flaky.episodes += 1
        return super().reset(prompt, items)

    def put(self, item: str) -> str:
        if Flaky.episodes % 2:
            raise ValueError("locked")
        return super().put(item)


def test_a_replay_in_which_a_call_no_longer_fails_is_another_task():
    Flaky.episodes = 0
    failed = ToolResult(ToolCall("put", {"item": "b"}), "{'error': 'locked'}", "locked")
    task = replace(pile_task("Pile 2"), history=(failed,))
    assert restored(Flaky, task).get_reward() is not None  # it fails again
    other = restored(Flaky, task)
    assert other.get_reward() is None
    assert other._fission_monitor.counts["other_tasks"] == 1


def test_a_reward_that_reads_the_row_sees_it_as_the_data_set_has_it():
    environment = make_restorable(Pile, asyncio.run)()
    row = {"prompt": ASKED, "items": ["a"]}
    environment.reset(**row)
    assert environment.items == ["a", "reset"]
    assert row["items"] == ["a"]


def test_a_rule_makes_a_result_in_words_an_error_in_calls_and_in_their_repetition():
    limits = ToolLimits(error_if=error_rule("^Error"))
    history = (ToolResult(ToolCall("find", {"order": "9"}), "Error: order 9 not found", "Error: order 9 not found"),)
    prompt = [{"role": "user", "content": "Cancel 9."}]
    task = Task("t", tuple(prompt), columns={"prompt": prompt}, history=history, depth=1)
    for guard, other_tasks in ((limits, 0), (ToolLimits(), 1)):  # without the rule the call no longer fails
        environment = make_restorable(Orders, run_awaitable, limits=guard)()
        environment.reset(**{TASK_KEY: task})
        assert environment._fission_monitor.counts["other_tasks"] == other_tasks
    environment = make_restorable(Orders, run_awaitable, limits=limits)()
    environment.reset()
    calls = [{"function": {"name": "find", "arguments": {"order": "9"}}}]
    verdict = judge_corrective_turn(environment, [{"role": "assistant", "content": "", "tool_calls": calls}])
    assert verdict.results[0].error == verdict.results[0].content == "Error: order 9 not found"
    assert not verdict.resolved
