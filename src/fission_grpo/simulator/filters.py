"""Which labelled failures are fit for training: no leaks, specific, of a fair length, no duplicates, no template twice
too often."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from fission_grpo.disguises import squashed
from fission_grpo.leaks import leak_in
from fission_grpo.simulator.collect import Found
from fission_grpo.simulator.instances import Instance
from fission_grpo.simulator.specificity import is_specific
from fission_grpo.task_json import call_fields


@dataclass(frozen=True)
class Limits:
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


def filtered(found: Sequence[Found], limits: Limits) -> tuple[list[Found], Counter[str]]:
    """What passes all filters, in order, and how many each one dropped.

    The first filter that refuses counts: leak, unspecific, too short, too long, duplicate (the same failed turn in the
    same dialogue, or the same failed turn and diagnosis anywhere), near duplicate (the same but for case, spacing and
    the order of arguments), template (of one template there are `alike` already).
    """
    kept: list[Found] = []
    dropped: Counter[str] = Counter()
    seen: set[tuple[str, str]] = set()
    near: set[tuple[str, str]] = set()
    templates: Counter[str] = Counter()
    for one in found:
        item = one.instance
        text, failure = item.diagnosis, item.failure
        exact = [("turn", item.id), (failure.turns[-1].text, text)]
        alike = (failed_call(item), squashed(text.casefold()))
        if leak_in(text, failure) is not None:
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


def failed_call(item: Instance) -> str:
    """The failed turn's calls as JSON with sorted keys; of a turn without calls, its text in lower case."""
    turn = item.failure.turns[-1]
    if not turn.calls:
        return squashed(turn.text.casefold())
    return squashed(json.dumps([call_fields(call) for call in turn.calls], sort_keys=True).casefold())
