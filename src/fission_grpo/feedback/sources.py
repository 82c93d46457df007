"""Feedback sources: each gives a text about a failed rollout, or a reason why it has none.

Several sources make a chain: each gets the failures that the ones before it had no usable text for.
"""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from fission_grpo.core.errors import UsageError, original
from fission_grpo.core.serialization import faithful
from fission_grpo.core.terminal import get_logger, warn_once
from fission_grpo.core.timing import contained
from fission_grpo.core.types import Failure
from fission_grpo.feedback.rules import rules

ENVIRONMENT = "environment"  # name of the source of the environment's own messages
# [paper] Feedback where there is nothing better, and where the simulator fails.
FIXED_TEXT = "error: you made a mistake. please try again."
MAX_COUNT = 1e15
"""Largest number that is believed of a source's metric. [ours] Sums of many stay exact and finite."""
_log = get_logger(__name__)


@dataclass(frozen=True)
class Diagnosis:
    """The answer of a source for one failure."""

    text: str | None  # "" is silence on purpose (`none`), None is no answer
    reason: str | None = None  # of a missing text; None where the source leaves the failure to the next one, uncounted
    from_environment: bool = False  # the environment's own answer to the call: the policy will read it, so it may leak


FeedbackFunction = Callable[[Failure], str | Diagnosis | None]  # the simplest source; None: it has no text


class FeedbackSource(Protocol):
    """Gives feedback on many failures at a time.

    A source with a state on which later answers depend (a random generator, remembered answers) also has
    `state() -> Any`, plain JSON, and `load_state(state)`. They are saved in the trainer's checkpoints, so that a
    resumed run gets the same feedback. No future is pending when they are called.
    """

    name: str  # for records and metrics
    asynchronous: bool  # whether answers arrive later; the trainer then collects them when the next cycle begins

    def start(self, failures: Sequence[Failure]) -> list[Future[Diagnosis]]:
        """Start work on failures. Returns one future per failure, which never raises and may be cancelled."""
        ...

    def check(self) -> None:
        """Check before a run that the source can be used. Raises ValueError with the fix."""

    def counts(self) -> Mapping[str, float]:
        """Metrics since the last call, such as numbers of requests and tokens."""
        return {}


class FunctionSource(FeedbackSource):
    """A function as a source; a callable object may have a state. An exception costs one answer.

    The first exception of a type is logged. Every text of a function with the attribute `from_environment = True`
    counts as `Diagnosis.from_environment`. A function that is `untried` must take a failure, and at its first call
    return a text or None: else `check` or `start` raises UsageError, before a run has cost anything.
    """

    asynchronous = False

    def __init__(self, name: str, function: FeedbackFunction, untried: bool = False):
        self.name, self.function, self._untried = name, function, untried
        self._seen: set[str] = set()  # reasons of failed calls

    def check(self) -> None:
        if self._untried:
            try:
                inspect.signature(self.function).bind(None)
            except TypeError as error:
                raise self._wrong(f"cannot be called with the failure alone ({error})") from error
            except ValueError:  # of a function in C, which has no signature
                return

    def start(self, failures: Sequence[Failure]) -> list[Future[Diagnosis]]:
        return [completed(self._answer(failure)) for failure in failures]

    def state(self) -> Any:
        return state_of(self.function)

    def load_state(self, state: Any) -> None:
        if state is not None:
            self.function.load_state(state)  # pyright: ignore

    def _answer(self, failure: Failure) -> Diagnosis:
        untried, self._untried = self._untried, False
        try:
            text = contained(lambda: self.function(failure), self.name)
        except Exception as error:  # logged and counted
            if untried and isinstance(error, TypeError):
                raise self._wrong(f"raised TypeError at its first call ({error})") from error
            if (reason := reason_of(error)) not in self._seen:
                self._seen.add(reason)
                text = "feedback source %s failed on task %s; more of this kind are counted only"
                _log.warning(text, self.name, failure.task.id, exc_info=True)
            return Diagnosis(None, reason)
        if isinstance(text, Diagnosis):
            return text
        if text is not None and not isinstance(text, str):
            if untried:
                raise self._wrong(f"returned {type(text).__name__} at its first call")
            warn_once(_log, f"feedback source {self.name} returned {type(text).__name__}, which is no text")
            return Diagnosis(None, f"returned {type(text).__name__}")
        if not text and (text is None or self.function is not none):
            return Diagnosis(None, "no diagnosis")
        return Diagnosis(text, from_environment=bool(getattr(self.function, "from_environment", False)))

    def _wrong(self, what: str) -> UsageError:
        return UsageError(
            f"feedback function {self.name} {what}; it takes one argument, the failure (core/types.py), and returns a "
            "text, a Diagnosis, or None"
        )


