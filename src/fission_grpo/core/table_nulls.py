"""Leaves out the nulls that Arrow adds to calls and schemas in tables, where every row has the fields of all rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fission_grpo.core.json_io import walk_json
from fission_grpo.core.tool_schema import check_call, parameter_schema, tool_names
from fission_grpo.core.types import ToolCall

MAX_REFERENCES = 8  # `$ref`s and combinations followed one after another [ours]


def without_padding(call: ToolCall, tools: Sequence[Mapping[str, Any]], is_padded: bool = False) -> ToolCall:
    """The call without the null arguments that Arrow's tables add, where every row has the fields of all rows.

    A call that is valid with its nulls keeps them, unless it `is_padded` for certain. Required arguments are kept.
    """
    if not any(value is None for _, value in walk_json(call.arguments)):
        return call
    schema = next((parameter_schema(tool) for tool in tools if tool_names([tool]) == [call.name]), None)
    is_valid = schema is None or check_call(call, tools) is None
    if is_valid and not is_padded:
        return call
    schema = schema or {}
    stripped = ToolCall(call.name, _strip_nulls(dict(call.arguments), schema, schema))
    return call if is_valid and schema and check_call(stripped, tools) is not None else stripped


def _strip_nulls(value: Any, schema: Mapping[str, Any], root: Mapping[str, Any]) -> Any:
    parts = list(_parts(schema, root))
    if isinstance(value, list):
        items: dict[str, Any] = {"allOf": [part["items"] for part in parts if isinstance(part.get("items"), Mapping)]}
        return [_strip_nulls(item, items, root) for item in value]
    if not isinstance(value, Mapping):
        return value
    required = {name for part in parts for name in _items(part.get("required")) if isinstance(name, str)}
    properties = [part["properties"] for part in parts if isinstance(part.get("properties"), Mapping)]
    inner = {key: {"allOf": [one[key] for one in properties if isinstance(one.get(key), Mapping)]} for key in value}
    return {
        key: _strip_nulls(item, inner[key], root) for key, item in value.items() if item is not None or key in required
    }


def without_schema_nulls(value: Any) -> Any:
    """A schema without the fields that are null, which Arrow adds; a default of null stays where null is allowed."""
    if isinstance(value, list):
        return [without_schema_nulls(item) for item in value]
    if not isinstance(value, dict):
        return value
    options = value.get("anyOf")
    options = [value, *options] if isinstance(options, list) else [value]
    kinds = [option.get("type") for option in options if isinstance(option, dict)]
    is_nullable = any(kind == "null" or (isinstance(kind, list) and "null" in kind) for kind in kinds)
    kept = {key: item for key, item in value.items() if item is not None or (key == "default" and is_nullable)}
    stripped = {key: without_schema_nulls(item) for key, item in kept.items()}
    given = kept.get("properties")
    if isinstance(given, dict):  # a struct of nulls alone is one of another tool's parameters
        empty = {name for name, item in given.items() if item and not stripped["properties"].get(name)}
        for name in empty - set(map(str, _items(stripped.get("required")))):
            stripped["properties"].pop(name, None)
    return stripped


def _items(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else ()


def _parts(schema: Any, root: Mapping[str, Any], depth: int = 0) -> Iterator[Mapping[str, Any]]:
    """A schema with those that it combines or refers to, to a depth at which circles have ended."""
    if not isinstance(schema, Mapping) or depth > MAX_REFERENCES:
        return
    yield schema
    for key in ("allOf", "anyOf", "oneOf"):
        for option in _items(schema.get(key)):
            yield from _parts(option, root, depth + 1)
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#/"):
        target: Any = root
        for step in reference[2:].split("/"):
            target = target.get(step) if isinstance(target, Mapping) else None
        yield from _parts(target, root, depth + 1)
