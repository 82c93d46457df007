"""Evaluated policies whose calls hang or exit: the case has failed, and the next one is run."""

import json
import os
import tempfile
import time
from pathlib import Path

import pytest
from isolated_environments import Shop
from odd_tools import OddTools

from fission_grpo.cli.main import main
from fission_grpo.core.chat import render_call
from fission_grpo.core.errors import InfrastructureError
from fission_grpo.core.types import ErrorKind, ToolCall
from fission_grpo.envs.wrapper import ToolLimits
from fission_grpo.evaluation.evaluate import evaluate
from fission_grpo.evaluation.metrics import compute_metrics
from fission_grpo.evaluation.records import read_records
from fission_grpo.inference.base import Reply

os.environ.setdefault("BFCL_PROJECT_ROOT", tempfile.mkdtemp())  # else bfcl-eval makes folders beside itself
LIMITS = ToolLimits(timeout=0.1)


class Odd(OddTools):
    def reset(self, id, **_):
        self.id = id

    def get_reward(self):
        if self.id == "reward_exits":
            raise SystemExit(0)
        return 1.0

    def offline(self) -> str:
        """Be offline."""
        raise InfrastructureError("service down")


class Calls:
    """Makes the call that the prompt names, and then says "Done."."""

    def reply(self, requests):
        calls = [render_call(ToolCall(request.messages[0]["content"])) for request in requests]
        return [
            Reply(call if len(request.messages) == 1 else "Done.")
            for call, request in zip(calls, requests, strict=True)
        ]


def test_every_case_of_a_policy_whose_calls_hang_or_exit_gets_its_verdict():
    names = ["hangs", "works", "hangs_async", "exits", "offline", "reward_exits", "again"]
    rows = [{"id": name, "prompt": [{"role": "user", "content": name.replace("again", "works")}]} for name in names]
    began = time.monotonic()
    records = evaluate(Calls(), Odd, rows, tool_timeout=LIMITS.timeout).records
    assert time.monotonic() - began < 5
    assert [record.success for record in records] == [False, True, False, True, None, None, True]
    assert records[0].verdict == "hangs was stopped after 0.1 s"
    assert records[2].calls[0].error == "hangs_async was stopped after 0.1 s"
    assert records[2].calls[0].kind == ErrorKind.RAISED
    assert "tried to end the process (SystemExit: 0)" in records[3].calls[0].error
    assert records[4].missing == "service down"
    assert "Odd.get_reward tried to end the process" in records[5].missing
    assert len(records[0].steps) == 1  # the episode has ended
    metrics = compute_metrics(records)
    assert (metrics.judged, metrics.missing) == (5, 2)


@pytest.mark.parametrize("name", ["hang", "crash"])
def test_a_reset_that_hangs_or_crashes_in_a_process_of_its_own_costs_its_case_only(name):
    calls = [{"role": "user", "content": "pid"}]
    rows = [{"id": 0, "prompt": calls, "name": name}, {"id": 1, "prompt": calls}]
    records = evaluate(Calls(), Shop, rows, tool_timeout=0.5, isolate_environments=True).records
    assert [record.success for record in records] == [None, False]
    assert "Shop" in records[0].missing or "reset" in records[0].missing


class Mute(Exception):
    def __str__(self):
        raise SystemExit(0)


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_an_error_whose_message_ends_the_process_is_an_error_of_the_policy(kind):
    class Raises(Odd):
        def sync(self) -> str:
            """Fail."""
            raise Mute

    async def later(self):
        raise Mute

    setattr(Raises, "async", later)
    row = {"id": "x", "prompt": [{"role": "user", "content": kind}]}
    [record] = evaluate(Calls(), Raises, [row], tool_timeout=LIMITS.timeout).records
    assert (record.success, record.calls[0].error) == (True, "Mute")


def bfcl_case(*replies, **options):
    pytest.importorskip("bfcl_eval", reason="pip install --no-deps bfcl-eval==2026.3.23 mpmath==1.3.0 filelock")
    from fission_grpo.envs.bfcl.official import multi_turn_cases
    from fission_grpo.evaluation.bfcl.run_case import run_case

    case = next(case for case in multi_turn_cases("multi_turn_base") if "MathAPI" in case.classes)
    going = run_case(case, **options)
    next(going)
    try:
        for reply in replies:
            going.send(Reply(reply))
    except StopIteration as end:
        return end.value
    raise AssertionError("the case goes on")


