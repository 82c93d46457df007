"""How good diagnoses are by themselves: leaks and their forms, specificity, true kind, length, failures of the source.

What is judged is what a source says, before the guard of training (`feedback.Enquiry`) replaces what leaks: a leak
here is a diagnosis lost there. Shares have Wilson's 95% intervals over texts.
"""

from __future__ import annotations

import random
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from fission_grpo.diagnose import Source
from fission_grpo.evaluation.intervals import wilson
from fission_grpo.evaluation.rates import Share
from fission_grpo.rules import MAX_LENGTH
from fission_grpo.simulator.instances import Instance
from fission_grpo.simulator.leak_forms import FORMS, how_leaked, paths_told
from fission_grpo.simulator.said_kinds import said_kinds, true_kinds
from fission_grpo.simulator.specificity import is_specific


@dataclass(frozen=True)
class Said:
    """What a chain of sources said of one instance.

    Args:
        instance: what it is about.
        text: without spaces around it, at most `MAX_LENGTH` characters; "" is silence on purpose, None no answer.
        source: that said it, "" without an answer.
        vain: "source: reason" for each source asked in vain before.
        judged_leak, judged_kind: a model judge's verdicts, None without one.
    """

    instance: Instance
    text: str | None
    source: str = ""
    vain: tuple[str, ...] = ()
    judged_leak: bool | None = None
    judged_kind: str | None = None


@dataclass(frozen=True)
class Quality:
    """Numbers of one group of instances.

    Args:
        name: of the group.
        instances: in it.
        answered: instances of which something was said; all further numbers but `leak` are of these texts.
        leak: texts that the guard objects to, of those with a reference that can be given away.
        forms: of these leaks, by `leak_forms.FORMS`; those that occur.
        paths: texts that name a nested field of the reference which the failed call does not have; the guard lets
            them pass.
        specific: texts that name the fault; see `specificity`.
        agrees: texts that name the true kind of error, among others maybe; see `said_kinds`.
        disagrees: texts that name other kinds only.
        no_kind: texts that name no kind.
        own: texts said by the first source.
        vain: sources asked in vain, by "source: reason".
        distinct: different texts, of those answered.
        characters, words: median and 95th percentile of the texts' lengths.
        judged_leak, judged_kind: of those that a model judge had a verdict of: texts that leak by it, texts of the
            true kind by it. None without a judge.
    """

    name: str
    instances: int
    answered: Share
    leak: Share
    forms: dict[str, int]
    paths: Share
    specific: Share
    agrees: Share
    disagrees: Share
    no_kind: Share
    own: Share
    vain: dict[str, int] = field(default_factory=dict)
    distinct: int = 0
    characters: tuple[float, float] = (0.0, 0.0)
    words: tuple[float, float] = (0.0, 0.0)
    judged_leak: Share | None = None
    judged_kind: Share | None = None


def ask_all(chain: Sequence[Source], instances: Sequence[Instance]) -> list[Said]:
    """What a chain says of instances, with no guard and no limit of time but its own; in their order.

    Example:
        Of ("environment", "rules") and a wrong call without a message: the text of rules, and "environment: no
        diagnosis" among what was asked in vain.
    """
    said: dict[int, Said] = {}
    vain: dict[int, list[str]] = {at: [] for at in range(len(instances))}
    for source in chain:
        still = [at for at in vain if at not in said]
        started = source.start([instances[at].failure for at in still])
        for at, future in zip(still, started, strict=True):
            answer = future.result()
            text = None if answer.text is None else _as_told(answer.text)
            if text or answer.text == "":
                said[at] = Said(instances[at], text, source.name, tuple(vain[at]))
            elif reason := answer.reason or (answer.text and "no diagnosis"):
                vain[at].append(f"{source.name}: {reason}")
    return [said.get(at) or Said(instances[at], None, vain=tuple(vain[at])) for at in vain]


def quality(name: str, said: Sequence[Said], first: str) -> Quality:
    """The numbers of a group.

    Args:
        name: of the group.
        said: of its instances.
        first: name of the chain's first source.
    """
    told = [one for one in said if one.text]
    texts = [one.text or "" for one in told]
    forms = Counter(form for one in told if (form := how_leaked(one.text or "", one.instance.failure)))
    secret = [one for one in told if one.instance.failure.reference]
    readings = [(said_kinds(one.text or ""), true_kinds(one.instance)) for one in told]
    agrees, silent = sum(bool(read & true) for read, true in readings), sum(not read for read, _ in readings)
    return Quality(
        name,
        len(said),
        answered=share(len(told), len(said)),
        leak=share(forms.total(), len(secret)),
        forms={form: forms[form] for form in FORMS if forms[form]},
        paths=share(sum(bool(paths_told(one.text or "", one.instance.failure)) for one in secret), len(secret)),
        specific=share(sum(is_specific(one.text or "", one.instance.failure) for one in told), len(told)),
        agrees=share(agrees, len(told)),
        disagrees=share(len(told) - agrees - silent, len(told)),
        no_kind=share(silent, len(told)),
        own=share(sum(one.source == first for one in told), len(said)),
        vain=dict(Counter(reason for one in said for reason in one.vain).most_common()),
        distinct=len(set(texts)),
        characters=_spread([len(text) for text in texts]),
        words=_spread([len(text.split()) for text in texts]),
        judged_leak=_judged(one.judged_leak for one in secret),
        judged_kind=_judged(
            None if one.judged_kind is None else one.judged_kind in true_kinds(one.instance) for one in told
        ),
    )


def qualities(said: Sequence[Said], seen_apis: Iterable[str], first: str) -> list[Quality]:
    """The numbers of all instances, of those of seen APIs and of those of unseen ones; groups without any left out."""
    known = set(seen_apis)
    seen, unseen = [[one for one in said if (one.instance.api in known) is is_seen] for is_seen in (True, False)]
    groups = [("all", said), ("seen APIs", seen), ("unseen APIs", unseen)]
    return [quality(name, group, first) for name, group in groups if group]


def drawn(instances: Sequence[Instance], count: int, seed: int = 0) -> list[Instance]:
    """At most `count` instances at random, in their order."""
    if len(instances) <= count:
        return list(instances)
    return [instances[at] for at in sorted(random.Random(seed).sample(range(len(instances)), count))]


def quality_json(one: Quality) -> dict[str, Any]:
    """The numbers as JSON values; shares with their rates."""
    values = asdict(one)
    for name, value in vars(one).items():
        if isinstance(value, Share):
            values[name] = asdict(value) | {"rate": value.rate}
    return values


def share(hits: int, of: int) -> Share:
    """A share with Wilson's interval, none over nothing."""
    return Share(hits, of, wilson(hits, of) if of else None)


def _as_told(text: str) -> str:
    """As `feedback` would tell it."""
    return text.encode("utf-8", "replace").decode().strip()[:MAX_LENGTH]


def _spread(lengths: Sequence[int]) -> tuple[float, float]:
    """Median and 95th percentile (the smallest length that 95% do not exceed)."""
    if not lengths:
        return 0.0, 0.0
    return float(statistics.median(lengths)), float(sorted(lengths)[-(-95 * len(lengths) // 100) - 1])


def _judged(verdicts: Iterable[bool | None]) -> Share | None:
    known = [verdict for verdict in verdicts if verdict is not None]
    return share(sum(known), len(known)) if known else None
