"""A quick look at a simulator: how often it says what its teacher said, what leaks, what it cannot say."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fission_grpo.diagnose import Source
from fission_grpo.feedback import LEAK, Enquiry
from fission_grpo.simulator.instances import Instance
from fission_grpo.simulator.specificity import is_specific


@dataclass(frozen=True)
class Trial:
    """Shares of the rows asked, 0 to 1.

    Args:
        rows: asked.
        exact: the teacher's diagnosis, word for word.
        specific: names the tool, the parameter or the value at fault.
        leaked: gave the reference away, so that it was not used.
        fallback: no usable text, leaks included.
        reasons: of the fallbacks, counted.
        seconds: per row, wall clock.
    """

    rows: int
    exact: float
    specific: float
    leaked: float
    fallback: float
    reasons: Mapping[str, int]
    seconds: float


def try_source(source: Source, instances: Sequence[Instance]) -> Trial | None:
    """Ask a source about labelled failures, leak guard included; None without instances."""
    if not instances:
        return None
    began = time.monotonic()
    feedback = Enquiry([one.failure for one in instances], [source]).feedback()
    seconds = time.monotonic() - began
    said = [(one, told.text) for one, told in zip(instances, feedback, strict=True) if told.source == source.name]
    reasons = Counter(reason for told in feedback for _, reason in told.vain)
    count = len(instances)
    return Trial(
        rows=count,
        exact=round(sum(text == one.diagnosis for one, text in said) / count, 4),
        specific=round(sum(is_specific(text, one.failure) for one, text in said) / count, 4),
        leaked=round(reasons[LEAK] / count, 4),
        fallback=round(1 - len(said) / count, 4),
        reasons=dict(reasons.most_common()),
        seconds=round(seconds / count, 4),
    )
