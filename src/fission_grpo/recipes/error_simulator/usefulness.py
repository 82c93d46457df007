"""Usefulness of feedback: how much more often an untrained policy succeeds after a source's text than after controls.

Each failure becomes a recovery task with each source's text; the policy attempts it several times and is judged as in
training. Controls: no text, the fixed text, rules, the environment's message, and the source's texts shuffled.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from fission_grpo.core.errors import RunFileError
from fission_grpo.core.files import append_line, read_lines
from fission_grpo.core.serialization import recovery_id
from fission_grpo.core.types import Failure
from fission_grpo.evaluation.episodes import run_step
from fission_grpo.evaluation.intervals import Pair, difference_interval, ratio_interval
from fission_grpo.evaluation.metrics import Proportion
from fission_grpo.evaluation.records import CaseRecord
from fission_grpo.evaluation.run import Progress, cut_half_line
from fission_grpo.evaluation.runner import RunningCase, run_cases
from fission_grpo.evaluation.tables import aligned
from fission_grpo.feedback.request import Feedback, FeedbackRequest
from fission_grpo.feedback.shuffled import ShuffledFeedback
from fission_grpo.feedback.sources import Diagnosis, FeedbackSource
from fission_grpo.feedback.spec import make_chain
from fission_grpo.fission.recovery import recovery_task
from fission_grpo.inference.base import AsynchronousPolicy, Policy

FIXED, SHUFFLED = "fixed", "shuffled"
CONTROLS = ("none", FIXED, "rules", "environment")

Key = tuple[str, str]  # the name of a source and the id of a failure


class AttemptsFile:
    """Feedback, and success by number of the attempt, in a file to which every row is written at once.

    A stopped measurement can be resumed with it. A half-written last line is removed. Raises RunFileError if the file
    is damaged, or was written with other settings; the message says which.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]):
        self.feedback: dict[Key, Feedback] = {}
        self.outcomes: dict[Key, dict[int, bool]] = {}
        cut_half_line(path)
        known, wanted = self._read(path), json.loads(json.dumps(dict(settings)))
        if known and known != wanted:
            changed = [name for name in {**known, **wanted} if known.get(name) != wanted.get(name)]
            what = "; ".join(f"{name} was {known.get(name)!r}, now {wanted.get(name)!r}" for name in changed)
            raise RunFileError(
                f"{path} holds attempts of other settings ({what}); give another --output, or delete it"
            )
        self._path = path
        if not known:
            self._write({"event": "settings", "settings": wanted})

    def add_feedback(self, key: Key, feedback: Feedback) -> None:
        """Append the feedback of a source on a failure."""
        row = {"text": feedback.text, "by": feedback.source, "rejected": [list(pair) for pair in feedback.rejected]}
        self._write({"event": "feedback", "failure": key[1], "source": key[0], **row})
        self.feedback[key] = feedback

    def add_attempt(self, key: Key, number: int, success: bool, reply: str) -> None:
        """Append an attempt; the reply is kept for the first one only."""
        row = {"event": "attempt", "failure": key[1], "source": key[0], "attempt": number, "success": success}
        self._write(row | ({"text": reply} if number == 0 else {}))
        self.outcomes.setdefault(key, {})[number] = success

    def pairs(self, source: str, failures: Sequence[str]) -> list[Pair]:
        """Successes and attempts with a source, for each of the failures."""
        outcomes = [self.outcomes.get((source, failure), {}) for failure in failures]
        return [(sum(successes.values()), len(successes)) for successes in outcomes]

    def _read(self, path: Path) -> dict[str, Any]:
        """Read the file; returns the settings it was written with."""
        settings: dict[str, Any] = {}
        for line in read_lines(path, []):
            event = line.take("event", str)
            if event == "settings":
                settings = dict(line.take("settings", dict))
                continue
            key = line.take("source", str), line.take("failure", str)
            if event == "feedback":
                rejected = tuple((str(source), str(reason)) for source, reason in line.take_all("rejected", list))
                self.feedback[key] = Feedback(line.take("text", str), line.take("by", str), rejected)
            elif event == "attempt":
                self.outcomes.setdefault(key, {})[line.take("attempt", int)] = line.take("success", bool)
            else:
                raise line.wrong(f"field 'event' must be settings, feedback or attempt, but is {event!r}")
        return settings

    def _write(self, row: Mapping[str, Any]) -> None:
        append_line(self._path, json.dumps(row))


def make_arms(chain: Sequence[FeedbackSource], name: str) -> dict[str, tuple[FeedbackSource, ...]]:
    """The controls, the chain under its name, and the chain's texts shuffled. A source is asked once per failure."""
    cached = tuple(_CachedSource(source) for source in chain)
    arms = {control: make_chain(control) for control in CONTROLS}
    return arms | {name: cached, SHUFFLED: tuple(ShuffledFeedback(source) for source in cached)}


class _CachedSource:
    """Shares the answers of a source between the arm of the source and the shuffled one."""

    def __init__(self, source: FeedbackSource):
        self.source, self.name, self.asynchronous = source, source.name, source.asynchronous
        self.check, self.counts = source.check, source.counts
        self._answers: dict[str, Future[Diagnosis]] = {}

    def start(self, failures: Sequence[Failure]) -> list[Future[Diagnosis]]:
        new = {name: failure for failure in failures if (name := recovery_id(failure)) not in self._answers}
        self._answers |= zip(new, self.source.start(list(new.values())), strict=True)
        return [self._answers[recovery_id(failure)] for failure in failures]


