"""Schemas and arguments that are made to take long, or to break their checker, have bounded time and clear results."""

import json
import threading
import time
import warnings

import pytest

from fission_grpo.core import json_schema, patterns
from fission_grpo.core.json_schema import MAX_CHARACTERS, make_validator
from fission_grpo.core.patterns import MAX_PATTERN
from fission_grpo.core.tool_schema import check_call, check_tool_schema
from fission_grpo.core.types import ToolCall

LIMIT = 10.0  # seconds on a slow machine, for what takes hours without a limit


@pytest.fixture(autouse=True)
def short_limits(monkeypatch):
    monkeypatch.setattr(patterns, "PATTERN_SECONDS", 0.2)
    monkeypatch.setattr(json_schema, "MAX_SECONDS", 1.0)


def tool(schema, **more):
    return {"name": "f", "parameters": {"type": "object", "properties": {"a": schema}, **more}}


def check(schema, value, **more):
    """The message about a call, or None; in a thread, where no signal arrives. The schema may be refused."""
    results = []

    def run():
        try:
            check_tool_schema(tool(schema, **more))
            found = check_call(ToolCall("f", {"a": value}), [tool(schema, **more)])
            results.append(found.message if found else None)
        except ValueError as error:
            results.append(f"refused: {error}")

    began = time.monotonic()
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert time.monotonic() - began < LIMIT
    assert len(results) == 1  # and nothing else was raised
    assert results[0] is None or len(results[0]) < 500
    return results[0]


SLOW_PATTERNS = [
    ("(a|aa)+$", "a" * 60 + "b"),
    ("^(([a-z])+.)+[A-Z]([a-z])+$", "a" * 80),
    ("(x+x+)+y", "x" * 60),
    (r"^(\w+\s?)*$", "word " * 20 + "!"),
    (
        r"^([a-zA-Z0-9])(([\-.]|[_]+)?([a-zA-Z0-9]+))*(@){1}[a-z0-9]+[.]{1}(([a-z]{2,3})|([a-z]{2,3}[.]{1}[a-z]{2,3}))$",
        "a" * 80,
    ),
    ("(?:a?){500}a{500}", "a" * 499),
    ("(.*a){20}b", "a" * 40),
    ("(a*)*b", "a" * 5000),
    (r"(\d+)*\1x", "1" * 60),
]


@pytest.mark.parametrize(("pattern", "text"), SLOW_PATTERNS)
def test_a_pattern_of_exponential_time_is_given_up_in_a_thread_too(pattern, text):
    message = check({"type": "string", "pattern": pattern}, text)
    assert message is None or "could not be checked" in message or "must match" in message
    named = check({"type": "object", "patternProperties": {pattern: {"type": "string"}}}, {text: 1})
    assert named is None or "could not be checked" in named or "must be a string" in named
    extra = {"patternProperties": {pattern: {}}, "additionalProperties": False, "unevaluatedProperties": False}
    assert (check({"type": "object", **extra}, {text: 1}) or "`a`")[:4] in ("`a` ", "`a`", "the ")


@pytest.mark.parametrize(
    "pattern",
    [
        "((a{1000}){1000}){1000}",
        "(?:(?:a{100,}){100,}){100,}",
        "(?:[ab]{999}){999}",
        "(?:(?:a|b|c){1000}|d){1000}",
        "a{20000}",
        "x" * (MAX_PATTERN + 1),
        "(" * 3000 + ")" * 3000,
        "a{99999999999}",
        "(a{5}" * 12 + "){9}" * 12,
    ],
)
@pytest.mark.parametrize("keyword", ["pattern", "patternProperties"])
def test_a_pattern_that_is_too_large_to_compile_is_refused(pattern, keyword):
    message = check({keyword: pattern if keyword == "pattern" else {pattern: {}}}, "x")
    assert message.startswith(f"refused: tool 'f': `parameters.properties.a.{keyword}")