def state_of(source: Any) -> Any:
    """Return `source.state()`, None if it has no state."""
    return source.state() if callable(getattr(source, "state", None)) else None


def reason_of(error: Exception) -> str:
    """The reason of a text that is missing because a source raised an error, also one that would end the process."""
    return f"raised {type(original(error)).__name__}"


def name_of(source: Any) -> str:
    return str(getattr(source, "name", None) or type(source).__name__)


def counts_of(source: Any) -> tuple[dict[str, float], int]:
    """Return `source.counts()` and the number of its faults: entries that are no finite numbers, or the whole."""
    try:
        entries = contained(lambda: list(source.counts().items()) if hasattr(source, "counts") else [], "counts()")
    except Exception:  # noqa: BLE001 - the run's result does not depend on it
        _log.warning("feedback source %s: counts() failed; it is left out", name_of(source), exc_info=True)
        return {}, 1
    kept = {name: value for name, value in entries if isinstance(name, str) and _is_count(value)}
    if len(kept) < len(entries):
        what = "returns what is no mapping from names to finite numbers; such entries are left out"
        warn_once(_log, f"feedback source {name_of(source)}: counts() {what}")
    return kept, len(entries) - len(kept)


def _is_count(value: Any) -> bool:
    try:
        is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        return is_number and abs(float(value)) <= MAX_COUNT  # not of NaN
    except OverflowError:
        return False


def completed(answer: Diagnosis) -> Future[Diagnosis]:
    """Return a future with this result."""
    future: Future[Diagnosis] = Future()
    future.set_result(answer)
    return future


def fixed(failure: Failure) -> str | None:
    """Return the same text for every failure: `FIXED_TEXT` [paper]."""
    return FIXED_TEXT


def environment(failure: Failure) -> str | None:
    """Return the message of the parser, the schema or the tool; None if there is none (a wrong call that ran)."""
    return failure.detail or None


environment.from_environment = True  # pyright: ignore[reportFunctionMemberAccess]


def none(failure: Failure) -> str | None:
    """Return no text, as a control: the failed rollout is followed by an empty tool result or user message."""
    return ""


SOURCES: Mapping[str, FeedbackFunction] = {"fixed": fixed, ENVIRONMENT: environment, "rules": rules, "none": none}


def source_states(sources: Iterable[Any], strict: bool = True) -> list[dict[str, Any]]:
    """Names and states of feedback sources; None for a source without `state()`.

    A `state()` that raises is logged, and marked "failed". So is a state that is no JSON; if `strict`, ValueError.
    """
    states = []
    for source in sources:
        name = name_of(source)
        try:
            if faithful(state := contained(partial(state_of, source), "state()")) is not None:
                states.append({"name": name, "state": state})
                continue
            problem = (
                "state() must return plain JSON (objects with string keys, lists, strings, numbers, booleans, null), "
                "else it cannot be kept in a checkpoint"
            )
        except Exception:  # noqa: BLE001 - the user's code
            _log.warning("feedback source %r: state() failed", name, exc_info=True)
        else:
            if strict:
                raise ValueError(f"feedback source {name!r}: {problem}")
            _log.warning("feedback source %r: %s", name, problem)
        states.append({"name": name, "state": None, "failed": True})
    return states


def load_source_states(sources: Sequence[Any], states: Sequence[Mapping[str, Any]]) -> list[str]:
    """Restore the states of feedback sources; returns the names of those whose state is missing or not accepted."""
    unknown = []
    for i, source in enumerate(sources):
        name = name_of(source)
        saved = states[i] if i < len(states) and states[i]["name"] == name else None
        if saved is None or "failed" in saved:
            unknown.append(name)
        elif saved["state"] is not None and callable(getattr(source, "load_state", None)):
            try:
                contained(partial(source.load_state, saved["state"]), "load_state()")
            except Exception:  # noqa: BLE001 - the user's code
                _log.warning("feedback source %s: load_state() failed", name, exc_info=True)
                unknown.append(name)
    return unknown
