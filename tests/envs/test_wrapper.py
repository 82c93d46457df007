"""What a guarded environment does with tools that misbehave."""

import asyncio
import contextlib
import inspect
import json
import time

import pytest

from fission_grpo.core.errors import InfrastructureError
from fission_grpo.core.types import PARSE_ERROR, Task, ToolCall, ToolResult
from fission_grpo.envs.restore import TASK_KEY, make_call, make_restorable
from fission_grpo.envs.wrapper import ToolLimits, guard_tools, tool_methods


class Odd:
    """Tools that do what tools should not."""

    def __init__(self):
        self.kept = []

    def reset(self, **row): ...

    def get_reward(self):
        return 1.0

    def add(self, item: str) -> str:
        self.kept.append(item)
        return f"{len(self.kept)} kept"

    def raises(self) -> str:
        raise KeyError("gone")

    def hangs(self) -> str:
        while True:
            time.sleep(0.001)

    def hangs_stubbornly(self) -> str:
        for _ in range(3):
            with contextlib.suppress(Exception):
                time.sleep(0.2)
        return "never mind"

    async def sleeps(self) -> str:
        await asyncio.sleep(60)
        return "late"

    async def own_timeout(self) -> str:
        raise TimeoutError("their server is slow")

    def huge(self) -> str:
        return "x" * 10_000_000

    def thing(self) -> object:
        return {1, 2}

    def numbers(self) -> list:
        return [1, 2]

    def picture(self) -> list:
        return [{"type": "text", "text": "a picture"}]

    def takes(self, items: list) -> str:
        items.clear()
        return "taken"

    def offline(self) -> str:
        raise InfrastructureError("connection lost")


class Kept(Odd):
    """With snapshots, and its own measure of progress."""

    def _snapshot(self):
        return list(self.kept)

    def _restore(self, state):
        self.kept = list(state)


def odd(cls=Odd, **limits):
    environment = make_restorable(cls, asyncio.run, limits=ToolLimits(**({"timeout": 0.1} | limits)))()
    environment.reset()
    return environment


def call(environment, name, **arguments):
    return make_call(tool_methods(environment), ToolCall(name, arguments), asyncio.run)


def test_an_exception_of_a_tool_is_an_error_of_the_policy():
    environment = odd()
    assert call(environment, "raises").content == str({"error": str(KeyError("gone"))})
    assert environment._fission_monitor.infrastructure_error is None


@pytest.mark.parametrize("name", ["hangs", "hangs_stubbornly", "sleeps"])
def test_a_tool_that_hangs_is_stopped_and_the_policy_has_failed(name):
    environment = odd()
    began = time.monotonic()
    result = call(environment, name)
    assert time.monotonic() - began < 2
    assert result.error == f"{name} was stopped after 0.1 s"
    assert environment.get_reward() == 0.0
    assert environment._fission_monitor.counts == {"timeouts": 1}
    assert environment._fission_monitor.infrastructure_error is None
    assert call(environment, "add", item="x").error == f"the episode has ended: {result.error}"
    assert environment.kept == []
    environment.reset()
    assert environment.get_reward() == 1.0


def test_a_timeout_error_raised_by_the_tool_is_an_ordinary_error():
    environment = odd()
    assert call(environment, "own_timeout").error == "their server is slow"
    assert environment.get_reward() == 1.0


def test_the_timer_is_off_after_a_call():
    environment = odd(timeout=0.05)
    call(environment, "add", item="x")
    time.sleep(0.1)


def test_long_results_are_cut_with_a_note():
    result = call(odd(max_result_chars=100), "huge")
    assert result.content == "x" * 100 + "... [cut: 10000000 characters]"


def test_results_become_text_except_content_blocks():
    environment = odd()
    assert call(environment, "thing").content == "{1, 2}"
    assert environment._fission_monitor.counts == {"not_json": 1}
    assert environment.numbers() == "[1, 2]"
    assert environment.picture() == "a picture"  # templates of text models would leave out a list


def test_a_tool_cannot_change_what_the_policy_wrote():
    mine = ToolCall("takes", {"items": [1]})
    assert make_call(tool_methods(odd()), mine).content == "taken"
    assert mine.arguments == {"items": [1]}


def test_an_infrastructure_error_is_no_failure_of_the_policy():
    environment = odd()
    assert call(environment, "offline").error == "connection lost"
    assert environment.get_reward() is None
    assert environment._fission_monitor.counts == {"broken": 1}


def test_a_call_that_could_not_be_parsed_is_refused_with_the_reason():
    environment = odd()
    result = call(environment, "add", **{PARSE_ERROR: "unclosed <tool_call>"})
    assert result.error == "unclosed <tool_call>"
    assert environment.kept == []


def test_snapshots_are_taken_at_the_start_and_after_every_call():
    environment = odd(Kept)
    call(environment, "add", item="a")
    call(environment, "raises")
    call(environment, "add", item="b")
    assert environment._fission_monitor.snapshots == [[], ["a"], ["a"], ["a", "b"]]
    environment.reset()
    assert len(environment._fission_monitor.snapshots) == 1
    assert odd()._fission_monitor.snapshots == []


