"""Sources of diagnoses by name, as they are given on the command line and in configuration files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from fission_grpo.core.json_io import quoted
from fission_grpo.feedback.endpoint import SimulatorOptions
from fission_grpo.feedback.shuffled import Shuffled
from fission_grpo.feedback.sources import (
    SOURCES,
    Function,
    Source,
    chain_of,
)

FORMS = """\
rules, environment, fixed, none: without a model
local:PATH: a trained simulator, a folder or hub id
endpoint:MODEL: a model behind an OpenAI-compatible endpoint
shuffled:SPEC: what SPEC says of another failure, as a control
A,B,...: A, and B of what A cannot say, and so on"""
"""The forms of a specification, one a line."""


TEACHER = "teacher"


_EXAMPLE = '{"url": "http://localhost:8000/v1", "concurrency": 8}'


OPTIONS_HELP = 'how the endpoint is asked: fields of SimulatorOptions as JSON, such as \'{"cache": "runs/cache"}\''


def sources_from(
    spec: str,
    url: str | None = None,
    options: SimulatorOptions | None = None,
    diagnoses: Mapping[str, str] | None = None,
) -> tuple[Source, ...]:
    """The chain of sources that a specification stands for.

    Args:
        spec: see `FORMS`. "shuffled:" counts for all that follows it: "shuffled:local:sim,rules" has two sources,
            each shuffled, so that nothing of the control is a failure's own.
        url: of the endpoint; None: OPENAI_BASE_URL, else OpenAI's own.
        options: of the endpoint (`EndpointSource`'s).
        diagnoses: ready-made ones by task id, which "teacher" stands for.

    Raises:
        ValueError: no such form, or nothing after the colon; the message names those there are.
        ModuleNotFoundError: the package that a model needs is missing.

    Example:
        `[source.name for source in sources_from("shuffled:rules,fixed")]` is `["shuffled:rules", "shuffled:fixed"]`
    """
    if spec.strip().startswith("shuffled:"):
        rest = sources_from(spec.strip().removeprefix("shuffled:"), url, options, diagnoses)
        return tuple(Shuffled(source) for source in rest)
    first, comma, rest = spec.partition(",")
    here = _source(first.strip(), url, options, diagnoses)
    return (here, *sources_from(rest, url, options, diagnoses)) if comma else (here,)


def endpoint_options(given: Mapping[str, Any] | str | None) -> tuple[str | None, SimulatorOptions]:
    """The URL and the options of an endpoint, from one mapping or its JSON text.

    Raises:
        ValueError: no JSON object, no such option, or a value out of range.

    Example:
        `endpoint_options('{"url": "http://localhost:8000/v1", "concurrency": 8}')` has that URL and 8 at a time.
    """
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"simulator: not JSON ({error}); write it like {_EXAMPLE}") from error
    if given is None:
        return None, SimulatorOptions()
    if not isinstance(given, Mapping):
        raise ValueError(f"simulator: must be a mapping, got {quoted(given)}; write it like {_EXAMPLE}")
    known = [field.name for field in fields(SimulatorOptions)]
    if unknown := [name for name in given if name not in ("url", *known)]:
        raise ValueError(f"simulator: no option {quoted(unknown[0])}; there are url, {', '.join(known)}")
    return given.get("url"), SimulatorOptions(**{name: value for name, value in given.items() if name != "url"})


def accounts(chain: Sequence[Source]) -> list[str]:
    """What the sources have to say of their requests and costs, for the end of a run."""
    inner: list[Any] = [getattr(source, "source", source) for source in chain]
    return [source.report() for source in inner if hasattr(source, "report")]


@contextmanager
def closing(chain: Sequence[Source]) -> Iterator[Sequence[Source]]:
    """The chain; what its sources hold open (connections) is closed afterwards."""
    try:
        yield chain
    finally:
        for source in chain:
            close: Any = getattr(getattr(source, "source", source), "close", None)
            if close is not None:
                close()


def _source(
    spec: str, url: str | None, options: SimulatorOptions | None, diagnoses: Mapping[str, str] | None
) -> Source:
    kind, _, name = spec.partition(":")
    if spec in SOURCES:
        return chain_of(spec)[0]
    if spec == TEACHER and diagnoses is not None:
        return Function(TEACHER, lambda failure: diagnoses.get(failure.task.id) or None)
    if kind == "local" and name:
        from fission_grpo.feedback.local_model import LocalSource

        return LocalSource(name)
    if kind == "endpoint" and name:
        from fission_grpo.feedback.endpoint import EndpointSource

        return EndpointSource(name, url, options)
    beside = f", {TEACHER}" if diagnoses is not None else ""
    names = f"{', '.join(SOURCES)}, local:PATH, endpoint:MODEL, shuffled:SPEC{beside}"
    raise ValueError(f"no source of diagnoses is called {spec!r}; give one of {names}, or several joined by commas")
