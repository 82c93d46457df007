"""Calls against their tools' schemas: the message names the parameter, the demand and what was given."""

import pytest

from fission_grpo.core.tool_schema import check_call, check_tool_schema, tool_names
from fission_grpo.core.types import ErrorKind, ToolCall

WEATHER = {
    "name": "get_weather",
    "description": "",
    "parameters": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "minLength": 2},
            "date": {"type": "string", "pattern": r"^\d{4}-\d{2}-\d{2}$"},
            "until": {"type": "string", "format": "date"},
            "units": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            "days": {"type": "integer", "minimum": 1, "nullable": True},
            "where": {
                "type": "object",
                "properties": {"tags": {"type": "array", "items": {"type": ["integer", "null"]}}},
                "required": ["tags"],
            },
        },
        "required": ["city"],
    },
}
NOW = {"type": "function", "function": {"name": "now"}}
TOOLS = (WEATHER, NOW)


def message(name: str, **arguments) -> str | None:
    problem = check_call(ToolCall(name, arguments), TOOLS)
    return problem.message if problem else None


def test_valid_calls_have_no_problem_in_either_form_of_tool():
    assert message("get_weather", city="Rome", units="celsius", days=3, where={"tags": [1, None]}) is None
    assert message("now") is None


def test_an_unknown_tool_is_answered_with_the_list_of_tools():
    problem = check_call(ToolCall("get_wether"), TOOLS)
    assert problem.kind == ErrorKind.UNKNOWN_TOOL
    assert problem.message == "unknown tool 'get_wether'; available: get_weather, now"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, "missing required argument `city`"),
        ({"town": "Rome"}, "unexpected argument `town`; allowed: `city`, `date`, `until`, `units`, `days`, `where`"),
        ({"city": 3}, "`city` must be a string, got 3"),
        ({"city": "R"}, "`city` must have at least 2 characters, got 'R'"),
        ({"city": "Rome", "date": 1706745600}, "`date` must match YYYY-MM-DD, got 1706745600"),
        ({"city": "Rome", "date": "2 May"}, "`date` must match YYYY-MM-DD, got '2 May'"),
        ({"city": "Rome", "until": "2024-13-01"}, "`until` must match YYYY-MM-DD, got '2024-13-01'"),
        ({"city": "Rome", "units": "kelvin"}, "`units` must be one of celsius, fahrenheit, got 'kelvin'"),
        ({"city": "Rome", "days": 0}, "`days` must be at least 1, got 0"),
        ({"city": "Rome", "days": "3"}, "`days` must be an integer, got '3'"),
        ({"city": "Rome", "days": True}, "`days` must be an integer, got true"),
        ({"city": "Rome", "where": {}}, "`where` lacks the required field `tags`"),
        ({"city": "Rome", "where": {"tags": [1, "x"]}}, "`where.tags[1]` must be an integer or null, got 'x'"),
    ],
)
def test_the_message_names_parameter_demand_and_value(arguments, expected):
    problem = check_call(ToolCall("get_weather", arguments), TOOLS)
    assert (problem.kind, problem.message) == (ErrorKind.BAD_ARGUMENTS, expected)
    assert problem.parameter in (*arguments, "city")


def test_whole_floats_are_integers_and_null_passes_where_nullable():
    assert message("get_weather", city="Rome", days=3.0) is None
    assert message("get_weather", city="Rome", days=None) is None


def test_a_tool_without_parameters_takes_none():
    assert message("now", zone="UTC") == "unexpected argument `zone`"


def test_further_arguments_pass_only_where_the_schema_speaks_of_them():
    def problem(**keys):
        tool = {"name": "f", "parameters": {"type": "object", "properties": {"a": {}}, **keys}}
        return check_call(ToolCall("f", {"b": 1}), [tool])

    assert problem() is not None
    assert problem(additionalProperties=False) is not None
    assert problem(additionalProperties=True) is None
    assert problem(patternProperties={"b": {}}) is None
    assert check_call(ToolCall("f", {"b": 1}), [{"name": "f", "parameters": {"type": "object"}}]) is None


def test_the_unexpected_argument_is_reported_before_the_missing_one_before_the_rest():
    assert message("get_weather", days=0, town="x").startswith("unexpected argument `town`")
    assert message("get_weather", days=0) == "missing required argument `city`"


def test_long_lists_are_left_out_whole():
    options = [f"o{index}" for index in range(31)]
    tool = {"name": "f", "parameters": {"type": "object", "properties": {"a": {"enum": options}}}}
    assert check_call(ToolCall("f", {"a": "x"}), [tool]).message == "`a` is not one of the allowed values, got 'x'"
    many = [{"name": f"tool{index}"} for index in range(31)]
    assert check_call(ToolCall("f"), many).message == "unknown tool 'f'"


