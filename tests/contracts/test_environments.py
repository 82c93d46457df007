"""The contract of every environment: the built-in ones, the example's, and one with injected faults."""

import asyncio
import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from fission_grpo.core.tool_schema import check_tool_schema
from fission_grpo.core.types import Task, ToolCall
from fission_grpo.envs.check import check_environment
from fission_grpo.envs.desk.env import Desk
from fission_grpo.envs.desk.tasks import make_rows, solution
from fission_grpo.envs.faults import Fault, inject_faults
from fission_grpo.envs.restore import TASK_KEY, get_progress, make_call, make_restorable, snapshot_after
from fission_grpo.envs.worker import isolated
from fission_grpo.envs.wrapper import can_snapshot, tool_methods

BFCL_CLASSES = {
    "train": ("TravelAPI", "TradingBot", "TicketAPI", "MessageAPI"),
    "heldout": ("GorillaFileSystem", "VehicleControlAPI", "TwitterAPI", "MathAPI"),
}
EXAMPLE = Path(__file__).parents[2] / "examples" / "two_lines_environment.py"


@dataclass(frozen=True)
class Subject:
    """An environment under test: `solve` gives the reference calls of a row, `reward` that of an environment."""

    make: Callable[[], Any]
    rows: list[dict[str, Any]]
    solve: Callable[[dict[str, Any]], tuple[ToolCall, ...]]
    reward: Callable[[Any], float] = lambda environment: (
        environment.get_reward() if hasattr(environment, "get_reward") else environment._reward()
    )
    has_faults: bool = False
    is_slow: bool = False  # to make an instance

    def episode(self, row: dict[str, Any]) -> list[ToolCall]:
        """The reference calls, among calls that fail."""
        calls = self.solve(row)
        unknown = ToolCall(calls[0].name, {"no_such_argument": 1})
        return [unknown, *calls, unknown, *calls]


def desk(requests: int) -> Subject:
    return Subject(Desk, make_rows(16, 0, "train", requests), solution)


def faulty_desk() -> Subject:
    make = inject_faults(Desk, [Fault("timeout", 0.3), Fault("partial", 0.2), Fault("not_done", 0.1)], seed=1)
    return Subject(make, make_rows(16, 0, "train"), solution, has_faults=True)


