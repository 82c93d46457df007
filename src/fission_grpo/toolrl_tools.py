"""The tool list in a ToolRL instruction, as JSON schemas. What is assumed is told in `toolrl`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fission_grpo.schema import check_tool_schema

_TOOL = re.compile(r"^\d+\. Name: (.*?)\nDescription: (.*?)\nParameters: (.*?)(?=\n\d+\. Name: |\Z)", re.M | re.S)
_TYPES = {
    "str": "string",
    "string": "string",
    "int": "integer",
    "integer": "integer",
    "float": "number",
    "number": "number",
    "bool": "boolean",
    "boolean": "boolean",
    "list": "array",
    "array": "array",
    "tuple": "array",
    "set": "array",
    "dict": "object",
    "object": "object",
    "none": "null",
    "null": "null",
}


class RowDropped(Exception):
    """A row cannot become a task; the message is the reason, without anything particular to the row."""


def read_tools(instruction: str) -> tuple[Mapping[str, Any], ...]:
    """The tools listed in a ToolRL instruction, as `{"name", "description", "parameters"}`. Raises RowDropped."""
    listed = instruction.partition("**Available Tools**")[2].partition("**Steps for Each Turn**")[0].strip()
    tools = []
    for name, description, parameters in _TOOL.findall(listed):
        try:
            tools.append({"name": name.strip(), "description": description.strip(), "parameters": _schema(parameters)})
            check_tool_schema(tools[-1])
        except ValueError as error:
            raise RowDropped("a tool's parameters cannot be read") from error
    if not tools:
        raise RowDropped("the instruction lists no tools")
    if len({tool["name"] for tool in tools}) < len(tools):
        raise RowDropped("two tools have the same name")
    return tuple(tools)


def json_schema(declared: Any) -> dict[str, Any]:
    """The JSON schema of a type as ToolRL writes it; {} for one we do not know. ", optional" allows null.

    Example:
        `json_schema("List[int]")` is `{"type": "array", "items": {"type": "integer"}}`.
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


def _schema(text: str) -> dict[str, Any]:
    declared = json.loads(text)
    if not isinstance(declared, dict) or not all(isinstance(field, dict) for field in declared.values()):
        raise ValueError("parameters must be an object of objects")
    properties = {}
    for name, field in declared.items():
        properties[name] = {
            **json_schema(field.get("type")),
            **({"description": field["description"]} if field.get("description") else {}),
            **({"default": field["default"]} if field.get("default", "") != "" else {}),
        }
    optional = {name for name, field in declared.items() if str(field.get("type")).endswith("optional")}
    required = [name for name in declared if name not in optional and "default" not in properties[name]]
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    return {**schema, "required": required} if optional and required else schema
