"""Which labelled failures are used, and for what: filters, and the split into training and test APIs."""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from fission_grpo.core.serialization import call_fields
from fission_grpo.feedback.dataset import FeedbackExample
from fission_grpo.feedback.leak_guard import find_leak, letters_and_digits
from fission_grpo.feedback.runtime_messages import template
from fission_grpo.feedback.sources import ENVIRONMENT
from fission_grpo.recipes.error_simulator.failures import LabelledFailure
from fission_grpo.recipes.error_simulator.labels import is_specific


@dataclass(frozen=True)
class FilterLimits:
    """Limits of `filter_failures`. [ours]"""

    shortest: int = 15  # length of a feedback text, in characters
    longest: int = 500
    alike: int = 75  # most texts of one template

    def __post_init__(self):
        if not 0 <= self.shortest <= self.longest or self.alike < 1:
            raise ValueError(
                f"lengths must satisfy 0 <= shortest <= longest and alike must be at least 1, got {self.shortest}, "
                f"{self.longest}, {self.alike}"
            )


def filter_failures(
    found: Sequence[LabelledFailure], limits: FilterLimits
) -> tuple[list[LabelledFailure], Counter[str]]:
    """The failures that pass every filter, in order, and how many each filter dropped; the first that fails counts.

    A duplicate is the same failed turn in the same dialogue, or the same failed turn and text anywhere; a near
    duplicate is equal but for case, spacing and the order of arguments.
    """
    kept: list[LabelledFailure] = []
    dropped: Counter[str] = Counter()
    exact_keys: set[tuple[str, str]] = set()
    near_keys: set[tuple[str, str]] = set()
    templates: Counter[str] = Counter()
    for item in found:
        text, failure = item.example.diagnosis, item.example.failure
        exact = {("turn", item.example.id), (failure.turns[-1].text, text)}
        near = (_normalized_turn(item.example), letters_and_digits(text.casefold()))
        filters = {
            "leak": item.example.teacher != ENVIRONMENT and find_leak(text, failure) is not None,
            "unspecific": not is_specific(text, failure),
            "too short": len(text) < limits.shortest,
            "too long": len(text) > limits.longest,
            "duplicate": bool(exact & exact_keys),
            "near duplicate": near in near_keys,
            "template": templates[template(text)] >= limits.alike,
        }
        reason = next((name for name, is_dropped in filters.items() if is_dropped), None)
        if reason is not None:
            dropped[reason] += 1
            continue
        kept.append(item)
        exact_keys |= exact
        near_keys.add(near)
        templates[template(text)] += 1
    return kept, dropped


def _normalized_turn(example: FeedbackExample) -> str:
    """The failed turn's calls with sorted keys, or its text if it has none, reduced to letters and digits."""
    turn = example.failure.turns[-1]
    calls = json.dumps([call_fields(call) for call in turn.calls], sort_keys=True)
    return letters_and_digits((calls if turn.calls else turn.text).casefold())


@dataclass(frozen=True)
class Split:
    """Failures for training and for testing; `dropped` counts, by reason, those in neither."""

    train: list[LabelledFailure]
    test: list[LabelledFailure]
    dropped: Counter[str]


def draw_test_apis(found: Sequence[LabelledFailure], share: float, seed: int) -> tuple[str, ...]:
    """Draw APIs until they hold about `share` of the failures; at least one and never all, if 0 < share < 1."""
    counts = Counter(item.example.api for item in found)
    names = sorted(counts)
    if share <= 0:
        return ()
    if share >= 1:
        return tuple(names)
    random.Random(f"{seed} apis").shuffle(names)
    drawn: list[str] = []
    for name in names[:-1]:
        if drawn and sum(counts[api] for api in drawn) >= share * len(found):
            break
        drawn.append(name)
    return tuple(sorted(drawn))


def split_by_api(
    found: Sequence[LabelledFailure], test_apis: Sequence[str], count: int, share: float, seed: int
) -> Split:
    """Hold out the test APIs, then take `count` failures (0: all), `share` of them for testing.

    A training failure whose root (case, task or transcript) or failed turn's text is in the test set too is dropped.
    If one side has fewer failures than its share, the other does not grow.
    """
    test = [item for item in found if item.example.api in test_apis]
    roots = {item.root for item in test}
    texts = {_failed_text(item) for item in test}
    dropped: Counter[str] = Counter()
    train = []
    for item in found:
        if item.example.api in test_apis:
            continue
        if item.root in roots:
            dropped["its case is tested on"] += 1
        elif _failed_text(item) in texts:
            dropped["its failed turn is tested on"] += 1
        else:
            train.append(item)
    available = len(train) + len(test)
    if count:
        most = round(count * share)
        train, test = draw_evenly(train, count - most, seed), draw_evenly(test, most, seed)
    dropped["more than asked for"] = available - len(train) - len(test)
    return Split(train, test, +dropped)


def draw_evenly(found: Sequence[LabelledFailure], most: int, seed: int) -> list[LabelledFailure]:
    """At most `most` failures, in their order, drawn as evenly as possible over APIs and origins."""
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index, item in enumerate(found):
        groups[item.example.api, item.example.origin].append(index)
    rng = random.Random(f"{seed} thinned")
    queues = [rng.sample(groups[key], len(groups[key])) for key in sorted(groups)]
    taken: list[int] = []
    while queues and len(taken) < most:
        for queue in queues[: most - len(taken)]:
            taken.append(queue.pop())
        queues = [queue for queue in queues if queue]
    return [found[index] for index in sorted(taken)]


def _failed_text(item: LabelledFailure) -> str:
    return item.example.failure.turns[-1].text
