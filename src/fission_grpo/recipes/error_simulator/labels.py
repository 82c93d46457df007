"""Label failures: ask teachers one after another for the feedback that a simulator should write.

Every text must pass the leak guard and be specific, else the next teacher is asked. An environment's message often
does not say where the error is ("invalid literal for int()"); `pointed_rules` then adds the wrong argument's name.
Where arguments break the schema, the text must name that parameter ("Ticket with ID 7 not found." does not).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fission_grpo.core.tool_schema import check_call
from fission_grpo.core.types import ErrorKind, Failure
from fission_grpo.feedback.endpoint import FeedbackModelOptions
from fission_grpo.feedback.leak_guard import find_leak
from fission_grpo.feedback.request import Feedback, FeedbackRequest
from fission_grpo.feedback.rules import rules
from fission_grpo.feedback.sources import FeedbackSource, FunctionSource
from fission_grpo.feedback.spec import sources_from
from fission_grpo.recipes.error_simulator.failures import LabelledFailure
from fission_grpo.recipes.error_simulator.filters import is_specific

DEFAULT_TEACHERS = "environment,rules"
BATCH = 256  # failures per request [ours]


@dataclass(frozen=True)
class Labels:
    """The result of labelling.

    Args:
        labelled: failures with a feedback text and its teacher.
        dropped: failures without a usable text, counted by the last teacher's reason.
        rejected: texts that were not used, counted by "teacher: reason".
    """

    labelled: tuple[LabelledFailure, ...]
    dropped: Counter[str]
    rejected: Counter[str]


def make_teachers(
    spec: str, url: str | None = None, options: FeedbackModelOptions | None = None
) -> tuple[FeedbackSource, ...]:
    """The chain of sources that `--teacher` names, with `pointed_rules` for the rules, checked.

    Raises:
        ValueError: there is no such source, or it cannot be used; the message says what to correct.
        ModuleNotFoundError: an endpoint needs the `openai` package.
    """
    chain = tuple(
        FunctionSource("rules", pointed_rules) if source.name == "rules" else source
        for source in sources_from(spec, url, options)
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


def label(found: Sequence[LabelledFailure], chain: Sequence[FeedbackSource], seconds: float = float("inf")) -> Labels:
    """Ask the teachers about every failure, in order. Errors of a teacher are counted, not raised.

    Args:
        found: failures without a feedback text.
        chain: the teachers (`make_teachers`).
        seconds: longest wait for one batch of one teacher.
    """
    labelled: dict[int, LabelledFailure] = {}
    rejected: Counter[str] = Counter()
    reasons: dict[int, str] = {}
    for source in chain:
        pending = [index for index in range(len(found)) if index not in labelled]
        for start in range(0, len(pending), BATCH):
            batch = pending[start : start + BATCH]
            request = FeedbackRequest([found[index].example.failure for index in batch], (source,))
            for index, feedback in zip(batch, request.feedback(seconds), strict=True):
                example = found[index].example
                reason = _reason_against(feedback, example.failure)
                if reason is None:
                    example = replace(example, diagnosis=as_error(feedback.text), teacher=source.name)
                    labelled[index] = replace(found[index], example=example)
                    continue
                reasons[index] = reason
                if (source.name, reason) != ("environment", "no diagnosis"):  # most environments return no message
                    rejected[f"{source.name}: {reason}"] += 1
    dropped = Counter(reasons[index] for index in range(len(found)) if index not in labelled)
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
