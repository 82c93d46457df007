"""Which labelled failures are used, and for what: specificity, filters, and the split into training and test APIs."""

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
COMMON_NAMES = frozenset(_COMMON.split())
"""Parameter names that any error message may contain by chance: they count only in quotes or backticks. [ours]"""

_FORM_WORDS: Mapping[ErrorKind, str] = {
    ErrorKind.UNPARSED: r"\b(json|call|tool_call|closed?|brace|bracket|quote|arguments?)\b|<",
    ErrorKind.NO_CALL: r"\b(call|tool)\w*",
    ErrorKind.TRUNCATED: r"\b(cut|truncated|length|limit|short\w*|long)\b",
    ErrorKind.OUT_OF_TURNS: r"\b(turns?|steps?|finish\w*)\b",
}
"""Words that make a text specific where the turn's form is at fault and not a call. [ours]"""


def is_specific(text: str, failure: Failure) -> bool:
    """Whether a feedback text names a tool, parameter or value of the failed turn's calls, or the fault of its form.

    Parameters are also those of the called tools' schemas, with "_" or a space between words. The form counts where no
    call is at fault: the turn cannot be parsed, has no call, is truncated, or none was needed.

    Example:
        "error: `priority` is not right" is specific for a call with `priority`; `FIXED_TEXT` never is.
    """
    if text.strip() == FIXED_TEXT:
        return False
    plain = text.casefold()
    names = {call.name for call in failure.calls} | _parameters(failure)
    names.update(value for call in failure.calls for value in _values(call.arguments))
    if any(_contains(plain, name) for name in names):
        return True
    is_needless = bool(failure.calls) and failure.reference == ()
    words = _FORM_WORDS[ErrorKind.NO_CALL] if is_needless else _FORM_WORDS.get(failure.kind)
    form_counts = is_needless or not failure.calls or failure.kind is ErrorKind.TRUNCATED
    return bool(words and form_counts and re.search(words, plain))


def _parameters(failure: Failure) -> set[str]:
    called = {call.name for call in failure.calls}
    names = {name for call in failure.calls for name in call.arguments}
    for name, tool in zip(tool_names(failure.task.tools), failure.task.tools, strict=True):
        if name in called:
            names |= set(parameter_schema(tool).get("properties", {}))
    return names


def _values(value: Any) -> Iterator[str]:
    """The strings of three or more characters and the numbers in a call's arguments."""
    if isinstance(value, Mapping | list | tuple):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _values(inner)
    elif isinstance(value, str) and len(value.strip()) > 2:
        yield value.strip()
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield quoted(value)


def _contains(plain: str, name: str) -> bool:
    """Whether lower-case text contains a name between word boundaries; a common word counts only in quotes."""
    name = name.casefold()
    if not name:
        return False
    if name in COMMON_NAMES:
        return re.search(rf"[`'\"]{re.escape(name)}[`'\"]", plain) is not None
    spelled = "[ _-]".join(map(re.escape, re.split(r"[ _-]", name)))
    return re.search(rf"(?<!\w){spelled}(?!\w)", plain) is not None


@dataclass(frozen=True)
class FilterLimits:
    """Limits of `filter_failures`. [ours]

    Args:
        shortest, longest: length of a feedback text, in characters.
        alike: most texts of one template (`template`).
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


def filter_failures(
    found: Sequence[LabelledFailure], limits: FilterLimits
) -> tuple[list[LabelledFailure], Counter[str]]:
    """The failures that pass every filter, in order, and how many each filter dropped.

    The filters: leak, unspecific, too short, too long, duplicate (the same failed turn in the same dialogue, or the
    same failed turn and text anywhere), near duplicate (equal but for case, spacing and the order of arguments),
    template (`alike` texts of its template passed before). The first filter that fails counts.
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
        reason = _fault(text, failure, limits)
        if reason is None and exact & exact_keys:
            reason = "duplicate"
        elif reason is None and near in near_keys:
            reason = "near duplicate"
        elif reason is None and templates[template(text)] >= limits.alike:
            reason = "template"
        if reason is not None:
            dropped[reason] += 1
            continue
        kept.append(item)
        exact_keys |= exact
        near_keys.add(near)
        templates[template(text)] += 1
    return kept, dropped


def _fault(text: str, failure: Failure, limits: FilterLimits) -> str | None:
    if find_leak(text, failure) is not None:
        return "leak"
    if not is_specific(text, failure):
        return "unspecific"
    if len(text) < limits.shortest:
        return "too short"
    return "too long" if len(text) > limits.longest else None


def template(text: str) -> str:
    """A feedback text without quoted parts and numbers.

    Example:
        "error: `id` is not right, got 7" and "... got 'x'" both give "error: `id` is not right, got _".
    """
    text = re.sub(r"'[^']*'|\"[^\"]*\"", "_", text)
    return re.sub(r"\b\w*\d[\w.]*\b", "_", text)


def _normalized_turn(example: FeedbackExample) -> str:
    """The failed turn's calls with sorted keys, or its text if it has none, reduced to letters and digits."""
    turn = example.failure.turns[-1]
    calls = json.dumps([call_fields(call) for call in turn.calls], sort_keys=True)
    return letters_and_digits((calls if turn.calls else turn.text).casefold())


@dataclass(frozen=True)
class Split:
    """Failures for training and for testing; `dropped` counts, by reason, those in neither."""

    train: tuple[LabelledFailure, ...]
    test: tuple[LabelledFailure, ...]
    dropped: Counter[str]


def draw_test_apis(found: Sequence[LabelledFailure], share: float, seed: int) -> tuple[str, ...]:
    """Draw APIs until they hold about `share` of the failures; at least one and never all, if 0 < share < 1.

    Example:
        Of APIs with 50, 30 and 20 failures, share 0.2 takes whichever is drawn first.
    """
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
    """Hold out the test APIs, then take `count` failures, `share` of them for testing.

    A training failure whose root (case, task or transcript) or failed turn's text is in the test set too is dropped.
    If one side has fewer failures than its share, the other does not grow.

    Args:
        found: the filtered failures.
        test_apis: APIs of the test set.
        count: failures to take in total; 0: all.
        share: fraction of `count` for testing, 0 to 1.
        seed: of the draw where there are more than `count`.
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
    most = round(count * share)
    sides = [draw_evenly(train, count - most, seed), draw_evenly(test, most, seed)] if count else [train, test]
    dropped["more than asked for"] = len(train) + len(test) - sum(map(len, sides))
    return Split(tuple(sides[0]), tuple(sides[1]), +dropped)


def draw_evenly(found: Sequence[LabelledFailure], most: int, seed: int) -> list[LabelledFailure]:
    """At most `most` failures, in their order, drawn as evenly as possible over APIs and origins.

    Example:
        Of 5 failures of one API and 1 of another, at most 4: 3 and 1.
    """
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
