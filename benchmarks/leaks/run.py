"""Precision and recall of the leak guard on the adversarial suite, with Wilson's 95% intervals, in all and by rule.

    python benchmarks/leaks/run.py                                    # the development half
    python benchmarks/leaks/run.py --held_out --output results.json   # both; once, when the guard is done

Prints, and writes if asked to, also every case that the guard has wrong, and the time per text. results.json is the
one measurement of the held-out half; see README.md before making another.
"""

import argparse
import json
import statistics
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from fission_grpo.core.types import ToolCall
from fission_grpo.evaluation.intervals import wilson
from fission_grpo.feedback.leak_guard import leaks

HERE = Path(__file__).parent
NAMES = {"development": "development", "held out": "held out: all", "known": "held out: rules known from development",
         "new": "held out: new rules"}  # fmt: skip


def judged(row: dict[str, Any]) -> tuple[str | None, float]:
    """What the guard finds in a case's text, and the best of five times, in ms."""
    reference, failed = (ToolCall(**row[key]) for key in ("reference", "failed"))
    times = []
    for _ in range(5):
        began = time.perf_counter()
        found = leaks(row["text"], [reference], [failed], row["tools"])
        times.append(1000 * (time.perf_counter() - began))
    return found, min(times)


def share(hits: int, of: int) -> dict[str, Any]:
    low, high = wilson(hits, of) if of else (None, None)
    return {"hits": hits, "of": of, "share": hits / of if of else None, "low": low, "high": high}


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Recall and precision of cases, and the same share (cases judged right) rule by rule."""
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
    rows = [json.loads(line) for line in (HERE / "suite.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if given.held_out or row["half"] == "development"]
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
    if given.output:
        given.output.write_text(json.dumps({"time": speed, **results}, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
