"""Schemas from outside: what a value may cost, numbers as written, and what is refused before any call."""

import json
import math
import time

import pytest

from fission_grpo.core.json_schema import make_validator
from fission_grpo.core.tool_schema import check_call, check_tool_schema
from fission_grpo.core.types import ToolCall


def tool(schema, **more):
    """A tool with one parameter `a`."""
    return {"name": "f", "parameters": {"type": "object", "properties": {"a": schema}, **more}}


def problem(value, schema, **more):
    check_tool_schema(tool(schema, **more))
    return check_call(ToolCall("f", {"a": value}), [tool(schema, **more)])


MULTIPLES = [
    (19.99, 0.01),
    (0.07, 0.01),
    (4.35, 0.01),
    (9.95, 0.01),
    (0.3, 0.1),
    (1.1, 0.1),
    (-19.99, 0.01),
    (0, 0.01),
    (1e22, 0.1),
    (1e308, 0.01),
    (10**400, 0.01),
    (10**5000, 0.5),
    (10**5000, 2),
    (1.0075, 0.0005),
    (6, 1.5),
    (4.0, 2),
    (1, 1e-320),
]


@pytest.mark.parametrize(("value", "divisor"), MULTIPLES, ids=[f"{k}-{d}" for k, (_, d) in enumerate(MULTIPLES)])
def test_a_multiple_of_the_decimal_digits_as_written_passes(value, divisor):
    assert problem(value, {"type": "number", "multipleOf": divisor}) is None


NO_MULTIPLES = [(19.995, 0.01), (0.35, 0.1), (10**400 + 1, 3), (7, 2), (7.5, 2), (math.inf, 0.1), (math.nan, 1)]


@pytest.mark.parametrize(("value", "divisor"), NO_MULTIPLES, ids=[str(k) for k in range(len(NO_MULTIPLES))])
def test_what_is_no_multiple_is_a_problem_of_the_call(value, divisor):
    assert f"`a` must be a multiple of {divisor}" in problem(value, {"multipleOf": divisor}).message


def test_multiple_of_speaks_of_numbers_only():
    assert problem("x", {"multipleOf": 0.01}) is None
    assert problem(True, {"multipleOf": 2}) is None


@pytest.mark.parametrize("pattern", ["a{99999999999}", "(a{1,99999999999})", "(" * 5000 + ")" * 5000])
@pytest.mark.parametrize("keyword", ["pattern", "patternProperties"])
def test_a_pattern_too_large_to_compile_is_refused_in_one_line_with_its_place(pattern, keyword):
    schema = {keyword: pattern if keyword == "pattern" else {pattern: {}}}
    with pytest.raises(ValueError, match=rf"tool 'f': `parameters\.properties\.a\.{keyword}`") as error:
        check_tool_schema(tool(schema))
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("place", ["const", "default", "examples", "enum"])
def test_a_pattern_among_values_is_no_pattern(place):
    value = {"pattern": "a{99999999999}", "patternProperties": {r"\p{L}": 1}}
    schema = {place: [value] if place in ("examples", "enum") else value}
    assert problem(value, schema) is None
    if place in ("const", "enum"):
        assert problem({}, schema).parameter == "a"


def chain(levels, join, last):
    """Definitions a0, a1 and so on, each of which leads to the next one by what `join` makes of a reference."""
    steps = {f"a{k}": join({"$ref": f"#/$defs/a{k + 1}"}) for k in range(levels)}
    return {"$ref": "#/$defs/a0"}, {"$defs": steps | {f"a{levels}": last}}


JOINS = {
    "allOf": lambda ref: {"allOf": [ref, dict(ref)]},
    "anyOf": lambda ref: {"anyOf": [ref, dict(ref)]},
    "oneOf": lambda ref: {"oneOf": [ref, dict(ref)]},
    "if": lambda ref: {"if": ref, "then": dict(ref), "else": dict(ref)},
    "not": lambda ref: {"not": ref, "anyOf": [dict(ref)]},
    "mixed": lambda ref: {"allOf": [ref], "anyOf": [dict(ref), {"not": dict(ref)}]},
    "dependentSchemas": lambda ref: {"dependentSchemas": {"x": ref, "y": dict(ref)}},
}


@pytest.mark.parametrize("join", JOINS)
@pytest.mark.parametrize("last", [{"type": "integer"}, {"properties": {"x": False}}])
def test_a_schema_that_checks_one_value_too_often_is_refused(join, last):
    schema, more = chain(18, JOINS[join], last)
    with pytest.raises(ValueError, match="tool 'f': `parameters` takes more than 10,000 subschemas"):
        check_tool_schema(tool(schema, **more))


def test_a_chain_of_references_beyond_the_stack_is_the_schemas_fault():
    schema, more = chain(400, lambda ref: ref, {"type": "integer"})
    with pytest.raises(ValueError, match="40 one inside another"):
        check_tool_schema(tool(schema, **more))
    schema, more = chain(30, lambda ref: ref, {"type": "integer"})
    assert problem(1, schema, **more) is None
    assert problem("x", schema, **more).message == "`a` must be an integer, got 'x'"


