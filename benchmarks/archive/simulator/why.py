"""What a policy does after each kind of feedback: mends, repeats its call, makes another wrong one, or stops calling.

    python benchmarks/archive/simulator/why.py FAILURES.jsonl USEFULNESS.jsonl

FAILURES (unpack it first: `gunzip -k`) are the instances that `fission-grpo simulator check --usefulness` was given,
USEFULNESS the raw results it wrote; first attempts only, as only their texts are kept.
"""

import json
import sys
from collections import Counter, defaultdict
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))

from packed import unpacked

from fission_grpo.core.chat import parse
from fission_grpo.feedback.dataset import load_examples


def main():
    failed = {one.id: one.failure for one in load_examples(Path(sys.argv[1]))}
    counts = defaultdict(Counter)
    with unpacked(Path(sys.argv[2])) as file, file.open(encoding="utf-8") as lines:
        rows = [row for row in map(json.loads, lines) if "text" in row and "attempt" in row]
    for row in rows:
        turn, before = parse(row["text"]), failed[row["failure"]]
        if row["success"]:
            what = "mended"
        elif not turn.calls:
            what = "unreadable" if turn.error else "no call"
        elif turn.calls == before.calls:
            what = "same call again"
        else:
            what = "another wrong call"
        counts[row["source"]][what] += 1
    whats = ("mended", "same call again", "another wrong call", "no call", "unreadable")
    print(f"{'':32}" + "".join(f"{what:>20}" for what in whats))
    for source, seen in counts.items():
        print(f"{source:32}" + "".join(f"{100 * seen[what] / seen.total():19.1f}%" for what in whats))


if __name__ == "__main__":
    main()
