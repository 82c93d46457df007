"""Tool lists of data sets as JSON schemas, from JSON's types or Python's ("str, optional", "List[int]")."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fission_grpo.core.tool_schema import check_tool_schema
from fission_grpo.data.convert.dialogues import RowDropped, decoded

_JSON_TYPES = {"string", "integer", "number", "boolean", "array", "object", "null"}
_TYPES = {name: name for name in _JSON_TYPES}
_TYPES |= {"str": "string", "int": "integer", "float": "number", "bool": "boolean", "dict": "object", "none": "null"}
_TYPES |= {"list": "array", "tuple": "array", "set": "array"}


def tools_of(listed: Any) -> tuple[Mapping[str, Any], ...]:
    """Tools as `{"name", "description", "parameters"}`, from that form or OpenAI's. Raises RowDropped."""
    if not isinstance(listed, list) or not all(isinstance(tool, dict) for tool in listed):
        raise RowDropped("the tools cannot be read")
    tools = []
    for entry in listed:
        tool = entry["function"] if isinstance(entry.get("function"), dict) else entry
        description = str(tool.get("description") or "")
        parameters = _parameters(tool.get("parameters"))
        tools.append({"name": tool.get("name"), "description": description, "parameters": parameters})
    return checked_tools(tools)


def checked_tools(tools: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    """The tools, if their schemas are valid and their names unique. Raises RowDropped."""
    for tool in tools:
        try:
            check_tool_schema(tool)
        except ValueError as error:
            raise RowDropped("a tool's parameters cannot be read") from error
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


def _parameters(given: Any) -> dict[str, Any]:
    """The schema of a tool's parameters, given as one or as a mapping of names to schemas, or as JSON text."""
    given = decoded(given, "a tool's parameters") or {"type": "object", "properties": {}}
    if not isinstance(given, dict):
        raise RowDropped("a tool's parameters cannot be read")
    if isinstance(given.get("properties"), dict) or given.get("type") in ("object", "dict"):
        return _schema(given)
    properties = {name: _schema(item) for name, item in given.items()}
    mandatory = {name: item for name, item in given.items() if isinstance(item, dict) and "default" not in item}
    types = {name: str(item.get("type", "")).replace(" ", "") for name, item in mandatory.items()}
    required = [name for name, declared in types.items() if not declared.endswith(",optional")]
    return {"type": "object", "properties": properties, "required": required}


def _schema(given: Any) -> dict[str, Any]:
    """The schema with JSON's types on every level. Only keywords that data sets use consistently are kept. [ours]"""
    if not isinstance(given, dict):
        return {}
    schema = {key: given[key] for key in given if key in ("description", "enum", "default") and given[key] is not None}
    if "enum" in schema and not (isinstance(schema["enum"], list) and schema["enum"]):
        del schema["enum"]
    properties = given.get("properties")
    if isinstance(properties, dict) or given.get("type") in ("object", "dict"):
        properties = properties if isinstance(properties, dict) else {}
        schema["type"] = "object"
        if properties:
            schema["properties"] = {str(name): _schema(value) for name, value in properties.items()}
        if isinstance(given.get("required"), list):
            schema["required"] = [str(name) for name in given["required"] if name in properties]
    elif not given.keys() & {"anyOf", "oneOf", "allOf", "$ref"}:
        schema |= json_schema(given.get("type"))
        if isinstance(given.get("items"), dict) and schema.get("type") == "array":
            schema["items"] = _schema(given["items"])
    return schema
