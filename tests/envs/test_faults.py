"""Faults: seeded, recorded, and the same again after a replay."""

import asyncio
import time
from collections import Counter

import pytest
from scripted_policy import ScriptedPolicy

from fission_grpo.core.types import ToolCall
from fission_grpo.envs.check import check_environment
from fission_grpo.envs.faults import (
    CELLS,
    FAULTS_KEY,
    KINDS,
    Fault,
    InjectedFault,
    faults_of_calls,
    inject_faults,
    injected_calls,
)
from fission_grpo.envs.restore import make_call, make_restorable, replay
from fission_grpo.envs.wrapper import tool_methods
from fission_grpo.evaluation.evaluate import evaluate

PUT, TOTAL = ToolCall("put", {"amount": 2}), ToolCall("total")


class Till:
    def reset(self, **row):
        self.coins = []

    def get_reward(self) -> float:
        return float(sum(self.coins) == 2)

    def put(self, amount: int) -> str:
        """Put a coin in.

        Args:
            amount: Its value.
        """
        if not isinstance(amount, int):
            raise ValueError("no coin")
        self.coins.append(amount)
        return f"{sum(self.coins)} cents"

    async def total(self) -> str:
        """Say how much there is."""
        return f"{sum(self.coins)} in all"

    def _snapshot(self):
        return list(self.coins)

    def _restore(self, state):
        self.coins = list(state)


class Blind(Till):
    _snapshot = _restore = None


def till(*faults, cls=Till, row="a", seed=0):
    environment = inject_faults(cls, faults, seed)()
    environment.reset(id=row)
    return environment


def say(environment, *calls):
    return [make_call(tool_methods(environment), call) for call in calls]


def kinds(environment):
    return Counter(fault.kind for fault in environment.injected)


@pytest.mark.parametrize("kind", ["timeout", "rate_limit", "server_error"])
def test_a_transient_fault_changes_nothing_and_is_over_when_the_call_is_repeated(kind):
    environment = till(Fault(kind, 1.0))
    first, second, third = say(environment, PUT, PUT, PUT)
    assert first.error
    assert second.content == "2 cents"
    assert third.error
    assert environment.injected == [InjectedFault(0, "put", kind), InjectedFault(2, "put", kind)]


@pytest.mark.parametrize("kind", ["tool_gone", "permission"])
def test_a_permanent_fault_stays_and_is_about_one_tool(kind):
    environment = till(Fault(kind, 1.0, tools=("put",)))
    results = say(environment, PUT, PUT, TOTAL)
    assert [result.error is not None for result in results] == [True, True, False]
    assert "put" in results[0].error
    assert kinds(environment) == {kind: 2}
    environment.reset(id="a")
    assert environment.injected == []


def test_implicit_faults_look_like_success():
    assert say(till(Fault("empty", 1.0)), PUT)[0].content == ""
    assert say(till(Fault("partial", 1.0)), PUT)[0].content == "2 c"
    environment = till(Fault("stale", 1.0, tools=("total",)))
    assert [result.content for result in say(environment, TOTAL, PUT, TOTAL)] == ["0 in all", "2 cents", "0 in all"]
    environment = till(Fault("not_done", 1.0, tools=("put",)))
    assert [result.content for result in say(environment, PUT, TOTAL)] == ["2 cents", "0 in all"]
    assert environment.injected == [InjectedFault(0, "put", "not_done")]


def test_not_done_is_not_injected_without_snapshots():
    environment = till(Fault("not_done", 1.0), cls=Blind)
    assert say(environment, PUT, TOTAL)[1].content == "2 in all"
    assert environment.injected == []


def test_latency_is_recorded_and_changes_nothing():
    environment = till(Fault("latency", 1.0, seconds=0.001))
    assert say(environment, PUT)[0].content == "2 cents"
    assert kinds(environment) == {"latency": 1}


