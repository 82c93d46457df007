"""Limits on code of others: time, attempts to end the process, and what stays behind of a limit."""

import asyncio
import contextlib
import functools
import hashlib
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from fission_grpo.core import errors, timing
from fission_grpo.core.timing import contained, contained_async


def work(seconds):
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def is_clean(handler):
    return signal.getsignal(signal.SIGALRM) is handler and signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


@pytest.mark.parametrize("outer", [0, 5, 0.0016])
def test_no_alarm_is_left_behind_by_calls_that_end_near_their_limit(outer):
    rng, handler, stopped, ended = random.Random(0), signal.getsignal(signal.SIGALRM), 0, 0
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        seconds = 0.0015 * rng.uniform(0.9, 1.01)
        try:
            contained(lambda: contained(lambda: work(seconds), "x", 0.0015), "outer", outer)  # noqa: B023
            ended += 1
        except errors.TimeLimitExceeded:
            stopped += 1
        assert is_clean(handler)
        assert timing._ends == []
    assert stopped > 20
    assert ended > 20


def test_an_inner_limit_does_not_stop_the_clock_of_the_outer_one():
    began = time.monotonic()

    def many_limits():
        for _ in range(1000):
            contained(lambda: work(0.01), "inner", 10)

    with pytest.raises(errors.TimeLimitExceeded, match=r"^outer was stopped after 0\.2 s$"):
        contained(many_limits, "outer", 0.2)
    assert 0.15 < time.monotonic() - began < 0.5


def test_the_inner_limit_ends_the_inner_call_only():
    def outer():
        with pytest.raises(errors.TimeLimitExceeded, match="inner"):
            contained(lambda: time.sleep(5), "inner", 0.05)
        return "done"

    assert contained(outer, "outer", 5) == "done"


def test_a_call_that_catches_the_first_stop_is_stopped_again():
    def stubborn():
        with contextlib.suppress(BaseException):
            time.sleep(5)
        time.sleep(5)

    with pytest.raises(errors.TimeLimitExceeded):
        contained(stubborn, "stubborn", 0.05)


def test_handler_and_timer_of_others_are_restored():
    rung = []
    previous = signal.signal(signal.SIGALRM, lambda *_: rung.append(True))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        assert contained(lambda: contained(lambda: "done", "x", 4), "x", 5) == "done"
        time.sleep(0.5)
    finally:
        signal.signal(signal.SIGALRM, previous)
    assert rung == [True]


class Own(BaseException):
    """No Exception."""


FATAL = [SystemExit(0), SystemExit("bye"), GeneratorExit(), Own("x"), asyncio.CancelledError()]


def raising(error):
    def call():
        raise error

    return call


@pytest.mark.parametrize("error", FATAL, ids=repr)
def test_what_would_end_the_process_becomes_an_exception(error):
    with pytest.raises(errors.ExitAttempt, match=rf"^tool tried to end the process \({type(error).__name__}"):
        contained(raising(error), "tool")


class Mute(SystemExit):
    """Its message cannot be had."""

    def __str__(self):
        raise SystemExit(0)


class MuteError(ValueError):
    __str__ = Mute.__str__


def test_an_error_whose_message_cannot_be_had_is_named_by_its_class():
    assert errors.error_message(MuteError()) == "MuteError"
    with pytest.raises(errors.ExitAttempt, match=r"^tool tried to end the process \(Mute\)$"):
        contained(raising(Mute()), "tool")


@pytest.mark.parametrize("error", FATAL, ids=repr)
def test_what_would_end_an_event_loop_becomes_an_exception(error):
    async def call():
        raise error

    async def run():
        with pytest.raises(errors.ExitAttempt, match=type(error).__name__):
            await contained_async(call(), "tool", 5)
        return "the loop goes on"

    assert asyncio.run(run()) == "the loop goes on"


def test_ordinary_exceptions_stay_what_they_are():
    error = ValueError("x")
    with pytest.raises(ValueError, match=r"^x$") as caught:
        contained(raising(error), "tool", 1)
    assert caught.value is error


