"""The number that matters: how much more often an untrained policy mends its failure when it is told a diagnosis.

Each failure is made a recovery task with what each source says of it, and the policy tries it several times, judged as
a step task is in training. Controls: nothing said, the fixed text, and the diagnoses of other failures.
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
from fission_grpo.core.files import Line, read_lines
from fission_grpo.core.serialization import recovery_id
from fission_grpo.core.types import Failure
from fission_grpo.evaluation.episodes import run_step
from fission_grpo.evaluation.intervals import Pair, difference_interval, ratio_interval
from fission_grpo.evaluation.metrics import Proportion
from fission_grpo.evaluation.records import CaseRecord
from fission_grpo.evaluation.run import Progress, cut_half_line
from fission_grpo.evaluation.runner import RunningCase, run_cases
from fission_grpo.feedback.request import LEAK, Feedback, FeedbackRequest
from fission_grpo.feedback.shuffled import ShuffledFeedback
from fission_grpo.feedback.sources import Diagnosis, FeedbackSource, make_chain
from fission_grpo.fission.recovery import recovery_task
from fission_grpo.inference.base import AsynchronousPolicy, Policy

Key = tuple[str, str]
"""Name of the source, id of the failure."""


@dataclass
class Attempts:
    """Everything a file holds. `outcomes` has a verdict per number of the attempt, `replies` the first one's text."""

    settings: dict[str, Any] = field(default_factory=dict)
    feedback: dict[Key, Feedback] = field(default_factory=dict)
    outcomes: dict[Key, dict[int, bool]] = field(default_factory=dict)
    replies: dict[Key, str] = field(default_factory=dict)


