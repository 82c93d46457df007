"""Attack one edge with generated input for a time; count what happened. How to run it: README.md beside this file.

Cases run one after the other in a child process, so that a hang, a crash and memory are seen from outside.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any

EDGES = ("bodies", "schemas", "patterns", "transcripts", "manifests")
HANG_SECONDS = 30.0  # of wall-clock time for one case [ours]; the readers' own limits are 10 s or less
SLOW_SECONDS = 10.0  # of processor time for one case [ours]
MEMORY = 600 * 2**20  # bytes that one case may add to the peak of its process [ours]
START_SECONDS = 300.0  # for the child to import and prepare [ours]


@dataclass
class Totals:
    """What became of the cases of one edge."""

    outcomes: Counter[str] = field(default_factory=Counter)
    findings: list[dict[str, Any]] = field(default_factory=list)
    cases: int = 0
    slowest: tuple[float, int] = (0.0, -1)  # processor seconds, case
    peak: int = 0  # bytes

    def finding(self, kind: str, case: int, detail: str) -> None:
        """Keep a finding; of those with the same last line of detail, the first, and their number."""
        known = next(
            (one for one in self.findings if one["kind"] == kind and one["detail"][-80:] == detail[-80:]), None
        )
        if known is None:
            self.findings.append({"kind": kind, "case": case, "times": 1, "detail": detail[-1500:]})
        else:
            known["times"] += 1


def child(edge: str, seed: int, first: int, pipe: Connection, folder: str) -> None:
    """Run cases from number `first` on until the parent ends this process; report before and after each."""
    sys.path[:0] = [str(Path(__file__).parent)]
    attack = importlib.import_module(edge).prepare(Path(folder))
    case = first
    while True:
        pipe.send(("start", case))
        before, started = peak_memory(), time.process_time()
        try:
            outcome, problem = attack(case_random(edge, seed, case)), ""
        except Exception:  # noqa: BLE001 - what is looked for
            outcome, problem = "crash", traceback.format_exc()
        pipe.send(("done", outcome, problem, time.process_time() - started, peak_memory() - before, peak_memory()))
        case += 1


def case_random(edge: str, seed: int, case: int) -> Random:
    """The generator of one case, which is the same in every run."""
    return Random(f"{edge} {seed} {case}")


def peak_memory() -> int:
    """The most memory that this program has had, in bytes. (`getrusage` counts that of its parent before `exec`.)"""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def attack_edge(edge: str, seed: int, seconds: float, first: int = 0, most: int | None = None) -> Totals:
    """Attack an edge for `seconds`, or `most` cases; a child that hangs or dies is replaced by another."""
    totals, case = Totals(), first
    end = time.monotonic() + seconds
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="attacks") as folder:
        while time.monotonic() < end and (most is None or totals.cases < most):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=child, args=(edge, seed, case, theirs, folder)
            )  # not daemonic: has a server
            process.start()
            theirs.close()
            try:
                case = watch(ours, totals, end, case, most)
            finally:
                process.kill()
                process.join()
    return totals


def watch(pipe: Connection, totals: Totals, end: float, case: int, most: int | None) -> int:
    """Follow a child until it has to be replaced or the time is over; returns the next case."""
    limit = START_SECONDS
    while time.monotonic() < end and (most is None or totals.cases < most):
        try:
            if not pipe.poll(limit):
                totals.finding("hang", case, f"no end after {limit:.0f} s")
                totals.cases += 1
                return case + 1
            message = pipe.recv()
        except EOFError:
            totals.finding("died", case, "the process ended")
            totals.cases += 1
            return case + 1
        if message[0] == "start":
            case, limit = message[1], HANG_SECONDS
            continue
        _, outcome, problem, seconds, growth, peak = message
        totals.cases += 1
        totals.outcomes[outcome] += 1
        totals.slowest = max(totals.slowest, (seconds, case))
        totals.peak = max(totals.peak, peak)
        if problem:
            totals.finding("crash", case, problem)
        if seconds > SLOW_SECONDS:
            totals.finding("slow", case, f"{seconds:.1f} s of processor time")
        if growth > MEMORY:
            totals.finding("memory", case, f"{growth / 2**20:.0f} MiB more")
        case += 1
    return case


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--edge", choices=EDGES, required=True)
    parser.add_argument("--seconds", type=float, default=1800)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="run this case alone, in this process, to look at a finding")
    parser.add_argument("--output", type=Path, help="write the result as JSON")
    args = parser.parse_args()
    if args.case is not None:
        sys.path[:0] = [str(Path(__file__).parent)]
        with tempfile.TemporaryDirectory(prefix="attacks") as folder:
            attack = importlib.import_module(args.edge).prepare(Path(folder))
            print(attack(case_random(args.edge, args.seed, args.case)))
        return 0
    started = time.monotonic()
    totals = attack_edge(args.edge, args.seed, args.seconds)
    result = {
        "edge": args.edge,
        "seed": args.seed,
        "seconds": round(time.monotonic() - started),
        "cases": totals.cases,
        "outcomes": dict(totals.outcomes.most_common()),
        "slowest": {"processor_seconds": round(totals.slowest[0], 2), "case": totals.slowest[1]},
        "peak_mib": round(totals.peak / 2**20),
        "findings": totals.findings,
    }
    text = json.dumps(result, indent=1)
    if args.output is not None:
        args.output.write_text(text + "\n", encoding="utf-8")
    print(text)
    return int(bool(totals.findings))


if __name__ == "__main__":
    sys.exit(main())
