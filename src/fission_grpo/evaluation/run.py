"""An evaluation on disk: `manifest.json` says what, `cases.jsonl` grows by a line with every case that ends.

An evaluation that was killed goes on where it was: cases that are there are not played again, except those that were
missing (lost to the endpoint or a broken environment).
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from fission_grpo.evaluation.manifest import MANIFEST, Manifest, differences, read_manifest, write_manifest
from fission_grpo.evaluation.play import AsynchronousPolicy, Play, Policy, play_all
from fission_grpo.evaluation.records import CASES, CaseRecord, read_records, to_line
from fission_grpo.json_lines import RunFileError
from fission_grpo.progress import clock

SHOWN_EVERY = 10.0
"""Seconds between two lines of progress where stderr is no terminal. [ours]"""

Plays = Mapping[str, Callable[[], Play]]
"""How to begin every case, by its id, in order."""


def evaluate_run(
    directory: Path,
    manifest: Manifest,
    policy: Policy | AsynchronousPolicy,
    plays: Plays,
    in_flight: int = 16,
) -> list[CaseRecord]:
    """Play the cases that `directory` does not hold yet, and return the records of all, in order.

    Args:
        directory: made if need be.
        manifest: what this evaluation is.
        policy: plays.
        plays: the cases.
        in_flight: cases side by side.

    Raises:
        RunFileError: the directory holds another evaluation, or a file of it is broken.
    """
    done = open_run(directory, manifest, plays)
    open_ids = [name for name in plays if name not in done or done[name].missing is not None]
    if done:
        print(f"{directory}: {len(plays) - len(open_ids)} of {len(plays)} cases are there already", file=sys.stderr)
    progress = Progress(len(plays), len(plays) - len(open_ids))
    with (directory / CASES).open("a", encoding="utf-8") as file:

        def note(record: CaseRecord) -> None:
            file.write(to_line(record) + "\n")
            file.flush()
            os.fsync(file.fileno())
            done[record.id] = record
            progress.show(record)

        play_all(policy, (plays[name] for name in open_ids), in_flight, note)
    progress.end()
    return [done[name] for name in plays]


def open_run(directory: Path, manifest: Manifest, plays: Plays) -> dict[str, CaseRecord]:
    """Begin or resume the evaluation in a directory; returns the records it holds, by id.

    Raises:
        RunFileError: the directory holds another evaluation, or a file of it is broken.
    """
    if (directory / MANIFEST).is_file():
        there = read_manifest(directory)
        other = differences(there, manifest)
        other += [] if there.policy == manifest.policy else [f"policy: {there.policy} in A, {manifest.policy} in B"]
        other += [] if there.decoding == manifest.decoding or other else ["decoding.seed"]
        if other:
            what = "; ".join(other).replace(" in A", " there").replace(" in B", " now")
            raise RunFileError(f"{directory} holds another evaluation ({what}); give another --output, or delete it")
    write_manifest(directory, manifest)
    cut_half_line(directory / CASES)
    return {record.id: record for record in read_records(directory / CASES) if record.id in plays}


def cut_half_line(path: Path) -> None:
    """Take off a last line that was cut by a kill, so that the next record begins on a line of its own."""
    if not path.is_file() or not (text := path.read_bytes()) or text.endswith(b"\n"):
        return
    with path.open("r+b") as file:
        file.truncate(text.rfind(b"\n") + 1)
    print(f"{path}: a half-written last line taken off; its case is played again", file=sys.stderr)


class Progress:
    """One line on stderr: cases done, success so far, time left. Rewritten on a terminal, else every few seconds."""

    def __init__(self, total: int, done: int, clock_: Callable[[], float] = time.monotonic):
        self.total, self.before, self.done, self.clock = total, done, done, clock_
        self.judged = self.succeeded = self.missing = 0
        self.began = self.shown = clock_()

    def show(self, record: CaseRecord) -> None:
        """A case has ended."""
        self.done += 1
        self.judged += record.success is not None
        self.succeeded += bool(record.success)
        self.missing += record.missing is not None
        live, now = sys.stderr.isatty(), self.clock()
        if live or now - self.shown >= SHOWN_EVERY:
            self.shown = now
            print(
                "\r" + self.line(now) + "\x1b[K" if live else self.line(now), end="" if live else "\n", file=sys.stderr
            )
            sys.stderr.flush()

    def line(self, now: float) -> str:
        """Example: "12/200 cases · success 0.58 · 1 missing · 1:30 left" """
        left = (now - self.began) / (self.done - self.before) * (self.total - self.done)
        parts = [f"{self.done}/{self.total} cases"]
        parts += [f"success {self.succeeded / self.judged:.2f}"] if self.judged else []
        parts += [f"{self.missing} missing"] if self.missing else []
        return " · ".join([*parts, f"{clock(left)} left"])

    def end(self) -> None:
        """All cases have ended."""
        if sys.stderr.isatty() and self.done > self.before:
            print(file=sys.stderr)