@pytest.mark.parametrize("join", ["allOf", "anyOf"])
def test_two_ways_to_one_subschema_at_each_level_of_a_value_take_no_exponential_time(join):
    node = {"properties": {"next": {"$ref": "#/$defs/T"}}}
    more = {"$defs": {"T": {"type": "object", join: [node, json.loads(json.dumps(node))]}}}
    good, bad = {}, 5
    for _ in range(25):
        good, bad = {"next": good}, {"next": bad}
    start = time.monotonic()
    assert problem(good, {"$ref": "#/$defs/T"}, **more) is None
    assert problem(bad, {"$ref": "#/$defs/T"}, **more).parameter == "a"
    assert time.monotonic() - start < 5


def test_levels_of_properties_with_two_ways_each_take_no_exponential_time():
    def join(ref):
        return {"allOf": [{"properties": {"x": ref}}, {"properties": {"x": dict(ref)}}]}

    schema, more = chain(24, join, {"type": "integer"})
    good, bad = 1, "x"
    for _ in range(24):
        good, bad = {"x": good}, {"x": bad}
    start = time.monotonic()
    assert problem(good, schema, **more) is None
    assert "must be an integer, got 'x'" in problem(bad, schema, **more).message
    assert time.monotonic() - start < 5


def test_a_value_checked_by_the_same_reference_twice_keeps_path_and_message():
    more = {"$defs": {"T": {"properties": {"n": {"type": "integer"}}, "required": ["m"]}}}
    schema = {"allOf": [{"$ref": "#/$defs/T"}, {"items": {"$ref": "#/$defs/T"}}, {"$ref": "#/$defs/T"}]}
    assert problem({"m": 1, "n": "x"}, schema, **more).message == "`a.n` must be an integer, got 'x'"
    assert problem([{"m": 1}, {"m": 1, "n": "x"}], schema, **more).message == "`a[1].n` must be an integer, got 'x'"
    # seen first where a failure counts for nothing
    schema = {"anyOf": [{"$ref": "#/$defs/T"}, True], "allOf": [{"$ref": "#/$defs/T"}]}
    assert problem({"n": "x"}, schema, **more).message == "`a` lacks the required field `m`"


def test_a_value_that_fails_for_a_null_and_for_more_fails_the_second_time_too():
    fields = {f"n{k}": {"type": "integer", "nullable": True} for k in range(20)} | {"z": {"type": "integer"}}
    more = {"$defs": {"T": {"properties": fields}}}
    value = dict.fromkeys(fields)
    way = {"$ref": "#/$defs/T"}
    tree = {"anyOf": [{"properties": {"v": way}}, True], "allOf": [{"properties": {"v": way}}]}
    assert problem({"v": value}, tree, **more).message == "`a.v.z` must be an integer, got null"
    assert problem({"v": value | {"z": 1}}, tree, **more) is None


def test_one_call_leaves_nothing_behind_for_the_next():
    validator = make_validator(
        json.dumps(tool({"$ref": "#/$defs/T"}, **{"$defs": {"T": {"type": "integer"}}})["parameters"])
    )
    for _ in range(50):
        assert not validator.iter_errors({"a": 1})
        assert len(validator.iter_errors({"a": "x"})) == 1


@pytest.mark.parametrize("count", [6000])
def test_unique_items_are_compared_in_linear_time(count):
    items = [{"id": k, "tags": [k, {"x": None}]} for k in range(count)]
    start = time.monotonic()
    assert problem(items, {"type": "array", "uniqueItems": True}) is None
    assert problem([*items, items[7]], {"type": "array", "uniqueItems": True}).parameter == "a"
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("items", "unique"),
    [
        ([1, True, "1", [1], [True], {"a": 1}, {"a": True}, None, False, 0, ""], True),
        ([1, 1.0], False),
        ([[1, 2], [2, 1]], True),
        ([{"a": 1, "b": [2]}, {"b": [2.0], "a": 1}], False),
        ([["array"], "array", {}, []], True),
        ([{}, {}], False),
        ([None, None], False),
        ([True, True], False),
        ([], True),
    ],
)
def test_items_are_equal_as_json_values(items, unique):
    assert (problem(items, {"uniqueItems": True}) is None) is unique
    assert problem(items, {"uniqueItems": False}) is None


OUTER = {"$id": "http://x/s", "$dynamicAnchor": "node"}
DYNAMIC = {
    "a circle through the outer anchor": {
        "allOf": [{"$ref": "tree"}],
        "$defs": {"t": {"$id": "tree", "$defs": {"n": {"$dynamicAnchor": "node"}}, "$dynamicRef": "#node"}},
    },
    "a tree extended outside": {
        "$defs": {"t": {"$id": "tree", "$dynamicAnchor": "node", "items": {"$dynamicRef": "#node"}}},
    },
    "by the address of the inner schema": {
        "$defs": {"t": {"$id": "tree", "$dynamicAnchor": "node"}, "u": {"$dynamicRef": "tree#node"}},
    },
}


@pytest.mark.parametrize("case", DYNAMIC)
def test_a_dynamic_reference_with_two_targets_is_refused(case):
    with pytest.raises(ValueError, match=r"tool 'f': `\$dynamicAnchor` 'node' occurs twice in `parameters`"):
        check_tool_schema(tool({"type": "integer"}, **OUTER, **DYNAMIC[case]))


def test_a_dynamic_reference_with_one_target_is_followed():
    more = {"$defs": {"T": {"$dynamicAnchor": "node", "type": "array", "items": {"$dynamicRef": "#node"}}}}
    assert problem([[], [[]]], {"$ref": "#/$defs/T"}, **more) is None
    assert problem([[], [1]], {"$ref": "#/$defs/T"}, **more).message == "`a[1][0]` must be an array, got 1"