def test_hostile_values_are_problems_not_exceptions():
    nested: list = []
    for _ in range(100_000):
        nested = [nested]
    tool = {"name": "f", "parameters": {"type": "object", "properties": {"a": {"uniqueItems": True, "enum": [[[]]]}}}}
    assert check_call(ToolCall("f", {"a": nested}), [tool]) is not None
    loop = {"name": "f", "parameters": {"type": "object", "properties": {"a": {"$ref": "#/properties/a"}}}}
    with pytest.raises(ValueError, match="leads back to itself"):  # no fault of the call
        check_call(ToolCall("f", {"a": 1}), [loop])
    tree = {
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/T"}},
        "$defs": {"T": {"items": {"$ref": "#/$defs/T"}}},
    }
    deep = check_call(ToolCall("f", {"a": nested}), [{"name": "f", "parameters": tree}])
    assert deep.message == "the arguments are nested too deeply"
    multiple = {"name": "f", "parameters": {"type": "object", "properties": {"a": {"multipleOf": 0.01}}}}
    assert check_call(ToolCall("f", {"a": 10**400}), [multiple]) is None  # it is one
    assert check_call(ToolCall("f", {"\ud800\n" * 99: 1}), TOOLS[:1]) is not None


@pytest.mark.parametrize(
    ("tool", "match"),
    [
        ("ls", "a tool must be a mapping with a `name`, got 'ls'"),
        ({}, "a tool's `name` must be a non-empty string, got null"),
        ({"name": "f", "parameters": []}, "tool 'f': `parameters` must be a JSON schema"),
        (
            {"name": "f", "parameters": {"type": "string"}},
            "tool 'f': `parameters` must have type 'object', got 'string'",
        ),
        (
            {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "str"}}}},
            "tool 'f': `parameters.properties.a.type` is not valid JSON Schema",
        ),
        ({"name": "f", "parameters": {"properties": {"a": {"pattern": "("}}}}, "parameters.properties.a.pattern"),
        ({"name": "f", "parameters": {"properties": {"a": {"$ref": "#/$defs/b"}}}}, "points nowhere"),
        ({"name": "f", "parameters": {"properties": {"a": {"$ref": "http://a.b/c"}}}}, "points nowhere"),
        ({"name": "f", "parameters": {"properties": {"a": {"enum": {1, 2}}}}}, "is not JSON"),
    ],
)
def test_what_is_no_tool_schema_is_named(tool, match):
    with pytest.raises(ValueError, match=match.replace("(", r"\(").replace("$", r"\$").replace("[", r"\[")):
        check_tool_schema(tool)


def test_good_tools_pass_the_check():
    for tool in TOOLS:
        check_tool_schema(tool)
    assert tool_names(TOOLS) == ["get_weather", "now"]


def pattern_tool(**schema):
    return {"name": "f", "parameters": {"type": "object", "properties": {"a": schema}}}


@pytest.mark.parametrize(
    "pattern",
    [
        r"^\p{L}+$",
        r"^\P{Lu}*\p{Script=Greek}$",
        r"(?<year>\d{4})-\k<year>",
        r"^\u{1F600}$",
        r"\cA",
        r"(?<=a+)b",
        r"x(?i)y",
        r"[\w-x]",
        r"\p{L}(",
    ],
)
def test_patterns_of_other_dialects_are_taken_and_not_checked(pattern, caplog):
    tool = pattern_tool(type="string", pattern=pattern)
    check_tool_schema(tool)
    assert check_call(ToolCall("f", {"a": "anything"}), [tool]) is None
    assert check_call(ToolCall("f", {"a": 1}), [tool]).parameter == "a"
    assert "Python cannot compile it" in caplog.text
    named = {"name": "f", "parameters": {"type": "object", "patternProperties": {pattern: {"type": "string"}}}}
    named["parameters"] |= {"properties": {}, "additionalProperties": False}
    check_tool_schema(named)
    assert check_call(ToolCall("f", {"any name": 1}), [named]) is None


@pytest.mark.parametrize("pattern", ["(", "a)", "[a", "*a", "a**", "[z-a]", "a{3,2}", "\\"])
def test_patterns_of_no_dialect_are_refused(pattern):
    with pytest.raises(ValueError, match=r"parameters\.properties\.a\.pattern"):
        check_tool_schema(pattern_tool(pattern=pattern))


