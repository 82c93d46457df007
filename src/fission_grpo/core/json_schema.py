"""Validators of JSON schemas from outside (Draft 2020-12), which are checked before anything is checked with them."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from fractions import Fraction
from functools import lru_cache
from graphlib import CycleError, TopologicalSorter
from typing import Any

import attrs

from fission_grpo.core.json_io import quoted
from fission_grpo.core.patterns import (
    NO_PATTERN,
    CannotBeChecked,
    check_pattern,
    drop_foreign_patterns,
    pattern_matches,
)
from fission_grpo.core.terminal import get_logger

_log = get_logger(__name__)

FORMATS = ("date", "email", "ipv4", "ipv6", "uuid")  # those that jsonschema checks without optional packages
MAX_SUBSCHEMAS = 10_000  # that one value is checked against by `$ref`, `allOf` and so on, with repetitions [ours]
MAX_CHAIN = 40  # such subschemas one inside another [ours]; each takes about 3 frames of Python's 1,000
MAX_REPEATED = 8  # errors that a second check of a value against the same `$ref` repeats [ours]
MAX_STEPS = 400_000  # of one check, about one for each keyword and value it looks at [ours]; they take about a second
MAX_SECONDS = 3.0  # of the processor, for one check, and for one schema [ours]; steps mostly end it before
ERROR_STEPS = 20  # steps that an error counts for [ours], as it is kept
MAX_CHARACTERS = 200_000  # of a schema [ours]
_REFERENCES = ("$ref", "$dynamicRef")


class _Check:
    """The work of one check: its steps, its time, and errors by `$ref` and value."""

    def __init__(self) -> None:
        self.known: dict[Hashable, Any] = {}
        self.steps = 0
        self.end = time.thread_time() + MAX_SECONDS

    def charge(self, steps: int) -> None:
        """Count steps. Raises CannotBeChecked if they are too many."""
        self.steps += steps
        if self.steps > MAX_STEPS or time.thread_time() > self.end:
            raise CannotBeChecked("the arguments take too long to check against the schema")


_check: ContextVar[_Check] = ContextVar("check")


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
        """The value's `jsonschema.ValidationError`s. Raises CannotBeChecked if there is too much to check."""
        token = _check.set(_Check())
        try:
            return list(self._validator.iter_errors(value))
        finally:
            _check.reset(token)


@lru_cache(maxsize=4096)
def make_validator(schema_text: str) -> SchemaValidator:
    """The validator of a schema. `$ref`s are resolved inside it only: no file is read and no address fetched."""
    if len(schema_text) > MAX_CHARACTERS:
        raise ValueError(f"`parameters` has more than {MAX_CHARACTERS:,} characters; use a smaller schema")
    schema = json.loads(schema_text)
    token = _check.set(_Check())
    try:
        _check_is_schema(schema, ["parameters"])
        parts = _check_references(schema)
        drop_foreign_patterns(parts)
        return SchemaValidator(schema)
    except RecursionError:
        raise ValueError("`parameters` is nested too deeply") from None
    except CannotBeChecked:
        raise ValueError("`parameters` takes too long to check; use fewer subschemas and references") from None
    finally:
        _check.reset(token)


@lru_cache(maxsize=1)
def _validator_class() -> Any:
    """jsonschema's validator with counted steps, exact `multipleOf`, and patterns with a time limit."""
    from jsonschema import Draft202012Validator
    from jsonschema.validators import extend

    usual = Draft202012Validator.VALIDATORS
    own = {keyword: _remembered(keyword, usual[keyword]) for keyword in _REFERENCES}
    own |= {"multipleOf": _multiple_of, "uniqueItems": _unique_items, "pattern": _pattern}
    own |= {"patternProperties": _pattern_properties, "additionalProperties": _additional_properties}
    counted = {keyword: _counted(check) for keyword, check in {**usual, **own}.items()}
    validator: Any = extend(Draft202012Validator, counted)
    # jsonschema's own `evolve` takes another class for a subschema with `$schema`, and with it other checks
    validator.evolve = lambda self, **changes: attrs.evolve(self, **changes)
    return validator


def _counted(check: Any) -> Any:
    """The check of a keyword, which counts its steps: the sizes of what stands in the schema, and errors."""

    def counted(validator: Any, given: Any, instance: Any, schema: Any) -> Iterator[Any]:
        budget = _check.get()
        budget.charge(1 + (len(given) if isinstance(given, list | dict) else 0))
        for error in check(validator, given, instance, schema) or ():
            budget.charge(ERROR_STEPS)
            yield error

    return counted


