"""Validators of JSON schemas from outside (Draft 2020-12), which are checked before anything is checked with them."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from fractions import Fraction
from functools import lru_cache
from graphlib import CycleError, TopologicalSorter
from typing import Any

from fission_grpo.core.json_io import quoted
from fission_grpo.core.terminal import get_logger

_log = get_logger(__name__)

FORMATS = ("date", "email", "ipv4", "ipv6", "uuid")  # those that jsonschema checks without optional packages
MAX_SUBSCHEMAS = 10_000  # that one value is checked against by `$ref`, `allOf` and so on, with repetitions [ours]
MAX_CHAIN = 40  # such subschemas one inside another [ours]; each takes about 3 frames of Python's 1,000
MAX_REPEATED = 8  # errors that a second check of a value against the same `$ref` repeats [ours]
# of `re.error`: a pattern with such a fault is none in any dialect
_BROKEN_PATTERN = re.compile(
    r"missing \)|unbalanced|unterminated|(nothing to|multiple|min) repeat|end of|bad character range [^\\]*$"
)


_NO_PATTERN = (re.error, OverflowError, RecursionError)  # of `re.compile`: wrong, a{99999999999}, nested too deeply
_REFERENCES = ("$ref", "$dynamicRef")
_checked: ContextVar[dict[Hashable, Any]] = ContextVar("checked")  # of one call: errors by `$ref` and value


def schema_text(schema: Mapping[str, Any]) -> str:
    try:
        return json.dumps(schema, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"`parameters` is not JSON: {error}") from None


class SchemaValidator:
    """Checks values against a valid schema, in a time that grows with the schema times the value."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        from jsonschema import FormatChecker
        from referencing import Registry

        self._validator = _validator_class()(schema, registry=Registry(), format_checker=FormatChecker(FORMATS))

    def iter_errors(self, value: Any) -> list[Any]:
        """The value's `jsonschema.ValidationError`s."""
        token = _checked.set({})
        try:
            return list(self._validator.iter_errors(value))
        finally:
            _checked.reset(token)


@lru_cache(maxsize=4096)
def make_validator(schema_text: str) -> SchemaValidator:
    """The validator of a schema. `$ref`s are resolved inside it only: no file is read and no address fetched."""
    schema = json.loads(schema_text)
    try:
        _check_is_schema(schema, ["parameters"])
        parts = _check_references(schema)
    except RecursionError:
        raise ValueError("`parameters` is nested too deeply") from None
    _drop_foreign_patterns(parts)
    return SchemaValidator(schema)


@lru_cache(maxsize=1)
def _validator_class() -> Any:
    """jsonschema's validator, with exact `multipleOf`, and `uniqueItems` and references in linear time."""
    from jsonschema import Draft202012Validator
    from jsonschema.validators import extend

    own = {keyword: _remembered(keyword, Draft202012Validator.VALIDATORS[keyword]) for keyword in _REFERENCES}
    return extend(Draft202012Validator, {"multipleOf": _multiple_of, "uniqueItems": _unique_items, **own})


def _remembered(keyword: str, check: Any) -> Any:
    """The check of a reference that does not repeat itself: a schema may lead to one subschema by 2^n ways."""
    from jsonschema import ValidationError

    def reference(validator: Any, target: str, instance: Any, schema: Any) -> Iterator[Any]:
        checked, key = _checked.get(), (keyword, id(schema), id(instance))
        if key in checked:
            yield from map(ValidationError.create_from, checked[key][1])
            return
        errors = list(check(validator, target, instance, schema))
        repeated = sorted(errors, key=is_nullable)[:MAX_REPEATED]
        checked[key] = instance, list(map(ValidationError.create_from, repeated))  # held, so that its id stays its own
        yield from errors

    return reference


def is_nullable(error: Any) -> bool:
    """Whether an error is a null that OpenAPI's `nullable: true` allows."""
    return error.instance is None and isinstance(error.schema, dict) and error.schema.get("nullable") is True


def _multiple_of(validator: Any, divisor: Any, instance: Any, schema: Any) -> Iterator[Any]:
    """`multipleOf` by the decimal digits as written: 19.99 is a multiple of 0.01, though not of the nearest float."""
    from jsonschema import ValidationError

    if validator.is_type(instance, "number") and not _is_multiple(instance, divisor):
        yield ValidationError("not a multiple")


def _is_multiple(number: float, divisor: float) -> bool:
    if isinstance(number, float) and not math.isfinite(number):
        return False
    exact = [Fraction(part) if isinstance(part, int) else Fraction(str(part)) for part in (number, divisor)]
    return (exact[0] / exact[1]).denominator == 1