@pytest.mark.parametrize(
    ("pattern", "right", "wrong"),
    [
        (r"^\d{4}-\d{2}$", ["2024-01"], ["2024-1", "2024-01\n", "x2024-01"]),
        (r"^[a-z]+$", ["abc"], ["abc\n", "Abc", ""]),
        (r"a$|b$", ["xa", "b"], ["ab\n", "c"]),
        (r"^[$]$", ["$"], ["", "x"]),
        (r"^\$\d+$", ["$5"], ["5", "$5\n"]),
        (r"^[[a]+$", ["[a["], ["b"]),
        (r"^[\[\]]+$", ["[]"], ["x"]),
        (r"^a{e}$", ["a{e}"], ["a", "e"]),
        (r"^{.*}$", ["{x}"], ["x"]),
        (r"^x{2,3}$", ["xx", "xxx"], ["x", "xxxx"]),
        (r"^(?:foo|bar)?baz$", ["baz", "foobaz"], ["fo"]),
        (r"^(?P<q>['\"]).*(?P=q)$", ["'a'"], ["'a\""]),
        (r"^\w+@\w+\.com$", ["ä@b.com"], ["a b@c.com"]),
        (r"^.{1,255}$", ["x" * 255], ["x" * 256, ""]),
        (r"b", ["abc"], ["ac"]),
        (r"^(?=.*\d)(?!.*x).+$", ["a1"], ["a", "x1"]),
        (r"^[^\s]+$", ["a"], ["a b"]),
        ("^é\\u00e8$", ["éè"], ["ee"]),
    ],
)
def test_ordinary_patterns_mean_what_they_mean_in_javascript(pattern, right, wrong):
    for value in right:
        assert check({"pattern": pattern}, value) is None
    for value in wrong:
        assert "must match" in check({"pattern": pattern}, value)


@pytest.mark.parametrize("draft", ["2020-12/schema", "2019-09/schema", "draft-07", "draft-04"])
def test_a_draft_that_a_subschema_names_changes_no_limit(draft):
    prefix = "http://json-schema.org/" if draft.startswith("draft") else "https://json-schema.org/draft/"
    inner = {"$schema": f"{prefix}{draft}", "pattern": "(a|aa)+$", "multipleOf": 0.01}
    assert "could not be checked" in check({"items": inner}, ["a" * 60 + "b"])
    assert check({"items": inner}, [19.99]) is None
    assert "could not be checked" in check({"anyOf": [inner]}, "a" * 60 + "b")


def chain(levels, keyword, at):
    """Each level leads to the next by two ways."""
    defs = {f"d{level}": {keyword: [{"$ref": f"#/$defs/d{level + 1}"}] * 2} for level in range(levels)}
    defs[f"d{levels}"] = {"type": "string"}
    return {"$ref": "#/$defs/d0"} if at == "a" else {"items": {"$ref": "#/$defs/d0"}}, defs


@pytest.mark.parametrize("keyword", ["anyOf", "allOf", "oneOf"])
@pytest.mark.parametrize("levels", [10, 14, 26, 60])
@pytest.mark.parametrize("at", ["a", "items"])
def test_schemas_that_double_at_each_level(keyword, levels, at):
    schema, defs = chain(levels, keyword, at)
    check(schema, 3 if at == "a" else [3] * 1000, **{"$defs": defs})


