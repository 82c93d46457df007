"""Where a rollout went wrong: which turn, which call, which kind."""

import math

import pytest

from fission_grpo.core.types import (
    ErrorKind,
    Task,
    ToolCall,
    ToolResult,
    Trajectory,
    Turn,
    Verdict,
)
from fission_grpo.fission.failures import find_failure

LS, RM, BAD = ToolCall("ls", {"path": "/"}), ToolCall("rm", {"path": "/a"}), ToolCall("ls", {"path": 3})
UNKNOWN = ToolCall("dir")
TOOLS = tuple(
    {"name": name, "parameters": {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]}}
    for name in ("ls", "rm")
)
FAILED = Verdict(0.0, True)


def step(*turns: Turn, reference=(LS,), verdict: Verdict = FAILED):
    return find_failure(Trajectory(Task("t", "go", TOOLS, reference), turns), verdict)


def episode(*turns: Turn, tools=TOOLS):
    return find_failure(Trajectory(Task("t", "go"), turns), FAILED, tools)


def ran(*pairs: tuple[ToolCall, str | None]) -> Turn:
    """An executed turn: each call with its result's error."""
    results = tuple(ToolResult(call, "text", error) for call, error in pairs)
    return Turn("text", calls=tuple(call for call, _ in pairs), results=results)


@pytest.mark.parametrize("verdict", [Verdict(1.0, False), Verdict(None, True), Verdict(math.nan, True)])
def test_success_and_infrastructure_are_no_failures(verdict):
    assert step(Turn("", calls=(BAD,)), verdict=verdict) is None


def test_a_rollout_without_turns_has_nothing_to_recover_from():
    assert step() is None


@pytest.mark.parametrize(
    ("turn", "kind", "detail", "call_index"),
    [
        (Turn("", error="unclosed <tool_call>"), ErrorKind.UNPARSED, "unclosed <tool_call>", None),
        (Turn("", calls=(LS, UNKNOWN)), ErrorKind.UNKNOWN_TOOL, "unknown tool 'dir'; available: ls, rm", 1),
        (Turn("", calls=(BAD, UNKNOWN)), ErrorKind.BAD_ARGUMENTS, "`path` must be a string, got 3", 0),
        (
            Turn("", content="Don", truncated=True),
            ErrorKind.TRUNCATED,
            "the answer was cut off at its length limit",
            None,
        ),
        (Turn("", calls=(RM,)), ErrorKind.WRONG_CALL, "", None),
        (Turn("", content="Done."), ErrorKind.NO_CALL, "", None),
    ],
)
def test_a_step_fails_in_one_of_six_ways(turn, kind, detail, call_index):
    failure = step(turn)
    assert (failure.kind, failure.detail, failure.call_index) == (kind, detail, call_index)
    assert failure.reward == 0.0


def test_a_bad_form_is_found_before_the_cut():
    assert step(Turn("", error="empty <tool_call>", truncated=True)).kind == ErrorKind.UNPARSED


def test_a_call_where_none_was_called_for_is_a_wrong_call():
    assert step(Turn("", calls=(LS,)), reference=()).kind == ErrorKind.WRONG_CALL


def test_the_first_failing_call_of_the_first_failing_turn_wins_and_the_rest_is_cut():
    good, bad, worse = ran((LS, None)), ran((LS, None), (RM, "no such file"), (RM, "busy")), ran((UNKNOWN, "no tool"))
    failure = episode(good, bad, worse)
    assert failure.turns == (good, bad)
    assert (failure.kind, failure.detail, failure.call_index) == (ErrorKind.RAISED, "no such file", 1)


def test_the_environments_message_is_kept_and_the_schema_says_the_kind():
    failure = episode(ran((BAD, "path must be text")))
    assert (failure.kind, failure.detail) == (ErrorKind.BAD_ARGUMENTS, "path must be text")
    assert episode(ran((UNKNOWN, "no tool dir"))).kind == ErrorKind.UNKNOWN_TOOL


def test_a_call_the_environment_accepted_is_accepted_whatever_the_schema_says():
    assert episode(ran((BAD, None))).kind == ErrorKind.LOW_REWARD


def test_without_any_tools_calls_are_not_checked():
    assert episode(Turn("", calls=(UNKNOWN,)), tools=()).kind == ErrorKind.OUT_OF_TURNS


def test_detail_does_not_depend_on_the_reference():
    turn = Turn("", calls=(RM,))
    other = ToolCall("ls", {"path": "/secret"})
    assert step(turn).detail == step(turn, reference=(other,)).detail == ""


def test_an_episode_whose_last_calls_were_never_made_ran_out_of_turns():
    failure = episode(ran((LS, None)), Turn("again", calls=(LS,)))
    assert failure.kind == ErrorKind.OUT_OF_TURNS
    assert len(failure.turns) == 2
    assert episode(ran((LS, None)), Turn("Done.")).kind == ErrorKind.LOW_REWARD
