"""Checks a tool call against its tool's JSON schema (Draft 2020-12), with messages that a policy can act on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fission_grpo.core.json_io import quoted
from fission_grpo.core.json_schema import FORMATS, cut, is_nullable, make_validator, schema_text
from fission_grpo.core.patterns import CannotBeChecked
from fission_grpo.core.terminal import get_logger, warn_once
from fission_grpo.core.types import ErrorKind, ToolCall, ToolResult

_log = get_logger(__name__)

MAX_LISTED = 30  # options in a message [ours]; longer lists are left out, as a part would hint at the answer
_READABLE_PATTERNS = {  # usual patterns of dates and times, without anchors
    r"\d{4}-\d{2}-\d{2}": "YYYY-MM-DD",
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}": "YYYY-MM-DD",
    r"\d{2}:\d{2}": "HH:MM",
    r"[0-9]{2}:[0-9]{2}": "HH:MM",
    r"\d{2}/\d{2}/\d{4}": "NN/NN/YYYY",
}
_READABLE_FORMATS = {"date": "YYYY-MM-DD", "email": "name@host", "uuid": "a UUID", "ipv4": "n.n.n.n"}
_READABLE_TYPES = {"integer": "an integer", "array": "an array", "object": "an object", "null": "null"}
_READABLE_BOUNDS = {
    "minimum": "must be at least {}",
    "maximum": "must be at most {}",
    "exclusiveMinimum": "must be more than {}",
    "exclusiveMaximum": "must be less than {}",
    "multipleOf": "must be a multiple of {}",
    "minLength": "must have at least {} characters",
    "maxLength": "must have at most {} characters",
    "minItems": "must have at least {} items",
    "maxItems": "must have at most {} items",
}
# keywords that may allow arguments beyond `properties`; such schemas are left to jsonschema alone
_EXTRA_ALLOWED = {"unevaluatedProperties", "patternProperties", "$ref", "allOf", "anyOf", "oneOf"}


@dataclass(frozen=True)
class Problem:
    """What is wrong with a call."""

    kind: ErrorKind  # UNKNOWN_TOOL or BAD_ARGUMENTS
    message: str  # for the policy; derived from the call and the schemas only
    parameter: str | None = None  # the top-level parameter concerned


def check_call(call: ToolCall, tools: Sequence[Mapping[str, Any]]) -> Problem | None:
    """What is wrong with a call, None if it is valid. Never raises for a call, whatever its arguments.

    An argument missing from `properties` is an error unless the schema allows further ones
    (`additionalProperties`, `patternProperties`, a combining keyword): models invent arguments, and few schemas
    forbid them explicitly. Of several problems, one is reported: an unexpected argument, else a missing one, else
    the first by path. `nullable: true` (as transformers' `get_json_schema` writes) allows null.

    Tools are `{"name", "description", "parameters"}`, or OpenAI's `{"type": "function", "function": {...}}`. If the
    called tool's schema is invalid, ValueError is raised (see `check_tool_schema`).
    """
    functions = [_function(tool) for tool in tools]
    called = next((function for function in functions if function.get("name") == call.name), None)
    if called is None:
        available = _listing("; available: ", [str(function.get("name")) for function in functions])
        return Problem(ErrorKind.UNKNOWN_TOOL, f"unknown tool {quoted(call.name)}{available}")
    return _check_arguments(dict(call.arguments), parameter_schema(called))


def _check_arguments(arguments: dict[str, Any], schema: Mapping[str, Any]) -> Problem | None:
    unexpected = _unexpected(arguments, schema)
    if unexpected is not None:
        allowed = _listing("; allowed: ", [f"`{name}`" for name in schema["properties"]])
        message = f"unexpected argument `{_short(unexpected)}`{allowed}"
        return Problem(ErrorKind.BAD_ARGUMENTS, message, unexpected)
    text = schema_text(schema)
    try:
        validator = make_validator(text)
        errors = [error for error in validator.iter_errors(arguments) if not is_nullable(error)]
        problems = sorted(_explain(error) for error in errors)
    except CannotBeChecked as error:
        message = str(error)
        warn_once(_log, f"calls are refused because {message}")
    except RecursionError:
        message = "the arguments are nested too deeply"
    except ValueError:
        raise  # the schema is wrong
    except Exception as error:  # noqa: BLE001 - a fault of the checker must not end a training run; logged
        _log.warning("a call could not be checked against its schema: %s", quoted(str(error)), exc_info=True)
        message = "the arguments could not be checked against the schema"
    else:
        if not problems:
            return None
        _, path, message = problems[0]
        return Problem(ErrorKind.BAD_ARGUMENTS, message, path[0] if path else None)
    return Problem(ErrorKind.BAD_ARGUMENTS, message)


def classify_call(
    call: ToolCall, result: ToolResult | None, tools: Sequence[Mapping[str, Any]] | None
) -> Problem | None:
    """What is wrong with a call: what its result reports, or, if it was never executed, what its schema forbids.

    A call that was executed without an error is right even where its schema forbids it, as the environment accepted
    it. Of a call that failed, the schema decides the kind of error and the environment gives the message. With
    `tools=None` the call is not checked against a schema. Raises ValueError as `check_call` does.

    Example:
        A call of a tool that does not exist, answered "{'error': 'no such tool'}": kind unknown_tool, "no such tool".
    """
    if result is not None and result.error is None:
        return None
    problem = check_call(call, tools) if tools is not None else None
    if result is None or result.error is None:
        return problem
    return replace(problem, message=result.error) if problem else Problem(ErrorKind.RAISED, result.error)


def check_tool_schema(tool: Mapping[str, Any]) -> None:
    """Check that a tool has a name and a valid schema of an object. Raises ValueError, naming the place in it."""
    if not isinstance(tool, Mapping):
        raise ValueError(f"a tool must be a mapping with a `name`, got {quoted(tool)}")
    function = _function(tool)
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise ValueError(f"a tool's `name` must be a non-empty string, got {quoted(name)}")
    schema = {} if function.get("parameters") is None else function["parameters"]
    if not isinstance(schema, Mapping):
        raise ValueError(f"tool {name!r}: `parameters` must be a JSON schema (a mapping), got {quoted(schema)}")
    if schema.get("type", "object") != "object":
        raise ValueError(f"tool {name!r}: `parameters` must have type 'object', got {quoted(schema['type'])}")
    try:
        make_validator(schema_text(schema))
    except ValueError as error:
        raise ValueError(f"tool {name!r}: {error}") from None


def tool_names(tools: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of tools in either form, in order."""
    return [str(_function(tool).get("name")) for tool in tools]


def parameter_schema(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """The JSON schema of a tool's parameters. A tool without `parameters` takes none, as in OpenAI's API."""
    return _function(tool).get("parameters") or {"type": "object", "properties": {}}


def _function(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = tool.get("function")
    return inner if isinstance(inner, Mapping) else tool


def _unexpected(arguments: Mapping[str, Any], schema: Mapping[str, Any]) -> str | None:
    """The first argument that the schema does not mention, if it has to mention all."""
    allows_extra = schema.get("additionalProperties", False) is not False or schema.keys() & _EXTRA_ALLOWED
    if "properties" not in schema or allows_extra:
        return None
    return next((name for name in arguments if name not in schema["properties"]), None)


def _explain(error: Any) -> tuple[int, list[str], str]:
    """A jsonschema error as (rank, path, message); the one to report sorts first."""
    path = [str(part) for part in error.absolute_path]
    where = f"`{_short(_dotted(error.absolute_path))}`" if path else "the arguments"
    got = f", got {quoted(error.instance)}"
    if error.validator == "required":
        name = next(name for name in error.validator_value if error.message.startswith(f"{name!r} is a required"))
        text = f"missing required argument `{name}`" if not path else f"{where} lacks the required field `{name}`"
        return 0, [*path, name], text
    schema = error.schema if isinstance(error.schema, dict) else {}
    return 1, path, f"{where} {_demand(error.validator, error.validator_value, schema)}{got}"


def _demand(keyword: str, value: Any, schema: Mapping[str, Any]) -> str:
    """What a keyword of a schema demands, as the predicate of a sentence."""
    shape = _shape(schema)
    if shape and keyword in ("type", "pattern", "format"):
        return f"must match {shape}"
    if keyword == "type":
        types = [value] if isinstance(value, str) else value
        return "must be " + " or ".join(_READABLE_TYPES.get(name, f"a {name}") for name in types)
    if keyword in ("enum", "const"):
        options = [value] if keyword == "const" else value
        listed = ", ".join(option if isinstance(option, str) else quoted(option) for option in options)
        return f"must be one of {listed}" if len(options) <= MAX_LISTED else "is not one of the allowed values"
    if keyword in _READABLE_BOUNDS:
        return _READABLE_BOUNDS[keyword].format(value)
    if keyword in ("anyOf", "oneOf"):
        return "fits none of the forms its schema allows"
    return f"violates `{keyword}` of its schema"


def _shape(schema: Mapping[str, Any]) -> str | None:
    """The form that `pattern` or `format` demands of a string, None without them."""
    pattern = schema.get("pattern")
    if pattern is not None:
        return _READABLE_PATTERNS.get(pattern.removeprefix("^").removesuffix("$"), f"the pattern {cut(pattern)}")
    name = schema.get("format")
    return _READABLE_FORMATS.get(name, name) if name in FORMATS else None


def _dotted(path: Sequence[str | int]) -> str:
    """A path as text. Example: ["a", "b", 0] is "a.b[0]"."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def _listing(before: str, names: Sequence[str]) -> str:
    return before + ", ".join(names) if 0 < len(names) <= MAX_LISTED else ""


def _short(name: str) -> str:
    """A name from a model's text, printable and cut."""
    return quoted(name)[1:-1] if len(name) <= 40 else quoted(name[:40])[1:-1] + "..."