class AttemptsFile:
    """Appends rows, each safe from a kill of the process once its method returns, and keeps what the file holds.

    Args:
        path: made if need be. A half-written last line is taken off.
        settings: of this measurement, JSON values. A file of other settings is refused.

    Raises:
        RunFileError: the file is broken, or of other settings; the message says which.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]):
        self.held = Attempts()
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            cut_half_line(path)
            self.held = read_attempts(path)
        there, wanted = self.held.settings, json.loads(json.dumps(dict(settings)))
        self._file = path.open("a", encoding="utf-8")
        if not there:
            self._write({"event": "settings", "settings": wanted})
            self.held.settings = wanted
        elif there != wanted:
            self.close()
            other = [name for name in {**there, **wanted} if there.get(name) != wanted.get(name)]
            what = "; ".join(f"{name} was {there.get(name)!r}, now {wanted.get(name)!r}" for name in other)
            raise RunFileError(
                f"{path} holds attempts of other settings ({what}); give another --output, or delete it"
            )

    def __enter__(self) -> AttemptsFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def told(self, key: Key, feedback: Feedback) -> None:
        """Note what a source's chain said of a failure."""
        row = {"text": feedback.text, "by": feedback.source, "rejected": [list(one) for one in feedback.rejected]}
        self._write({"event": "feedback", "failure": key[1], "source": key[0], **row})
        self.held.feedback[key] = feedback

    def tried(self, key: Key, attempt: int, success: bool, reply: str) -> None:
        """Note an attempt. The reply is kept of the first one only."""
        row = {"event": "attempt", "failure": key[1], "source": key[0], "attempt": attempt, "success": success}
        self._write(row | ({"text": reply} if attempt == 0 else {}))
        self.held.outcomes.setdefault(key, {})[attempt] = success
        if attempt == 0:
            self.held.replies[key] = reply

    def _write(self, row: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()


def read_attempts(path: Path) -> Attempts:
    """Read a file of attempts.

    Raises:
        RunFileError: there is none, or it is broken; names file, line and field.
    """
    if not path.is_file():
        raise RunFileError(f"{path}: no such file; make it with `fission-grpo simulator check --usefulness`")
    held = Attempts()
    for line in read_lines(path, []):
        event = line.take("event", str)
        if event == "settings":
            held.settings = dict(line.take("settings", dict))
            continue
        key = line.take("source", str), line.take("failure", str)
        if event == "feedback":
            held.feedback[key] = Feedback(line.take("text", str), line.take("by", str), _rejected(line))
        elif event == "attempt":
            number = line.take("attempt", int)
            held.outcomes.setdefault(key, {})[number] = line.take("success", bool)
            if (text := line.take("text", str, optional=True)) is not None:
                held.replies[key] = text
        else:
            raise line.wrong(f"field 'event' must be settings, feedback or attempt, but is {event!r}")
    return held


def _rejected(line: Line) -> tuple[tuple[str, str], ...]:
    pairs = line.take_all("rejected", list)
    if not all(len(pair) == 2 and all(isinstance(part, str) for part in pair) for pair in pairs):
        raise line.wrong("field 'rejected' must be a list of [source, reason]")
    return tuple((str(source), str(reason)) for source, reason in pairs)


CONTROLS = ("none", "fixed", "rules", "environment")


SHUFFLED, FIXED = "shuffled", "fixed"


@dataclass(frozen=True)
class Gain:
    """Success with a source less success with another, over the failures tried with both; a 95% interval or None."""

    change: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Usefulness:
    """What one source was worth.

    Args:
        source: its name in the measurement.
        failures: tried with it at least once.
        success: attempts that mended the failure, of all; the interval is from a bootstrap over failures.
        gains: over other sources, by their names.
        told: failures whose text came from the source itself or its chain; the others got the fixed text.
        rejected: why links of the chain said nothing, by "source: reason", over failures.
        leaks: failures of which some link's text was not used as it gave the answer away.
        same: failures told the very text that the simulator's own arm was told; None for that arm itself.
    """

    source: str
    failures: int
    success: Proportion
    gains: dict[str, Gain] = field(default_factory=dict)
    told: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    leaks: int = 0
    same: int | None = None


def arms_of(simulator: Sequence[FeedbackSource], name: str) -> dict[str, tuple[FeedbackSource, ...]]:
    """The controls, the simulator under its name, and its diagnoses shuffled; each source of it is asked once."""
    asked = tuple(_Once(source) for source in simulator)
    arms = {control: make_chain(control) for control in CONTROLS}
    return arms | {name: asked, SHUFFLED: tuple(ShuffledFeedback(source) for source in asked)}


def measure(
    file: AttemptsFile,
    failures: Sequence[Failure],
    arms: Mapping[str, Sequence[FeedbackSource]],
    policy: Policy | AsynchronousPolicy,
    samples: int = 4,
    in_flight: int = 64,
) -> Attempts:
    """Ask for the diagnoses and make the attempts that a file does not hold yet.

    Args:
        file: where everything is noted at once. Attempts lost to an endpoint are not, and made again the next time.
        failures: with a reference, of one turn, with messages as prompt (as `Instance`s are).
        arms: chains of sources by name.
        policy: tries.
        samples: attempts of each failure with each source, 1 or more.
        in_flight: attempts side by side.

    Returns:
        Attempts: all that the file holds now.

    Raises:
        ValueError: a failure without reference, or with a prompt of plain text.
    """
    for failure in failures:
        if failure.reference is None or isinstance(failure.task.prompt, str):
            raise ValueError(f"failure {failure.task.id!r} cannot be tried: it needs messages and reference calls")
    for name, chain in arms.items():
        new = [failure for failure in failures if (name, failure.task.id) not in file.held.feedback]
        for failure, feedback in zip(new, FeedbackRequest(new, chain).feedback() if new else (), strict=True):
            file.told((name, failure.task.id), feedback)
    wanted = [
        (failure, name, attempt)
        for failure in failures
        for name in arms
        for attempt in range(samples)
        if attempt not in file.held.outcomes.get((name, failure.task.id), {})
    ]
    total = len(failures) * len(arms) * samples
    if len(wanted) < total:
        print(f"{total - len(wanted):,} of {total:,} attempts are there already", file=sys.stderr)
    progress = Progress(total, total - len(wanted))

    def beginning(failure: Failure, name: str, attempt: int) -> Callable[[], RunningCase]:
        def play() -> RunningCase:
            record: CaseRecord = yield from _attempt(failure, file.held.feedback[name, failure.task.id].text)
            if record.missing is None:
                reply = record.turns[0].steps[0].text
                file.tried((name, failure.task.id), attempt, bool(record.success), reply)
            return record

        return play

    plays: Iterator[Callable[[], RunningCase]] = (beginning(*one) for one in wanted)
    run_cases(policy, plays, in_flight, progress.show)
    progress.end()
    return file.held


def usefulness(held: Attempts, simulator: str, failures: Sequence[str] | None = None) -> list[Usefulness]:
    """The table: every source with its success, and gains over the fixed text and over the shuffled diagnoses.

    Args:
        held: raw results.
        simulator: name of the source under test.
        failures: ids of those that count; None: all.

    Example:
        Two failures tried twice each. Fixed: 0 and 1 of 2 mended, success 0.25; rules: 1 and 2 of 2, success 0.75;
        the gain of rules over fixed is 0.5.
    """
    names = dict.fromkeys(source for source, _ in held.feedback)
    ids = list(failures if failures is not None else dict.fromkeys(failure for _, failure in held.feedback))
    pairs = {name: [_pair(held, name, one) for one in ids] for name in names}
    return [_of_source(held, name, simulator, ids, pairs) for name in names]


def usefulness_json(one: Usefulness) -> dict[str, Any]:
    """The row as JSON values, with its rate."""
    return asdict(one) | {"success": asdict(one.success) | {"rate": one.success.rate}}


def _of_source(
    held: Attempts, name: str, simulator: str, ids: Sequence[str], pairs: Mapping[str, Sequence[Pair]]
) -> Usefulness:
    own = pairs[name]
    feedback = {one: held.feedback[name, one] for one in ids if (name, one) in held.feedback}
    tested = {one: told.text for one in ids if (told := held.feedback.get((simulator, one))) is not None}
    gains = {other: _gain(own, pairs[other]) for other in (FIXED, SHUFFLED) if other in pairs and other != name}
    return Usefulness(
        name,
        failures=sum(of > 0 for _, of in own),
        success=Proportion(sum(hits for hits, _ in own), sum(of for _, of in own), ratio_interval(own), "bootstrap"),
        gains={other: gain for other, gain in gains.items() if gain is not None},
        told=sum(name == FIXED or one.source != FIXED for one in feedback.values()),
        rejected=dict(Counter(": ".join(pair) for one in feedback.values() for pair in one.rejected).most_common()),
        leaks=sum(any(reason == LEAK for _, reason in one.rejected) for one in feedback.values()),
        same=None if name == simulator else sum(told.text == tested.get(one) for one, told in feedback.items()),
    )


def _gain(own: Sequence[Pair], other: Sequence[Pair]) -> Gain | None:
    both = [(one, two) for one, two in zip(own, other, strict=True) if one[1] and two[1]]
    if not both:
        return None
    ours, theirs = [one for one, _ in both], [two for _, two in both]
    rates = [sum(hits for hits, _ in side) / sum(of for _, of in side) for side in (ours, theirs)]
    return Gain(rates[0] - rates[1], difference_interval(theirs, ours))


def _pair(held: Attempts, name: str, failure: str) -> Pair:
    outcomes = held.outcomes.get((name, failure), {})
    return sum(outcomes.values()), len(outcomes)


def _attempt(failure: Failure, text: str) -> RunningCase:
    """One try at a failure, judged against its reference whether the task has it or the failure (`expected`)."""
    return run_step(replace(recovery_task(failure, text), reference=failure.reference))


class _Once:
    """A source that is asked once about each failure: the simulator and its shuffled form share the answers."""

    def __init__(self, source: FeedbackSource):
        self.source, self.name, self.asynchronous = source, source.name, source.asynchronous
        self._answers: dict[str, Future[Diagnosis]] = {}

    def start(self, failures: Sequence[Failure]) -> list[Future[Diagnosis]]:
        new = {name: one for one in failures if (name := recovery_id(one)) not in self._answers}
        self._answers |= zip(new, self.source.start(list(new.values())), strict=True)
        return [self._answers[recovery_id(one)] for one in failures]

    def check(self) -> None:
        self.source.check()

    def counts(self) -> Mapping[str, float]:
        return self.source.counts()