def run_attempts(
    file: AttemptsFile,
    failures: Sequence[Failure],
    arms: Mapping[str, Sequence[FeedbackSource]],
    policy: Policy | AsynchronousPolicy,
    samples: int = 4,
    in_flight: int = 64,
) -> None:
    """Request the feedback and make the attempts that the file does not hold yet, `samples` per failure and arm.

    Attempts lost to an endpoint are not written, and made again the next time. Raises ValueError for a failure without
    a reference, or with a prompt of plain text.
    """
    for failure in failures:
        if failure.reference is None or isinstance(failure.task.prompt, str):
            raise ValueError(f"failure {failure.task.id!r} cannot be tried: it needs messages and reference calls")
    for name, chain in arms.items():
        new = [failure for failure in failures if (name, failure.task.id) not in file.feedback]
        for failure, feedback in zip(new, FeedbackRequest(new, chain).feedback() if new else (), strict=True):
            file.add_feedback((name, failure.task.id), feedback)
    wanted = [
        (failure, name, number)
        for failure in failures
        for name in arms
        for number in range(samples)
        if number not in file.outcomes.get((name, failure.task.id), {})
    ]

    def make_attempt(failure: Failure, name: str, number: int) -> RunningCase:
        key = name, failure.task.id
        task = recovery_task(failure, file.feedback[key].text)
        record: CaseRecord = yield from run_step(replace(task, reference=failure.reference))
        if record.missing is None:
            file.add_attempt(key, number, bool(record.success), record.turns[0].steps[0].text)
        return record

    total = len(failures) * len(arms) * samples
    progress = Progress(total, total - len(wanted))
    cases: Iterator[Callable[[], RunningCase]] = (lambda item=item: make_attempt(*item) for item in wanted)
    run_cases(policy, cases, in_flight, progress.show)
    progress.end()


@dataclass(frozen=True)
class Gain:
    """Success with one source minus success with another, over failures attempted with both."""

    change: float
    interval: tuple[float, float] | None  # 95%, by a paired bootstrap over failures
    pairs: int  # failures


@dataclass(frozen=True)
class Usefulness:
    """The result of one source."""

    source: str
    failures: int  # attempted with it
    success: Proportion  # of all attempts; the interval is from a bootstrap over failures
    gains: dict[str, Gain] = field(default_factory=dict)  # over other sources, by name

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values, with the rate of success."""
        return asdict(self) | {"success": asdict(self.success) | {"rate": self.success.rate}}


def compute_usefulness(file: AttemptsFile, failures: Sequence[str] | None = None) -> list[Usefulness]:
    """Compute success with each source, and its gain over the fixed text and over the shuffled texts.

    `failures` are the ids of those that count; None: all. With two attempts at each of two failures, of which with the
    fixed text 0 and 1 succeed and with rules 1 and 2, the gain of rules over fixed is 0.75 - 0.25.
    """
    ids = list(failures if failures is not None else dict.fromkeys(failure for _, failure in file.feedback))
    pairs = {name: file.pairs(name, ids) for name, _ in file.feedback}
    results = []
    for name, own in pairs.items():
        success = Proportion(*_total(own), ratio_interval(own), "bootstrap")
        others = [other for other in (FIXED, SHUFFLED) if other in pairs and other != name]
        gains = {other: gain for other in others if (gain := _gain(own, pairs[other]))}
        results.append(Usefulness(name, sum(tries > 0 for _, tries in own), success, gains))
    return results


def _total(pairs: Sequence[Pair]) -> Pair:
    return sum(hits for hits, _ in pairs), sum(tries for _, tries in pairs)


def _gain(own: Sequence[Pair], other: Sequence[Pair]) -> Gain | None:
    both = [(mine, theirs) for mine, theirs in zip(own, other, strict=True) if mine[1] and theirs[1]]
    if not both:
        return None
    ours, theirs = ([pairs[side] for pairs in both] for side in (0, 1))
    rates = [hits / tries for hits, tries in (_total(ours), _total(theirs))]
    return Gain(rates[0] - rates[1], difference_interval(theirs, ours), len(both))


def usefulness_table(rows: Sequence[Usefulness]) -> str:
    """The results as plain text, in percentage points."""
    interval = "95% interval"
    lines: list[tuple[str, ...]] = [
        ("", "success, %", interval, "over fixed", interval, "over shuffled", interval, "failures")
    ]
    for row in rows:
        cells = _cells(row.success.rate, row.success.interval, "")
        for other in (FIXED, SHUFFLED):
            gain = row.gains.get(other)
            cells += _cells(gain and gain.change, gain and gain.interval, "+")
        lines.append((row.source, *cells, f"{row.failures:,}"))
    return "\n".join(aligned(lines))


def _cells(value: float | None, interval: tuple[float, float] | None, sign: str) -> list[str]:
    shown = "-" if interval is None else " to ".join(f"{100 * end:{sign}.1f}" for end in interval)
    return ["-" if value is None else f"{100 * value:{sign}.1f}", shown]
