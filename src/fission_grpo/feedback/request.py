"""Request feedback from a chain of sources; every text must pass the leak guard."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any

from fission_grpo.core.errors import UsageError
from fission_grpo.core.json_io import encodable
from fission_grpo.core.terminal import get_logger
from fission_grpo.core.timing import contained
from fission_grpo.core.types import Failure
from fission_grpo.feedback.leak_guard import find_leak
from fission_grpo.feedback.rules import MAX_LENGTH
from fission_grpo.feedback.sources import FIXED_TEXT, Diagnosis, FeedbackSource, completed, name_of, reason_of

_log = get_logger(__name__)
LEAK, LATE = "leak", "late"  # reasons
REASON_LENGTH = 60  # of a reason, in characters [ours]; it becomes the name of a metric


@dataclass(frozen=True)
class Feedback:
    """The feedback on a failure, and where it comes from."""

    text: str  # at most `MAX_LENGTH` characters; empty only if a source is silent on purpose
    source: str  # its name; "fixed" if no source of the chain had a usable text
    rejected: tuple[tuple[str, str], ...] = ()  # the sources before it, each with a reason ("leak", "HTTP 500", ...)
    exempt: bool = field(default=False, compare=False)  # whether only the environment's own answer may say so much

    @property
    def leaked(self) -> bool:
        """Whether a source gave the reference away; its text was not used."""
        return any(reason == LEAK for _, reason in self.rejected)

    @property
    def fallback(self) -> str | None:
        """Why the text is not the first source's, such as "endpoint: timeout; rules: no diagnosis"; None if it is."""
        return "; ".join(f"{source}: {reason}" for source, reason in self.rejected) or None


class FeedbackRequest:
    """A request for feedback on failures; the first source of the chain starts at once."""

    def __init__(self, failures: Sequence[Failure], chain: Sequence[FeedbackSource]):
        self.failures, self._chain = list(failures), chain
        self._first = started(chain[0], self.failures) if chain else []

    def feedback(self, timeout: float = inf) -> list[Feedback]:
        """Wait for the answers and return one feedback per failure. Faults of sources never raise.

        Answers that are missing after `timeout` seconds are given up ("late"), and the next sources get no more time.
        """
        end = time.monotonic() + timeout
        results: dict[int, Feedback] = {}
        rejected: list[list[tuple[str, str]]] = [[] for _ in self.failures]
        for position, source in enumerate(self._chain):
            open_indices = [i for i in range(len(self.failures)) if i not in results]
            futures = self._first if position == 0 else started(source, [self.failures[i] for i in open_indices])
            wait(futures, end)
            for i, future in zip(open_indices, futures, strict=True):
                answer, is_exempt = _check_answer(answer_of(source, future), self.failures[i])
                if answer.text is not None:
                    results[i] = Feedback(answer.text, name_of(source), tuple(rejected[i]), is_exempt)
                elif answer.reason:
                    rejected[i].append((name_of(source), answer.reason))
        return [results.get(i) or Feedback(FIXED_TEXT, "fixed", tuple(reasons)) for i, reasons in enumerate(rejected)]


def feedback_for(failure: Failure, chain: Sequence[FeedbackSource]) -> Feedback:
    return FeedbackRequest([failure], chain).feedback()[0]


def started(source: Any, failures: Sequence[Failure]) -> list[Future[Diagnosis]]:
    """The futures of a source, also of one that does not keep to `FeedbackSource`; faults are logged."""
    try:
        futures = contained(lambda: list(source.start(failures)), "start()")
        if len(futures) == len(failures) and all(isinstance(future, Future) for future in futures):
            return futures
        reason = "wrong number of answers" if len(futures) != len(failures) else "answers are no futures"
        _log.warning("feedback source %s: start() must return one future for each failure", name_of(source))
    except UsageError:  # of a function that has never worked
        raise
    except Exception as error:  # noqa: BLE001 - logged and counted
        reason = reason_of(error)
        _log.warning("feedback source %s: start() failed", name_of(source), exc_info=True)
    return [completed(Diagnosis(None, reason)) for _ in failures]


def wait(futures: Sequence[Future[Any]], end: float = inf) -> None:
    """Wait until all are done, or until a time. `concurrent.futures.wait` waits for cancelled ones without end."""
    done = threading.Semaphore(0)
    for future in futures:
        future.add_done_callback(lambda _: done.release())
    for _ in futures:
        if not done.acquire(timeout=min(max(0.0, end - time.monotonic()), threading.TIMEOUT_MAX)):
            return


def answer_of(source: Any, future: Future[Diagnosis]) -> Diagnosis:
    """The answer; a future that has none yet is cancelled and counts as late."""
    if not future.done() and (future.cancel() or not future.done()):
        return Diagnosis(None, LATE)
    try:
        answer: Any = contained(future.result, "its answer")
    except Exception as error:  # noqa: BLE001 - logged and counted
        _log.warning("feedback source %s failed", name_of(source), exc_info=True)
        return Diagnosis(None, reason_of(error))
    given = answer.text if isinstance(answer, Diagnosis) else answer
    if not isinstance(answer, Diagnosis) or not isinstance(given, str | None):
        return Diagnosis(None, f"returned {type(given).__name__}")
    return replace(answer, reason=None if answer.reason is None else str(answer.reason)[:REASON_LENGTH])


def _check_answer(answer: Diagnosis, failure: Failure) -> tuple[Diagnosis, bool]:
    """The answer with the text for the policy, or the reason why there is none; whether it was exempt from the guard.

    What the environment itself says is no leak: the policy will read the same when it makes the call.
    """
    if not answer.text:
        return answer, False
    text = encodable(answer.text).strip()[:MAX_LENGTH]
    if not text:
        return Diagnosis(None, "no diagnosis"), False
    is_leak = text != FIXED_TEXT and find_leak(text, failure, from_environment=False) is not None
    if is_leak and not answer.from_environment and find_leak(text, failure) is not None:
        return Diagnosis(None, LEAK), False
    return replace(answer, text=text, reason=None), is_leak
