"""Environments that hang or try to end the process: whose fault it is, and what goes on."""

import asyncio
import contextlib
import sqlite3
import time

import pytest

from fission_grpo.core import timing
from fission_grpo.core.types import Task, ToolCall, ToolResult
from fission_grpo.envs.restore import (
    TASK_KEY,
    judge_corrective_turn,
    make_call,
    make_restorable,
    run_awaitable,
    snapshot_after,
)
from fission_grpo.envs.wrapper import ToolLimits, tool_methods


class Own(BaseException):
    """No Exception."""


FATAL = [SystemExit(0), SystemExit("bye"), GeneratorExit(), Own("x")]
ADD = {"tool_calls": [{"function": {"name": "add", "arguments": {"item": "x"}}}]}


class Fatal:
    """Raises an error in one of its methods; where there is none, it hangs there."""

    place, error = "", None

    def __init__(self):
        self.kept, self.made = [], []

    def _at(self, place):
        if place != self.place:
            return
        self.made.append(place)
        if self.error is not None:
            raise self.error
        end = time.monotonic() + 10
        while time.monotonic() < end:
            time.sleep(0.001)

    def reset(self, **row):
        self._at("reset")

    def get_reward(self):
        self._at("get_reward")
        return 1.0

    def _progress(self):
        self._at("_progress")
        return 0.5

    def add(self, item: str) -> str:
        self.kept.append(item)
        return f"{len(self.kept)} kept"

    def tool(self) -> str:
        self._at("tool")
        return "done"

    async def tool_async(self) -> str:
        await asyncio.sleep(0)
        self._at("tool_async")
        return "done"

    async def swallows(self) -> str:
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(60)


class Kept(Fatal):
    def _snapshot(self):
        self._at("_snapshot")
        return list(self.kept)

    def _restore(self, state):
        self._at("_restore")
        self.kept = list(state)


def begun(cls, place="", error=None, snapshot=None):
    limits = ToolLimits(timeout=0.1)
    environment = make_restorable(cls, run_awaitable, lambda _: snapshot, limits)()
    environment.reset()
    environment.place, environment.error = place, error
    return environment


def call(environment, name, **arguments):
    return make_call(tool_methods(environment), ToolCall(name, arguments))


@pytest.mark.parametrize("error", FATAL, ids=repr)
@pytest.mark.parametrize("name", ["tool", "tool_async"])
def test_a_tool_that_ends_the_process_is_an_error_of_the_policy(name, error):
    environment = begun(Fatal, name, error)
    assert f"{name} tried to end the process ({type(error).__name__}" in call(environment, name).error
    assert call(environment, "add", item="x").content == "1 kept"
    assert environment.get_reward() == 1.0


@pytest.mark.parametrize("error", FATAL, ids=repr)
@pytest.mark.parametrize("place", ["reset", "get_reward", "_progress"])
def test_an_environment_that_ends_the_process_is_not_judged(place, error, caplog):
    environment = begun(Fatal, place, error)
    environment.reset()
    judge_corrective_turn(environment, [ADD])
    assert environment.get_reward() is None
    assert f"Fatal.{place} tried to end the process" in environment._fission_monitor.infrastructure_error
    assert environment._fission_monitor.counts["broken"] >= 1
    assert f"Fatal.{place} tried to end the process" in caplog.text
    environment.place = ""
    environment.reset()
    assert environment.get_reward() == 1.0


@pytest.mark.parametrize("error", [*FATAL, None], ids=repr)
@pytest.mark.parametrize(("place", "count"), [("_snapshot", "snapshot_failed"), ("_restore", "restore_failed")])
def test_a_snapshot_that_hangs_or_ends_the_process_is_replaced_by_replay(place, count, error):
    history = (ToolResult(ToolCall("add", {"item": "a"}), "1 kept"),)
    environment = begun(Kept, place, error, snapshot=["other"])
    environment.reset(**{TASK_KEY: Task("t", prompt="x", history=history)})
    assert environment._fission_monitor.counts[count] == 1
    assert environment.kept == (["other"] if place == "_snapshot" else ["a"])
    assert environment.get_reward() == 1.0


