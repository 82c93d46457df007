"""Feedback sources from what configuration files, the command line and Python code name: one reading for all."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from fission_grpo.core.json_io import quoted
from fission_grpo.core.terminal import get_logger
from fission_grpo.core.timing import contained
from fission_grpo.feedback.endpoint import EndpointFeedback, FeedbackModelOptions
from fission_grpo.feedback.shuffled import ShuffledFeedback
from fission_grpo.feedback.sources import SOURCES, FeedbackFunction, FeedbackSource, FunctionSource, name_of

_log = get_logger(__name__)

SOURCE_FORMS = """\
rules, environment, fixed, none: without a model
local:PATH: a trained simulator, a folder or hub id
endpoint:MODEL: a model behind an OpenAI-compatible endpoint
shuffled:SPEC: the feedback of SPEC on another failure, as a control
A,B,...: A, then B for the failures that A has no text for, and so on"""
OPTIONS_HELP = 'options of the endpoint: fields of FeedbackModelOptions as JSON, such as \'{"cache": "runs/cache"}\''
TEACHER = "teacher"
MAX_SOURCES = 50  # of a chain [ours]; each may take the whole time for feedback
FeedbackSpec = str | FeedbackFunction | FeedbackSource
_EXAMPLE = '{"url": "http://localhost:8000/v1", "concurrency": 8}'


def make_chain(
    feedback: FeedbackSpec | Sequence[FeedbackSpec],
    url: str | None = None,
    options: FeedbackModelOptions | None = None,
    teacher_texts: Mapping[str, str] | None = None,
) -> tuple[FeedbackSource, ...]:
    """Build the chain of sources of a specification. Raises ValueError, listing the forms, for an unknown one.

    Args:
        feedback: a string (see `SOURCE_FORMS`), a function, a `FeedbackSource`, or a list of these; the list
            ["environment", "rules"] is the string "environment,rules". In a string, "shuffled:" applies to all that
            follows it, so that no failure of the control gets its own feedback: "shuffled:rules,fixed" has the sources
            "shuffled:rules" and "shuffled:fixed".
        url: of the endpoint; None for OPENAI_BASE_URL, else OpenAI's own.
        teacher_texts: labels by task id, for the source "teacher".
    """
    if isinstance(feedback, str | list | tuple) and _size(feedback) > MAX_SOURCES:
        raise ValueError(f"feedback names more than {MAX_SOURCES} sources, or lists inside of lists; give fewer")
    if isinstance(feedback, str):
        return _named_sources(feedback.strip(), url, options, teacher_texts)
    if isinstance(feedback, list | tuple) and feedback:
        return tuple(source for entry in feedback for source in make_chain(entry, url, options, teacher_texts))
    if hasattr(feedback, "start") and hasattr(feedback, "asynchronous"):
        return (feedback,)  # pyright: ignore[reportReturnType]
    if callable(feedback):
        return (FunctionSource(getattr(feedback, "__name__", type(feedback).__name__), feedback, untried=True),)
    raise ValueError(
        f"feedback must be a name ({', '.join(SOURCES)}, local:PATH, endpoint:MODEL, shuffled:SPEC), a function "
        "Failure -> str | None, a FeedbackSource (with `start` and `asynchronous`), or a list of these that is not "
        f"empty; got {feedback!r}"
    )


def _size(feedback: Any) -> int:
    """The number of sources and of lists in a specification, as far as `MAX_SOURCES` + 1."""
    size, waiting = 0, [feedback]
    while waiting and size <= MAX_SOURCES:
        part = waiting.pop()
        if isinstance(part, str):
            size += 1 + part.count(",") + part.count("shuffled:")
        else:
            size += 1
            waiting += part if isinstance(part, list | tuple) else ()
    return size


def _named_sources(
    spec: str, url: str | None, options: FeedbackModelOptions | None, teacher_texts: Mapping[str, str] | None
) -> tuple[FeedbackSource, ...]:
    if spec.startswith("shuffled:"):
        chain = make_chain(spec.removeprefix("shuffled:"), url, options, teacher_texts)
        return tuple(ShuffledFeedback(source) for source in chain)
    first, comma, rest = spec.partition(",")
    others = make_chain(rest, url, options, teacher_texts) if comma else ()
    first = first.strip()
    kind, _, name = first.partition(":")
    if first in SOURCES:
        source: FeedbackSource = FunctionSource(first, SOURCES[first])
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
    given = {} if given is None else given
    if not isinstance(given, Mapping):
        raise ValueError(f"feedback_model: must be a mapping, got {quoted(given)}; write it like {_EXAMPLE}")
    known = ["url", *(field.name for field in fields(FeedbackModelOptions) if field.name != "raw")]
    if unknown := [name for name in given if name not in known]:
        raise ValueError(f"feedback_model: no option {quoted(unknown[0])}; there are {', '.join(known)}")
    if not isinstance(given.get("url"), str | None):
        raise ValueError(f"feedback_model: url must be text, got {quoted(given['url'])}; write it like {_EXAMPLE}")
    return given.get("url"), FeedbackModelOptions(**{name: value for name, value in given.items() if name != "url"})


def usage_reports(chain: Sequence[FeedbackSource]) -> list[str]:
    """Return the sources' reports on requests and costs, for the end of a run. A report that fails is logged."""
    return [str(text) for source in _inner_sources(chain) if (text := _call(source, "report")) is not None]


@contextmanager
def closing(chain: Sequence[FeedbackSource]) -> Iterator[Sequence[FeedbackSource]]:
    """Close the sources of a chain at the end of a `with` block. One that cannot be closed is logged."""
    try:
        yield chain
    finally:
        for source in _inner_sources(chain):
            _call(source, "close")


def _call(source: Any, method: str) -> Any:
    """The result of a method that a source may have; None without it, and after a fault, which is logged."""
    try:
        return contained(getattr(source, method), method) if hasattr(source, method) else None
    except Exception:  # noqa: BLE001 - the run's result does not depend on it
        _log.warning("feedback source %s: %s() failed", name_of(source), method, exc_info=True)
        return None


def _inner_sources(chain: Sequence[FeedbackSource]) -> list[Any]:
    return [getattr(source, "source", source) for source in chain]
