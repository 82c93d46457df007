"""Calls of BFCL's functions whose arguments would hang the process, or fill its memory."""

import contextlib
import decimal
import math
import time

import pytest

pytest.importorskip("bfcl_eval", reason="pip install --no-deps bfcl-eval==2026.3.23 mpmath==1.3.0 filelock")

import fission_grpo.envs.bfcl.state as state_module
from fission_grpo.core.types import ToolCall
from fission_grpo.envs.bfcl.env import environment_of
from fission_grpo.envs.bfcl.functions import FILES, class_docs
from fission_grpo.envs.bfcl.official import MULTI_TURN, multi_turn_cases
from fission_grpo.envs.bfcl.state import new_state
from fission_grpo.envs.restore import make_call
from fission_grpo.envs.wrapper import tool_methods

TOO_LONG = (
    "Exceeds the limit (4300 digits) for integer string conversion"  # what Python says when it writes the result
)
HEAVY = [
    ("power", {"base": 9, "exponent": 999_999_999}, TOO_LONG),
    ("power", {"base": 10, "exponent": 10**8}, TOO_LONG),
    ("power", {"base": -3, "exponent": 10**30}, TOO_LONG),
    ("power", {"base": 10**4000, "exponent": 10**6}, TOO_LONG),
    ("power", {"base": 2, "exponent": 14_285}, TOO_LONG),
    ("logarithm", {"value": 2, "base": 3, "precision": 10**7}, "precision must be at most"),
    ("logarithm", {"value": 2, "base": 3, "precision": 1e9}, "precision must be at most"),
    ("logarithm", {"value": 2, "base": 3, "precision": "1000000000"}, "precision must be at most"),
    ("logarithm", {"value": "1e9999999999", "base": 3, "precision": 5}, "value must be a number"),
    ("logarithm", {"value": 2, "base": "1/1e999999999", "precision": 5}, "base must be a number"),
    ("logarithm", {"value": "1e 9_999_999_999", "base": 3, "precision": 5}, "value must be a number"),
    ("square_root", {"number": 2, "precision": 10**8}, "precision must be at most"),
]


@contextlib.contextmanager
def time_limit(seconds):
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds


@pytest.mark.parametrize(("name", "arguments", "message"), HEAVY, ids=lambda value: str(value)[:40])
def test_a_call_that_would_take_hours_is_answered_with_an_error_at_once(name, arguments, message):
    with time_limit(2):
        state = new_state(["MathAPI"], {})
        answer = state.call(ToolCall(name, arguments))
        assert answer.startswith("Error during execution: ")
        assert message in answer
        environment = environment_of("MathAPI")()
        environment.reset(scenario='{"config": {}, "history": [], "reference": []}')
        assert message in make_call(tool_methods(environment), ToolCall(name, arguments)).error


@pytest.mark.parametrize(
    ("name", "arguments", "result"),
    [
        ("power", {"base": 2, "exponent": 10}, 1024),
        ("power", {"base": 1, "exponent": 10**30}, 1),
        ("power", {"base": -1, "exponent": 10**30 + 1}, -1),
        ("power", {"base": 0, "exponent": 10**30}, 0),
        ("power", {"base": 3, "exponent": -(10**6)}, 0.0),
        ("power", {"base": 2.0, "exponent": 0.5}, 2**0.5),
        ("power", {"base": 2, "exponent": 14_284}, 2**14_284),  # the largest with 4,300 digits
        ("round_number", {"number": 10**300, "decimal_places": -(10**9)}, 0),
        ("round_number", {"number": 2_345, "decimal_places": -2}, 2_300),
        ("round_number", {"number": 2.345, "decimal_places": 1}, 2.3),
        ("round_number", {"number": 7, "decimal_places": 10**9}, 7),
    ],
    ids=lambda value: str(value)[:40],
)
def test_other_calls_keep_their_official_results(name, arguments, result):
    with time_limit(2):
        assert new_state(["MathAPI"], {}).value(ToolCall(name, arguments)) == {"result": result}