EQUAL_HASHES = [k * (2**61 - 1) for k in range(1, 30_000)]
OBJECTS = [{"k": number, "l": [number]} for number in range(6000)]
BIG = ["x" * 20] * 50_000


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"uniqueItems": True}, OBJECTS),
        ({"uniqueItems": True}, EQUAL_HASHES),
        ({"uniqueItems": True}, [[number] for number in EQUAL_HASHES]),
        ({"uniqueItems": True}, [float(number) for number in range(100_000)]),
        ({"enum": list(range(20_000))}, 3.5),
        ({"items": {"enum": [f"v{n}" for n in range(15_000)]}}, BIG),
        ({"items": {"properties": {f"p{n}": {} for n in range(10_000)}}}, [{}] * 50_000),
        ({"items": {"required": [f"p{n}" for n in range(10_000)]}}, [{}] * 20_000),
        ({"items": {"type": "integer"}}, BIG),
        ({"anyOf": [{"items": {"type": "integer"}}, {"items": {"type": "null"}}]}, BIG),
        ({"contains": {"type": "integer"}, "minContains": 2}, BIG),
        ({"items": {"contains": {"const": 1}}}, [[0] * 100] * 5000),
        ({"patternProperties": {f"^{n}.*x$": {} for n in range(5000)}}, {str(n): 1 for n in range(5000)}),
        ({"unevaluatedItems": False, "anyOf": [{"prefixItems": [{}] * 100}] * 50}, BIG),
        (
            {"unevaluatedProperties": False, "allOf": [{"properties": {"x": {}}}] * 500},
            {f"k{n}": 1 for n in range(5000)},
        ),
        ({"dependentRequired": {f"k{n}": ["z"] * 10 for n in range(2000)}}, {f"k{n}": 1 for n in range(2000)}),
        ({"multipleOf": 1e-300}, 1e308),
        ({"items": {"multipleOf": 0.01}}, [1.015] * 50_000),
        ({"items": {"format": "email"}}, ["@" * 50] * 50_000),
        ({"format": "ipv6"}, ":" * 500_000),
        ({"format": "date"}, "9" * 500_000),
        ({"const": [[[[1]]]] * 1000}, [[[[1]]]] * 1000),
        ({"propertyNames": {"minLength": 3}}, {str(n): 1 for n in range(50_000)}),
        ({"pattern": "^a*$"}, "a" * 500_000),
        ({"maxLength": 1}, "x" * 5_000_000),
    ],
    ids=range(25),
)
def test_what_a_policy_writes_is_checked_or_given_up_in_bounded_time(schema, value):
    check(schema, value)


def test_ordinary_large_arguments_are_checked_to_the_end(monkeypatch):
    monkeypatch.setattr(json_schema, "MAX_SECONDS", 30.0)  # a slow machine
    assert check({"items": {"type": "string"}}, BIG) is None
    assert check({"items": {"type": "object", "properties": {"k": {"type": "integer"}}}}, OBJECTS) is None
    assert "`a[5]`" in check({"items": {"type": "string"}}, [*["x"] * 5, 7])
    assert "equal" in str([error.message for error in make_validator('{"uniqueItems": true}').iter_errors([1, 1.0])])


WIDE = {f"d{n}": {"type": "string", "description": "x" * 20} for n in range(1000)}


@pytest.mark.parametrize(
    ("schema", "more"),
    [
        ({"allOf": [{"$ref": "#/$defs/big"}] * 3000}, {"$defs": {"big": {"properties": WIDE}}}),
        ({"allOf": [{"$ref": "#x"}] * 2000}, {"$defs": {**WIDE, "t": {"$anchor": "x"}}}),
        ({"anyOf": [{"$ref": f"#/$defs/d{n}"} for n in range(1000)]}, {"$defs": WIDE}),
        ({"required": [{}] * 20_000}, {}),
        ({"required": ["x", *map(str, range(20_000)), "x"]}, {}),
        ({"enum": [{"k": n} for n in range(10_000)]}, {}),
        ({"anyOf": [{}] * 40_000}, {}),
        ({"properties": {f"p{n}": {"pattern": f"^{n}$"} for n in range(3000)}}, {}),
        ({"description": "x" * MAX_CHARACTERS}, {}),
        ({"$ref": "#" + "/x" * 50_000}, {}),
        ({"$ref": "#/$defs/" + "~1" * 50_000}, {}),
        ({"$id": "http://x/" + "y" * 50_000, "$ref": "z"}, {}),
        ({"type": ["string"] * 20_000}, {}),
        ({"dependentRequired": {str(n): [str(n)] for n in range(5000)}}, {}),
    ],
    ids=range(14),
)
def test_a_schema_of_any_size_is_taken_or_refused_in_bounded_time(schema, more):
    check(schema, {"p1": "x"}, **more)


