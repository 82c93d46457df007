"""Feedback sources by name, as the command line and configuration files give them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from fission_grpo.core.json_io import quoted
from fission_grpo.feedback.endpoint import EndpointFeedback, FeedbackModelOptions
from fission_grpo.feedback.shuffled import ShuffledFeedback
from fission_grpo.feedback.sources import SOURCES, FeedbackSource, FunctionSource, make_chain

SOURCE_FORMS = """\
rules, environment, fixed, none: without a model
local:PATH: a trained simulator, a folder or hub id
endpoint:MODEL: a model behind an OpenAI-compatible endpoint
shuffled:SPEC: the feedback of SPEC on another failure, as a control
A,B,...: A, then B for the failures that A has no text for, and so on"""
"""The forms of a specification, one a line."""

OPTIONS_HELP = 'options of the endpoint: fields of FeedbackModelOptions as JSON, such as \'{"cache": "runs/cache"}\''
TEACHER = "teacher"
_EXAMPLE = '{"url": "http://localhost:8000/v1", "concurrency": 8}'


def sources_from(
    spec: str,
    url: str | None = None,
    options: FeedbackModelOptions | None = None,
    teacher_texts: Mapping[str, str] | None = None,
) -> tuple[FeedbackSource, ...]:
    """Build the chain of sources of a specification. Raises ValueError, listing the forms, for an unknown one.

    Args:
        spec: see `SOURCE_FORMS`. "shuffled:" applies to all that follows it, so that no failure of the control gets
            its own feedback: "shuffled:rules,fixed" has the sources "shuffled:rules" and "shuffled:fixed".
        url: of the endpoint; None for OPENAI_BASE_URL, else OpenAI's own.
        options: of the endpoint.
        teacher_texts: labels by task id, for the source "teacher".
    """
    if spec.strip().startswith("shuffled:"):
        chain = sources_from(spec.strip().removeprefix("shuffled:"), url, options, teacher_texts)
        return tuple(ShuffledFeedback(source) for source in chain)
    first, comma, rest = spec.partition(",")
    others = sources_from(rest, url, options, teacher_texts) if comma else ()
    first = first.strip()
    kind, _, name = first.partition(":")
    if first in SOURCES:
        source = make_chain(first)[0]
    elif first == TEACHER and teacher_texts is not None:
        source = FunctionSource(TEACHER, lambda failure: teacher_texts.get(failure.task.id) or None)
    elif kind == "local" and name:
        from fission_grpo.feedback.local_model import LocalModelFeedback

        source = LocalModelFeedback(name)
    elif kind == "endpoint" and name:
        source = EndpointFeedback(name, url, options)
    else:
        teacher = f", {TEACHER}" if teacher_texts is not None else ""
        names = f"{', '.join(SOURCES)}, local:PATH, endpoint:MODEL, shuffled:SPEC{teacher}"
        raise ValueError(f"no feedback source is called {first!r}; give one of {names}, or several joined by commas")
    return (source, *others)


def endpoint_options(given: Mapping[str, Any] | str | None) -> tuple[str | None, FeedbackModelOptions]:
    """Read the URL and the options of an endpoint from one mapping or its JSON text. Raises ValueError."""
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"feedback_model: not JSON ({error}); write it like {_EXAMPLE}") from error
    if given is None:
        return None, FeedbackModelOptions()
    if not isinstance(given, Mapping):
        raise ValueError(f"feedback_model: must be a mapping, got {quoted(given)}; write it like {_EXAMPLE}")
    known = ["url", *(field.name for field in fields(FeedbackModelOptions) if field.name != "raw")]
    if unknown := [name for name in given if name not in known]:
        raise ValueError(f"feedback_model: no option {quoted(unknown[0])}; there are {', '.join(known)}")
    return given.get("url"), FeedbackModelOptions(**{name: value for name, value in given.items() if name != "url"})


def usage_reports(chain: Sequence[FeedbackSource]) -> list[str]:
    """Return the sources' reports on requests and costs, for the end of a run."""
    return [source.report() for source in map(_inner_source, chain) if hasattr(source, "report")]


@contextmanager
def closing(chain: Sequence[FeedbackSource]) -> Iterator[Sequence[FeedbackSource]]:
    """Close the sources of a chain at the end of a `with` block."""
    try:
        yield chain
    finally:
        for source in map(_inner_source, chain):
            if hasattr(source, "close"):
                source.close()


def _inner_source(source: Any) -> Any:
    return getattr(source, "source", source)
