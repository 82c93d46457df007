"""Training and test instances, split by API, so that a simulator is tested on tools it never saw."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from fission_grpo.simulator.collect import Found


@dataclass(frozen=True)
class Split:
    """Instances to train on and to test on. `dropped` counts, by reason, what went into neither."""

    train: tuple[Found, ...]
    test: tuple[Found, ...]
    dropped: Counter[str]


def chosen_apis(found: Sequence[Found], share: float, seed: int) -> tuple[str, ...]:
    """Whole APIs, drawn until they hold about `share` of the instances; at least one, and never all, if 0 < share < 1.

    Example:
        Of APIs with 50, 30 and 20 instances, share 0.2 takes whichever is drawn first.
    """
    counts = Counter(one.instance.api for one in found)
    if share <= 0 or not counts:
        return ()
    if share >= 1:
        return tuple(sorted(counts))
    names = sorted(counts)
    random.Random(f"{seed} apis").shuffle(names)
    taken, held = [], 0
    for name in names[:-1]:
        if taken and held >= share * len(found):
            break
        taken.append(name)
        held += counts[name]
    return tuple(sorted(taken))


def split_by_api(found: Sequence[Found], test_apis: Sequence[str], count: int, share: float, seed: int) -> Split:
    """Split whole APIs off for testing, then take `count` instances, `share` of them for testing.

    Nothing is in both: a training instance whose root (case, task or transcript) or failed turn's text is in the test
    set too is dropped. What is too many is thinned evenly over APIs and origins. If one side has fewer than its share,
    the other is not made larger.

    Args:
        found: filtered instances.
        test_apis: APIs of the test set.
        count: of instances wanted in all; 0: all.
        share: of `count` that is wanted for testing, 0 to 1.
        seed: of the thinning.
    """
    held_out = set(test_apis)
    test = [one for one in found if one.instance.api in held_out]
    roots = {one.root for one in test}
    texts = {_text(one) for one in test}
    dropped: Counter[str] = Counter()
    train = []
    for one in found:
        if one.instance.api in held_out:
            continue
        if one.root in roots:
            dropped["its case is tested on"] += 1
        elif _text(one) in texts:
            dropped["its failed turn is tested on"] += 1
        else:
            train.append(one)
    sides = []
    for side, most in ((train, count - round(count * share)), (test, round(count * share))):
        kept = thinned(side, most, seed) if count else side
        dropped["more than asked for"] += len(side) - len(kept)
        sides.append(tuple(kept))
    return Split(sides[0], sides[1], +dropped)


def thinned(found: Sequence[Found], most: int, seed: int) -> list[Found]:
    """At most so many, in the order given, as evenly as possible over APIs and origins.

    Example:
        5 of one API and 1 of another, at most 4: 3 and 1.
    """
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for at, one in enumerate(found):
        groups[one.instance.api, one.instance.origin].append(at)
    rng = random.Random(f"{seed} thinned")
    queues = [rng.sample(groups[key], len(groups[key])) for key in sorted(groups)]
    taken: list[int] = []
    while queues and len(taken) < most:
        for queue in queues:
            taken.append(queue.pop())
            if len(taken) == most:
                break
        queues = [queue for queue in queues if queue]
    return [found[at] for at in sorted(taken)]


def _text(one: Found) -> str:
    return one.instance.failure.turns[-1].text