BROKEN = [
    {"$dynamicRef": "http://elsewhere/x"},
    {"$dynamicRef": "#nowhere"},
    {"$dynamicRef": "#/properties/a"},
    {"$ref": "http://[", "$id": "http://]"},
    {"$id": "http://x/", "$ref": "#y"},
    {"$id": "//", "$ref": "x"},
    {"$id": "urn:x", "$ref": "urn:y"},
    {"$anchor": "x", "$ref": "#x"},
    {"$ref": "file:///etc/passwd"},
    {"$ref": "#/properties/a/$ref"},
    {"$ref": "#/properties/b/0"},
    {"$ref": "%"},
    {"$ref": "#%ff"},
    {"$ref": "\ud800"},
    {"$schema": "http://json-schema.org/draft-04/schema#", "exclusiveMinimum": True},
    {"$schema": "x", "$vocabulary": {"y": True}, "$recursiveRef": "#"},
    {"$defs": {"x": 3}, "$ref": "#/$defs/x"},
    {"$defs": {"x": {"$dynamicAnchor": "y"}}, "$dynamicRef": "#y"},
    {"type": "x"},
    {"type": []},
    {"properties": []},
    {"items": [{}]},
    {"minimum": "1"},
    {"minimum": 10**400},
    {"multipleOf": 0},
    {"maxLength": 1e300},
    {"maxItems": 10**30},
    {"enum": 3},
    {"format": ["x"]},
    {"format": "regex", "const": "("},
    {"format": "idn-hostname"},
    {"patternProperties": {"(": {}}},
    {"propertyNames": {"pattern": "("}},
    {"contentSchema": {"$ref": "#/nowhere"}},
    {"if": {"$ref": "#"}, "then": False},
    {"not": {"$ref": "#/properties/a"}},
    {"unevaluatedProperties": {"$ref": "#/properties/a"}},
    {"items": {"$ref": "#/properties/a"}, "unevaluatedItems": False},
    {"additionalProperties": {"$ref": "#"}, "unevaluatedProperties": False},
    {"prefixItems": [{"$ref": "#/properties/a"}], "contains": {"$ref": "#/properties/a"}},
    {"nullable": "x", "discriminator": 3, "": 1},
    True,
    False,
]
VALUES = [
    None,
    True,
    0,
    -1.5,
    10**300,
    "",
    "x" * 100,
    "\ud800",
    [],
    [[[[]]]],
    [1, 1.0],
    {},
    {"a": {"a": {}}},
    {"": None},
]


@pytest.mark.parametrize("schema", BROKEN, ids=range(len(BROKEN)))
def test_a_schema_with_any_keyword_is_refused_with_its_place_or_checks_every_value(schema, caplog):
    refused = [message for value in VALUES if (message := check(schema, value) or "").startswith("refused")]
    assert refused in ([], refused[:1] * len(VALUES))
    assert all("tool 'f': " in message and "\n" not in message for message in refused)
    assert "Traceback" not in caplog.text


def test_a_schema_is_read_and_a_call_checked_about_as_fast_as_before():
    schema = tool({"type": "string", "pattern": "^x+$"}, required=["a"])
    began = time.perf_counter()
    for number in range(100):
        make_validator(json.dumps({**schema["parameters"], "title": str(number)}))
    assert (time.perf_counter() - began) / 100 < 0.05
    began = time.perf_counter()
    for _ in range(1000):
        check_call(ToolCall("f", {"a": "xxx"}), [schema])
    assert (time.perf_counter() - began) / 1000 < 0.003


def test_a_class_that_looks_like_a_nested_one_gives_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check({"type": "string", "pattern": "^[[a-z&&--]+$"}, "[a") is None
