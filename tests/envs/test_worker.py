"""Environments in processes of their own: as in this process, but they can be ended."""

import functools
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from isolated_environments import Broken, Shop, Unsendable
from transformers.utils import get_json_schema

from fission_grpo.core.errors import InfrastructureError, ProcessDied, TimeLimitExceeded, UsageError
from fission_grpo.core.types import Task, ToolCall
from fission_grpo.envs.faults import Fault, inject_faults
from fission_grpo.envs.restore import TASK_KEY, make_call, make_restorable, run_awaitable
from fission_grpo.envs.worker import isolated
from fission_grpo.envs.wrapper import ToolLimits, can_snapshot, tool_methods

SECONDS = 0.5


@functools.cache
def shared():
    """One environment for the tests that leave it whole."""
    return make_restorable(isolated(Shop, 5), run_awaitable, lambda _: None, ToolLimits(timeout=5))()


@functools.cache
def limited():
    """One with a short limit, whose process the tests end."""
    return make_restorable(isolated(Shop, SECONDS), run_awaitable, lambda _: ["a"], ToolLimits(timeout=SECONDS))()


def call(environment, name, **arguments):
    return make_call(tool_methods(environment), ToolCall(name, arguments))


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition):
    end = time.monotonic() + 5
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def test_it_has_the_tools_schemas_and_results_of_the_environment():
    environment = shared()
    assert environment.reset(name="corner shop") == "Welcome to corner shop."
    assert list(tool_methods(environment)) == list(tool_methods(Shop()))
    for name, tool in tool_methods(environment).items():
        if name.startswith("add"):
            assert get_json_schema(tool) == get_json_schema(getattr(Shop(), name))
    assert call(environment, "add", item="a").content == "1 kept"
    assert call(environment, "add_later", item="b").content == "2 kept"
    assert int(call(environment, "pid").content) != os.getpid()
    assert environment.get_reward() == 2.0
    assert environment._progress() == 0.5
    assert environment.kept == ["a", "b"]
    assert not hasattr(environment, "no_such_attribute")
    assert type(environment).__name__ == "Shop"


def test_errors_come_back_with_class_and_message():
    environment = shared()
    environment.reset()
    assert call(environment, "fails").error == "'gone'"
    assert "exits tried to end the process (SystemExit: 0)" in call(environment, "exits").error
    assert "no_such_argument" in call(environment, "add", no_such_argument=1).error
    with pytest.raises(Exception, match="gone") as caught:
        isolated(Shop, 5)._request(environment, "fails")
    assert type(caught.value).__name__ == "KeyError"
    assert call(environment, "thing").error is None  # its text, as it cannot be sent
    assert call(environment, "offline").error == "service down"
    assert environment.get_reward() is None


def test_snapshots_are_taken_and_restored():
    environment = shared()
    assert can_snapshot(environment)
    environment.reset()
    call(environment, "add", item="a")
    assert environment._fission_monitor.snapshots == [[], ["a"]]
    environment._restore(["x", "y"])
    assert environment.kept == ["x", "y"]


@pytest.mark.parametrize("name", ["hashes", "holds_the_lock", "blocks"])
def test_code_that_cannot_be_interrupted_is_killed_at_its_limit_as_the_policys_failure(name):
    environment = limited()
    environment.reset()
    pid = call(environment, "pid").content
    call(environment, "add", item="a")
    began = time.monotonic()
    assert call(environment, name).error == f"{name} was stopped after {SECONDS:g} s"
    assert time.monotonic() - began < SECONDS + 2
    assert environment.get_reward() == 0.0
    assert environment._fission_monitor.snapshots[-1] == ["a"]  # the state before the call
    assert wait_until(lambda: not is_alive(pid))
    assert environment.reset() == "Welcome to shop."
    assert call(environment, "add", item="b").content == "1 kept"
    assert environment.get_reward() == 1.0


@pytest.mark.parametrize("name", ["dies", "dies_async", "segfaults"])
def test_a_call_that_ends_its_process_is_the_policys_failure(name, caplog):
    environment = limited()
    environment.reset()
    history = (call(environment, "add", item="a"), call(environment, name))
    assert history[1].error == f"{name} ended the process of Shop"
    assert "with status" in caplog.text
    assert environment.get_reward() == 0.0
    assert environment._fission_monitor.counts["crashes"] >= 1
    assert environment.kept == []  # readable for reward functions, as `reset` leaves it
    environment.reset(**{TASK_KEY: Task("t", prompt="x", history=history)})
    assert environment.kept == ["a"]
    assert environment.get_reward() == 1.0