def test_arguments_that_are_no_numbers_keep_the_functions_own_answers():
    state = new_state(["MathAPI"], {})
    assert (
        state.call(ToolCall("power", {"base": "9", "exponent": 10**9})) == '{"error": "Both inputs must be numbers"}'
    )
    assert "error" in state.value(ToolCall("square_root", {"number": 2, "precision": None}))
    assert "error" in state.value(ToolCall("logarithm", {"value": "ten", "base": 2, "precision": 3}))
    assert "error" in state.value(ToolCall("logarithm", {"value": 2, "base": 2, "precision": math.inf}))
    assert str(state.value(ToolCall("logarithm", {"value": "100", "base": 10, "precision": 3}))["result"]) == "2.0"


def test_a_call_does_not_change_the_precision_of_decimals_elsewhere():
    before = decimal.getcontext().prec
    new_state(["MathAPI"], {}).value(ToolCall("square_root", {"number": 2, "precision": 3}))
    assert decimal.getcontext().prec == before


def test_no_official_case_needs_more_than_the_limits():
    most_entries = 0
    for case in (case for category in MULTI_TURN for case in multi_turn_cases(category)):
        for call in (call for turn in case.reference for call in turn):
            assert abs(call.arguments.get("precision", 0)) <= state_module.MAX_PRECISION / 10
            assert abs(call.arguments.get("decimal_places", 0)) <= state_module.MAX_PRECISION / 10
            if call.name == "power":
                assert call.arguments["base"] ** call.arguments["exponent"] < 10**100
        if "GorillaFileSystem" in case.classes:
            state = new_state(case.classes, case.config, case.long_context)
            most_entries = max(most_entries, state_module._count_entries(state.instances["GorillaFileSystem"].root))
    assert 50 < most_entries < state_module.MAX_ENTRIES / 10


def file_system():
    case = next(case for case in multi_turn_cases("multi_turn_base") if "GorillaFileSystem" in case.classes)
    state = new_state(["GorillaFileSystem"], case.config)

    def call(name, **arguments):
        return state.call(ToolCall(name, arguments))

    return call


@pytest.mark.parametrize(("name", "arguments"), [("find", {"path": "."}), ("du", {})])
def test_directories_that_share_their_contents_are_not_walked_through_for_ever(name, arguments):
    call = file_system()
    call("mkdir", dir_name="x")
    call("mkdir", dir_name="y")
    for number in range(45):  # each copy shares what it copies, so that the paths double every other time
        source, target = ("x", "y") if number % 2 else ("y", "x")
        call("cp", source=source, destination=f"{source}{number}")
        call("mv", source=f"{source}{number}", destination=target)
    with time_limit(5):
        assert f"more than {state_module.MAX_ENTRIES} files" in call(name, **arguments)


def test_a_directory_copied_into_itself_is_an_error():
    call = file_system()
    call("mkdir", dir_name="x")
    call("cp", source="x", destination="x")
    with time_limit(5):
        assert "rror" in call("find", path=".")


VALUES = [
    10**9,
    10**400,
    -(10**9),
    1.5,
    math.nan,
    math.inf,
    1e308,
    "x" * 10**6,
    "(a+)+$",
    "1e999999999",
    None,
    True,
    {"a": 1},
]
VALUES += [[10**400] * 1000, ["a" * 1000] * 1000, [[[[[]]]]], "../" * 10_000]


@pytest.mark.parametrize("class_name", FILES)
def test_every_function_answers_hostile_values_quickly(class_name):
    case = next(case for case in multi_turn_cases("multi_turn_base") if class_name in case.classes)
    state = new_state([class_name], case.config)
    for name, doc in class_docs(class_name).items():
        for value in VALUES:
            arguments = dict.fromkeys(doc["parameters"]["properties"], value)
            with time_limit(2):
                assert isinstance(state.call(ToolCall(name, arguments)), str)
