"""The data card: what a data set holds, where from, what was left out and why; as numbers and as a page to read."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from fission_grpo.feedback.prompt import failure_text
from fission_grpo.recipes.error_simulator.failures import Found
from fission_grpo.recipes.error_simulator.filters import named_by, template

EXAMPLES = 8
"""Examples on a card. [ours]"""


LICENCES = (
    "Dialogues, tool schemas and error messages over BFCL's environments: derived from bfcl-eval (Apache-2.0). "
    "Corruptions, rules and their wording: fission-grpo (Apache-2.0). Files given on the command line, and what a "
    "model wrote (a sampled policy, a teacher behind an endpoint), have their own licences: check them before you "
    "pass this data on."
)


LIMITS = (
    "Corruptions are mistakes we thought of; a policy's own mistakes are spread differently (see `origin`).",
    "Labels of `rules` follow a few templates; a simulator trained on them alone writes like them.",
    "A step task has one right call: another order of the same user turn's calls is not taken for a failure, but "
    "another way to reach the same state is.",
    "Requests made by `tasks generate` are plain English of a few dozen patterns; names and numbers are made up.",
    "The leak guard does not find paraphrase, translation or sums (`leaks.leaks`).",
    "Turns cut off at their length limit come from policies and runs only; no corruption makes them.",
)


def numbers(train: Sequence[Found], test: Sequence[Found], made: Mapping[str, Any]) -> dict[str, Any]:
    """All of a card's numbers, as JSON values.

    Args:
        train, test: the instances written.
        made: how they came about: command, seed, sources, what was dropped where, seconds, versions.
    """
    both = [*train, *test]
    return {
        **made,
        "train": _side(train),
        "test": _side(test),
        "templates": len({template(one.instance.diagnosis) for one in both}),
        "examples": [_example(one) for one in _spread(both)],
        "licences": LICENCES,
        "limits": list(LIMITS),
    }


def page(card: Mapping[str, Any]) -> str:
    """The card as Markdown, from `numbers` alone."""
    sides = (card["train"], card["test"])
    lines = [
        "# Data card: labelled failures for an Error Simulator",
        "",
        f"{sides[0]['instances']:,} training and {sides[1]['instances']:,} test instances, made by",
        f"`{card['command']}` (seed {card['seed']}, {card['seconds']['all']:.0f} s).",
        "",
        "A row holds tools, dialogue, a failed turn, the reference calls (secret), and the diagnosis wished for; the "
        "format stands in `fission_grpo/simulator/instances.py`. Training and test share no API, no case and no "
        "failed turn's text.",
        "",
        f"Test APIs: {', '.join(card['test_apis']) or 'none'}. Teachers, asked in this order: {card['teacher']}.",
        "",
    ]
    for name in ("origin", "kind", "api", "teacher", "names"):
        lines += _table(name, sides[0][name], sides[1][name])
    lines += ["## Lengths, in characters", "", "| | median | 95% are at most | most |", "|---|---|---|---|"]
    for side, which in zip(sides, ("training", "test"), strict=True):
        for what, measured in side["lengths"].items():
            lines.append(f"| {what}, {which} | {measured['median']} | {measured['95%']} | {measured['most']} |")
    lines += ["", f"{card['templates']:,} diagnoses differ by more than quoted values and numbers.", ""]
    for title, key in (
        ("Sources", "sources"),
        ("What was read or made", "stages"),
        ("Policies sampled", "sampled"),
        ("Sources: not used", "unused"),
        ("Teachers: answers not used (the next teacher is asked)", "refused"),
        ("Labelling: dropped, as no teacher had a usable word", "unlabelled"),
        ("Filters: dropped", "filtered"),
        ("Split: dropped", "split"),
        ("Seconds", "seconds"),
        ("Versions", "versions"),
    ):
        lines += [f"## {title}", "", *(f"- {name}: {_shown(value)}" for name, value in card[key].items())]
        lines += ["" if card[key] else "None.\n"]
    lines += ["## Examples", ""]
    for one in card["examples"]:
        lines += [f"**{one['origin']}**, {one['kind']}, labelled by {one['teacher']}", "", "```", one["failed"], "```"]
        lines += [f"> {one['diagnosis']}", ""]
    lines += ["## Licences", "", card["licences"], "", "## Known limits", ""]
    return "\n".join([*lines, *(f"- {limit}" for limit in card["limits"]), ""])


def _side(found: Sequence[Found]) -> dict[str, Any]:
    items = [one.instance for one in found]
    texts = {
        "diagnosis": [len(item.diagnosis) for item in items],
        "failed turn": [len(item.failure.turns[-1].text) for item in items],
        "what the simulator is shown": [len(failure_text(item.failure)) for item in items],
    }
    return {
        "instances": len(items),
        "origin": _counts(item.origin for item in items),
        "kind": _counts(str(item.failure.kind) for item in items),
        "api": _counts(item.api for item in items),
        "teacher": _counts(item.teacher for item in items),
        "names": _counts(str(named_by(item.diagnosis, item.failure)) for item in items),
        "references": sum(item.failure.reference is not None for item in items),
        "lengths": {what: _lengths(values) for what, values in texts.items()},
    }


def _counts(values: Any) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))


def _lengths(values: Sequence[int]) -> dict[str, int]:
    if not values:
        return {"median": 0, "95%": 0, "most": 0}
    ordered = sorted(values)
    return {
        "median": round(statistics.median(ordered)),
        "95%": ordered[min(len(ordered) - 1, round(0.95 * len(ordered)))],
        "most": ordered[-1],
    }


def _spread(found: Sequence[Found]) -> list[Found]:
    """One instance of each origin, then of other kinds, at most `EXAMPLES`."""
    first: dict[str, Found] = {}
    for one in found:
        first.setdefault(str(one.instance.failure.kind), one)
    for one in found:
        first.setdefault(one.instance.origin, one)
    return list(first.values())[:EXAMPLES]


def _example(one: Found) -> dict[str, str]:
    item = one.instance
    return {
        "origin": item.origin,
        "kind": str(item.failure.kind),
        "teacher": item.teacher,
        "failed": item.failure.turns[-1].text[:600],
        "diagnosis": item.diagnosis,
    }


def _table(name: str, train: Mapping[str, int], test: Mapping[str, int]) -> list[str]:
    title = "named by the diagnosis" if name == "names" else name
    rows = [f"| {key} | {train.get(key, 0):,} | {test.get(key, 0):,} |" for key in sorted({*train, *test})]
    return [f"## By {title}", "", f"| {title} | training | test |", "|---|---|---|", *rows, ""]


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.1f}"
    return f"{value:,}" if isinstance(value, int) else value if isinstance(value, str) else json.dumps(value)
