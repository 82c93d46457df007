"""Running BFCL cases: the official loop, modes, verdicts. Worked by hand on `multi_turn_base_100`.

Its two turns want `get_stock_info(symbol='NVDA')` and `fund_account(amount=2203.4)`.
"""

import json
import os
import tempfile

import pytest

pytest.importorskip("bfcl_eval", reason="pip install --no-deps bfcl-eval==2026.3.23 mpmath==1.3.0 filelock")
os.environ.setdefault("BFCL_PROJECT_ROOT", tempfile.mkdtemp())  # else bfcl-eval makes folders beside itself

from bfcl_support import BROKEN, CASE, FUND, INFO, call, play, scripted_calls, verdicts

from fission_grpo.core.types import ErrorKind
from fission_grpo.envs.bfcl.judge import write_call
from fission_grpo.envs.bfcl.official import MULTI_TURN, multi_turn_cases
from fission_grpo.envs.bfcl.state import new_state
from fission_grpo.evaluation.bfcl.formats import FORMATS
from fission_grpo.evaluation.bfcl.run_case import execute, executor_variables, run_case
from fission_grpo.evaluation.records import to_line
from fission_grpo.evaluation.runner import run_cases
from fission_grpo.inference.base import Reply


@pytest.mark.parametrize("format", FORMATS)
def test_the_ground_truth_of_every_fortieth_case_succeeds(format):
    def write(turn):
        return f"[{', '.join(map(write_call, turn))}]" if format == "qwen-prompting" else scripted_calls(turn)

    cases = [case for category in MULTI_TURN for case in multi_turn_cases(category)[::40]]
    records = []
    for case in cases:
        replies = [text for turn in case.reference for text in ([write(turn)] if turn else []) + ["Done."]]
        records.append(play(replies, case, format)[0])
    assert [verdicts(r) for r in records] == [(True, None, [True] * len(c.reference)) for c in cases]


def test_cases_run_side_by_side():
    class Policy:
        def reply(self, requests):
            turns = [sum(m["role"] == "user" for m in request.messages) - 1 for request in requests]
            done = [request.messages[-1]["role"] == "tool" for request in requests]
            return [Reply("Done." if d else (INFO, FUND)[t]) for t, d in zip(turns, done, strict=True)]

    records = []
    run_cases(Policy(), (lambda: run_case(CASE) for _ in range(3)), in_flight=2, done=records.append)
    assert [record.success for record in records] == [True] * 3


def test_a_record_holds_every_step_call_and_result():
    record, _ = play([Reply(INFO, tokens=9), "Done.", FUND, "Done."])
    first, second = record.turns
    assert [step.text for step in first.steps] == [INFO, "Done."]
    assert (first.steps[0].tokens, record.missing) == (9, None)
    [made] = first.steps[0].calls
    assert (made.name, made.arguments, made.error, made.kind) == ("get_stock_info", {"symbol": "NVDA"}, None, None)
    assert json.loads(made.result)["price"] == 220.34
    before = CASE.config["TradingBot"]["account_info"]["balance"]
    assert json.loads(second.steps[0].calls[0].result)["new_balance"] == pytest.approx(before + 2203.4)
    assert json.loads(to_line(record))["id"] == CASE.id


def test_every_turn_after_a_wrong_one_is_invalid():
    record, _ = play(["Done.", FUND, "Done."])
    assert verdicts(record) == (False, "multi_turn:empty_turn_model_response", [False, False])
    record, _ = play([INFO, "Done.", call("fund_account", amount=1.0), "Done."])
    assert verdicts(record) == (False, "multi_turn:instance_state_mismatch", [True, False])
    record, _ = play([call("get_account_info"), "Done.", FUND, "Done."])
    assert verdicts(record) == (False, "multi_turn:execution_response_mismatch", [False, False])


@pytest.mark.parametrize(
    ("name", "arguments", "kind", "error"),
    [
        ("buy_stock", {"symbol": "NVDA"}, ErrorKind.UNKNOWN_TOOL, "name 'buy_stock' is not defined"),
        ("kill", {}, ErrorKind.UNKNOWN_TOOL, "Function call kill is not allowed."),
        (
            "get_stock_info",
            {"name": "NVDA"},
            ErrorKind.BAD_ARGUMENTS,
            "TradingBot.get_stock_info() got an unexpected keyword argument 'name'",
        ),
        ("get_stock_info", {"symbol": "XXX"}, ErrorKind.RAISED, "Stock with symbol 'XXX' not found."),
    ],
)
def test_errors_of_calls_have_their_kind_and_the_official_text(name, arguments, kind, error):
    record, request = play([call(name, **arguments), INFO, "Done.", FUND, "Done."])
    made = record.calls[0]
    assert (made.kind, made.error) == (kind, error)
    assert made.result in (f"Error during execution: {error}", json.dumps({"error": error}))
    assert f"<tool_response>\n{made.result}\n</tool_response>" in request.prompt
    assert record.success