@pytest.mark.parametrize(
    "name", ["pattern", "properties", "type", "patternProperties", "required", "items", "$ref", "default"]
)
def test_a_parameter_may_be_called_as_a_keyword(name):
    tool = {
        "name": "f",
        "parameters": {"type": "object", "properties": {name: {"type": "string"}}, "required": [name]},
    }
    check_tool_schema(tool)
    assert check_call(ToolCall("f", {name: "x"}), [tool]) is None
    assert check_call(ToolCall("f", {name: 1}), [tool]).parameter == name


NULLABLE = {"anyOf": [{"type": "string"}, {"type": "null"}]}
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name"],
}
BOOK = {
    "name": "book",
    "parameters": {
        "type": "object",
        "$defs": {"Person": PERSON},
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "note": NULLABLE,
            "code": NULLABLE,
            "who": {"$ref": "#/$defs/Person"},
            "all": {"type": "array", "items": {"$ref": "#/$defs/Person"}},
        },
        "required": ["city", "code"],
    },
}


@pytest.mark.parametrize("is_padded", [False, True])
@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"city": "Oslo", "code": "x"}, {"city": "Oslo", "code": "x"}),
        ({"city": "Oslo", "code": "x", "to": None}, {"city": "Oslo", "code": "x"}),
        ({"city": "Oslo", "code": "x", "days": None}, {"city": "Oslo", "code": "x"}),
        ({"city": "Oslo", "code": None, "to": None}, {"city": "Oslo", "code": None}),
        ({"city": "Oslo", "code": None}, {"city": "Oslo", "code": None}),
        (
            {"city": "Oslo", "code": "x", "who": {"name": "Bo", "age": None}, "all": [{"name": "Al", "age": None}]},
            {"city": "Oslo", "code": "x", "who": {"name": "Bo"}, "all": [{"name": "Al"}]},
        ),
    ],
)
def test_nulls_that_a_table_adds_are_left_out(given, kept, is_padded):
    from fission_grpo.core.table_nulls import without_padding

    call = without_padding(ToolCall("book", given), [BOOK], is_padded)
    assert call.arguments == kept
    assert check_call(call, [BOOK]) is None


def test_a_null_that_the_schema_allows_stays_unless_the_call_is_padded_for_certain():
    from fission_grpo.core.table_nulls import without_padding

    call = ToolCall("book", {"city": "Oslo", "code": "x", "note": None})
    assert without_padding(call, [BOOK]) == call
    assert without_padding(call, [BOOK], is_padded=True).arguments == {"city": "Oslo", "code": "x"}
    assert without_padding(ToolCall("other", {"x": None}), [BOOK]).arguments == {"x": None}


DEFS = {"A": {"type": "string"}}


def object_schema(**more):
    return {"name": "find", "parameters": {"type": "object", **more}}


