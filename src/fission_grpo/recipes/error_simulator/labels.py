"""Label failures: ask teachers one after another for the feedback that a simulator should write.

Every text must be specific and pass the leak guard, except what the environment itself said, else the next teacher is
asked. An environment's message often does not say where the error is ("invalid literal for int()"); `pointed_rules`
then adds the wrong argument's name. Where arguments break the schema, the text must name that parameter ("Ticket with
ID 7 not found." does not).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from fission_grpo.core.json_io import quoted, walk_json
from fission_grpo.core.tool_schema import check_call, parameter_schema, tool_names
from fission_grpo.core.types import ErrorKind, Failure
from fission_grpo.feedback.endpoint import FeedbackModelOptions
from fission_grpo.feedback.leak_guard import find_leak
from fission_grpo.feedback.request import Feedback, FeedbackRequest
from fission_grpo.feedback.rules import rules
from fission_grpo.feedback.sources import ENVIRONMENT, FIXED_TEXT, FeedbackSource, FunctionSource
from fission_grpo.feedback.spec import make_chain
from fission_grpo.recipes.error_simulator.failures import LabelledFailure

DEFAULT_TEACHERS = "environment,rules"
BATCH = 256  # failures per request [ours]

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
    """
    if text.strip() == FIXED_TEXT:
        return False
    plain = text.casefold()
    if any(_contains(plain, name.casefold()) for name in _names(failure)):
        return True
    is_needless = bool(failure.calls) and failure.reference == ()
    words = _FORM_WORDS[ErrorKind.NO_CALL] if is_needless else _FORM_WORDS.get(failure.kind)
    form_counts = is_needless or not failure.calls or failure.kind is ErrorKind.TRUNCATED
    return bool(words and form_counts and re.search(words, plain))


def _names(failure: Failure) -> Iterator[str]:
    """The called tools, their parameters, and the values in the calls: strings of three or more letters, numbers."""
    schemas = dict(zip(tool_names(failure.task.tools), map(parameter_schema, failure.task.tools), strict=True))
    for call in failure.calls:
        yield from (call.name, *call.arguments, *schemas.get(call.name, {}).get("properties", {}))
        for _, value in walk_json(call.arguments):
            if isinstance(value, str) and len(value.strip()) > 2:
                yield value.strip()
            elif isinstance(value, int | float) and not isinstance(value, bool):
                yield quoted(value)


def _contains(plain: str, name: str) -> bool:
    """Whether lower-case text contains a name between word boundaries; a common word counts only in quotes."""
    if name in COMMON_NAMES:
        return re.search(rf"[`'\"]{re.escape(name)}[`'\"]", plain) is not None
    spelled = "[ _-]".join(map(re.escape, re.split(r"[ _-]", name)))
    return bool(name) and re.search(rf"(?<!\w){spelled}(?!\w)", plain) is not None


@dataclass(frozen=True)
class Labels:
    """The result of labelling."""

    labelled: tuple[LabelledFailure, ...]  # with a feedback text and its teacher
    dropped: Counter[str]  # failures without a usable text, by the last teacher's reason
    rejected: Counter[str]  # texts that were not used, by "teacher: reason"


def make_teachers(
    spec: str, url: str | None = None, options: FeedbackModelOptions | None = None
) -> tuple[FeedbackSource, ...]:
    """The chain of sources that `--teacher` names, with `pointed_rules` for the rules, checked.

    Raises ValueError if there is no such source, or if it cannot be used.
    """
    sources = make_chain(spec, url, options)
    chain = tuple(
        FunctionSource(source.name, pointed_rules) if source.name == "rules" else source for source in sources
    )
    for source in chain:
        source.check()
    return chain


def pointed_rules(failure: Failure) -> str | None:
    """The text of `rules`, with the wrong argument's name where it only repeats an unspecific message.

    Example:
        For "bad value" raised by a call with `n` 7 instead of 8: "error: bad value; `n` is not right, got 7".
    """
    text = rules(failure)
    if text is None or is_specific(text, failure) or failure.kind not in (ErrorKind.RAISED, ErrorKind.BAD_ARGUMENTS):
        return text
    if failure.reference is None or len(failure.reference) != 1 or len(failure.calls) != 1:
        return text
    compared = rules(replace(failure, kind=ErrorKind.WRONG_CALL, call_index=None))
    if compared is None or not is_specific(compared, failure):
        return text
    both = f"{as_error(text).rstrip('. ')}; {compared.removeprefix('error: ')}"
    return both if find_leak(both, failure) is None else compared


def as_error(text: str) -> str:
    """The text with "error: " in front, once. Example: "Error: no such file" gives "error: no such file"."""
    rest = text.strip()
    if rest[:5].lower() == "error" and rest[5:6] in (":", ""):
        rest = rest[5:].lstrip(": ")
    return f"error: {rest}"


def label(found: Sequence[LabelledFailure], chain: Sequence[FeedbackSource]) -> Labels:
    """Ask the teachers about failures, in order. Errors of a teacher are counted, not raised."""
    labelled: dict[int, LabelledFailure] = {}
    rejected: Counter[str] = Counter()
    reasons: dict[int, str] = {}
    for source in chain:
        pending = [index for index in range(len(found)) if index not in labelled]
        for start in range(0, len(pending), BATCH):
            batch = pending[start : start + BATCH]
            request = FeedbackRequest([found[index].example.failure for index in batch], (source,))
            for index, feedback in zip(batch, request.feedback(), strict=True):
                example = found[index].example
                reason = _reason_against(feedback, example.failure)
                if reason is None:
                    example = replace(example, diagnosis=as_error(feedback.text), teacher=source.name)
                    labelled[index] = replace(found[index], example=example)
                    continue
                reasons[index] = reason
                if (source.name, reason) != (ENVIRONMENT, "no diagnosis"):  # most environments return no message
                    rejected[f"{source.name}: {reason}"] += 1
    dropped = Counter(reason for index, reason in sorted(reasons.items()) if index not in labelled)
    return Labels(tuple(labelled[index] for index in sorted(labelled)), dropped, rejected)


def _reason_against(feedback: Feedback, failure: Failure) -> str | None:
    """Why a text cannot be a label, None if it can."""
    if feedback.source == "fixed":
        return feedback.rejected[-1][1] if feedback.rejected else "no diagnosis"
    if not is_specific(feedback.text, failure):
        return "unspecific"
    index = failure.call_index
    if failure.kind is not ErrorKind.BAD_ARGUMENTS or index is None or index >= len(failure.calls):
        return None
    problem = check_call(failure.calls[index], failure.task.tools) if failure.task.tools else None
    if problem is not None and problem.parameter is not None and problem.parameter not in feedback.text:
        return "beside the fault"
    return None