def _unique_items(validator: Any, wanted: Any, instance: Any, schema: Any) -> Iterator[Any]:
    from jsonschema import ValidationError

    if wanted and validator.is_type(instance, "array") and len(set(map(_hashable, instance))) < len(instance):
        yield ValidationError("items that are equal")


def _hashable(value: Any) -> Hashable:
    """A key that is equal for equal JSON values. 1 equals 1.0, but not true."""
    if isinstance(value, dict):
        return "object", frozenset((name, _hashable(inner)) for name, inner in value.items())
    if isinstance(value, list | tuple):
        return ("array", *map(_hashable, value))
    return (value,) if isinstance(value, bool) else value


def _check_is_schema(schema: Any, where: Sequence[str]) -> None:
    from jsonschema import Draft202012Validator, FormatChecker
    from jsonschema.exceptions import SchemaError

    patterns = FormatChecker(())
    patterns.checks("regex", raises=_NO_PATTERN)(_check_pattern)
    try:
        Draft202012Validator.check_schema(schema, format_checker=patterns)
    except SchemaError as error:
        place = ".".join([*where, *map(str, error.absolute_path)])
        raise ValueError(f"`{place}` is not valid JSON Schema (Draft 2020-12): {cut(error.message)}") from None


def _check_references(schema: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All subschemas, once every reference is known to lead to one of them, and none back to itself on the same value.

    References are resolved as the validator does it, by the `$id`s around them; values of `enum`, `default` and so on
    hold no references. Raises ValueError.
    """
    from referencing import Registry
    from referencing.jsonschema import DRAFT202012

    parts: dict[int, dict[str, Any]] = {}
    applied: dict[int, list[int]] = {}  # by schema, those that are applied to the same value
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
        for keyword in _REFERENCES:
            if keyword in part:
                target, its_resolver = _referenced(keyword, part[keyword], resolver)
                waiting.insert(0, (target, its_resolver))  # last, as it mostly is inside a part that waits
                same.append(target)
        parts[id(part)] = part
        applied[id(part)] = [id(inner) for inner in same if isinstance(inner, dict)]
    anchors = Counter(part["$dynamicAnchor"] for part in parts.values() if "$dynamicAnchor" in part)
    if any("$dynamicRef" in part for part in parts.values()) and max(anchors.values(), default=0) > 1:
        name = anchors.most_common(1)[0][0]
        raise ValueError(
            f"`$dynamicAnchor` {quoted(name)} occurs twice in `parameters`; name one place, or use `$ref`"
        )
    _check_effort(applied)
    return list(parts.values())


def _check_effort(applied: Mapping[int, Sequence[int]]) -> None:
    """Refuse subschemas that lead back to themselves on the same value, or to too many of them."""
    sizes: dict[int, int] = {}
    lengths: dict[int, int] = {}
    try:
        for part in TopologicalSorter(applied).static_order():
            sizes[part] = 1 + sum(sizes[inner] for inner in applied[part])
            lengths[part] = 1 + max((lengths[inner] for inner in applied[part]), default=0)
    except CycleError:
        raise ValueError("a `$ref` in `parameters` leads back to itself, so that no value can be checked") from None
    if max(sizes.values()) > MAX_SUBSCHEMAS or max(lengths.values()) > MAX_CHAIN:
        raise ValueError(
            f"`parameters` takes more than {MAX_SUBSCHEMAS:,} subschemas, or {MAX_CHAIN} one inside another, to check "
            "one value; use fewer `$ref`, `allOf`, `anyOf` and `oneOf`"
        )


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
    except _NO_PATTERN:
        return True
    return False


def _drop_foreign_patterns(parts: Sequence[dict[str, Any]]) -> None:
    """Remove patterns that cannot be checked here, with a warning; whatever they demand is then taken as fulfilled."""
    for part in parts:
        if "pattern" in part and _is_foreign(part["pattern"]):
            _log.warning("a schema's pattern %s is not checked: Python cannot compile it", quoted(part.pop("pattern")))
        named = part.get("patternProperties", {})
        for pattern in [key for key in named if _is_foreign(key)]:
            _log.warning("a schema's pattern %s is not checked: Python cannot compile it", quoted(pattern))
            del named[pattern]
            named[".*"] = True  # every name may be one that it allows


def cut(text: str) -> str:
    """The text for a message, at most 200 characters of it."""
    return text if len(text) <= 200 else text[:200] + "..."
