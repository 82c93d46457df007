"""Whether cases overlap with BFCL's own multi-turn test cases: by scenario, reference calls, or message."""

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
from fission_grpo.envs.bfcl.tasks import Case

CATEGORIES = ("base", "miss_func", "miss_param", "long_context", "composite")


@dataclass(frozen=True)
class TestSet:
    """What must not be trained on, in canonical form.

    Args:
        scenarios: configuration of one class, as JSON.
        calls: reference calls of one user turn, as JSON; turns without any argument are left out, since a bare
            `logout()` belongs to nobody.
        messages: what users say, words only.
    """

    scenarios: frozenset[str]
    calls: frozenset[str]
    messages: frozenset[str]

    def kinds(self, case: Case) -> list[str]:
        """In which respects a case overlaps: of "scenario", "calls", "message"; empty if in none."""
        found = []
        if any(_scenario(config) in self.scenarios for config in case.config.values() if config):
            found.append("scenario")
        if any(self.has_calls(turn.reference) for turn in case.turns):
            found.append("calls")
        if any(words(turn.request) in self.messages for turn in case.turns):
            found.append("message")
        return found

    def has_calls(self, calls: Sequence[ToolCall]) -> bool:
        """Whether some test turn has just these calls with these arguments."""
        return _calls(calls) in self.calls


def overlaps(cases: Iterable[Case]) -> dict[str, list[str]]:
    """The cases that overlap with BFCL's test set, by id, and in which respects.

    Raises:
        ModuleNotFoundError: bfcl-eval, which holds the test set, is not installed.
    """
    tests = official_tests()
    return {case.id: kinds for case in cases if (kinds := tests.kinds(case))}


@cache
def official_tests() -> TestSet:
    """BFCL's four multi-turn categories and the unused `multi_turn_composite`, as installed."""
    scenarios, calls, messages = set(), set(), set()
    for category in CATEGORIES:
        for entry, truth in _entries(category):
            scenarios |= {_scenario(config) for config in entry["initial_config"].values() if config}
            messages |= {words(message["content"]) for turn in entry["question"] for message in turn}
            calls |= {_official_calls(turn) for turn in truth}
    return TestSet(frozenset(scenarios), frozenset(calls - {""}), frozenset(messages - {""}))


def words(text: str) -> str:
    """A message without case and punctuation. Example: `words("Close ticket 7!")` is "close ticket 7"."""
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


def _entries(category: str) -> list[tuple[Mapping[str, Any], list[list[str]]]]:
    data = resources.files("bfcl_eval") / "data"
    folder = data / "unused_datasets" / "question" if category == "composite" else data
    answers = data / "unused_datasets" / "possible_answer" if category == "composite" else data / "possible_answer"
    name = f"BFCL_v4_multi_turn_{category}.json"
    entries = [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]
    truth = {}
    if (answers / name).is_file():
        lines = (answers / name).read_text(encoding="utf-8").splitlines()
        truth = {one["id"]: one["ground_truth"] for one in map(json.loads, lines)}
    return [(entry, truth.get(entry["id"], [])) for entry in entries]


def _scenario(config: Mapping[str, Any]) -> str:
    return json.dumps(config, sort_keys=True)


def _official_calls(turn: Sequence[str]) -> str:
    try:
        return _calls([read_call(text) for text in turn])
    except ValueError:  # a few of the unused composite set are no Python; nothing of ours can equal them
        return ""


def _calls(calls: Sequence[ToolCall]) -> str:
    if not any(call.arguments for call in calls):
        return ""
    return json.dumps([[call.name, dict(call.arguments)] for call in calls], sort_keys=True)
