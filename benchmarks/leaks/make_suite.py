"""Make the test cases of the leak guard from `situations.jsonl` and the two files of rules.

    python benchmarks/leaks/make_suite.py suite.jsonl

The cases are deterministic, so no file of them is tracked. A situation and a rule make one case, about the first
target after a starting place that moves on from rule to rule. The development half has its own situations with the
`KNOWN` rules. The held-out half has other situations, `KNOWN` and `NEW` rules, and other sentences around the values.
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import innocent_rules
import leaking_rules
from situations import HELD_OUT, Situation, situations


def rows() -> Iterator[dict[str, Any]]:
    """The cases in the order of the situations, leaking ones first."""
    for number, situation in enumerate(situations()):
        dialogue = [{"role": "user", "content": situation.user}]
        if situation.result:
            dialogue.append({"role": "tool", "content": situation.result})
        for leak, rules in ((True, leaking_rules), (False, innocent_rules)):
            for turn, (name, rule, new) in enumerate(_rules(rules, situation)):
                made = _made(situation, rule, number + turn, leak or name in innocent_rules.ANY_LIST)
                if made is not None:
                    yield {
                        "id": f"{situation.name}/{name}",
                        "half": situation.half,
                        "new_rule": new,
                        "rule": name,
                        "leak": leak,
                        "text": made,
                        "dialogue": dialogue,
                        "tools": situation.tools,
                        "reference": {"name": situation.reference.name, "arguments": situation.reference.arguments},
                        "failed": {"name": situation.failed.name, "arguments": situation.failed.arguments},
                    }


def _rules(rules: Any, situation: Situation) -> Iterator[tuple[str, Any, bool]]:
    for name, rule in rules.KNOWN.items():
        yield name, rule, False
    if situation.half == HELD_OUT:
        for name, rule in rules.NEW.items():
            yield name, rule, True


def _made(situation: Situation, rule: Any, turn: int, may_hold_a_value: bool) -> str | None:
    """The first text of the rule. An innocent one must not hold a reference value as a whole word, by plain search."""
    targets = situation.targets
    for step in range(len(targets)):
        text = rule(situation, targets[(turn + step) % len(targets)], turn)
        if text and (may_hold_a_value or not any(_holds(text, str(target.value)) for target in targets)):
            return text
    return None


def _holds(text: str, value: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text, re.IGNORECASE) is not None


if __name__ == "__main__":
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows()]
    Path(sys.argv[1]).write_text("".join(lines), encoding="utf-8")
