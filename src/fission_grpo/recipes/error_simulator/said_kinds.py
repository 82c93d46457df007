"""What kind of error a diagnosis speaks of, read from its words, and what kind it was. All patterns are [ours].

The reader is a list of patterns anybody can check, and no judge: it takes "`city` is missing" for a missing argument,
whoever wrote it. It is wrong about texts that say the same in words it does not know, which then name no kind.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fission_grpo.core.rewards import match_calls, same_value
from fission_grpo.core.types import ErrorKind, Failure
from fission_grpo.feedback.dataset import Instance

UNREADABLE, NO_CALL, UNFINISHED = "unreadable call", "no call", "unfinished"


UNKNOWN_TOOL, WRONG_TOOL, FEWER, MORE = "unknown tool", "wrong tool", "call not needed", "call lacking"


EXTRA, MISSING, SWAPPED = "extra argument", "missing argument", "swapped arguments"


WRONG_TYPE, WRONG_VALUE = "wrong type or format", "wrong value"


_THING = r"(?:keyword |positional |named )*(?:argument|parameter|param|field|property|propertie|key|input)s?"


_CALL = r"(?:tool |function )?calls?"


_PATTERNS: Mapping[str, Sequence[str]] = {  # in this order; what one kind has read the next ones do not see
    UNREADABLE: (
        r"(?:not )?(?:valid |invalid )?\bjson\b|could not be (?:read|parsed)",
        r"\btool call has no\b|malformed|syntax|unclosed|</?tool_call>|delimiter",
    ),
    UNFINISHED: (r"\bcut off|length limit|truncated|turn limit|not finished|max(?:imum)? (?:length|tokens|turns)",),
    UNKNOWN_TOOL: (
        r"\bno (?:such )?(?:tool|function)\b(?! call| was| is)|unknown (?:tool|function)",
        r"\b(?:tool|function)\b[^.;]{0,60}\b(?:does not exist|not found|is not (?:available|defined|known))",
    ),
    FEWER: (
        rf"\bno {_CALL} (?:is|was) needed|call[^.;]{{0,80}} (?:is|was) not needed",
        rf"\b(?:needless|unneeded|superfluous|unnecessary) {_CALL}",
    ),
    MORE: (rf"\bmore {_CALL}\b|another {_CALL}\b|calls? (?:is|are) missing|further {_CALL}\b",),
    NO_CALL: (
        rf"\bnone was made|no {_CALL} (?:was|were) made|(?:tool|function) call (?:is|was) (?:needed|required)",
        rf"did not call|without (?:making|calling)|expected an? {_CALL}",
    ),
    WRONG_TOOL: (
        r"\b(?:another|different|wrong|other|incorrect) (?:tool|function)",
        r"\bnot the right (?:tool|function|call|one)|(?:tool|function) (?:is|was) (?:not (?:the )?right|wrong)",
    ),
    SWAPPED: (r"\bswapped|exchanged|wrong order|mixed up|other way (?:a)?round|interchanged",),
    EXTRA: (
        rf"\bshould not be (?:given|passed|set|there)|\b(?:unexpected|unknown|extra|unrecogni[sz]ed) {_THING}",
        rf"\b(?:has|have|takes?|accepts?) no {_THING}|no {_THING} (?:named|called)|additional propert",
        rf"\b(?:does|do) not (?:take|accept|have|allow|support)[^.;]{{0,30}} {_THING}",
        rf"\bis not an? (?:allowed|known|valid|recogni[sz]ed|accepted)? ?{_THING}",
    ),
    MISSING: (
        rf"\bmissing|\bis required|\brequires\b|\brequired {_THING}|\blacks\b|omitted|not provided",
        r"\bmust be (?:given|set|provided)|was not given",
    ),
    WRONG_TYPE: (
        r"\bmust (?:match|have|begin|end|fit|not be)|must be (?:an? |one of|at (?:least|most)|more|less|null|true)",
        r"\b(?:wrong|invalid|unexpected|bad|incorrect|correct|expected|data) (?:data )?(?:type|format|form)",
        r"\b(?:type|format) (?:is|was|of|mismatch)|typeerror|not supported between|unsupported operand",
        r"\bexpects? an?\b|expected (?:an? )?(?:str|int|num|float|bool|list|arr|obj)|could not convert",
        r"not (?:an? )?(?:valid )?(?:string|integer|number|boolean|array|list|object|date|float)",
        r"\bschema|yyyy|hh:mm",
    ),
    WRONG_VALUE: (
        r"\bis not right|not (?:the )?(?:right|correct)|wrong|incorrect|invalid|not valid",
        r"\bnot found|does not exist|no such|unknown|out of range|does not match|mismatch",
    ),
}


_READERS = {kind: re.compile("|".join(patterns)) for kind, patterns in _PATTERNS.items()}


_QUOTED = re.compile(r"`[^`]*`|(?<!\w)'[^']*'(?!\w)|\"[^\"]*\"")


KINDS = tuple(_PATTERNS)


_CORRUPTIONS = {
    "wrong_value": {WRONG_VALUE},
    "off_by_one": {WRONG_VALUE},
    "stale_id": {WRONG_VALUE},
    "swapped_arguments": {SWAPPED, WRONG_VALUE, WRONG_TYPE},
    "wrong_type": {WRONG_TYPE},
    "wrong_format": {WRONG_TYPE},
    "missing_argument": {MISSING},
    "missing_option": {MISSING},
    "extra_argument": {EXTRA},
    "wrong_tool": {WRONG_TOOL},
    "misspelt_tool": {UNKNOWN_TOOL, WRONG_TOOL},
    "broken_json": {UNREADABLE},
    "no_call": {NO_CALL, MORE},
    "extra_call": {FEWER},
    "needless_call": {FEWER},
}


_STRUCTURAL = {
    ErrorKind.UNPARSED: {UNREADABLE},
    ErrorKind.UNKNOWN_TOOL: {UNKNOWN_TOOL, WRONG_TOOL},
    ErrorKind.NO_CALL: {NO_CALL, MORE},
    ErrorKind.TRUNCATED: {UNFINISHED},
    ErrorKind.OUT_OF_TURNS: {UNFINISHED},
}


def said_kinds(text: str) -> frozenset[str]:
    """The kinds of error that a text speaks of, of `KINDS`; empty if it names none. What it quotes is not read.

    Example:
        "error: `date` must match YYYY-MM-DD; `city` is missing" names a wrong type or format and a missing argument.
    """
    plain, found = " ".join(_QUOTED.sub("it", text.casefold()).split()), set()
    for kind, reader in _READERS.items():
        plain, read = reader.subn("\n", plain)
        if read:
            found.add(kind)
    return frozenset(found)


def true_kinds(instance: Instance) -> frozenset[str]:
    """The kinds of error that an instance has; a diagnosis agrees if it names one of them.

    What the failed turn's form shows (unreadable, no such tool, no call, cut off) counts before all else; then, of a
    corrupted call, the corruption's type in `origin` (off by one may also break a bound of the schema, and a format
    that the schema does not ask for is a wrong value, too); else how the calls differ from the reference, and a wrong
    type or format where the schema was violated, a wrong value where the tool raised.

    Example:
        "corruption:missing_argument" is {"missing argument"}. A sampled call that lacks `city` and has another `date`
        is {"missing argument", "wrong value"}.
    """
    failure = instance.failure
    if failure.kind in _STRUCTURAL:
        return frozenset(_STRUCTURAL[failure.kind])
    source, _, corruption = instance.origin.partition(":")
    if source == "corruption" and corruption in _CORRUPTIONS:
        against_schema = failure.kind is ErrorKind.BAD_ARGUMENTS
        also = {("off_by_one", True): {WRONG_TYPE}, ("wrong_format", False): {WRONG_VALUE}}
        return frozenset(_CORRUPTIONS[corruption] | also.get((corruption, against_schema), set()))
    found = set(_differences(failure))
    if failure.kind is ErrorKind.BAD_ARGUMENTS:
        found.add(WRONG_TYPE)
    if failure.kind is ErrorKind.RAISED:
        found.add(WRONG_VALUE)
    return frozenset(found)


def _differences(failure: Failure) -> Iterator[str]:
    """How the calls differ from the reference."""
    calls, reference = failure.calls, failure.reference or ()
    if failure.reference is None:
        return
    matched = {i: j for i, j, _ in match_calls(calls, reference)}
    spare, lacking = len(calls) - len(matched), len(reference) - len(matched)
    if spare and lacking:
        yield WRONG_TOOL
    if spare > lacking:
        yield FEWER
    if lacking > spare:
        yield MORE
    for i, j in matched.items():
        yield from _argument_differences(calls[i].arguments, reference[j].arguments)


def _argument_differences(given: Any, expected: Any) -> Iterator[str]:
    if given.keys() - expected.keys():
        yield EXTRA
    if expected.keys() - given.keys():
        yield MISSING
    for name in given.keys() & expected.keys():
        if not same_value(given[name], expected[name]):
            yield WRONG_VALUE if type(given[name]) is type(expected[name]) else WRONG_TYPE
