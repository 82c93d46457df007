"""Tool lists of data sets as JSON schemas, from JSON's types or Python's ("str, optional", "List[int]")."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fission_grpo.core.json_io import NESTED_TOO_DEEPLY, problem_in, walk_json
from fission_grpo.core.serialization import faithful
from fission_grpo.core.table_nulls import without_schema_nulls
from fission_grpo.core.tool_schema import check_tool_schema
from fission_grpo.data.convert.dialogues import RowDropped, decoded

TOO_DEEP = "the tools are nested too deeply"
_JSON_TYPES = {"string", "integer", "number", "boolean", "array", "object", "null"}
_TYPES = {name: name for name in _JSON_TYPES}
_TYPES |= {"str": "string", "int": "integer", "float": "number", "bool": "boolean", "dict": "object", "none": "null"}
_TYPES |= {"list": "array", "tuple": "array", "set": "array"}


def tools_of(listed: Any) -> tuple[Mapping[str, Any], ...]:
    """Tools as `{"name", "description", "parameters"}`, also from OpenAI's, Anthropic's, MCP's. Raises RowDropped."""
    if not isinstance(listed, list) or not all(isinstance(tool, dict) for tool in listed):
        raise RowDropped("the tools cannot be read")
    try:
        return checked_tools([_tool_of(entry) for entry in listed])
    except RecursionError:
        raise RowDropped(TOO_DEEP) from None


def _tool_of(entry: Mapping[str, Any]) -> dict[str, Any]:
    tool = entry["function"] if isinstance(entry.get("function"), dict) else entry
    given = (tool.get(key) for key in ("parameters", "input_schema", "inputSchema"))
    parameters = parameters_of(next((value for value in given if value is not None), None))
    return {"name": tool.get("name"), "description": str(tool.get("description") or ""), "parameters": parameters}


