"""One corrective turn: its calls are made, and it is resolved or not."""

import asyncio
import json

import pytest

from fission_grpo.envs.desk.env import Desk
from fission_grpo.envs.restore import judge_corrective_turn, make_restorable


def desk(make=Desk):
    scenario = {
        "files": {"plan.txt": {"folder": "inbox", "locked": True, "shared": []}},
        "events": {},
        "goal": {"files": {"plan.txt": {"folder": "work", "locked": False, "shared": []}}, "events": {}},
    }
    environment = make()
    environment.reset(id="a", scenario=json.dumps(scenario))
    return environment


def turn(*calls):
    functions = [{"name": name, "arguments": arguments} for name, arguments in calls]
    return [
        {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": f} for f in functions]}
    ]


UNLOCK, MOVE = ("unlock_file", {"name": "plan.txt"}), ("move_file", {"name": "plan.txt", "folder": "work"})
AWAY = ("move_file", {"name": "plan.txt", "folder": "home"})


@pytest.mark.parametrize(
    ("calls", "resolved"),
    [
        ((UNLOCK, MOVE), True),
        ((UNLOCK,), True),
        ((MOVE,), False),
        ((UNLOCK, MOVE, AWAY), True),
        ((), False),
        ((("fly", {}),), False),
    ],
)
def test_a_turn_is_resolved_if_its_calls_work_and_bring_the_goal_nearer(calls, resolved):
    environment = desk()
    verdict = judge_corrective_turn(environment, turn(*calls))
    assert verdict.resolved == resolved
    assert [result.call.name for result in verdict.results] == [name for name, _ in calls]


def test_without_a_measure_of_progress_the_calls_have_to_work():
    environment = desk()
    environment._progress = None
    assert judge_corrective_turn(environment, turn(UNLOCK, AWAY)).resolved
    assert not judge_corrective_turn(environment, turn(UNLOCK)).resolved  # unlocked already


def test_a_turn_of_words_resolves_nothing():
    assert not judge_corrective_turn(desk(), [{"role": "assistant", "content": "Sorry."}]).resolved


@pytest.mark.parametrize("value", [10**400, float("nan"), float("inf"), "much", [1]], ids=lambda value: str(value)[:9])
def test_progress_that_is_no_number_breaks_the_episode_and_not_the_run(value):
    environment = desk(make_restorable(Desk, asyncio.run))
    environment._progress = lambda: value
    judge_corrective_turn(environment, turn(UNLOCK))
    assert environment._fission_monitor.infrastructure_error.startswith("_progress gives no number")
