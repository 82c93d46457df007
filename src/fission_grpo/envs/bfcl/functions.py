"""The official documentation of BFCL's 128 multi-turn functions, as JSON schemas and as Python signatures.

Source: `bfcl_eval/data/multi_turn_func_doc/*.json` of the installed bfcl-eval.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from functools import cache
from importlib import resources
from types import GenericAlias
from typing import Any

FILES = {
    "GorillaFileSystem": "gorilla_file_system",
    "MathAPI": "math_api",
    "MessageAPI": "message_api",
    "TwitterAPI": "posting_api",
    "TicketAPI": "ticket_api",
    "TradingBot": "trading_bot",
    "TravelAPI": "travel_booking",
    "VehicleControlAPI": "vehicle_control",
}
"""The eight classes, with the file name of their function docs and of their module."""

_JSON_TYPES = {"dict": "object", "float": "number", "tuple": "array"}
_HINTS: Mapping[str, Any] = {"string": str, "float": float, "integer": int, "boolean": bool, "dict": dict}


@cache
def class_docs(class_name: str) -> Mapping[str, Mapping[str, Any]]:
    """The official docs of a class's functions, by function name, in official order. Raises ValueError."""
    if class_name not in FILES:
        raise ValueError(f"no BFCL class {class_name!r}; there are {', '.join(FILES)}")
    return {doc["name"]: doc for doc in read_official(f"multi_turn_func_doc/{FILES[class_name]}.json")}


def read_official(name: str) -> list[dict[str, Any]]:
    """The rows of a JSONL file in bfcl-eval's folder `data`."""
    text = (resources.files("bfcl_eval") / "data" / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line.strip()]


@cache
def class_of(function: str) -> str:
    """The class of a function; names are unique over the eight. Raises ValueError for an unknown function."""
    for class_name in FILES:
        if function in class_docs(class_name):
            return class_name
    raise ValueError(f"no BFCL function {function!r}")


def function_doc(function: str) -> Mapping[str, Any]:
    """The official docs of a function. Raises ValueError for an unknown one."""
    return class_docs(class_of(function))[function]


def official_schema(function: str) -> dict[str, Any]:
    """A function as `{"name", "description", "parameters"}` in standard JSON schema."""
    doc = function_doc(function)
    return {"name": function, "description": doc["description"], "parameters": to_json_schema(doc["parameters"])}


def to_json_schema(field: Mapping[str, Any]) -> dict[str, Any]:
    """A documented parameter, or all parameters, in standard JSON schema; type "any" puts no constraint."""
    schema = dict(field)
    if schema.get("type") == "any":
        del schema["type"]
    elif isinstance(schema.get("type"), str):
        schema["type"] = _JSON_TYPES.get(schema["type"], schema["type"])
    if isinstance(schema.get("properties"), Mapping):
        schema["properties"] = {name: to_json_schema(inner) for name, inner in schema["properties"].items()}
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), Mapping):
            schema[key] = to_json_schema(schema[key])
    if schema.get("default", "") is None:
        del schema["default"]
    return schema


def signature(function: str) -> inspect.Signature:
    """The Python signature of the docs, with `self` first. `docstring` lists what no type hint can express."""
    doc = function_doc(function)["parameters"]
    parameters = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    for name, field in doc["properties"].items():
        default = inspect.Parameter.empty if name in doc["required"] else field.get("default")
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        parameters.append(inspect.Parameter(name, kind, default=default, annotation=_hint(field)))
    # Python does not allow required parameters after optional ones
    parameters.sort(key=lambda parameter: parameter.default is not inspect.Parameter.empty)
    return inspect.Signature(parameters)


def docstring(function: str) -> str:
    """A Google docstring with the official descriptions, as `transformers.utils.get_json_schema` reads it."""
    doc = function_doc(function)
    lines = [_one_line(doc["description"]), ""]
    if doc["parameters"]["properties"]:
        lines.append("Args:")
    for name, field in doc["parameters"]["properties"].items():
        inner = field.get("properties", {}).items()
        fields = "".join(f" {key}: {_one_line(value['description'])}" for key, value in inner)
        lines.append(f"    {name}: {_one_line(field.get('description', ''))}{fields}")
    return "\n".join(lines).strip()


def _hint(field: Mapping[str, Any]) -> Any:
    if field["type"] == "array":
        return GenericAlias(list, (_HINTS[field["items"]["type"]],))
    return _HINTS[field["type"]]


def _one_line(text: str) -> str:
    return " ".join(text.split())