def _remembered(keyword: str, check: Any) -> Any:
    """The check of a reference that does not repeat itself: a schema may lead to one subschema by 2^n ways."""
    from jsonschema import ValidationError

    def reference(validator: Any, target: str, instance: Any, schema: Any) -> Iterator[Any]:
        checked, key = _check.get().known, (keyword, id(schema), id(instance))
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

    if wanted and validator.is_type(instance, "array") and len(set(map(_canonical, instance))) < len(instance):
        yield ValidationError("items that are equal")


def _canonical(value: Any) -> str:
    """A text that is the same for equal JSON values only. 1 equals 1.0, but not true.

    Texts, as a model can write many numbers that have the same hash.
    """
    if isinstance(value, dict):
        return (
            "{" + ",".join(sorted(f"{json.dumps(str(name))}:{_canonical(item)}" for name, item in value.items())) + "}"
        )
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_canonical, value)) + "]"
    if isinstance(value, float) and value.is_integer():
        return _canonical(int(value))
    if isinstance(value, int) and not isinstance(value, bool):
        return hex(value)  # in linear time, without a limit of digits
    return json.dumps(value, default=repr)


def _matches(pattern: str, text: str) -> bool:
    _check.get().charge(1 + len(text) // 100)
    return pattern_matches(pattern, text)


def _pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[Any]:
    from jsonschema import ValidationError

    if validator.is_type(instance, "string") and not _matches(pattern, instance):
        yield ValidationError(f"{quoted(instance)} does not match {quoted(pattern)}")


def _pattern_properties(validator: Any, named: Mapping[str, Any], instance: Any, schema: Any) -> Iterator[Any]:
    for pattern, subschema in named.items() if validator.is_type(instance, "object") else ():
        for name, value in instance.items():
            if _matches(pattern, name):
                yield from validator.descend(value, subschema, path=name, schema_path=pattern)


def _additional_properties(validator: Any, allowed: Any, instance: Any, schema: Any) -> Iterator[Any]:
    from jsonschema import ValidationError

    if not validator.is_type(instance, "object"):
        return
    properties, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    extra = [name for name in instance if name not in properties]
    extra = [name for name in extra if not any(_matches(pattern, name) for pattern in patterns)]
    if validator.is_type(allowed, "object"):
        for name in extra:
            yield from validator.descend(instance[name], allowed, path=name)
    elif not allowed and extra:
        yield ValidationError(f"additional properties: {quoted(extra[0])}")


def _check_is_schema(schema: Any, where: Sequence[str]) -> None:
    from jsonschema import Draft202012Validator, FormatChecker
    from jsonschema.exceptions import best_match

    patterns = FormatChecker(())
    patterns.checks("regex", raises=NO_PATTERN)(check_pattern)
    validator = _validator_class()(Draft202012Validator.META_SCHEMA, format_checker=patterns)
    if (error := best_match(validator.iter_errors(schema))) is not None:
        place = ".".join([*where, *map(str, error.absolute_path)])
        raise ValueError(f"`{cut(place)}` is not valid JSON Schema (Draft 2020-12): {cut(error.message)}")


def _check_references(schema: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All subschemas, once every reference is known to lead to one of them, and none back to itself on the same value.

    References are resolved as the validator does it, by the `$id`s around them; values of `enum`, `default` and so on
    hold no references. Raises ValueError.
    """
    from referencing import Registry
    from referencing.jsonschema import DRAFT202012

    parts: dict[int, dict[str, Any]] = {}
    seen = {id(schema)}  # targets of references that are known to be schemas
    applied: dict[int, list[int]] = {}  # by schema, those that are applied to the same value
    waiting: list[tuple[Any, Any]] = [(schema, Registry().resolver_with_root(DRAFT202012.create_resource(schema)))]
    while waiting:
        _check.get().charge(1)
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
                target, its_resolver = _referenced(keyword, part[keyword], resolver, seen)
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


def _referenced(keyword: str, reference: str, resolver: Any, seen: set[int]) -> tuple[Any, Any]:
    """The schema that a reference leads to, and the resolver of the references in it. Adds it to `seen`."""
    from referencing.exceptions import CannotDetermineSpecification, Unresolvable

    try:
        found = resolver.lookup(reference)
    except (Unresolvable, CannotDetermineSpecification, LookupError, ValueError, TypeError, AttributeError):
        raise ValueError(
            f"`{keyword}` {quoted(reference)} points nowhere within `parameters`; references are never fetched"
        ) from None
    if id(found.contents) not in seen:
        _check_is_schema(found.contents, [f"the target of `{keyword}` {quoted(reference)}"])
        seen.add(id(found.contents))
    return found.contents, found.resolver


def cut(text: str) -> str:
    """The text for a message, at most 200 characters of it."""
    return text if len(text) <= 200 else text[:200] + "..."
