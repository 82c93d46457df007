"""Who labels failures: the environment's own words, the rules, a model behind an endpoint; one asked after another.

What each says passes the leak guard (`feedback.Enquiry`) and must be specific, else the next one is asked. An
environment often says that something is wrong but not where ("invalid literal for int()"); the rules then add which
argument differs from the reference, without its value. Where arguments break the schema, a text that does not name the
parameter concerned is beside the fault ("Ticket with ID 7 not found." of the text "7"). A label begins with "error:",
as the simulator is to write.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fission_grpo.core.tool_schema import check_call
from fission_grpo.core.types import ErrorKind, Failure
from fission_grpo.feedback.endpoint import SimulatorOptions
from fission_grpo.feedback.leak_guard import leak_in
from fission_grpo.feedback.request import Enquiry
from fission_grpo.feedback.rules import rules
from fission_grpo.feedback.sources import Function, Source
from fission_grpo.feedback.spec import sources_from
from fission_grpo.recipes.error_simulator.failures import Found
from fission_grpo.recipes.error_simulator.filters import is_specific

DEFAULT = "environment,rules"


BATCH = 256
"""Failures asked about at a time. [ours]"""


@dataclass(frozen=True)
class Labelled:
    """What labelling came to.

    Args:
        found: with a diagnosis and its teacher.
        dropped: how many failures no teacher had a usable word for, by the last one's reason.
        refused: how often a teacher's answer was not used, by "teacher: reason".
    """

    found: tuple[Found, ...]
    dropped: Counter[str]
    refused: Counter[str]


def teachers(names: str, url: str | None = None, options: SimulatorOptions | None = None) -> tuple[Source, ...]:
    """The chain that `--teacher` gives: `chosen.sources_from`, with `pointed_rules` as the rules.

    Raises:
        ValueError: no such teacher, or it cannot be asked; the message says what to mend.
        ModuleNotFoundError: an endpoint needs the `openai` package.
    """
    given = sources_from(names, url, options)
    chain = tuple(Function("rules", pointed_rules) if source.name == "rules" else source for source in given)
    for source in chain:
        source.check()
    return chain


def pointed_rules(failure: Failure) -> str | None:
    """As `rules`; where that only repeats an environment's unspecific words, with the argument that is off.

    Example:
        "bad value" said of a call with `n` 7 instead of 8: "error: bad value; `n` is not right, got 7".
    """
    said = rules(failure)
    if said is None or is_specific(said, failure) or failure.kind not in (ErrorKind.RAISED, ErrorKind.BAD_ARGUMENTS):
        return said
    if failure.reference is None or len(failure.reference) != 1 or len(failure.calls) != 1:
        return said
    compared = rules(replace(failure, kind=ErrorKind.WRONG_CALL, call_index=None))
    if compared is None or not is_specific(compared, failure):
        return said
    both = f"error: {as_error(said).removeprefix('error: ').rstrip('. ')}; {compared.removeprefix('error: ')}"
    return both if leak_in(both, failure) is None else compared


def as_error(text: str) -> str:
    """A message beginning with "error: ". Example: "Error: no such file" is "error: no such file"."""
    rest = text.strip()
    if rest[:5].lower() == "error":
        rest = rest[5:].lstrip(": ") if rest[5:6] in (":", "") else rest
    return f"error: {rest}"


def label(found: Sequence[Found], chain: Sequence[Source], seconds: float = float("inf")) -> Labelled:
    """Ask the teachers about every failure, in order. Never raises for what a teacher does.

    Args:
        found: failures without a diagnosis.
        chain: of `teachers`.
        seconds: the longest wait for one batch of one teacher.
    """
    labelled: dict[int, Found] = {}
    refused: Counter[str] = Counter()
    last: dict[int, str] = {}
    for source in chain:
        waiting = [at for at in range(len(found)) if at not in labelled]
        for start in range(0, len(waiting), BATCH):
            batch = waiting[start : start + BATCH]
            enquiry = Enquiry([found[at].instance.failure for at in batch], (source,))
            for at, said in zip(batch, enquiry.feedback(seconds), strict=True):
                one = found[at].instance
                if said.source == "fixed":
                    last[at] = said.vain[-1][1] if said.vain else "no diagnosis"
                elif not is_specific(said.text, one.failure):
                    last[at] = "unspecific"
                elif _beside(said.text, one.failure):
                    last[at] = "beside the fault"
                else:
                    made = replace(one, diagnosis=as_error(said.text), teacher=source.name)
                    labelled[at] = replace(found[at], instance=made)
                    continue
                if not (source.name == "environment" and last[at] == "no diagnosis"):
                    refused[f"{source.name}: {last[at]}"] += 1
    dropped = Counter(last[at] for at in range(len(found)) if at not in labelled)
    return Labelled(tuple(labelled[at] for at in sorted(labelled)), dropped, refused)


def _beside(text: str, failure: Failure) -> bool:
    """Whether a text does not name the parameter that breaks the schema."""
    at = failure.call_index
    if failure.kind is not ErrorKind.BAD_ARGUMENTS or at is None or at >= len(failure.calls):
        return False
    problem = check_call(failure.calls[at], failure.task.tools) if failure.task.tools else None
    return problem is not None and problem.parameter is not None and problem.parameter not in text