def test_each_latency_waits_as_long_as_it_says():
    environment = till(
        Fault("latency", 1.0, tools=("put",), seconds=0.001), Fault("latency", 1.0, tools=("total",), seconds=0.2)
    )
    seconds = []
    for call in (PUT, TOTAL):
        began = time.perf_counter()
        say(environment, call)
        seconds.append(time.perf_counter() - began)
    assert seconds[0] < 0.1 <= 0.2 <= seconds[1]


def test_the_same_seed_and_row_give_the_same_faults_and_others_give_others():
    def faults(row, seed):
        environment = till(Fault("timeout", 0.5), row=row, seed=seed)
        say(environment, *[PUT] * 40)
        return environment.injected

    assert faults("a", 0) == faults("a", 0)
    assert faults("a", 0) != faults("b", 0)
    assert faults("a", 0) != faults("a", 1)
    assert 10 < len(faults("a", 0)) < 30


@pytest.mark.parametrize("cls", [Till, Blind])
def test_a_restored_environment_meets_the_same_faults_as_before(cls):
    faults = (Fault("timeout", 0.3), Fault("permission", 0.1), Fault("partial", 0.2))
    environment = till(*faults, cls=cls)
    history = say(environment, *[PUT, TOTAL] * 3)
    state = environment._snapshot() if cls is Till else None
    rest = say(environment, *[PUT, TOTAL] * 5)
    again = till(*faults, cls=cls)
    if cls is Till:
        again._restore(state)
    else:
        assert replay(again, history) == 0
    assert say(again, *[PUT, TOTAL] * 5) == rest
    assert again.injected == environment.injected


def test_an_environment_with_faults_keeps_the_contract():
    make = inject_faults(Till, [Fault("server_error", 0.3), Fault("stale", 0.2), Fault("tool_gone", 0.1)])
    report = check_environment(make, rows=[{"id": "a"}, {"id": "b"}])
    assert report.ok, str(report)


def test_evaluation_tells_the_policys_own_errors_from_injected_ones():
    replies = [
        '<tool_call>\n{"name": "put", "arguments": {"amount": "two"}}\n</tool_call>',
        '<tool_call>\n{"name": "nothing", "arguments": {}}\n</tool_call>',
        '<tool_call>\n{"name": "put", "arguments": {"amount": 2}}\n</tool_call>',
        '<tool_call>\n{"name": "put", "arguments": {"amount": 2}}\n</tool_call>',
        "Done.",
    ]
    policy = ScriptedPolicy(lambda dialogue: replies[sum(m["role"] == "assistant" for m in dialogue)])
    row = {"id": "a", "prompt": [{"role": "user", "content": "two cents"}]}
    # the first call fails by the fault, before its own mistake is seen; the second never reaches the environment
    (case,) = evaluate(policy, inject_faults(Till, [Fault("timeout", 1.0)]), [row], max_turns=6).records
    assert [call.injected for call in case.calls] == [True, False, False, True]
    assert [call.error is not None for call in case.calls] == [True, True, False, True]
    assert case.success


def test_no_call_is_injected_where_there_are_no_faults():
    assert injected_calls(say(till(), PUT), Till(), ["put"]) == (False,)


def test_faults_work_with_guarded_tools():
    environment = make_restorable(inject_faults(Till, [Fault("timeout", 1.0)]), asyncio.run)()
    environment.reset(id="a")
    assert [result.error is not None for result in say(environment, PUT, PUT)] == [True, False]
    assert len(environment._fission_monitor.snapshots) == 3


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"kind": "typo", "rate": 0.1}, "Fault.kind is 'typo'"),
        ({"kind": "timeout", "rate": 2}, "Fault.rate is 2"),
        ({"kind": "latency", "rate": 1, "seconds": -1}, "Fault.seconds"),
    ],
)
def test_bad_faults_are_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        Fault(**fields)


def test_a_fault_of_a_tool_there_is_not_is_refused():
    with pytest.raises(ValueError, match="no tool \\['take'\\]; there are put, total"):
        till(Fault("timeout", 0.1, tools=("take",)))


