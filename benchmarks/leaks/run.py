"""Measure the leak guard: precision and recall on the suite by rule, and its verdicts on recorded texts.

    python benchmarks/leaks/run.py                                    # the development half
    python benchmarks/leaks/run.py --held_out --output results.json   # both halves

Shares have Wilson's 95% intervals. Every wrong case and the time per text are shown too. The held-out half is not for
tuning; read README.md before running it.
"""

import argparse
import json
import statistics
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import make_suite
from recorded import load_recorded

from fission_grpo.core.types import ToolCall
from fission_grpo.evaluation.intervals import wilson
from fission_grpo.feedback.leak_guard import find_leak, find_reference_leak

NAMES = {"development": "development", "held out": "held out: all", "known": "held out: rules known from development",
         "new": "held out: new rules"}  # fmt: skip


def judged(row: dict[str, Any]) -> tuple[str | None, float]:
    """What the guard finds in a case's text, and the best of five times in ms."""
    reference, failed = (ToolCall(**row[key]) for key in ("reference", "failed"))
    times = []
    for _ in range(5):
        began = time.perf_counter()
        found = find_reference_leak(row["text"], [reference], [failed], row["tools"])
        times.append(1000 * (time.perf_counter() - began))
    return found, min(times)


def share(hits: int, of: int) -> dict[str, Any]:
    low, high = wilson(hits, of) if of else (None, None)
    return {"hits": hits, "of": of, "share": hits / of if of else None, "low": low, "high": high}


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Recall and precision, the share of right verdicts by rule, and the wrong cases."""
    found = [row for row in rows if row["found"]]
    leaking = [row for row in rows if row["leak"]]
    by_rule: dict[tuple[bool, str], list[bool]] = defaultdict(list)
    for row in rows:
        by_rule[row["leak"], row["rule"]].append(bool(row["found"]) == row["leak"])
    return {
        "recall": share(sum(bool(row["found"]) for row in leaking), len(leaking)),
        "precision": share(sum(row["leak"] for row in found), len(found)),
        "innocent passed": share(sum(not (row["leak"] or row["found"]) for row in rows), len(rows) - len(leaking)),
        "leaking rules": {rule: share(sum(ok), len(ok)) for (leak, rule), ok in by_rule.items() if leak},
        "innocent rules": {rule: share(sum(ok), len(ok)) for (leak, rule), ok in by_rule.items() if not leak},
        "missed": {row["id"]: row["text"] for row in leaking if not row["found"]},
        "false alarms": {row["id"]: [row["text"], row["found"]] for row in found if not row["leak"]},
    }


def recorded_verdicts() -> dict[str, int]:
    """Counts of recorded texts by the old guard's verdict and by this guard's."""
    counts = {
        "refused by both": 0,
        "newly passed": 0,
        "old false alarms passed": 0,
        "passed by both": 0,
        "new alarms": 0,
    }
    for one in load_recorded():
        refused = find_leak(one.text, one.failure) is not None
        if one.found is None:
            counts["new alarms" if refused else "passed by both"] += 1
        elif refused:
            counts["refused by both"] += 1
        else:
            counts["old false alarms passed" if one.false_alarm else "newly passed"] += 1
    return counts


def part(rows: list[dict[str, Any]], which: str) -> list[dict[str, Any]]:
    if which in ("known", "new"):
        return [row for row in rows if row["half"] == "held out" and row["new_rule"] == (which == "new")]
    return [row for row in rows if row["half"] == which]


def show(name: str, found: dict[str, Any]) -> None:
    print(f"\n{name}")
    for key in ("recall", "precision", "innocent passed"):
        print(f"  {key:16} {_line(found[key])}")
    for key in ("leaking rules", "innocent rules"):
        print(f"  {key} with a case judged wrong:")
        for rule, right in found[key].items():
            if right["hits"] < right["of"]:
                print(f"    {rule:32} {_line(right)}")
    for key in ("missed", "false alarms"):
        print(f"  {key}:")
        for case, text in found[key].items():
            print(f"    {case}: {text}")


def _line(value: dict[str, Any]) -> str:
    if not value["of"]:
        return "none"
    return f"{value['share']:.3f} [{value['low']:.3f}, {value['high']:.3f}]  {value['hits']} of {value['of']}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--held_out", action="store_true", help="judge the held-out half too")
    parser.add_argument("--output", type=Path, help="write the results here, as JSON")
    given = parser.parse_args()
    rows = [row for row in make_suite.rows() if given.held_out or row["half"] == "development"]
    times = []
    for row in rows:
        row["found"], spent = judged(row)
        times.append(spent)
    results = {which: summary(part(rows, which)) for which in NAMES if part(rows, which)}
    for which, found in results.items():
        show(NAMES[which], found)
    cuts = statistics.quantiles(times, n=100)
    speed = {"median_ms": cuts[49], "p99_ms": cuts[98], "max_ms": max(times)}
    print("\ntime per text:", ", ".join(f"{name} {value:.3f}" for name, value in speed.items()))
    recorded = recorded_verdicts()
    print("recorded texts:", ", ".join(f"{name} {value:,}" for name, value in recorded.items()))
    if given.output:
        values = {"time": speed, "recorded": recorded, **results}
        given.output.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
