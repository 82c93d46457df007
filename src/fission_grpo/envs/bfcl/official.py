"""BFCL's official test cases, read from the installed bfcl-eval: multi-turn with ground truth, and single-turn.

Function docs have the order, the additions and the hold-outs of the official loader
(`bfcl_eval.utils.load_dataset_entry`): HINT ends the description of every function shown from the start, but not of
those that `miss_func` holds out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from fission_grpo.core.types import Message, ToolCall
from fission_grpo.envs.bfcl.functions import class_docs, function_doc, read_official
from fission_grpo.envs.bfcl.judge import read_call

VERSION = "BFCL_v4"
MULTI_TURN = ("multi_turn_base", "multi_turn_miss_func", "multi_turn_miss_param", "multi_turn_long_context")

SINGLE_TURN = (
    *("simple_python", "multiple", "parallel", "parallel_multiple", "irrelevance"),
    *("live_simple", "live_multiple", "live_parallel", "live_parallel_multiple"),
    *("live_irrelevance", "live_relevance"),
)
"""The single-turn categories whose calls are Python; those in Java and JavaScript need parsers of one old version."""

HINT = " Note that the provided function is in Python 3 syntax."
Doc = Mapping[str, Any]  # a function in BFCL: `name`, `description`, `parameters` (of type "dict"), `response`


@dataclass(frozen=True)
class MultiTurnCase:
    """One multi-turn case."""

    id: str  # official, such as "multi_turn_base_0"
    category: str  # the id without its number
    turns: tuple[tuple[Message, ...], ...]  # what starts each user turn; empty where held-out functions are shown
    functions: tuple[Doc, ...]  # documented from the start
    added: Mapping[int, tuple[Doc, ...]]  # functions held out until a turn, by number of the turn
    classes: tuple[str, ...]  # to instantiate, in official order
    config: Mapping[str, Any]  # official initial configuration, by class
    reference: tuple[tuple[ToolCall, ...], ...]  # the calls of the ground truth, by turn

    @property
    def long_context(self) -> bool:
        """Whether the scenarios are loaded with their long contents."""
        return "long_context" in self.category


@dataclass(frozen=True)
class SingleTurnCase:
    """One single-turn case."""

    id: str  # official, such as "live_simple_0-0-0"
    category: str  # the id without its number
    messages: tuple[Message, ...]  # the question, sometimes with a system message or earlier turns
    functions: tuple[Doc, ...]  # documented
    answer: tuple[Mapping[str, Any], ...] | None  # possible answers by call; None for relevance and irrelevance


def multi_turn_cases(category: str) -> list[MultiTurnCase]:
    """The 200 cases of a multi-turn category, in official order. Raises ValueError for an unknown one."""
    _check_category(category, MULTI_TURN)
    answers = {row["id"]: row["ground_truth"] for row in read_official(f"possible_answer/{VERSION}_{category}.json")}
    return [_multi_turn_case(row, answers[row["id"]]) for row in read_official(f"{VERSION}_{category}.json")]


def single_turn_cases(category: str) -> list[SingleTurnCase]:
    """The cases of a single-turn category, in official order. Raises ValueError for an unknown one."""
    _check_category(category, SINGLE_TURN)
    rows = read_official(f"{VERSION}_{category}.json")
    answers = [None] * len(rows)
    if "relevance" not in category:  # answers belong to questions by position, as officially
        answers = [tuple(row["ground_truth"]) for row in read_official(f"possible_answer/{VERSION}_{category}.json")]
    cases = []
    for row, answer in zip(rows, answers, strict=True):
        functions = tuple(_add_hint(doc) for doc in row["function"])
        cases.append(SingleTurnCase(row["id"], category, tuple(row["question"][0]), functions, answer))
    return cases


def category_of(case_id: str) -> str:
    """The category of an official id. Example: "live_simple_0-0-0" belongs to "live_simple"."""
    return case_id.rsplit("_", 1)[0]


def _multi_turn_case(row: Mapping[str, Any], answer: Sequence[Sequence[str]]) -> MultiTurnCase:
    names = [name for class_name in row["involved_classes"] for name in class_docs(class_name)]
    added = {int(turn): functions for turn, functions in row.get("missed_function", {}).items()}
    held_out = {name for functions in added.values() for name in functions}
    return MultiTurnCase(
        id=row["id"],
        category=category_of(row["id"]),
        turns=tuple(tuple(turn) for turn in row["question"]),
        functions=tuple(_doc_with_hint(name) for name in names if name not in held_out),
        added={turn: tuple(map(function_doc, functions)) for turn, functions in added.items()},
        classes=tuple(row["involved_classes"]),
        config=row["initial_config"],
        reference=tuple(tuple(read_call(text) for text in turn) for turn in answer),
    )


@cache
def _doc_with_hint(function: str) -> Doc:
    return _add_hint(function_doc(function))


def _add_hint(doc: Doc) -> Doc:
    return {**doc, "description": doc["description"] + HINT}


def _check_category(category: str, categories: Sequence[str]) -> None:
    if category not in categories:
        raise ValueError(f"no BFCL category {category!r} here; there are {', '.join(categories)}")