def test_ctrl_c_still_ends_the_program():
    threading.Timer(0.1, signal.pthread_kill, [threading.get_ident(), signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt):
        contained(lambda: time.sleep(5), "tool", 10)


def test_a_keyboard_interrupt_of_a_tool_ends_the_program_as_ctrl_c_does():
    with pytest.raises(KeyboardInterrupt):
        contained(raising(KeyboardInterrupt()), "tool", 10)

    async def interrupting():
        raise KeyboardInterrupt

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)  # as TRL runs async tools
    thread.start()

    def wait():
        asyncio.run_coroutine_threadsafe(contained_async(interrupting(), "tool", 5), loop)
        time.sleep(5)

    with pytest.raises(KeyboardInterrupt):
        wait()
    assert asyncio.run_coroutine_threadsafe(asyncio.sleep(0, "goes on"), loop).result(5) == "goes on"
    loop.call_soon_threadsafe(loop.stop)


@pytest.mark.parametrize("how", ["return None", "sys.exit(0)", "os.kill(os.getpid(), signal.SIGALRM)"])
@pytest.mark.parametrize("is_async", [False, True])
def test_a_process_that_a_tool_forks_ends_with_the_call(how, is_async):
    program = f"""
        import asyncio, os, signal, sys
        from fission_grpo.core.timing import contained, contained_async
        def tool():
            child = os.fork()
            if not child:
                {how}
            else:
                os.waitpid(child, 0)
        async def tool_async():
            tool()
        if {is_async}:
            asyncio.run(contained_async(tool_async(), "tool", 5))
        else:
            contained(tool, "tool", 5)
        print("goes on", flush=True)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=20)
    assert (done.stdout, done.returncode) == ("goes on\n", 0)


def test_async_code_that_swallows_the_cancellation_is_left_behind(caplog, monkeypatch):
    monkeypatch.setattr(timing, "REPEAT_SECONDS", 0.05)
    ended = []

    async def stubborn():
        for _ in range(100):
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(60)
        ended.append(True)

    async def run():
        began = time.monotonic()
        with pytest.raises(errors.TimeLimitExceeded, match=r"stubborn was stopped after 0\.1 s"):
            await contained_async(stubborn(), "stubborn", 0.1)
        return time.monotonic() - began

    loop = asyncio.new_event_loop()
    assert loop.run_until_complete(run()) < 1
    assert "is left behind" in caplog.text
    assert ended == []


def test_async_code_that_needs_a_second_cancellation_gets_it(monkeypatch):
    monkeypatch.setattr(timing, "REPEAT_SECONDS", 0.05)

    async def slow_to_stop():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        await asyncio.sleep(60)

    with pytest.raises(errors.TimeLimitExceeded):
        asyncio.run(contained_async(slow_to_stop(), "tool", 0.05))


def test_code_that_cannot_be_stopped_is_reported_with_advice(caplog, monkeypatch):
    monkeypatch.setattr(timing, "WARN_SECONDS", 0.1)
    monkeypatch.setattr(timing, "REPEAT_SECONDS", 0.1)
    with contextlib.suppress(errors.TimeLimitExceeded):
        call = functools.partial(
            hashlib.pbkdf2_hmac, "sha512", b"x", b"y", 6_000_000
        )  # longer than the reporter sleeps
        contained(call, "pbkdf2", 0.05, "Take another tool.")
    assert "pbkdf2 still runs" in caplog.text
    assert "Take another tool." in caplog.text


def test_a_limit_in_a_process_of_its_own_leaves_the_exit_status_alone():
    program = """
        import time
        from fission_grpo.core.timing import contained
        for _ in range(3):
            try:
                contained(lambda: time.sleep(1), "x", 0.05)
            except Exception as error:
                print(error)
        time.sleep(1.2)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)
    assert done.stdout == "x was stopped after 0.05 s\n" * 3
    assert done.stderr == ""
