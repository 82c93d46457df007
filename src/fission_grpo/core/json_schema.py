"""Validators of JSON schemas from outside (Draft 2020-12), which are checked before anything is checked with them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from graphlib import CycleError, TopologicalSorter
from typing import Any

from fission_grpo.core.json_io import quoted, walk_json
from fission_grpo.core.terminal import get_logger

_log = get_logger(__name__)

FORMATS = ("date", "email", "ipv4", "ipv6", "uuid")  # those that jsonschema checks without optional packages
# of `re.error`: a pattern with such a fault is none in any dialect
_BROKEN_PATTERN = re.compile(
    r"missing \)|unbalanced|unterminated|(nothing to|multiple|min) repeat|end of|bad character range [^\\]*$"
)


def schema_text(schema: Mapping[str, Any]) -> str:
    try:
        return json.dumps(schema, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"`parameters` is not JSON: {error}") from None


@lru_cache(maxsize=4096)
def make_validator(schema_text: str) -> Any:
    """The validator of a schema. `$ref`s are resolved inside it only: no file is read and no address fetched."""
    from jsonschema import Draft202012Validator, FormatChecker
    from referencing import Registry

    schema = json.loads(schema_text)
    try:
        _check_is_schema(schema, ["parameters"])
        _check_references(schema)
    except RecursionError:
        raise ValueError("`parameters` is nested too deeply") from None
    _drop_foreign_patterns(schema)
    return Draft202012Validator(schema, registry=Registry(), format_checker=FormatChecker(FORMATS))


def _check_is_schema(schema: Any, where: Sequence[str]) -> None:
    from jsonschema import Draft202012Validator, FormatChecker
    from jsonschema.exceptions import SchemaError

    patterns = FormatChecker(())
    patterns.checks("regex", raises=re.error)(_check_pattern)
    try:
        Draft202012Validator.check_schema(schema, format_checker=patterns)
    except SchemaError as error:
        place = ".".join([*where, *map(str, error.absolute_path)])
        raise ValueError(f"`{place}` is not valid JSON Schema (Draft 2020-12): {cut(error.message)}") from None


def _check_references(schema: Mapping[str, Any]) -> None:
    """Check that every reference leads to a schema inside `schema`, and none back to itself on the same value.

    References are resolved as the validator does it, by the `$id`s around them; values of `enum`, `default` and so on
    hold no references. Raises ValueError.
    """
    from referencing import Registry
    from referencing.jsonschema import DRAFT202012

    applied: dict[int, set[int]] = {}  # by schema, those that are applied to the same value
    waiting: list[tuple[Any, Any]] = [(schema, Registry().resolver_with_root(DRAFT202012.create_resource(schema)))]
    while waiting:
        part, resolver = waiting.pop()
        if not isinstance(part, dict) or id(part) in applied:
            continue
        inside = list(DRAFT202012.subresources_of(part))
        waiting += [(inner, resolver.in_subresource(DRAFT202012.create_resource(inner))) for inner in inside]
        same = [inner for keyword in ("allOf", "anyOf", "oneOf") for inner in part.get(keyword, ())]
        same += [part[keyword] for keyword in ("not", "if", "then", "else") if keyword in part]
        same += part.get("dependentSchemas", {}).values()
        for keyword in ("$ref", "$dynamicRef"):
            if keyword in part:
                target, its_resolver = _referenced(keyword, part[keyword], resolver)
                waiting.insert(0, (target, its_resolver))  # last, as it mostly is inside a part that waits
                same.append(target)
        applied[id(part)] = {id(inner) for inner in same if isinstance(inner, dict)}
    try:
        TopologicalSorter(applied).prepare()
    except CycleError:
        raise ValueError("a `$ref` in `parameters` leads back to itself, so that no value can be checked") from None


def _referenced(keyword: str, reference: str, resolver: Any) -> tuple[Any, Any]:
    """The schema that a reference leads to, and the resolver of the references in it."""
    from referencing.exceptions import CannotDetermineSpecification, Unresolvable

    try:
        found = resolver.lookup(reference)
    except (Unresolvable, CannotDetermineSpecification, LookupError, ValueError, TypeError, AttributeError):
        raise ValueError(
            f"`{keyword}` {quoted(reference)} points nowhere within `parameters`; references are never fetched"
        ) from None
    _check_is_schema(found.contents, [f"the target of `{keyword}` {quoted(reference)}"])
    return found.contents, found.resolver


def _check_pattern(pattern: Any) -> bool:
    """Whether a pattern is one in any dialect. Raises re.error for one that is not closed or repeats nothing."""
    try:
        re.compile(pattern)
    except re.error as error:
        if _BROKEN_PATTERN.search(error.msg):
            raise
    return True


def _is_foreign(pattern: Any) -> bool:
    """Whether Python cannot compile a pattern. JSON Schema's are JavaScript's, which has \\p{L} and (?<name>...)."""
    try:
        re.compile(pattern)
    except re.error:
        return True
    return False


def _drop_foreign_patterns(schema: Any) -> None:
    """Remove patterns that cannot be checked here, with a warning; whatever they demand is then taken as fulfilled."""
    for _, inner in list(walk_json(schema)):
        if not isinstance(inner, dict):
            continue
        if isinstance(inner.get("pattern"), str) and _is_foreign(inner["pattern"]):
            _log.warning(
                "a schema's pattern %s is not checked: Python cannot compile it", quoted(inner.pop("pattern"))
            )
        named = inner.get("patternProperties")
        named = named if isinstance(named, dict) else {}
        for pattern in [key for key in named if _is_foreign(key)]:
            _log.warning("a schema's pattern %s is not checked: Python cannot compile it", quoted(pattern))
            del named[pattern]
            named[".*"] = True  # every name may be one that it allows


def cut(text: str) -> str:
    """The text for a message, at most 200 characters of it."""
    return text if len(text) <= 200 else text[:200] + "..."
