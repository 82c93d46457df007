"""Feedback on failures: a chain of sources is asked in turn, and every text must pass the leak guard."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from math import inf

from fission_grpo.core.types import Failure
from fission_grpo.feedback.leak_guard import find_leak
from fission_grpo.feedback.rules import MAX_LENGTH
from fission_grpo.feedback.sources import FIXED_TEXT, Diagnosis, FeedbackSource

LEAK, LATE = "leak", "late"


@dataclass(frozen=True)
class Feedback:
    """The feedback on a failure, and where it comes from.

    Args:
        text: at most `MAX_LENGTH` characters; empty only if a source is silent on purpose.
        source: name of the source; "fixed" if no source of the chain had a usable text.
        rejected: the sources before it, each with the reason why its text was not used ("leak", "late",
            "no diagnosis", "HTTP 500", ...).
    """

    text: str
    source: str
    rejected: tuple[tuple[str, str], ...] = ()

    @property
    def leaked(self) -> bool:
        """Whether a source gave the reference away; its text was not used."""
        return any(reason == LEAK for _, reason in self.rejected)

    @property
    def fallback(self) -> str | None:
        """Why the text is not the first source's, such as "endpoint: timeout; rules: no diagnosis"; None if it is."""
        return "; ".join(f"{source}: {reason}" for source, reason in self.rejected) or None


class FeedbackRequest:
    """A request for feedback on failures. The first source starts at once.

    Args:
        failures: to get feedback on.
        chain: sources, in the order in which they are asked; the fixed text comes after the last one.
    """

    def __init__(self, failures: Sequence[Failure], chain: Sequence[FeedbackSource]):
        self.failures, self._chain = list(failures), chain
        self._first = chain[0].start(self.failures) if chain else []

    def feedback(self, timeout: float = inf) -> list[Feedback]:
        """Wait for the answers and return one feedback per failure. Faults of sources never raise.

        Args:
            timeout: the longest wait for all sources together, in seconds. Answers that are missing by then are given
                up ("late"), and their failures passed to the sources that answer at once.
        """
        end = time.monotonic() + timeout
        results: dict[int, Feedback] = {}
        rejected: list[list[tuple[str, str]]] = [[] for _ in self.failures]
        for position, source in enumerate(self._chain):
            open_indices = [i for i in range(len(self.failures)) if i not in results]
            futures = self._first if position == 0 else source.start([self.failures[i] for i in open_indices])
            for i, answer in zip(open_indices, _collect(futures, end - time.monotonic()), strict=True):
                text, reason = _check_answer(answer, self.failures[i])
                if text is not None:
                    results[i] = Feedback(text, source.name, tuple(rejected[i]))
                elif reason:
                    rejected[i].append((source.name, reason))
        return [results.get(i) or Feedback(FIXED_TEXT, "fixed", tuple(reasons)) for i, reasons in enumerate(rejected)]


def feedback_for(failure: Failure, chain: Sequence[FeedbackSource]) -> Feedback:
    """Get feedback on one failure from a chain of sources."""
    return FeedbackRequest([failure], chain).feedback()[0]


def _collect(futures: Sequence[Future[Diagnosis]], timeout: float) -> list[Diagnosis]:
    """The answers after at most `timeout` seconds; what is not done is cancelled and counts as late."""
    wait(futures, timeout=None if timeout == inf else max(0.0, timeout))
    late = Diagnosis(None, LATE)
    return [future.result() if future.done() or not _give_up(future) else late for future in futures]


def _give_up(future: Future[Diagnosis]) -> bool:
    """Whether a future was given up before its answer arrived."""
    return future.cancel() or not future.done()


def _check_answer(answer: Diagnosis, failure: Failure) -> tuple[str | None, str | None]:
    """The text as the policy may see it, or the reason why it may not."""
    if not answer.text:
        return answer.text, answer.reason
    text = answer.text.encode("utf-8", "replace").decode().strip()[:MAX_LENGTH]
    if not text:
        return None, "no diagnosis"
    if text != FIXED_TEXT and find_leak(text, failure) is not None:
        return None, LEAK
    return text, None
