"""Find cases that overlap with BFCL's multi-turn test cases: in the scenario, the reference calls or a message."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from fission_grpo.core.types import ToolCall
from fission_grpo.envs.bfcl.judge import read_call
from fission_grpo.envs.bfcl.tasks import GeneratedCase

CATEGORIES = ("base", "miss_func", "miss_param", "long_context", "composite")


@dataclass(frozen=True)
class TestSet:
    """BFCL's test cases in canonical form."""

    scenarios: set[str]  # configurations of one class, as JSON
    calls: set[str]  # reference calls of one user turn, as JSON; without turns whose calls all lack arguments
    messages: set[str]  # user messages, see `words`

    def overlap_of(self, case: GeneratedCase) -> list[str]:
        """Return in what a case overlaps: "scenario", "calls", "message" or nothing."""
        overlap = []
        if any(_scenario(config) in self.scenarios for config in case.config.values() if config):
            overlap.append("scenario")
        if any(_calls(turn.reference) in self.calls for turn in case.turns):
            overlap.append("calls")
        if any(words(turn.request) in self.messages for turn in case.turns):
            overlap.append("message")
        return overlap


def find_overlaps(cases: Iterable[GeneratedCase]) -> dict[str, list[str]]:
    """Return the cases that overlap with BFCL's test set: id -> in what. Needs bfcl-eval, which contains the set."""
    tests = official_tests()
    return {case.id: overlap for case in cases if (overlap := tests.overlap_of(case))}


@cache
def official_tests() -> TestSet:
    """Read the installed test cases of the multi-turn categories and of the unused `multi_turn_composite`."""
    tests = TestSet(set(), set(), set())
    data = resources.files("bfcl_eval") / "data"
    for category in CATEGORIES:
        name = f"BFCL_v4_multi_turn_{category}.json"
        is_unused = category == "composite"
        questions = data / "unused_datasets" / "question" if is_unused else data
        for entry in map(json.loads, (questions / name).read_text(encoding="utf-8").splitlines()):
            tests.scenarios.update(_scenario(config) for config in entry["initial_config"].values() if config)
            tests.messages.update(words(message["content"]) for turn in entry["question"] for message in turn)
        answers = (data / "unused_datasets" if is_unused else data) / "possible_answer"
        for answer in map(json.loads, (answers / name).read_text(encoding="utf-8").splitlines()):
            tests.calls.update(map(_official_calls, answer["ground_truth"]))
    tests.calls.discard("")
    tests.messages.discard("")
    return tests


def words(text: str) -> str:
    """Return a text without case and punctuation. Example: "Close ticket 7!" becomes "close ticket 7"."""
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


def _scenario(config: Mapping[str, Any]) -> str:
    return json.dumps(config, sort_keys=True)


def _official_calls(turn: Sequence[str]) -> str:
    try:
        return _calls([read_call(text) for text in turn])
    except ValueError:  # some calls of the unused category are not valid Python; no generated call equals them
        return ""


def _calls(calls: Sequence[ToolCall]) -> str:
    if not any(call.arguments for call in calls):
        return ""
    return json.dumps([[call.name, dict(call.arguments)] for call in calls], sort_keys=True)
