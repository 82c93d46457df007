"""Which labelled failures are fit for training: no leaks, specific, of a fair length, no duplicates, no template twice
too often."""

from __future__ import annotations

import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fission_grpo.core.json_io import quoted
from fission_grpo.core.serialization import call_fields
from fission_grpo.core.tool_schema import parameter_schema, tool_names
from fission_grpo.core.types import ErrorKind, Failure
from fission_grpo.feedback.dataset import FeedbackExample
from fission_grpo.feedback.leak_guard import find_leak, letters_and_digits
from fission_grpo.feedback.sources import FIXED_TEXT
from fission_grpo.recipes.error_simulator.failures import LabelledFailure

_COMMON = "a b by call data error format id input key message name number of text to tool type value x y"


COMMON = frozenset(_COMMON.split())
"""Parameter names that any error message may hold by chance: they count in quotes or backticks only. [ours]"""


_FORM: Mapping[ErrorKind, str] = {
    ErrorKind.UNPARSED: r"\b(json|call|tool_call|closed?|brace|bracket|quote|arguments?)\b|<",
    ErrorKind.NO_CALL: r"\b(call|tool)\w*",
    ErrorKind.TRUNCATED: r"\b(cut|truncated|length|limit|short\w*|long)\b",
    ErrorKind.OUT_OF_TURNS: r"\b(turns?|steps?|finish\w*)\b",
}
"""Where no call is at fault but the turn's form, what a text must speak of. [ours]"""


def is_specific(text: str, failure: Failure) -> bool:
    """Whether a diagnosis says where the fault is. See `named_by`.

    Example:
        "error: `priority` is not right" is specific of a call with `priority`, `FIXED_TEXT` of nothing.
    """
    return named_by(text, failure) is not None


def named_by(text: str, failure: Failure) -> str | None:
    """How a diagnosis points at the fault: "tool", "parameter", "value" or "form"; None if it does not.

    Args:
        text: the diagnosis.
        failure: what it is about. The parameters in question are those of the tools that the failed turn called, as
            their schemas and the calls themselves name them, with "_" or a space between words; the values are what
            the calls wrote (texts of three or more characters and numbers). If the turn has no calls (unreadable,
            none made, cut off), or none is needed, speaking of the form is specific.
    """
    if text.strip() == FIXED_TEXT:
        return None
    plain = text.casefold()
    if any(_holds(plain, call.name) for call in failure.calls):
        return "tool"
    if any(_holds(plain, name) for name in _parameters(failure)):
        return "parameter"
    if any(_holds(plain, value) for call in failure.calls for value in _values(call.arguments)):
        return "value"
    needless = bool(failure.calls) and failure.reference == ()
    form = _FORM[ErrorKind.NO_CALL] if needless else _FORM.get(failure.kind)
    whole = needless or not failure.calls or failure.kind is ErrorKind.TRUNCATED
    return "form" if form and whole and re.search(form, plain) else None


def _parameters(failure: Failure) -> set[str]:
    called = {call.name for call in failure.calls}
    names = {name for call in failure.calls for name in call.arguments}
    for name, tool in zip(tool_names(failure.task.tools), failure.task.tools, strict=True):
        if name in called:
            names |= set(parameter_schema(tool).get("properties", {}))
    return names


def _values(arguments: Any) -> Iterator[str]:
    """The texts of three or more characters and the numbers in a call's arguments."""
    waiting = [arguments]
    while waiting:
        item = waiting.pop()
        if isinstance(item, Mapping):
            waiting += item.values()
        elif isinstance(item, list | tuple):
            waiting += item
        elif isinstance(item, str) and len(item.strip()) > 2:
            yield item.strip()
        elif isinstance(item, int | float) and not isinstance(item, bool):
            yield quoted(item)