@pytest.mark.parametrize("place", ["reset", "get_reward", "_progress"])
def test_the_other_methods_have_the_time_limit_and_no_verdict_after_it(place, caplog):
    environment, began = begun(Fatal, place), time.monotonic()
    environment.reset()
    judge_corrective_turn(environment, [ADD])
    assert environment.get_reward() is None
    assert time.monotonic() - began < 2
    assert environment._fission_monitor.infrastructure_error == f"Fatal.{place} was stopped after 0.1 s"
    assert environment._fission_monitor.counts["timeouts"] == 1
    assert f"Fatal.{place} was stopped after 0.1 s" in caplog.text


@pytest.mark.parametrize(("seconds", "error"), [(60, None), (0, SystemExit(0))], ids=repr)
def test_an_async_reward_that_hangs_or_ends_the_process_is_no_reward(seconds, error):
    class Judge(Fatal):
        async def get_reward(self):
            await asyncio.sleep(seconds)
            if error is not None:
                raise error
            return 1.0

    assert run_awaitable(begun(Judge).get_reward()) is None
    assert run_awaitable(begun(Fatal).tool_async()) == "done"  # the event loop goes on


def test_async_tools_run_in_the_thread_that_made_their_environment():
    class Database(Fatal):
        def __init__(self):
            super().__init__()
            self.connection = sqlite3.connect(":memory:")

        async def count(self) -> str:
            return str(self.connection.execute("select 1 + 1").fetchone()[0])

    assert call(begun(Database), "count").content == "2"

    async def notebook():
        return call(begun(Fatal), "tool_async").content

    assert asyncio.run(notebook()) == "done"


def test_an_async_tool_that_swallows_its_cancellation_holds_up_nothing(monkeypatch):
    monkeypatch.setattr(timing, "REPEAT_SECONDS", 0.05)
    environment, began = begun(Fatal), time.monotonic()
    for _ in range(2):
        assert call(environment, "swallows").error == "swallows was stopped after 0.1 s"
        assert environment.get_reward() == 0.0
        environment.reset()
    assert call(environment, "tool_async").content == "done"
    assert time.monotonic() - began < 3


@pytest.mark.parametrize("cls", [Fatal, Kept], ids=["replay", "snapshot"])
def test_a_recovery_from_a_stopped_call_begins_before_it_and_never_makes_it_again(cls):
    environment = begun(cls, "tool")
    calls = [("add", {"item": "a"}), ("tool", {}), ("add", {"item": "b"}), ("tool", {})]
    history = tuple(call(environment, name, **arguments) for name, arguments in calls)
    assert history[1].error == "tool was stopped after 0.1 s"
    assert history[2].error == history[3].error == "the episode has ended: tool was stopped after 0.1 s"
    snapshot = snapshot_after(environment, history)
    assert snapshot == (["a"] if cls is Kept else None)
    again = make_restorable(cls, run_awaitable, lambda _: snapshot, ToolLimits(timeout=0.1))()
    again.place = "tool"
    again.reset(**{TASK_KEY: Task("t", prompt="x", history=history)})
    assert (again.kept, again.made) == (["a"], [])
    assert again.get_reward() == 1.0


def test_a_repeated_call_that_hangs_is_not_the_fault_of_the_policy_that_goes_on():
    past = ToolResult(ToolCall("tool"), "{'error': 'busy'}", "busy")
    environment = begun(Fatal, "tool")
    environment.reset(**{TASK_KEY: Task("t", prompt="x", history=(past,))})
    assert environment.get_reward() is None


def test_a_turn_with_a_stopped_call_has_not_resolved_the_failure():
    environment = begun(Fatal, "tool")
    verdict = judge_corrective_turn(environment, [{"tool_calls": [{"function": {"name": "tool", "arguments": {}}}]}])
    assert not verdict.resolved
    assert verdict.results[0].error == "tool was stopped after 0.1 s"


def test_an_environment_that_exits_while_it_is_made_does_not_look_like_success():
    class Exits(Fatal):
        def __init__(self):
            raise SystemExit(0)

    with pytest.raises(Exception, match=r"making Exits tried to end the process \(SystemExit: 0\)"):
        make_restorable(Exits, run_awaitable)()
