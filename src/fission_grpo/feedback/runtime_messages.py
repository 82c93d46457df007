"""What a runtime says, learned from the messages of an environment: their templates, and what each gives away.

"no file 'plan.txt'; similar: plan_2.md" names the right file, as the runtime does. A simulator that imitates the runtime
may say so where the environment did in its training data; any other text is held against the reference.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from fission_grpo.core.chat import read_result
from fission_grpo.core.types import Failure, ToolCall
from fission_grpo.feedback.dataset import FeedbackExample
from fission_grpo.feedback.leak_guard import find_reference_leak
from fission_grpo.feedback.sources import ENVIRONMENT, Diagnosis

Templates = Mapping[str, Sequence[str]]  # of messages, with all that messages of each gave away of a reference

MAX_TEMPLATES = 1_000  # kept of an environment's messages; texts of others are guarded [ours]
_VALUE = r"(?<!\w)(?:'.*?'|\".*?\")(?!\w)|\b\w*\d(?:[\w.:/-]*\w)?"  # in quotes, or with a digit
_VALUES = re.compile(f"(?:{_VALUE})(?:, (?:{_VALUE}))*", re.DOTALL)


def template(text: str) -> str:
    """A text without quoted parts, words with digits, and lists of them: "no file _; similar: _"."""
    return _VALUES.sub("_", text)


def message_of(text: str) -> str:
    """The message in a feedback text: of "error: no such file" and "{'error': 'no such file'}" it is "no such file"."""
    return read_result(ToolCall(""), text).error or text.removeprefix("error: ")


def learn_templates(examples: Iterable[FeedbackExample]) -> tuple[dict[str, list[str]], int]:
    """The most frequent templates of an environment's messages in training data, and how many are left out."""
    counts: Counter[str] = Counter()
    given_away: dict[str, set[str]] = defaultdict(set)
    for example in examples:
        if example.teacher == ENVIRONMENT:
            message = message_of(example.diagnosis)
            counts[template(message)] += 1
            given_away[template(message)] |= _all_leaks(message, example.failure)
    kept = [name for name, _ in counts.most_common(MAX_TEMPLATES)]
    return {name: sorted(given_away[name]) for name in kept}, len(counts) - len(kept)


def as_runtime(answer: Diagnosis, failure: Failure, templates: Templates) -> Diagnosis:
    """A model's answer as a runtime's if it says no more than messages of its template did, else as it is.

    Its text is then what TRL makes of a raised error, which the policy reads when it really makes the call.
    """
    if answer.text is None or not failure.calls:
        return answer
    message = message_of(answer.text)
    allowed = templates.get(template(message))
    if allowed is None or not _all_leaks(message, failure) <= set(allowed):
        return answer
    return Diagnosis(str({"error": message}), from_environment=True)


def _all_leaks(text: str, failure: Failure) -> set[str]:
    """All that a text gives away of the reference: names of tools, and values by their parameters."""
    made = [call for turn in failure.turns for call in turn.calls]
    reference = failure.reference or ()
    parts = [ToolCall(call.name) for call in reference]
    # one argument at a time, in a call whose name is no secret
    parts += [ToolCall(made[0].name, {name: value}) for call in reference for name, value in call.arguments.items()]
    leaks = (find_reference_leak(text, [part], made, failure.tools) for part in parts)
    return {leak for leak in leaks if leak is not None}