def _holds(plain: str, name: str) -> bool:
    """Whether a text in lower case holds a name as a whole word; a very common word only in quotes."""
    name = name.casefold()
    if not name:
        return False
    if name in COMMON:
        return re.search(rf"[`'\"]{re.escape(name)}[`'\"]", plain) is not None
    spelled = "[ _-]".join(map(re.escape, re.split(r"[ _-]", name)))
    return re.search(rf"(?<!\w){spelled}(?!\w)", plain) is not None


@dataclass(frozen=True)
class Split:
    """Instances to train on and to test on. `dropped` counts, by reason, what went into neither."""

    train: tuple[LabelledFailure, ...]
    test: tuple[LabelledFailure, ...]
    dropped: Counter[str]


def chosen_apis(found: Sequence[LabelledFailure], share: float, seed: int) -> tuple[str, ...]:
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


def split_by_api(
    found: Sequence[LabelledFailure], test_apis: Sequence[str], count: int, share: float, seed: int
) -> Split:
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


def thinned(found: Sequence[LabelledFailure], most: int, seed: int) -> list[LabelledFailure]:
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


def _text(one: LabelledFailure) -> str:
    return one.instance.failure.turns[-1].text


@dataclass(frozen=True)
class FilterLimits:
    """What is let through. [ours]

    Args:
        shortest, longest: of a diagnosis, in characters.
        alike: most diagnoses of one template (`template`).
    """

    shortest: int = 15
    longest: int = 500
    alike: int = 75

    def __post_init__(self):
        if not 0 <= self.shortest <= self.longest or self.alike < 1:
            raise ValueError(
                f"lengths must satisfy 0 <= shortest <= longest and alike must be at least 1, got {self.shortest}, "
                f"{self.longest}, {self.alike}"
            )


def filtered(found: Sequence[LabelledFailure], limits: FilterLimits) -> tuple[list[LabelledFailure], Counter[str]]:
    """What passes all filters, in order, and how many each one dropped.

    The first filter that refuses counts: leak, unspecific, too short, too long, duplicate (the same failed turn in the
    same dialogue, or the same failed turn and diagnosis anywhere), near duplicate (the same but for case, spacing and
    the order of arguments), template (of one template there are `alike` already).
    """
    kept: list[LabelledFailure] = []
    dropped: Counter[str] = Counter()
    seen: set[tuple[str, str]] = set()
    near: set[tuple[str, str]] = set()
    templates: Counter[str] = Counter()
    for one in found:
        item = one.instance
        text, failure = item.diagnosis, item.failure
        exact = [("turn", item.id), (failure.turns[-1].text, text)]
        alike = (failed_call(item), letters_and_digits(text.casefold()))
        if find_leak(text, failure) is not None:
            dropped["leak"] += 1
        elif not is_specific(text, failure):
            dropped["unspecific"] += 1
        elif len(text) < limits.shortest:
            dropped["too short"] += 1
        elif len(text) > limits.longest:
            dropped["too long"] += 1
        elif any(key in seen for key in exact):
            dropped["duplicate"] += 1
        elif alike in near:
            dropped["near duplicate"] += 1
        elif templates[template(text)] >= limits.alike:
            dropped["template"] += 1
        else:
            kept.append(one)
            seen.update(exact)
            near.add(alike)
            templates[template(text)] += 1
    return kept, dropped


def template(text: str) -> str:
    """A diagnosis without what it quotes and without numbers.

    Example:
        "error: `id` is not right, got 7" and "error: `id` is not right, got 'x'" are both "error: `id` is not right,
        got _".
    """
    text = re.sub(r"'[^']*'|\"[^\"]*\"", "_", text)
    return re.sub(r"\b\w*\d[\w.]*\b", "_", text)


def failed_call(item: FeedbackExample) -> str:
    """The failed turn's calls as JSON with sorted keys; of a turn without calls, its text in lower case."""
    turn = item.failure.turns[-1]
    if not turn.calls:
        return letters_and_digits(turn.text.casefold())
    return letters_and_digits(json.dumps([call_fields(call) for call in turn.calls], sort_keys=True).casefold())