def test_an_error_of_a_call_that_a_fault_let_through_is_the_policys_own():
    wrong = ToolCall("put", {"amount": "two"})
    for kind in ("not_done", "empty", "partial", "latency"):
        environment = till(Fault(kind, 1.0, seconds=0))
        results = say(environment, wrong)
        assert results[0].error == "no coin"
        assert environment.injected == [InjectedFault(0, "put", kind)]
        assert injected_calls(results, environment, ["put"]) == (False,)
    environment = till(Fault("timeout", 1.0))
    assert injected_calls(say(environment, wrong), environment, ["put"]) == (True,)


def cells(environment):
    return [fault.cell for fault in environment.injected]


def test_every_kind_is_in_a_cell_and_latency_in_none():
    assert {kind for kinds in CELLS.values() for kind in kinds} == set(KINDS) - {"latency"}
    named = {"timeout": "explicit-transient", "permission": "explicit-permanent", "stale": "implicit-transient"}
    assert {kind: Fault(kind, 0.1).cell for kind in named} == named
    assert Fault("latency", 0.1).cell == ""
    assert all(Fault(cell, 0.1).cell == cell for cell in CELLS)


@pytest.mark.parametrize("cell", CELLS)
def test_a_cell_draws_each_of_its_kinds(cell):
    seen = set()
    for row in range(40):
        environment = till(Fault(cell, 0.5), row=row)
        say(environment, PUT, TOTAL, PUT, TOTAL, PUT)
        seen |= set(kinds(environment))
        assert set(cells(environment)) <= {cell}
    assert seen == set(CELLS[cell])


def test_a_transient_cell_spares_the_tools_next_call_and_a_permanent_one_no_later_call():
    for cell, expected in (
        ("explicit-transient", [0, 2]),
        ("implicit-transient", [0, 2]),
        ("explicit-permanent", [0, 1, 2, 3]),
        ("implicit-permanent", [0, 1, 2, 3]),
    ):
        environment = till(Fault(cell, 1.0, tools=("put",)))
        say(environment, PUT, PUT, PUT, PUT, TOTAL)
        assert [fault.index for fault in environment.injected] == expected
        if cell.endswith("permanent"):
            assert len(kinds(environment)) == 1  # the same each time


def test_what_cannot_be_done_is_not_drawn():
    for row in range(20):
        environment = till(Fault("implicit-transient", 1.0), cls=Blind, row=row)
        say(environment, PUT)
        assert set(kinds(environment)) <= {"empty", "partial"}


def test_faults_of_calls_are_by_call_and_skip_unknown_tools():
    environment = till(Fault("implicit-permanent", 1.0, tools=("put",)))
    results = say(environment, ToolCall("nothing"), TOTAL, PUT, PUT)
    faults = faults_of_calls(results, environment, tool_methods(environment))
    assert [fault and fault.cell for fault in faults] == [None, None, "implicit-permanent", "implicit-permanent"]
    assert injected_calls(results, environment, tool_methods(environment)) == (False,) * 4


def test_a_permanent_implicit_fault_survives_a_snapshot():
    environment = till(Fault("implicit-permanent", 1.0, tools=("put",)), row=3)
    say(environment, PUT)
    state, before = environment._snapshot(), kinds(environment)
    again = inject_faults(Till, [Fault("implicit-permanent", 1.0, tools=("put",))])()
    again.reset(id=9)
    again._restore(state)
    say(again, PUT)
    assert kinds(again) == dict.fromkeys(before, 2)


def test_a_row_can_be_without_faults():
    environment = inject_faults(Till, [Fault("timeout", 1.0)])()
    for expected in (0, 2):
        environment.reset(id="a", **{FAULTS_KEY: bool(expected)})
        say(environment, PUT, PUT, TOTAL)
        assert len(environment.injected) == expected
