"""One BFCL case, scripted replies to it, and its verdict."""

from fission_grpo.core.chat import render_call
from fission_grpo.core.types import ToolCall
from fission_grpo.envs.bfcl.official import multi_turn_cases
from fission_grpo.evaluation.bfcl.run_case import run_case
from fission_grpo.inference.base import Reply


def scripted_calls(calls):
    """A reply in the format "qwen-fc" that makes these calls."""
    return "\n".join(render_call(call) for call in calls)


CASE = next(case for case in multi_turn_cases("multi_turn_base") if case.id == "multi_turn_base_100")


INFO, FUND = (scripted_calls(turn) for turn in CASE.reference)


BROKEN = INFO.replace("}}", "}")


def play(replies, case=CASE, format="qwen-fc", mode="strict"):
    """The record after these replies (texts or `Reply`s), and the last request."""
    going, replies = run_case(case, format, mode), iter(replies)
    request = next(going)
    try:
        while True:
            reply = next(replies)
            request = going.send(reply if isinstance(reply, Reply) else Reply(reply))
    except StopIteration as end:
        return end.value, request


def verdicts(record):
    return record.success, record.verdict, [turn.valid for turn in record.turns]


def call(name, /, **arguments):
    return scripted_calls((ToolCall(name, arguments),))
