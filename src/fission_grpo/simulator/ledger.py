"""What asking a simulator came to and what it cost, as metrics and as a report."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping

from fission_grpo.diagnose import Answer
from fission_grpo.evaluation.endpoint_options import EndpointCounts

PREFIX = "simulator/"


class Ledger:
    """Counts of one process. Any thread may write.

    Args:
        prompt_price: of a million tokens read.
        completion_price: of a million tokens written.
    """

    def __init__(self, prompt_price: float = 0.0, completion_price: float = 0.0):
        self._prices = prompt_price, completion_price
        self._lock = threading.Lock()
        self._numbers: Counter[str] = Counter()
        self._none: Counter[str] = Counter()
        self._taken: Mapping[str, float] = {}

    def add(self, **numbers: float) -> None:
        """Count."""
        with self._lock:
            for name, number in numbers.items():
                self._numbers[name] += number  # pyright: ignore[reportArgumentType] - seconds are no whole number

    def ended(self, answer: Answer) -> None:
        """A failure has got its answer, or there is none."""
        with self._lock:
            if answer.text:
                self._numbers["answers"] += 1
            else:
                self._none[answer.reason or "no diagnosis"] += 1

    def totals(self, asked: EndpointCounts, **more: float) -> dict[str, float]:
        """All counts so far that are not zero, named as metrics.

        Args:
            asked: the policy's own counts: tries, and why they were made again or lost.
            more: further counts.

        Returns:
            dict: "simulator/" and: asked (failures), answers, cache_hits, shared (with an equal request under way),
                requests (tries), retries, lost (requests), prompt_tokens, completion_tokens, estimated_tokens (those
                of them that the endpoint did not count), cost, seconds (summed over requests, waiting for a place
                included); no/REASON for failures without a diagnosis, retries/REASON for tries made again; `more`.
        """
        with self._lock:
            numbers, none = dict(self._numbers), dict(self._none)
        read, written = numbers.get("prompt_tokens", 0), numbers.get("completion_tokens", 0)
        found: dict[str, float] = {
            **numbers,
            "requests": asked.requests,
            "retries": sum(asked.retries.values()),
            "lost": sum(asked.lost.values()),
            "cost": (read * self._prices[0] + written * self._prices[1]) / 1e6,
            **more,
            **{f"no/{_word(reason)}": number for reason, number in none.items()},
            **{f"retries/{_word(reason)}": number for reason, number in asked.retries.items()},
        }
        return {PREFIX + name: value for name, value in found.items() if value}

    def since_last(self, totals: Mapping[str, float]) -> dict[str, float]:
        """What has been added to the totals since the last call of this; zeros are left out."""
        with self._lock:
            before, self._taken = self._taken, totals
        added = {name: value - before.get(name, 0) for name, value in totals.items()}
        return {name: value for name, value in added.items() if value}


def report(title: str, totals: Mapping[str, float]) -> str:
    """Totals in a few lines for the end of a run.

    Example:
        The second line is "not diagnosed: HTTP_429 3, timeout 1" or "not diagnosed: none".
    """
    found = {name.removeprefix(PREFIX): value for name, value in totals.items()}

    def number(name: str) -> str:
        return f"{found.get(name, 0):,.0f}"

    def listed(kind: str) -> str:
        these = [f"{name.removeprefix(kind)} {number(name)}" for name in sorted(found) if name.startswith(kind)]
        return ", ".join(these) or "none"

    cost = f", cost {found['cost']:.4g}" if "cost" in found else ""
    return "\n".join(
        [
            f"{title}: {number('asked')} failures, {number('answers')} diagnosed "
            f"({number('cache_hits')} from the cache, {number('shared')} asked together with an equal one)",
            f"not diagnosed: {listed('no/')}",
            f"requests: {number('requests')}; made again: {listed('retries/')}",
            f"tokens: {number('prompt_tokens')} read, {number('completion_tokens')} written, "
            f"{number('estimated_tokens')} of them estimated{cost}",
            f"circuit opened: {number('circuit_opened')} times; cache: {number('cache_failed')} writes failed, "
            f"{number('cache_skipped')} lines skipped",
        ]
    )


def _word(reason: str) -> str:
    return reason.replace(" ", "_")