def test_a_snapshot_that_fails_is_counted_once_and_training_goes_on():
    class Broken(Kept):
        def _snapshot(self):
            raise RuntimeError("no")

    environment = odd(Broken)
    assert call(environment, "add", item="a").content == "1 kept"
    assert (environment._fission_monitor.snapshots, environment._fission_monitor.counts) == (
        [],
        {"snapshot_failed": 1},
    )


@pytest.mark.parametrize("state", [["a"], None])
def test_a_recovery_task_begins_where_the_failed_turn_ended(state):
    make = make_restorable(Kept, asyncio.run, lambda task_id: state if task_id == "x" else None)
    environment = make()
    history = (ToolResult(ToolCall("add", {"item": "a"}), "1 kept"),)
    assert environment.reset(**{TASK_KEY: Task("x", "p", history=history, depth=1)}) is None
    assert environment.kept == ["a"]
    assert environment._fission_monitor.counts["restored" if state else "replayed"] == 1
    assert environment._fission_monitor.snapshots == [["a"]]


def test_replay_mismatches_are_counted():
    environment = odd()
    history = (ToolResult(ToolCall("add", {"item": "a"}), "7 kept"),)
    environment.reset(**{TASK_KEY: Task("x", "p", history=history, depth=1)})
    assert environment._fission_monitor.counts["replay_mismatches"] == 1


def test_guarded_tools_have_the_same_schemas():
    import inspect

    from transformers.utils import get_json_schema

    from fission_grpo.envs.desk.env import Desk

    plain, guarded = Desk(), Desk()
    guard_tools(guarded, ToolLimits())
    for name, tool in tool_methods(plain).items():
        other = tool_methods(guarded)[name]
        assert get_json_schema(other) == get_json_schema(tool)
        assert inspect.iscoroutinefunction(other) == inspect.iscoroutinefunction(tool)


def test_guarded_tools_stay_bound_methods_with_their_own_signature():
    odd = make_restorable(Odd, asyncio.run)()
    for name in ("add", "sleeps", "reset", "get_reward"):  # TRL before 1.15 takes no others
        assert inspect.ismethod(getattr(odd, name)), name
    assert str(inspect.signature(odd.add)) == "(item: str) -> str"
    assert inspect.iscoroutinefunction(odd.sleeps)
    assert not inspect.iscoroutinefunction(odd.add)
    assert odd.add("pen") == "1 kept"


def test_a_static_method_is_guarded_too():
    class Static:
        def reset(self, **row): ...

        @staticmethod
        def add(item: str) -> str:
            return f"{item} kept"

    static = Static()
    monitor = guard_tools(static, ToolLimits(max_result_chars=3))
    assert static.add("pen") == "pen... [cut: 8 characters]"
    assert monitor.counts["truncated_results"] == 1


class Quiet(Odd):
    """Fails without a word, and answers with what only looks like an error or an image."""

    def asserts(self) -> str:
        raise AssertionError

    async def asserts_later(self) -> str:
        raise ValueError("  ")

    def unspeakable(self) -> str:
        class Dumb(Exception):
            def __str__(self):
                raise RuntimeError("no")

        raise Dumb

    def says(self, value: object) -> object:
        return value


@pytest.mark.parametrize(
    ("name", "error"), [("asserts", "AssertionError"), ("asserts_later", "ValueError"), ("unspeakable", "Dumb")]
)
def test_an_error_without_a_message_is_named_by_its_class(name, error):
    result = call(odd(Quiet), name)
    assert (result.error, result.content) == (error, str({"error": error}))


@pytest.mark.parametrize("value", ["", 0, [], {}, None, False, " ", 0.0])
def test_a_tool_that_did_not_raise_and_reports_an_empty_error_has_succeeded(value):
    assert call(odd(Quiet), "says", value={"error": value, "rows": 3}).error is None
    assert call(odd(Quiet), "says", value=json.dumps({"error": value})).error is None


def test_a_long_error_that_is_returned_stays_an_error_when_it_is_cut():
    result = call(odd(Quiet, max_result_chars=50), "says", value={"error": "x" * 100, "log": "y" * 100})
    assert result.error == "x" * 50
    assert call(odd(Quiet, max_result_chars=50), "says", value={"log": "y" * 100}).error is None


@pytest.mark.parametrize(
    "value",
    [
        [{"type": "cafe", "name": "Blue"}],
        [{"type": "text", "text": "a"}, {"type": "cafe"}],
        [{"type": "image", "path": "a.png"}],
        [{"type": "text"}],
        [{"type": "text", "text": 3}],
        [{"type": "text", "text": "hello", "author": "Bob"}],
        [{"type": "image", "image": "x.png", "price": 3}],
        [{"name": "a"}],
        ["text"],
        [],
    ],
)
def test_a_list_of_records_is_text_for_the_policy(value):
    assert odd(Quiet).says(value=value) == str(value)


def test_images_and_texts_are_content_blocks():
    blocks = [{"type": "image", "image": "pixels"}, {"type": "text", "text": "a picture"}]
    assert odd(Quiet).says(value=blocks) == blocks
    assert odd(Quiet, takes_images=lambda: False).says(value=blocks) == str(blocks)
    texts = [{"type": "text", "text": "moved"}, {"type": "text", "text": "it"}]
    assert odd(Quiet).says(value=texts) == "moved\nit"
