"""More rows for a model from nothing: names and values in a failure exchanged for others, in the diagnosis alike.

A small model learns the names of its training data by heart rather than to copy them from the prompt, and is then
lost with other APIs. In a renamed row only copying helps.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from fission_grpo.schema import parameter_schema, tool_names
from fission_grpo.simulator.instances import Instance
from fission_grpo.task_json import call_fields
from fission_grpo.trajectory import ErrorKind

COMMON = 0.002
"""Share of diagnoses in which a word stands that neither calls nor tools hold, for it to be of the language. [ours]"""

OFTEN = 5
"""Instances that a word must stand in to be taken for another: rare words are many tokens, hard to copy. [ours]"""

_WORD = re.compile(r"[^\W\d_]{2,}|\d+")
_FIXED = frozenset(
    word
    for text in (
        "Tools Dialogue Failed turn Kind of failure The runtime own message Correct calls secret none no is needed",
        "user assistant tool name arguments tool_call true false null string integer number boolean array object any",
        *(str(kind).replace("_", " ") for kind in ErrorKind),
    )
    for word in _WORD.findall(text)
)
"""Words of the prompt itself (see `simulator.prompt`) and of JSON."""


class Renaming:
    """Draws renamed copies of the instances it is made of.

    Words that diagnoses use without having them from calls or tools ("missing", "right") are the language, and stay.
    """

    def __init__(self, instances: Sequence[Instance], seed: int):
        self._draw = random.Random(seed)
        free: Counter[str] = Counter()
        for one in instances:
            free.update(set(_WORD.findall(one.diagnosis)) - _named(one))
        least = max(2, COMMON * len(instances))
        self._language = _FIXED | {word for word, count in free.items() if count >= least}
        named = Counter(word for one in instances for word in _named(one) if not word.isdigit())
        often = [word for word, count in named.items() if count >= min(OFTEN, len(instances) // 100)]
        self._words = sorted(set(often) - self._language)

    def texts(self, one: Instance, texts: Sequence[str]) -> list[str] | None:
        """An instance's texts (prompt, diagnosis) with names and values of calls and tools exchanged, alike in all.

        None where the diagnosis is cut off ("..."), perhaps within a word that is to be exchanged, and where there are
        too few other words.

        Example:
            "error: `to` is not right, got 'Rome'" may become "error: `file` is not right, got 'USD'".
        """
        if "..." in one.diagnosis:
            return None
        shown = {word for text in texts for word in _WORD.findall(text)}
        old = sorted(_named(one) & shown - self._language)
        words = [word for word in old if not word.isdigit()]
        if len(words) > len(self._words):
            return None
        new: Mapping[str, str] = dict(zip(words, self._draw.sample(self._words, len(words)), strict=True)) | {
            digits: "".join(str(self._draw.randint(1, 9)) for _ in digits) for digits in old if digits.isdigit()
        }
        return [_WORD.sub(lambda found: new.get(found[0], found[0]), text) for text in texts]


def _named(one: Instance) -> set[str]:
    """Words and numbers of the failed turn and the reference, and of the names of tools and parameters."""
    reference = [str(call_fields(call)) for call in one.failure.reference or ()]
    tools = one.failure.task.tools
    parameters = [str(name) for tool in tools for name in parameter_schema(tool).get("properties", {})]
    texts = (one.failure.turns[-1].text, *reference, *map(str, tool_names(tools)), *parameters)
    return {word for text in texts for word in _WORD.findall(text)}
