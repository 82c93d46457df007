"""Limits on code of others: time, attempts to end the process, and what stays behind of a limit."""

import asyncio
import contextlib
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
from fission_grpo.core.timing import ToolTimeout, time_limit


def work(seconds):
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def is_clean(handler):
    return signal.getsignal(signal.SIGALRM) is handler and signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


LIMITS = {"plain": time_limit, "contained": lambda seconds: timing.contained("x", seconds)}


@pytest.mark.parametrize("kind", LIMITS)
def test_no_alarm_is_left_behind_by_bodies_that_end_near_their_limit(kind):
    rng, handler, stopped, ended = random.Random(0), signal.getsignal(signal.SIGALRM), 0, 0
    end = time.monotonic() + 1
    while time.monotonic() < end:
        try:
            with LIMITS[kind](0.0015):
                work(0.0015 * rng.uniform(0.96, 1.01))
            ended += 1
        except (ToolTimeout, getattr(errors, "TimeLimitExceeded", ToolTimeout)):
            stopped += 1
        assert is_clean(handler)
    assert stopped > 50
    assert ended > 50


def test_an_inner_limit_does_not_stop_the_clock_of_the_outer_one():
    began = time.monotonic()

    def many_limits():
        with time_limit(0.2):
            for _ in range(1000):
                with time_limit(10):
                    work(0.01)

    with pytest.raises(ToolTimeout):
        many_limits()
    assert 0.15 < time.monotonic() - began < 0.5


def test_the_outer_limit_ends_the_inner_body_and_the_error_names_the_outer_call():
    message = r"^outer was stopped after 0\.1 s$"
    with (
        pytest.raises(errors.TimeLimitExceeded, match=message),
        timing.contained("outer", 0.1),
        timing.contained("inner", 10),
    ):
        time.sleep(5)


def test_the_inner_limit_ends_the_inner_body_only():
    with timing.contained("outer", 5):
        with pytest.raises(errors.TimeLimitExceeded, match="inner"), timing.contained("inner", 0.05):
            time.sleep(5)
        done = True
    assert done


def test_a_body_that_catches_the_first_stop_is_stopped_again():
    def stubborn():
        with contextlib.suppress(BaseException):
            time.sleep(5)
        time.sleep(5)

    with pytest.raises(ToolTimeout), time_limit(0.05):
        stubborn()


def test_handler_and_timer_of_others_are_restored():
    rung = []
    previous = signal.signal(signal.SIGALRM, lambda *_: rung.append(True))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with time_limit(5), time_limit(4):
            pass
        time.sleep(0.5)
    finally:
        signal.signal(signal.SIGALRM, previous)
    assert rung == [True]


class Own(BaseException):
    """No Exception."""


FATAL = [SystemExit(0), SystemExit("bye"), GeneratorExit(), Own("x"), KeyboardInterrupt(), asyncio.CancelledError()]


@pytest.mark.parametrize("error", FATAL, ids=repr)
def test_what_would_end_the_process_becomes_an_exception(error):
    with (
        pytest.raises(errors.ExitAttempt, match=rf"^tool tried to end the process \({type(error).__name__}"),
        timing.contained("tool", 0),
    ):
        raise error


@pytest.mark.parametrize("error", FATAL, ids=repr)
def test_what_would_end_an_event_loop_becomes_an_exception(error):
    async def call():
        raise error

    async def run():
        with pytest.raises(errors.ExitAttempt, match=type(error).__name__):
            await timing.contained_async(call(), "tool", 5)
        return "the loop goes on"

    assert asyncio.run(run()) == "the loop goes on"


def test_ordinary_exceptions_stay_what_they_are():
    error = ValueError("x")
    with pytest.raises(ValueError, match=r"^x$") as caught, timing.contained("tool", 1):
        raise error
    assert caught.value is error


def test_ctrl_c_still_ends_the_program():
    threading.Timer(0.1, signal.pthread_kill, [threading.get_ident(), signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt), timing.contained("tool", 10):
        time.sleep(5)


def test_ctrl_c_with_a_handler_in_python_still_ends_the_program():
    def handler(*_):
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGINT, handler)
    try:
        threading.Timer(0.1, signal.pthread_kill, [threading.get_ident(), signal.SIGINT]).start()
        with pytest.raises(KeyboardInterrupt), timing.contained("tool", 10):
            work(5)
    finally:
        signal.signal(signal.SIGINT, previous)


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
            await timing.contained_async(stubborn(), "stubborn", 0.1)
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
        asyncio.run(timing.contained_async(slow_to_stop(), "tool", 0.05))


def test_code_that_cannot_be_stopped_is_reported_with_advice(caplog, monkeypatch):
    monkeypatch.setattr(timing, "WARN_SECONDS", 0.1)
    monkeypatch.setattr(timing, "REPEAT_SECONDS", 0.1)
    with contextlib.suppress(errors.TimeLimitExceeded), timing.contained("pbkdf2", 0.05, "Take another tool."):
        hashlib.pbkdf2_hmac("sha512", b"x", b"y", 2_500_000)
    assert "pbkdf2 still runs" in caplog.text
    assert "Take another tool." in caplog.text


def test_outside_the_main_thread_a_fatal_exception_is_contained_too():
    caught = []

    def run():
        try:
            with timing.contained("tool", 0):
                raise KeyboardInterrupt
        except errors.ExitAttempt as error:
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert len(caught) == 1


def test_a_limit_in_a_process_of_its_own_leaves_the_exit_status_alone():
    program = """
        import time
        from fission_grpo.core.timing import contained
        for _ in range(3):
            try:
                with contained("x", 0.05):
                    time.sleep(1)
            except Exception as error:
                print(error)
        time.sleep(1.2)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)
    assert done.stdout == "x was stopped after 0.05 s\n" * 3
    assert done.stderr == ""
