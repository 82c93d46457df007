"""From failures to feedback: a chain of sources is asked, and every text passes the leak guard."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass

from fission_grpo.core.types import Failure
from fission_grpo.feedback.leak_guard import find_leak
from fission_grpo.feedback.rules import MAX_LENGTH
from fission_grpo.feedback.sources import FIXED_TEXT, Diagnosis, FeedbackSource

LEAK, LATE = "leak", "late"


@dataclass(frozen=True)
class Feedback:
    """What the policy is told, and how it came about.

    Args:
        text: at most `MAX_LENGTH` characters; empty only if a source is silent on purpose.
        source: name of the source that said it; "fixed" where none of the chain could.
        rejected: sources asked in vain before, each with the reason ("leak", "late", "no diagnosis", "HTTP 500", ...).
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
        """Why it is not the first source's text, such as "endpoint: timeout; rules: no diagnosis"; None if it is."""
        return "; ".join(f"{source}: {reason}" for source, reason in self.rejected) or None


class FeedbackRequest:
    """Failures on their way through a chain of sources. The first source is asked at once.

    Args:
        failures: to be diagnosed.
        chain: sources in the order in which they are asked; after the last comes the fixed text.
    """

    def __init__(self, failures: Sequence[Failure], chain: Sequence[FeedbackSource]):
        self.failures, self._chain = list(failures), chain
        self._first = chain[0].start(self.failures) if chain else []

    def feedback(self, seconds: float = float("inf")) -> list[Feedback]:
        """Wait for the answers, one feedback per failure. Never raises for what a source does.

        Args:
            seconds: the longest wait for all sources together. What is not there by then is given up ("late") and
                its failure handed to the sources that answer at once.
        """
        end = time.monotonic() + seconds
        found: dict[int, Feedback] = {}
        rejected: dict[int, list[tuple[str, str]]] = {i: [] for i in range(len(self.failures))}
        for position, source in enumerate(self._chain):
            still = [i for i in rejected if i not in found]
            started = self._first if position == 0 else source.start([self.failures[i] for i in still])
            for i, answer in zip(still, _collect(started, end - time.monotonic()), strict=True):
                text, reason = _usable(answer, self.failures[i])
                if text is not None:
                    found[i] = Feedback(text, source.name, tuple(rejected[i]))
                elif reason:
                    rejected[i].append((source.name, reason))
        return [found.get(i) or Feedback(FIXED_TEXT, "fixed", tuple(rejected[i])) for i in rejected]


def feedback_for(failure: Failure, chain: Sequence[FeedbackSource]) -> Feedback:
    """Ask a chain of sources about one failure."""
    return FeedbackRequest([failure], chain).feedback()[0]


def _collect(futures: Sequence[Future[Diagnosis]], seconds: float) -> list[Diagnosis]:
    wait(futures, timeout=None if seconds == float("inf") else max(0.0, seconds))
    return [Diagnosis(None, LATE) if not future.done() and _give_up(future) else future.result() for future in futures]


def _give_up(future: Future[Diagnosis]) -> bool:
    """Whether a future was cancelled before its answer came."""
    return future.cancel() or not future.done()


def _usable(answer: Diagnosis, failure: Failure) -> tuple[str | None, str | None]:
    """The text as it may be told, or why it may not."""
    if not answer.text:
        return answer.text, answer.reason
    text = answer.text.encode("utf-8", "replace").decode().strip()[:MAX_LENGTH]
    if not text:
        return None, "no diagnosis"
    if text != FIXED_TEXT and find_leak(text, failure) is not None:
        return None, LEAK
    return text, None
