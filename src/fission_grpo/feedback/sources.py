"""What a failed rollout is told: the sources of diagnoses, behind one protocol.

The simplest source is a function `Failure -> str | None`; None means "nothing to say". One that answers many failures
at a time, now or later, is a `Source`. Several make a chain: whatever the first cannot say, the next is asked.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from fission_grpo.core.types import Failure
from fission_grpo.feedback.rules import rules

FIXED_TEXT = "error: you made a mistake. please try again."
"""[paper] What is said where nothing better is known, and where the simulator fails."""


Diagnose = Callable[[Failure], str | None]


_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """What a source said of one failure.

    Args:
        text: the diagnosis; "" is silence on purpose (`none`), None is no answer.
        reason: why there is none, as it is counted ("timeout", "HTTP 429", "no diagnosis"); None with a text, and
            where the source leaves failures of this kind to the next one, which is counted nowhere.
    """

    text: str | None
    reason: str | None = None


class Source(Protocol):
    """Diagnoses failures, many at a time.

    A source that remembers something on which later answers depend (a random generator, what it said before) also has
    `state() -> Any`, plain JSON, and `load_state(state)`. They go with the trainer's checkpoints, so that a resumed
    run is told what the straight one would have been. At that time nothing that `start` gave out is waited for.

    Attributes:
        name: for records and metrics.
        later: answers come while other work goes on. The trainer then collects them when the next cycle begins.
    """

    name: str
    later: bool

    def start(self, failures: Sequence[Failure]) -> list[Future[Answer]]:
        """Begin to diagnose; one future per failure, which never raises. Those not wanted any more get cancelled."""
        ...

    def check(self) -> None:
        """Make sure that it can be asked, before a run begins. Raises ValueError that says what to mend."""
        ...

    def counts(self) -> Mapping[str, float]:
        """Numbers of its own since the last time they were taken, such as requests and tokens; mostly none."""
        ...


class Function:
    """A function `Failure -> str | None` as a source. What it raises is logged and costs one diagnosis.

    A callable object may have `state()` and `load_state(state)` of its own, as a `Source` may.
    """

    later = False

    def __init__(self, name: str, function: Diagnose):
        self.name, self.function = name, function

    def start(self, failures: Sequence[Failure]) -> list[Future[Answer]]:
        return [answered(self._answer(failure)) for failure in failures]

    def check(self) -> None: ...

    def counts(self) -> Mapping[str, float]:
        return {}

    def state(self) -> Any:
        state: Any = getattr(self.function, "state", None)
        return state() if callable(state) else None

    def load_state(self, state: Any) -> None:
        load: Any = getattr(self.function, "load_state", None)
        if callable(load):
            load(state)

    def _answer(self, failure: Failure) -> Answer:
        try:
            text = self.function(failure)
        except Exception as error:  # noqa: BLE001 - it may be the user's; its fault is logged and counted
            _log.warning("diagnosis source %s failed on task %s", self.name, failure.task.id, exc_info=True)
            return Answer(None, f"raised {type(error).__name__}")
        if text is not None and not isinstance(text, str):
            return Answer(None, f"returned {type(text).__name__}")
        silent = text == "" and self.function is none
        return Answer(text) if text or silent else Answer(None, "no diagnosis")


def answered(answer: Answer) -> Future[Answer]:
    """A future that is done already."""
    future: Future[Answer] = Future()
    future.set_result(answer)
    return future


def fixed(failure: Failure) -> str | None:
    """The same text for every failure: `FIXED_TEXT` [paper]."""
    return FIXED_TEXT


def environment(failure: Failure) -> str | None:
    """The parser's, the schema's or the tool's own message, None where there is none (a wrong call that ran)."""
    return failure.detail or None


def none(failure: Failure) -> str | None:
    """Nothing is said, as a control: the failed rollout is followed by an empty tool result or user message."""
    return ""


SOURCES: Mapping[str, Diagnose] = {"fixed": fixed, "environment": environment, "rules": rules, "none": none}


def chain_of(diagnose: str | Diagnose | Source | Sequence[str | Diagnose | Source]) -> tuple[Source, ...]:
    """The sources to be asked one after another, each given by name, as a function or as a `Source`.

    Raises:
        ValueError: no such name; the message lists those there are.

    Example:
        `chain_of("rules")` has one source, named "rules"; of a function the name is its `__name__`, else its class's.
    """
    if isinstance(diagnose, list | tuple):
        return tuple(source for one in diagnose for source in chain_of(one))
    if isinstance(diagnose, str) and diagnose in SOURCES:
        return (Function(diagnose, SOURCES[diagnose]),)
    if hasattr(diagnose, "start"):
        return (diagnose,)  # pyright: ignore[reportReturnType]
    if callable(diagnose):
        return (Function(getattr(diagnose, "__name__", type(diagnose).__name__), diagnose),)
    raise ValueError(
        f"diagnose must be one of {', '.join(SOURCES)}, a function Failure -> str | None, a Source, or a list of "
        f"these; got {diagnose!r}"
    )
