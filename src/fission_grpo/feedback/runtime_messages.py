"""What a runtime says, learned from the messages of an environment: their templates, and what each gives away.

"no file 'plan.txt'; similar: plan_2.md" names the right file, as the runtime does. A simulator that imitates the
runtime may say so where the environment did in its training data; any other text is held against the reference.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fission_grpo.core.chat import read_result
from fission_grpo.core.json_io import walk_json
from fission_grpo.core.types import Failure, ToolCall
from fission_grpo.feedback.dataset import FeedbackExample
from fission_grpo.feedback.leak_guard import find_reference_leak
from fission_grpo.feedback.sources import ENVIRONMENT, Diagnosis

Templates = Mapping[str, Sequence[str]]  # of messages, with all that messages of each gave away of a reference

MAX_TEMPLATES = 1_000  # kept of an environment's messages; texts of others are guarded [ours]
# in quotes, at most 200 characters [ours], or with a digit
_VALUE = r"(?<!\w)(?:'.{0,200}?'|\".{0,200}?\")(?!\w)|\b\w*\d(?:[\w.:/-]*\w)?"
_VALUES = re.compile(f"(?:{_VALUE})(?:, (?:{_VALUE}))*", re.DOTALL)


def template(text: str, written: Iterable[Any] = ()) -> str:
    """A text without quoted parts, words with digits, lists of them, and words that a failed call wrote.

    Example:
        Of "no event 'lunch'; lunch is E35", after a call that wrote "lunch", it is "no event _; _ is _".
    """
    words = [word for word in written if isinstance(word, str) and word.isalpha()]
    if words:
        text = re.sub(rf"(?<![\w'\"])(?:{'|'.join(words)})(?![\w'\"])", "''", text)
    return _VALUES.sub("_", text)


def message_of(text: str) -> str:
    """The message in a feedback text: "no such file" in "error: no such file" and in "{'error': 'no such file'}"."""
    return read_result(ToolCall(""), text).error or text.removeprefix("error: ")


def learn_templates(examples: Iterable[FeedbackExample]) -> tuple[dict[str, list[str]], int]:
    """The most frequent templates of an environment's messages in training data, and how many are left out."""
    counts: Counter[str] = Counter()
    given_away: dict[str, set[str]] = defaultdict(set)
    for example in examples:
        failure = example.failure
        if example.teacher == ENVIRONMENT and failure.calls:
            message = message_of(example.diagnosis)
            name = template(message, _written(failure))
            counts[name] += 1
            given_away[name] |= _all_leaks(message, failure)
    kept = [name for name, _ in counts.most_common(MAX_TEMPLATES)]
    return {name: sorted(given_away[name]) for name in kept}, len(counts) - len(kept)


def as_runtime(answer: Diagnosis, failure: Failure, templates: Templates) -> Diagnosis:
    """A model's answer as a runtime's if it says no more than messages of its template did, else as it is.

    Its text is then what TRL makes of a raised error, which the policy reads when it really makes the call.
    """
    if answer.text is None or not failure.calls:
        return answer
    message = message_of(answer.text)
    allowed = templates.get(template(message, _written(failure)))
    if allowed is None or not _all_leaks(message, failure) <= set(allowed):
        return answer
    return Diagnosis(str({"error": message}), from_environment=True)


def _written(failure: Failure) -> list[Any]:
    """The values in the failed calls."""
    values = (value for call in failure.calls for _, value in walk_json(call.arguments))
    return [value for value in values if not isinstance(value, Mapping | list | tuple)]


def _all_leaks(text: str, failure: Failure) -> set[str]:
    """All that a text gives away of the reference: names of tools, and values by their parameters.

    What the failed calls wrote is none, also for another parameter: a runtime quotes it.
    """
    reference, name = failure.reference or (), failure.calls[0].name
    leaks = {find_reference_leak(text, [ToolCall(call.name)], failure.calls, failure.tools) for call in reference}
    for parameter, value in (item for call in reference for item in call.arguments.items()):
        written = [ToolCall(name, {parameter: other}) for other in _written(failure)] or [ToolCall(name)]
        leaks.add(find_reference_leak(text, [ToolCall(name, {parameter: value})], written, failure.tools))
    return {leak for leak in leaks if leak is not None}