def cabinet() -> Subject:
    pytest.importorskip("trl")
    spec = importlib.util.spec_from_file_location("two_lines_environment", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def solve(row):
        unlock = [ToolCall("unlock_file", {"name": row["name"]})] if row["locked"] else []
        return (*unlock, ToolCall("move_file", {"name": row["name"], "folder": "archive"}))

    rows = [{"prompt": "", "name": f"memo_{number}.txt", "locked": number % 2 == 0} for number in range(4)]
    return Subject(module.Cabinet, rows, solve, lambda environment: module.moved_to_archive([environment])[0])


def bfcl(class_name: str) -> Subject:
    pytest.importorskip("bfcl_eval", reason="pip install --no-deps bfcl-eval==2026.3.23 mpmath==1.3.0 filelock")
    from fission_grpo.envs.bfcl.env import environment_of
    from fission_grpo.envs.bfcl.tasks import all_rows
    from fission_grpo.recipes.bfcl_tasks.generate import Mix, generate

    split = next(split for split, names in BFCL_CLASSES.items() if class_name in names)
    cases = generate(split, 6, 0, Mix(miss_func=0, miss_param=0, classes=(class_name,)))

    def solve(row):
        return tuple(ToolCall(**call) for call in json.loads(row["scenario"])["reference"])

    rows = [row for row in all_rows(cases) if solve(row)]
    return Subject(environment_of(class_name), rows, solve)


SUBJECTS: dict[str, Callable[[], Subject]] = {
    "desk": lambda: desk(1),
    "desk, three requests": lambda: desk(3),
    "desk with faults": faulty_desk,
    "desk in a process": lambda: Subject(isolated(Desk, 60), make_rows(2, 0, "train"), solution, is_slow=True),
    "example": cabinet,
    **{name: lambda name=name: bfcl(name) for names in BFCL_CLASSES.values() for name in names},
}


@cache
def load(name: str) -> Subject:
    return SUBJECTS[name]()


@pytest.fixture(params=SUBJECTS)
def subject(request) -> Subject:
    return load(request.param)


def start(subject, row):
    environment = subject.make()
    environment.reset(**columns(row))
    return environment


def columns(row):
    return {key: value for key, value in row.items() if key != "environment"}


def answers(environment, calls):
    return [make_call(tool_methods(environment), call, asyncio.run) for call in calls]


def test_tools_have_docstrings_and_schemas(subject):
    from transformers.utils import get_json_schema

    tools = tool_methods(subject.make())
    assert tools
    for tool in tools.values():
        schema = get_json_schema(tool)["function"]
        check_tool_schema(schema)
        assert schema["description"]
        assert all(field["description"] for field in schema["parameters"]["properties"].values())


def test_the_same_row_and_calls_give_the_same_episode_also_after_another_one(subject):
    used = subject.make()
    for row in subject.rows:
        calls = subject.episode(row)
        fresh = start(subject, row)
        used.reset(**columns(row))
        assert answers(used, calls) == answers(fresh, calls)
        assert subject.reward(used) == subject.reward(fresh)


def test_instances_are_isolated(subject):
    for row, other_row in zip(subject.rows, subject.rows[1:], strict=False):
        calls, other_calls = subject.episode(row), subject.episode(other_row)
        expected = answers(start(subject, row), calls)
        environment, other = start(subject, row), start(subject, other_row)
        actual = []
        for number, call in enumerate(calls):
            answers(other, other_calls[number : number + 1])
            actual += answers(environment, [call])
        assert actual == expected


def test_a_snapshot_returns_any_instance_to_the_same_state(subject):
    if not can_snapshot(subject.make()):
        pytest.skip("no snapshots")
    for row in subject.rows:
        calls = subject.episode(row)
        half = len(calls) // 2
        environment, fresh = start(subject, row), start(subject, row)
        answers(environment, calls[:half])
        state, reward = environment._snapshot(), subject.reward(environment)
        expected = answers(environment, calls[half:])
        for target in (environment, environment, fresh):
            target._restore(state)
            assert subject.reward(target) == reward
            assert answers(target, calls[half:]) == expected


@pytest.mark.parametrize("method", ["restored", "replayed"])
def test_a_recovery_task_starts_where_the_failed_turn_ended(subject, method):
    for row in subject.rows:
        calls = subject.episode(row)
        half = len(calls) // 2
        environment = make_restorable(subject.make, asyncio.run)()
        environment.reset(**columns(row))
        history = answers(environment, calls[:half])
        snapshot = snapshot_after(environment, history) if method == "restored" else None
        expected = answers(environment, calls[half:])

        task = Task("recovery", "prompt", columns=row, history=tuple(history), depth=1)
        recovered = make_restorable(subject.make, asyncio.run, {"recovery": snapshot}.get)()
        assert recovered.reset(**columns(row), **{TASK_KEY: task}) is None
        counts = +recovered._fission_monitor.counts
        assert counts == {"replayed" if snapshot is None else "restored": 1}  # no replay_mismatches
        assert answers(recovered, calls[half:]) == expected
        assert subject.reward(recovered) == subject.reward(environment)


def test_the_reward_lies_between_0_and_1_and_the_reference_solution_earns_1(subject):
    for row in subject.rows:
        environment = start(subject, row)
        assert 0 <= subject.reward(environment) < 1
        for call in subject.solve(row):
            answers(environment, [call])
            assert 0 <= subject.reward(environment) <= 1
            assert 0 <= (get_progress(environment) or 0) <= 1
        if not subject.has_faults:
            assert subject.reward(environment) == 1
            assert get_progress(environment) in (None, 1)


def test_check_environment_passes(subject):
    if subject.is_slow:
        pytest.skip("it makes a hundred instances")
    rows = subject.rows[:2]
    report = check_environment(subject.make, rows, subject.episode(rows[0]), seconds=1)
    failed = {finding.check for finding in report.findings if finding.status == "failed"}
    assert failed == set(), str(report)