def test_a_reset_that_ends_its_process_is_not_the_policys_failure():
    environment = limited()
    environment.reset(name="crash")
    assert environment.get_reward() is None
    assert environment._fission_monitor.infrastructure_error == "reset ended the process of Shop"
    environment.reset()
    assert environment.get_reward() == 0.0


def test_programs_that_a_tool_has_started_end_with_its_process(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    environment = make_restorable(isolated(Shop, SECONDS), run_awaitable, limits=ToolLimits(timeout=SECONDS))()
    environment.reset()
    assert "was stopped" in call(environment, "starts").error
    pid = (tmp_path / "program.pid").read_text()
    assert wait_until(lambda: not is_alive(pid))


def test_without_a_guard_a_dead_process_is_an_error_until_the_next_reset():
    environment = isolated(Shop, SECONDS)()
    environment.reset()
    with pytest.raises(ProcessDied):
        environment.dies()
    with pytest.raises(InfrastructureError, match="the process of Shop has ended"):
        environment.add("x")
    with pytest.raises(TimeLimitExceeded):
        environment.reset() and environment.hashes()
    environment.reset()
    assert environment.add("x") == "1 kept"
    pid = environment.pid()
    del environment
    assert wait_until(lambda: not is_alive(pid))


def test_an_environment_that_cannot_be_made_says_why():
    environment = make_restorable(isolated(Broken, SECONDS), run_awaitable)()
    with pytest.raises(Exception, match="no licence"):
        environment.reset()


def test_an_environment_that_cannot_be_sent_names_the_fix():
    class Local(Shop):
        """Within a function."""

    with pytest.raises(ValueError, match="Define it at the top of a module, or leave out isolate_environments"):
        isolated(Local, 1)()


def test_an_attribute_that_cannot_be_sent_is_an_error_that_names_it():
    environment = shared()
    environment.reset()
    with pytest.raises(UsageError, match=r"database cannot be read from another process: .*plain values"):
        _ = environment.database
    assert environment.name == "shop"
    assert call(environment, "thing").error is None  # a policy reads the text of any result


def test_a_snapshot_that_cannot_be_sent_is_none():
    environment = make_restorable(isolated(Unsendable, 5), run_awaitable, lambda _: None, ToolLimits(timeout=5))()
    environment.reset()
    assert environment._fission_monitor.counts["snapshot_failed"] == 1
    assert call(environment, "add", item="a").error is None


def test_faults_are_injected_into_it():
    environment = inject_faults(isolated(Shop, 5), [Fault("server_error", rate=1.0, tools=("add",))])()
    environment.reset(id="1")
    assert call(environment, "add", item="x").error is not None
    assert [fault.tool for fault in environment.injected] == ["add"]


def test_bfcls_classes_which_no_module_holds_are_isolated_too():
    pytest.importorskip("bfcl_eval", reason="pip install --no-deps bfcl-eval==2026.3.23 mpmath==1.3.0 filelock")
    from fission_grpo.envs.bfcl.env import environment_of

    environment = make_restorable(isolated(environment_of("MathAPI+TicketAPI-logout"), 5), run_awaitable)()
    environment.reset(scenario='{"config": {}, "history": [], "reference": []}')
    assert call(environment, "add", a=1, b=2).content == '{"result": 3}'
    assert "logout" not in tool_methods(environment)
    assert len(environment._fission_monitor.snapshots) == 2
    assert environment._reward() == 1.0


@pytest.mark.parametrize("how", ["raise SystemExit(0)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_no_process_outlives_the_one_that_began_it(how, tmp_path):
    program = f"""
        import os, signal, sys, threading, time
        sys.path.insert(0, {str(Path(__file__).parents[1] / "support")!r})
        from isolated_environments import Shop
        from fission_grpo.envs.worker import isolated
        environment = isolated(Shop, 0)()
        environment.reset()
        print(environment.pid(), flush=True)
        threading.Thread(target=environment.holds_the_lock, daemon=True).start()
        time.sleep(0.3)
        {how}
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip().isdigit(), done.stderr
    assert wait_until(lambda: not is_alive(done.stdout.strip()))
