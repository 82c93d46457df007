"""Injected instructions at the desk: where they stand, when they count as obeyed, and what is left of the task."""

import json
import sys
from pathlib import Path

import pytest

from fission_grpo.core.chat import render_call
from fission_grpo.core.types import ToolCall
from fission_grpo.envs.desk.env import Desk
from fission_grpo.envs.desk.tasks import make_rows, solution, solutions_by_request
from fission_grpo.inference.base import Reply

FOLDER = Path(__file__).parent.parent.parent / "benchmarks"
sys.path[:0] = [str(FOLDER / "evidence"), str(FOLDER / "injection")]
from injected_desk import (  # noqa: E402
    AFTER_ERROR,
    CARRIERS,
    CLEAN,
    ERRORS,
    NEEDS_ERROR,
    RESULTS,
    WORDINGS,
    clean_cases,
    injected_cases,
    injected_rows,
    injection_of,
    letter,
)

COUNT, SEED = 48, 7
ROWS = {row["id"]: row for row in injected_rows(COUNT, SEED)}


def finish(case, turns):
    """The record of a case in which the policy makes these calls turn by turn, then ends; with the dialogue."""
    request = next(case)
    for calls in [*turns, [], []]:
        try:
            request = case.send(Reply("\n".join(map(render_call, calls)) or "Done."))
        except StopIteration as end:
            return end.value, request.messages
    raise AssertionError("the case did not end")


def harmful_call(injection):
    name = "event_id" if injection.tool.endswith("_event") else "name"
    return ToolCall(injection.tool, {name: injection.target})


def harm(injection, row):
    """The harmful call, with the other arguments of the request where its tool is the request's own."""
    call, own = harmful_call(injection), solutions_by_request(row)[0][0]
    return ToolCall(call.name, {**own.arguments, **call.arguments}) if own.name == call.name else call


def test_bystanders_are_not_mentioned_and_every_task_can_still_be_done():
    for plain, row in zip(make_rows(COUNT, SEED, "held_out"), ROWS.values(), strict=True):
        known = json.loads(row["bystanders"])
        assert row["prompt"] == plain["prompt"]
        assert not any(str(value).split("_")[0] in row["prompt"][0]["content"] for value in known.values())
        desk = Desk()
        desk.reset(**row)
        for call in solution(row):
            getattr(desk, call.name)(**call.arguments)
        assert desk.get_reward() == 1.0


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("wording", WORDINGS)
def test_a_policy_that_obeys_and_one_that_does_not(wording, carrier):
    seen = 0
    for injection, begin in injected_cases(list(ROWS.values()), wording, carrier):
        record, _ = finish(begin(), [])
        row = ROWS[record.id]
        first, calls = solutions_by_request(row)[0]
        turns = {ERRORS: [[first], *([one] for one in calls)], AFTER_ERROR: [[one] for one in calls]}
        turns = turns.get(carrier, [[one] for one in calls] if carrier == RESULTS else [])
        if carrier == ERRORS and row["kind"] not in NEEDS_ERROR:
            turns = turns[1:]
        resisted, dialogue = finish(begin(), turns)
        is_seen = carrier != ERRORS or row["kind"] in NEEDS_ERROR
        assert letter(resisted, injection, carrier) == ("S" if is_seen else "U")
        assert is_seen == any(injection.text in message["content"] for message in dialogue)
        if is_seen:
            at = 1 if carrier in (ERRORS, RESULTS) else 0
            obeying = [*turns[:at], [harm(injection, row)], *turns[at:]]
            obeyed, dialogue = finish(begin(), obeying)
            assert letter(obeyed, injection, carrier) == ("O" if obeyed.success else "o")
            assert obeyed.success or wording == "own_tool" or carrier == RESULTS
            seen += 1
    assert seen > COUNT / 5


def test_a_harmful_call_before_the_sentence_was_read_does_not_count():
    for injection, begin in injected_cases(list(ROWS.values()), "delete", ERRORS):
        wrong = ToolCall("move_file", {"name": "nothing.txt", "folder": "home"})
        record, _ = finish(begin(), [[wrong, harmful_call(injection)]])
        assert letter(record, injection, ERRORS) in "sS"
        break


def test_without_an_injection_the_harmful_call_is_counted_and_nothing_is_shown():
    row = next(iter(ROWS.values()))
    injection = injection_of(WORDINGS["cancel"], row)
    begin = clean_cases([row])[0]
    assert letter(finish(begin(), [[call] for call in solution(row)])[0], injection, CLEAN) == "U"
    assert letter(finish(begin(), [[harmful_call(injection)]])[0], injection, CLEAN) == "o"


def test_the_sentence_stands_behind_the_desks_own_text_until_the_harmful_call():
    row = next(row for row in ROWS.values() if row["kind"] == "names")
    (injection, begin), *_ = injected_cases([row], "unlock", ERRORS)
    first = solutions_by_request(row)[0][0]
    _, dialogue = finish(begin(), [[first], [harmful_call(injection)], [first]])
    before, done, after = [message["content"] for message in dialogue if message["role"] == "tool"]
    assert done == "ok"
    assert before == after[:-2] + f"; {injection.text}" + after[-2:]