def checked_tools(tools: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    """The tools, if their schemas are valid and their names unique. Raises RowDropped."""
    for tool in tools:
        try:
            check_tool_schema(tool)
        except ValueError as error:
            raise RowDropped("a tool's parameters cannot be read") from error
    if faithful(list(tools)) is None:  # a schema may be so deep that it cannot be written again
        raise RowDropped(TOO_DEEP)
    if len({tool["name"] for tool in tools}) < len(tools):
        raise RowDropped("two tools have the same name")
    return tuple(tools)


def json_schema(declared: Any) -> dict[str, Any]:
    """The JSON schema of a type, {} (any value) for an unknown one [ours]. ", optional" allows null.

    Example: "List[int]" is `{"type": "array", "items": {"type": "integer"}}`.
    """
    if isinstance(declared, list):
        return _any_of([json_schema(option) for option in declared])
    if not isinstance(declared, str):
        return {}
    text = declared.strip()
    if text.endswith("optional"):
        return _any_of([json_schema(text.removesuffix("optional").rstrip(" ,")), {"type": "null"}])
    head, _, inner = text.partition("[")
    kind = head.strip().lower()
    parts = [part.strip() for part in _split(inner[:-1])] if inner.endswith("]") else []
    if kind == "union":
        return _any_of([json_schema(part) for part in parts])
    if kind == "optional":
        return _any_of([*map(json_schema, parts), {"type": "null"}])
    if kind not in _TYPES:
        return {}
    items = json_schema(parts[0]) if kind in ("list", "array", "set") and len(parts) == 1 else {}
    return {"type": _TYPES[kind], **({"items": items} if items else {})}


def _any_of(options: Sequence[dict[str, Any]]) -> dict[str, Any]:
    if {} in options:
        return {}
    if all(option.keys() == {"type"} and isinstance(option["type"], str) for option in options):
        types = list(dict.fromkeys(option["type"] for option in options))
        return {"type": types[0] if len(types) == 1 else types}
    return {"anyOf": list(options)}


def _split(text: str) -> list[str]:
    """Split at the commas outside of brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter == "[") - (letter == "]")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def parameters_of(given: Any) -> dict[str, Any]:
    """The schema of a tool's parameters, given as one or as a mapping of names to schemas, or as JSON text.

    A valid JSON schema stays as it is. Nulls that Arrow adds are left out, and other types become JSON's. Raises
    RowDropped.
    """
    given = decoded(given, "a tool's parameters") or {"type": "object", "properties": {}}
    if not isinstance(given, dict):
        raise RowDropped("a tool's parameters cannot be read")
    if problem_in(given) == NESTED_TOO_DEEPLY:  # Python's own limit differs between versions
        raise RowDropped(TOO_DEEP)
    if is_schema(given):
        stripped = without_schema_nulls(given)
        whole = stripped if _has_null_constant(given) else given
        candidates = (whole, stripped, _schema(stripped), _schema(stripped, ("description", "enum", "default")))
        return next((schema for schema in candidates if _is_valid(schema)), candidates[-1])
    given = without_schema_nulls(given)
    properties = {name: _schema(item) for name, item in given.items()}
    mandatory = {name: item for name, item in given.items() if isinstance(item, dict) and "default" not in item}
    types = {name: str(item.get("type", "")).replace(" ", "") for name, item in mandatory.items()}
    required = [name for name, declared in types.items() if not declared.endswith(",optional")]
    return {"type": "object", "properties": properties, "required": required}


def is_schema(given: Mapping[str, Any]) -> bool:
    """Whether a mapping is a schema, not one from names of parameters, as "properties" or "type" may be."""
    if isinstance(given.get("type"), str | list):
        return True
    properties = given.get("properties")
    if isinstance(properties, dict) and all(isinstance(item, dict | bool | None) for item in properties.values()):
        return True
    return any(isinstance(given.get(key), str | list) for key in ("$ref", "anyOf", "oneOf", "allOf", "required"))


def _has_null_constant(schema: Any) -> bool:
    """Whether a schema demands null of a value with another type, as it does only where Arrow added the constant."""
    nodes = [node for _, node in walk_json(schema) if isinstance(node, dict)]
    return any(node.get("const", 0) is None and node.get("type", "null") != "null" for node in nodes)


def _is_valid(schema: Mapping[str, Any]) -> bool:
    try:
        check_tool_schema({"name": "tool", "parameters": schema})
    except ValueError:
        return False
    return True


def _is_valid_alone(key: str, value: Any) -> bool:
    """Whether a keyword is valid for itself; the usual ones are decided without a validator, which takes a while."""
    if key in ("description", "enum"):
        return isinstance(value, str) if key == "description" else isinstance(value, list) and bool(value)
    return key in ("default", "$ref") or _is_valid({"properties": {"x": {key: value}}})


_PARTS = ("properties", "required", "type", "items")
_NAMED, _LISTED = ("$defs", "definitions", "patternProperties"), ("anyOf", "oneOf", "allOf")


def _schema(given: Any, keywords: Sequence[str] | None = None) -> dict[str, Any]:
    """The schema with JSON's types on every level, and its other keywords as far as each of them is valid alone.

    With `keywords`, only these are kept, which data sets use consistently. [ours]
    """
    if not isinstance(given, dict):
        return {}
    schema: dict[str, Any] = {}
    for key, value in given.items():
        if keywords is not None and key not in keywords:
            continue
        if key in _NAMED and isinstance(value, dict):
            schema[key] = {name: _schema(item) for name, item in value.items()}
        elif key in _LISTED and isinstance(value, list):
            schema[key] = [_schema(item) for item in value]
        elif key not in _PARTS and _is_valid_alone(key, value):
            schema[key] = value
    properties = given.get("properties")
    if isinstance(properties, dict) or given.get("type") in ("object", "dict"):
        properties = properties if isinstance(properties, dict) else {}
        schema["type"] = "object"
        if properties:
            schema["properties"] = {str(name): _schema(value, keywords) for name, value in properties.items()}
        if isinstance(given.get("required"), list):
            schema["required"] = [name for name in given["required"] if isinstance(name, str) and name in properties]
    elif not given.keys() & {"anyOf", "oneOf", "allOf", "$ref"}:
        schema |= json_schema(given.get("type"))
        if isinstance(given.get("items"), dict) and schema.get("type") == "array":
            schema["items"] = _schema(given["items"], keywords)
    return schema
