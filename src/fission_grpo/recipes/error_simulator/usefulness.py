"""Usefulness of feedback: how much more often an untrained policy succeeds after a source's text than after controls.

Each failure becomes a recovery task with each source's text; the policy attempts it several times and is judged as in
training. Controls: no text, the fixed text, rules, the environment's message, and the source's texts shuffled.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from fission_grpo.core.errors import RunFileError
from fission_grpo.core.files import read_lines
from fission_grpo.core.serialization import recovery_id
from fission_grpo.core.types import Failure
from fission_grpo.evaluation.episodes import run_step
from fission_grpo.evaluation.intervals import Pair, difference_interval, ratio_interval
from fission_grpo.evaluation.metrics import Proportion
from fission_grpo.evaluation.records import CaseRecord
from fission_grpo.evaluation.run import Progress, cut_half_line
from fission_grpo.evaluation.runner import RunningCase, run_cases
from fission_grpo.evaluation.tables import aligned
from fission_grpo.feedback.request import LEAK, Feedback, FeedbackRequest
from fission_grpo.feedback.shuffled import ShuffledFeedback
from fission_grpo.feedback.sources import Diagnosis, FeedbackSource, make_chain
from fission_grpo.fission.recovery import recovery_task
from fission_grpo.inference.base import AsynchronousPolicy, Policy

CONTROLS = ("none", "fixed", "rules", "environment")
FIXED, SHUFFLED = "fixed", "shuffled"

Key = tuple[str, str]
"""The name of a source and the id of a failure."""


@dataclass
class Attempts:
    """The contents of an attempts file: the feedback, and success by number of the attempt."""

    settings: dict[str, Any] = field(default_factory=dict)
    feedback: dict[Key, Feedback] = field(default_factory=dict)
    outcomes: dict[Key, dict[int, bool]] = field(default_factory=dict)

    def pair(self, source: str, failure: str) -> Pair:
        """Successes and attempts of a failure with a source."""
        outcomes = self.outcomes.get((source, failure), {})
        return sum(outcomes.values()), len(outcomes)


class AttemptsFile:
    """Appends feedback and attempts to a file, each flushed at once, so that a stopped measurement can be resumed.

    Args:
        path: created if needed. A half-written last line is removed.
        settings: of the measurement, as JSON values.

    Raises:
        RunFileError: the file is damaged, or was written with other settings; the message says which.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]):
        path.parent.mkdir(parents=True, exist_ok=True)
        cut_half_line(path)
        self.attempts = read_attempts(path) if path.is_file() else Attempts()
        known, wanted = self.attempts.settings, json.loads(json.dumps(dict(settings)))
        if known and known != wanted:
            changed = [name for name in {**known, **wanted} if known.get(name) != wanted.get(name)]
            what = "; ".join(f"{name} was {known.get(name)!r}, now {wanted.get(name)!r}" for name in changed)
            raise RunFileError(
                f"{path} holds attempts of other settings ({what}); give another --output, or delete it"
            )
        self._file = path.open("a", encoding="utf-8")
        if not known:
            self._write({"event": "settings", "settings": wanted})
            self.attempts.settings = wanted

    def __enter__(self) -> AttemptsFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add_feedback(self, key: Key, feedback: Feedback) -> None:
        """Append the feedback of a source on a failure."""
        row = {"text": feedback.text, "by": feedback.source, "rejected": [list(pair) for pair in feedback.rejected]}
        self._write({"event": "feedback", "failure": key[1], "source": key[0], **row})
        self.attempts.feedback[key] = feedback

    def add_attempt(self, key: Key, number: int, success: bool, reply: str) -> None:
        """Append an attempt; the reply is kept for the first one only."""
        row = {"event": "attempt", "failure": key[1], "source": key[0], "attempt": number, "success": success}
        self._write(row | ({"text": reply} if number == 0 else {}))
        self.attempts.outcomes.setdefault(key, {})[number] = success

    def _write(self, row: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()


def read_attempts(path: Path) -> Attempts:
    """Read an attempts file.

    Raises:
        RunFileError: it does not exist or is damaged; the message names file, line and field.
    """
    if not path.is_file():
        raise RunFileError(f"{path}: no such file; make it with `fission-grpo simulator check --usefulness`")
    attempts = Attempts()
    for line in read_lines(path, []):
        event = line.take("event", str)
        if event == "settings":
            attempts.settings = dict(line.take("settings", dict))
            continue
        key = line.take("source", str), line.take("failure", str)
        if event == "feedback":
            rejected = tuple((str(source), str(reason)) for source, reason in line.take_all("rejected", list))
            attempts.feedback[key] = Feedback(line.take("text", str), line.take("by", str), rejected)
        elif event == "attempt":
            attempts.outcomes.setdefault(key, {})[line.take("attempt", int)] = line.take("success", bool)
        else:
            raise line.wrong(f"field 'event' must be settings, feedback or attempt, but is {event!r}")
    return attempts


def make_arms(chain: Sequence[FeedbackSource], name: str) -> dict[str, tuple[FeedbackSource, ...]]:
    """The controls, the chain under its name, and the chain's texts shuffled. A source is asked once per failure."""
    cached = tuple(_CachedSource(source) for source in chain)
    arms = {control: make_chain(control) for control in CONTROLS}
    return arms | {name: cached, SHUFFLED: tuple(ShuffledFeedback(source) for source in cached)}


class _CachedSource:
    """Shares the answers of a source between the arm of the source and the shuffled one."""

    def __init__(self, source: FeedbackSource):
        self.source, self.name, self.asynchronous = source, source.name, source.asynchronous
        self._answers: dict[str, Future[Diagnosis]] = {}

    def start(self, failures: Sequence[Failure]) -> list[Future[Diagnosis]]:
        new = {name: failure for failure in failures if (name := recovery_id(failure)) not in self._answers}
        self._answers |= zip(new, self.source.start(list(new.values())), strict=True)
        return [self._answers[recovery_id(failure)] for failure in failures]

    def check(self) -> None:
        self.source.check()

    def counts(self) -> Mapping[str, float]:
        return self.source.counts()


def run_attempts(
    file: AttemptsFile,
    failures: Sequence[Failure],
    arms: Mapping[str, Sequence[FeedbackSource]],
    policy: Policy | AsynchronousPolicy,
    samples: int = 4,
    in_flight: int = 64,
) -> Attempts:
    """Request the feedback and make the attempts that the file does not hold yet.

    Args:
        file: where results are written. Attempts lost to an endpoint are not written, and made again the next time.
        failures: of one turn, with a reference and messages as prompt.
        arms: chains of sources by name.
        policy: makes the attempts.
        samples: attempts per failure and source, 1 or more.
        in_flight: attempts at a time.

    Returns:
        Attempts: everything the file holds now.

    Raises:
        ValueError: a failure has no reference, or a prompt of plain text.
    """
    for failure in failures:
        if failure.reference is None or isinstance(failure.task.prompt, str):
            raise ValueError(f"failure {failure.task.id!r} cannot be tried: it needs messages and reference calls")
    attempts = file.attempts
    for name, chain in arms.items():
        new = [failure for failure in failures if (name, failure.task.id) not in attempts.feedback]
        for failure, feedback in zip(new, FeedbackRequest(new, chain).feedback() if new else (), strict=True):
            file.add_feedback((name, failure.task.id), feedback)
    wanted = [
        (failure, name, number)
        for failure in failures
        for name in arms
        for number in range(samples)
        if number not in attempts.outcomes.get((name, failure.task.id), {})
    ]
    total = len(failures) * len(arms) * samples
    if len(wanted) < total:
        print(f"{total - len(wanted):,} of {total:,} attempts were made before", file=sys.stderr)
    progress = Progress(total, total - len(wanted))

    def make_attempt(failure: Failure, name: str, number: int) -> RunningCase:
        key = name, failure.task.id
        task = recovery_task(failure, attempts.feedback[key].text)
        record: CaseRecord = yield from run_step(replace(task, reference=failure.reference))
        if record.missing is None:
            file.add_attempt(key, number, bool(record.success), record.turns[0].steps[0].text)
        return record

    cases: Iterator[Callable[[], RunningCase]] = (lambda item=item: make_attempt(*item) for item in wanted)
    run_cases(policy, cases, in_flight, progress.show)
    progress.end()
    return attempts


@dataclass(frozen=True)
class Gain:
    """Success with one source minus success with another, over failures attempted with both; a 95% interval."""

    change: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Usefulness:
    """The result of one source.

    Args:
        source: its name in the measurement.
        failures: attempted with it.
        success: successful of all attempts; the interval is from a bootstrap over failures.
        gains: over other sources, by name.
        own_texts: failures whose text is from the source or its chain; the others got the fixed text.
        rejected: texts that were not used, by "source: reason".
        leaks: failures with a text that was not used because it leaked.
        same_texts: failures with the same text as in the tested source's arm; None for that arm itself.
    """

    source: str
    failures: int
    success: Proportion
    gains: dict[str, Gain] = field(default_factory=dict)
    own_texts: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    leaks: int = 0
    same_texts: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values, with the rate of success."""
        return asdict(self) | {"success": asdict(self.success) | {"rate": self.success.rate}}


def compute_usefulness(attempts: Attempts, tested: str, failures: Sequence[str] | None = None) -> list[Usefulness]:
    """The result of every source.

    Args:
        attempts: raw results.
        tested: name of the source under test.
        failures: ids of the failures that count; None: all.

    Example:
        Two failures with two attempts each. Fixed: 0 and 1 succeed, success 0.25; rules: 1 and 2, success 0.75; the
        gain of rules over fixed is 0.5.
    """
    names = dict.fromkeys(source for source, _ in attempts.feedback)
    ids = list(failures if failures is not None else dict.fromkeys(failure for _, failure in attempts.feedback))
    pairs = {name: [attempts.pair(name, failure) for failure in ids] for name in names}
    feedback = {
        name: {failure: attempts.feedback[name, failure] for failure in ids if (name, failure) in attempts.feedback}
        for name in names
    }
    texts = {failure: given.text for failure, given in feedback.get(tested, {}).items()}
    results = []
    for name in names:
        own, given = pairs[name], feedback[name]
        gains = {other: _gain(own, pairs[other]) for other in (FIXED, SHUFFLED) if other in pairs and other != name}
        hits, total = sum(hits for hits, _ in own), sum(tries for _, tries in own)
        reasons = Counter(": ".join(pair) for text in given.values() for pair in text.rejected)
        results.append(
            Usefulness(
                name,
                failures=sum(tries > 0 for _, tries in own),
                success=Proportion(hits, total, ratio_interval(own), "bootstrap"),
                gains={other: gain for other, gain in gains.items() if gain is not None},
                own_texts=sum(name == FIXED or text.source != FIXED for text in given.values()),
                rejected=dict(reasons.most_common()),
                leaks=sum(any(reason == LEAK for _, reason in text.rejected) for text in given.values()),
                same_texts=None if name == tested else sum(texts.get(key) == text.text for key, text in given.items()),
            )
        )
    return results


def _gain(own: Sequence[Pair], other: Sequence[Pair]) -> Gain | None:
    both = [(mine, theirs) for mine, theirs in zip(own, other, strict=True) if mine[1] and theirs[1]]
    if not both:
        return None
    ours, theirs = ([pairs[side] for pairs in both] for side in (0, 1))
    rates = [sum(hits for hits, _ in side) / sum(tries for _, tries in side) for side in (ours, theirs)]
    return Gain(rates[0] - rates[1], difference_interval(theirs, ours))


def usefulness_table(rows: Sequence[Usefulness]) -> str:
    """The results as plain text, in percentage points."""
    interval = "95% interval"
    lines: list[tuple[str, ...]] = [
        ("", "success, %", interval, "over fixed", interval, "over shuffled", interval, "own text")
    ]
    for row in rows:
        cells = _cells(row.success.rate, row.success.interval, "")
        for other in (FIXED, SHUFFLED):
            gain = row.gains.get(other)
            cells += _cells(gain and gain.change, gain and gain.interval, "+")
        lines.append((row.source, *cells, f"{row.own_texts:,} of {row.failures:,}"))
    return "\n".join(aligned(lines))


def _cells(value: float | None, interval: tuple[float, float] | None, sign: str) -> list[str]:
    shown = "-" if interval is None else " to ".join(f"{100 * end:{sign}.1f}" for end in interval)
    return ["-" if value is None else f"{100 * value:{sign}.1f}", shown]