def test_a_bfcl_call_beyond_the_limit_ends_its_case_as_a_failure(monkeypatch):
    pytest.importorskip("bfcl_eval", reason="pip install --no-deps bfcl-eval==2026.3.23 mpmath==1.3.0 filelock")
    from bfcl_eval.eval_checker.multi_turn_eval.func_source_code.math_api import MathAPI

    monkeypatch.setattr(MathAPI, "add", lambda self, a, b: time.sleep(30))
    text = "\n".join(render_call(ToolCall("add", {"a": n, "b": 2})) for n in (1, 2))
    record = bfcl_case(text, tool_timeout=0.1)
    assert (record.success, record.verdict, record.missing) == (False, "tool_timeout", None)
    [call] = record.calls  # the second is not made
    assert (call.error, call.kind) == ("add was stopped after 0.1 s", ErrorKind.RAISED)


HEAVY = {"power": {"base": 9, "exponent": 999_999_999}, "square_root": {"number": 2, "precision": 10**8}}


@pytest.mark.parametrize(("name", "arguments"), HEAVY.items())
@pytest.mark.parametrize("format", ["qwen-fc", "qwen-prompting"])
def test_a_bfcl_call_that_would_take_hours_is_answered_in_the_case(name, arguments, format):
    call = ToolCall(name, arguments)
    written = f"{name}({', '.join(f'{key}={value}' for key, value in arguments.items())})"
    text = render_call(call) if format == "qwen-fc" else f"[{written}]"
    replies = [text, *["Done."] * 10]
    began = time.monotonic()
    record = bfcl_case(*replies, format=format)
    assert time.monotonic() - began < 5
    assert "at most" in record.calls[0].error or "limit" in record.calls[0].error
    assert record.verdict != "tool_timeout"


@pytest.mark.parametrize("expression", ['"%1000000000d" % 5', '"%.999999999f" % 1.5', '"a" * 10**9', "10**10**10"])
def test_arithmetic_in_an_argument_cannot_fill_the_memory(expression):
    pytest.importorskip("bfcl_eval", reason="pip install --no-deps bfcl-eval==2026.3.23 mpmath==1.3.0 filelock")
    from fission_grpo.evaluation.bfcl.decoding import decode_python

    decoded = decode_python(f"[add(a={expression}, b=1)]", ["add"])
    assert decoded.calls == ()
    assert "too large" in decoded.unread


def test_short_formats_in_an_argument_are_still_computed():
    from fission_grpo.evaluation.bfcl.decoding import decode_python

    [call] = decode_python('[echo(content="%d%% of %5s" % 5)]'.replace(" of %5s", ""), ["echo"]).calls
    assert call.arguments == {"content": "5%"}


def test_the_command_isolates_environments_but_not_bfcls_own_cases(tmp_path, capsys):
    words = ["eval", "--model", "starter", "--num_tasks", "1", "--isolate_environments", "--output", str(tmp_path)]
    assert main([*words, "--tasks", "desk"]) == 0
    pytest.importorskip("bfcl_eval", reason="pip install --no-deps bfcl-eval==2026.3.23 mpmath==1.3.0 filelock")
    assert main([*words, "--tasks", "multi_turn_base"]) == 2
    assert "leave out --isolate_environments" in capsys.readouterr().err


def test_the_command_takes_the_limit_and_refuses_what_is_none(tmp_path, capsys):
    words = ["eval", "--model", "starter", "--tasks", "desk", "--num_tasks", "2", "--output", str(tmp_path)]
    assert main([*words, "--tool_timeout", "5"]) == 0
    assert len(read_records(tmp_path / "eval-starter" / "cases.jsonl")) == 2
    for wrong in ("-1", "nan", "inf", "soon"):
        with pytest.raises(SystemExit):
            main([*words, "--tool_timeout", wrong])
        assert "--tool_timeout" in capsys.readouterr().err
    assert json.loads((tmp_path / "eval-starter" / "rates.json").read_text())


def test_a_tool_that_changes_the_working_directory_does_not_move_the_results(tmp_path, monkeypatch):
    from fission_grpo.evaluation.episodes import run_episode
    from fission_grpo.evaluation.run import Manifest, evaluate_run

    class Moves(Odd):
        def works(self) -> str:
            """Work elsewhere."""
            os.chdir(tmp_path / "elsewhere")
            return "done"

    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    rows = {name: {"id": name, "prompt": [{"role": "user", "content": "works"}]} for name in ("a", "b", "c")}
    cases = {name: lambda row=row: run_episode(Moves, row) for name, row in rows.items()}
    evaluate_run(Path("run"), Manifest("test", {}, {}, {}), Calls(), cases, in_flight=1)
    assert len(read_records(tmp_path / "run" / "cases.jsonl")) == 3
    assert list((tmp_path / "elsewhere").iterdir()) == []