def test_strictly_an_unreadable_call_ends_the_turn():
    record, _ = play([BROKEN, FUND, "Done."])
    assert verdicts(record) == (False, "multi_turn:empty_turn_model_response", [False, False])
    assert [len(turn.steps) for turn in record.turns] == [1, 2]
    assert record.steps[0].unread.startswith("tool call is not valid JSON: ")


@pytest.mark.parametrize("format", FORMATS)
def test_with_feedback_the_policy_can_correct_an_unreadable_call(format):
    info, fund, broken = (INFO, FUND, BROKEN)
    if format == "qwen-prompting":
        info, fund = (f"[{write_call(turn[0])}]" for turn in CASE.reference)
        broken = info[:-2]
    record, request = play([broken, info, "Done.", fund, "Done."], format=format, mode="feedback")
    assert verdicts(record) == (True, None, [True, True])
    assert (record.steps[0].unread is not None, record.steps[0].errors) == (True, 1)
    answer = json.dumps({"error": record.steps[0].unread})
    assert answer in [message["content"] for message in request.messages]


def test_unreadable_calls_count_in_the_limit_of_steps():
    record, _ = play([BROKEN] * 21, mode="feedback")
    assert verdicts(record) == (False, "multi_turn:force_terminated", [False])
    assert len(record.steps) == 21


def test_twenty_steps_with_calls_and_an_answer_are_allowed():
    record, _ = play([INFO] * 20 + ["Done.", FUND, "Done."])
    assert verdicts(record) == (True, None, [True, True])


def test_the_21st_step_with_a_call_ends_the_case():
    record, _ = play([INFO] * 21)
    assert verdicts(record) == (False, "multi_turn:force_terminated", [True])
    assert len(record.steps) == 21


def test_in_the_last_turn_a_forced_end_is_judged_as_any_other():
    record, _ = play([INFO, "Done.", FUND, *[INFO] * 20])
    assert verdicts(record) == (True, None, [True, True])


def test_a_call_that_the_official_handler_cannot_render_again_ends_the_case_at_the_next_prompt():
    unrenderable = '<tool_call>\n{"name": "get_stock_info"}\n</tool_call>'
    record, _ = play([unrenderable])
    assert verdicts(record) == (False, "multi_turn:inference_error", [False, False])
    record, _ = play([INFO, "Done.", FUND, unrenderable])  # no prompt follows
    assert verdicts(record) == (True, None, [True, True])


def test_a_lost_reply_makes_the_case_missing_not_wrong():
    record, _ = play([INFO, "Done.", Reply("", lost="endpoint down")])
    assert (record.success, record.verdict, record.missing) == (None, None, "endpoint down")
    assert [turn.valid for turn in record.turns] == [True, None]


def test_an_unknown_mode_or_format_is_refused():
    with pytest.raises(ValueError, match="no mode 'lenient'; there are strict, feedback"):
        next(run_case(CASE, mode="lenient"))
    with pytest.raises(ValueError, match="no BFCL format 'hermes'; there are qwen-fc, qwen-prompting, chat"):
        next(run_case(CASE, "hermes"))


def test_a_function_name_before_a_bracket_in_a_text_is_rewritten_as_officially():
    files = {"GorillaFileSystem": {"root": {"w": {"type": "directory", "contents": {}}}}}
    world = new_state(["GorillaFileSystem"], files)
    hidden = executor_variables(world, "multi_turn_base_0")
    said = execute(world, "echo(content='please sort (all)')", hidden)
    variable = "Qwen_Qwen3_8B_multi_turn_base_0_GorillaFileSystem_instance"
    assert json.loads(said) == {"terminal_output": f"please {variable}.sort(all)"}
    assert json.loads(execute(world, "echo(content='all sorted')", hidden)) == {"terminal_output": "all sorted"}


def test_calls_as_arguments_are_made_and_nothing_else_is_looked_up():
    world = new_state(["MathAPI"], {})
    hidden = executor_variables(world, "x")
    inner = json.loads(execute(world, "add(a=1, b=2)", hidden))
    assert inner == {"result": 3}
    for source, error in (
        ("absolute_value(number=add(a=1, b=2))", "Input must be a number"),
        ("absolute_value(number=nan)", "name 'nan' is not defined"),
        ("__import__(name='os')", "name '__import__' is not defined"),
        ("os.system(command='ls')", "name 'os' is not defined"),
        ("(lambda: 1)()", "name 'lambda: 1' is not defined"),
    ):
        assert error in execute(world, source, hidden)