@pytest.fixture
def no_network(monkeypatch):
    """Every attempt to reach an address or to open a file by a URL fails the test."""
    import socket
    import urllib.request

    def refuse(*_, **__):
        raise AssertionError("something was fetched")

    for holder, name in ((socket.socket, "connect"), (socket, "getaddrinfo"), (urllib.request, "urlopen")):
        monkeypatch.setattr(holder, name, refuse)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"$id": "http://a/", "properties": {"x": {"$ref": "#/$defs/Gone"}}}, "'#/$defs/Gone' points nowhere"),
        ({"$id": "http://a/", "properties": {"x": {"$ref": "b.json"}}}, "'b.json' points nowhere"),
        (
            {"properties": {"x": {"$id": "http://a/b", "$ref": "#/$defs/A"}}, "$defs": DEFS},
            "'#/$defs/A' points nowhere",
        ),
        (
            {"properties": {"x": {"$id": "http://a/b", "items": {"items": {"$ref": "#/$defs/A"}}}}, "$defs": DEFS},
            "'#/$defs/A' points nowhere",
        ),
        ({"properties": {"x": {"$ref": "http://localhost:9/s.json"}}}, "never fetched"),
        ({"properties": {"x": {"$ref": "https://json-schema.org/draft/2020-12/schema"}}}, "never fetched"),
        ({"properties": {"x": {"$ref": "file:///etc/passwd"}}}, "never fetched"),
        ({"properties": {"x": {"$ref": "http://["}}}, "points nowhere"),
        ({"properties": {"x": {"$ref": "#gone"}}}, "'#gone' points nowhere"),
        ({"properties": {"x": {"$dynamicRef": "#gone"}}}, "`$dynamicRef` '#gone' points nowhere"),
        ({"properties": {"x": {"$dynamicRef": "http://b/#gone"}}}, "points nowhere"),
        ({"properties": {"x": {"$ref": "#/allOf/zz"}}, "allOf": [{}]}, "'#/allOf/zz' points nowhere"),
        ({"properties": {"x": {"$ref": "#/$defs/~2"}}}, "points nowhere"),
        ({"unevaluatedProperties": False, "properties": {"x": {"$ref": "#/$defs/Z"}}}, "points nowhere"),
        ({"properties": {"x": {"$ref": 1}}}, "parameters.properties.x.$ref"),
        ({"properties": {"x": {"$ref": "#/title"}}, "title": "t"}, "the target of `$ref` '#/title'"),
        ({"properties": {"x": {"$ref": "#/required"}}, "required": ["x"]}, "the target of `$ref` '#/required'"),
        (
            {"properties": {"x": {"$ref": "#/x-own"}}, "x-own": {"type": "strin"}},
            "the target of `$ref` '#/x-own'.type",
        ),
        (
            {"properties": {"x": {"$ref": "#/x-own"}}, "x-own": {"items": {"$ref": "#/gone"}}},
            "'#/gone' points nowhere",
        ),
        ({"properties": {"x": {"$ref": "#/properties/x"}}}, "leads back to itself"),
        ({"$ref": "#"}, "leads back to itself"),
        ({"properties": {"x": {"anyOf": [{"$ref": "#/properties/x"}, {}]}}}, "leads back to itself"),
        (
            {
                "properties": {"x": {"$ref": "#/$defs/A"}},
                "$defs": {"A": {"not": {"$ref": "#/$defs/B"}}, "B": {"$ref": "#/$defs/A"}},
            },
            "leads back to itself",
        ),
        ({"$id": 3}, "parameters.$id"),
        ({"properties": {"x": {"minimum": float("nan")}}}, "not JSON"),
        ({"required": "x"}, "parameters.required"),
        ({"properties": {"x": {"multipleOf": 0}}}, "parameters.properties.x.multipleOf"),
    ],
)
def test_a_schema_that_cannot_be_checked_is_refused_in_one_line_with_the_tool(more, said, no_network):
    with pytest.raises(ValueError, match="tool 'find': ") as error:
        check_tool_schema(object_schema(**more))
    assert said in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_schema_nested_beyond_all_use_is_refused():
    for depth in (200, 5000):
        schema: dict = {}
        for _ in range(depth):
            schema = {"properties": {"a": schema}}
        with pytest.raises(ValueError, match="tool 'find': "):
            check_tool_schema(object_schema(**schema))


@pytest.mark.parametrize(
    ("more", "right", "wrong"),
    [
        ({"$id": "http://a/", "properties": {"x": {"$ref": "#/$defs/A"}}, "$defs": DEFS}, "s", 1),
        ({"$id": "http://a/", "properties": {"x": {"$ref": "http://a/#/$defs/A"}}, "$defs": DEFS}, "s", 1),
        ({"properties": {"x": {"$id": "http://a/b", "$ref": "#/$defs/A", "$defs": DEFS}}}, "s", 1),
        ({"properties": {"x": {"$ref": "#a"}}, "$defs": {"A": {"$anchor": "a", "type": "string"}}}, "s", 1),
        ({"properties": {"x": {"$ref": "#/definitions/A"}}, "definitions": DEFS}, "s", 1),
        ({"properties": {"x": {"$ref": "#/x-own"}}, "x-own": {"type": "string"}}, "s", 1),
        (
            {
                "properties": {"x": {"$ref": "#/$defs/T"}},
                "$defs": {"T": {"type": "array", "items": {"$ref": "#/$defs/T"}}},
            },
            [[]],
            [1],
        ),
        ({"properties": {"x": {"enum": [{"$ref": "#/gone"}]}}}, {"$ref": "#/gone"}, 1),
        ({"properties": {"x": {"type": "object", "default": {"$ref": "#/gone"}}}}, {}, 1),
        ({"properties": {"x": {"type": "string"}, "$ref": {"type": "string"}}}, "s", 1),
    ],
)
def test_references_inside_the_schema_are_followed_by_the_ids_around_them(more, right, wrong, no_network):
    tool = object_schema(**more)
    check_tool_schema(tool)
    assert check_call(ToolCall("find", {"x": right}), [tool]) is None
    assert check_call(ToolCall("find", {"x": wrong}), [tool]).parameter == "x"


def test_a_fault_of_the_checker_is_logged_and_does_not_leave_it(monkeypatch, caplog):
    from fission_grpo.core import tool_schema

    class Broken:
        def iter_errors(self, _):
            raise AttributeError("a fault of the checker")

    monkeypatch.setattr(tool_schema, "make_validator", lambda _: Broken())
    problem = check_call(ToolCall("find", {"x": 1}), [object_schema(properties={"x": {}})])
    assert problem.message == "the arguments could not be checked against the schema"
    assert "a fault of the checker" in caplog.text
