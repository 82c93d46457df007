"""`fission-grpo simulator check`: how often a source answers, leaks and is specific, and how long it takes.

Texts are checked as the source wrote them, before the leak guard of training replaces those that leak. With
`--usefulness` it also measures how much the feedback helps a policy.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fission_grpo.core.files import write_file
from fission_grpo.core.json_io import encodable
from fission_grpo.core.terminal import ArgumentParser, show
from fission_grpo.core.types import ErrorKind
from fission_grpo.evaluation.intervals import wilson
from fission_grpo.evaluation.metrics import Proportion, metrics_json
from fission_grpo.evaluation.tables import aligned, proportion_row
from fission_grpo.feedback.dataset import TEST, TRAIN, FeedbackExample, load_examples
from fission_grpo.feedback.leak_guard import find_leak
from fission_grpo.feedback.request import answer_of, started, wait
from fission_grpo.feedback.rules import MAX_LENGTH
from fission_grpo.feedback.runtime_messages import message_of
from fission_grpo.feedback.sources import ENVIRONMENT, FeedbackSource, name_of
from fission_grpo.feedback.spec import OPTIONS_HELP, SOURCE_FORMS, closing, endpoint_options, make_chain
from fission_grpo.recipes.error_simulator.failures import open_policy
from fission_grpo.recipes.error_simulator.labels import is_specific
from fission_grpo.recipes.error_simulator.usefulness import (
    AttemptsFile,
    compute_usefulness,
    make_arms,
    run_attempts,
    usefulness_table,
)

SHOWN = 5  # leaked and unspecific texts in check.json [ours]


@dataclass(frozen=True)
class SourceAnswer:
    """What a chain of sources wrote about one failure."""

    example: FeedbackExample
    text: str | None  # at most MAX_LENGTH characters; "" is silence on purpose, None means that no source answered
    rejected: tuple[str, ...] = ()  # "source: reason" for each source without a text
    from_environment: bool = False  # whether the source gave it as the environment's own

    @property
    def is_leak(self) -> bool:
        """Whether the leak guard refuses the text."""
        is_open = bool(self.text) and not self.from_environment
        return is_open and find_leak(self.text or "", self.example.failure) is not None

    @property
    def is_exempt(self) -> bool:
        """Whether the leak guard lets the text pass only because a runtime says so."""
        is_said = bool(self.text) and self.from_environment
        return is_said and find_leak(self.text or "", self.example.failure, from_environment=False) is not None

    @property
    def is_label(self) -> bool:
        """Whether the text is the one in the data."""
        return bool(self.text) and message_of(self.text or "") == message_of(self.example.diagnosis)

    @property
    def is_specific(self) -> bool:
        """Whether the text points at the error."""
        return bool(self.text) and is_specific(self.text or "", self.example.failure)


@dataclass(frozen=True)
class SourceMetrics:
    """Metrics of a source on one group of failures, with Wilson's 95% intervals."""

    name: str  # of the group
    answered: Proportion  # failures with a text
    leaked: Proportion  # texts that the leak guard refuses, of those whose failure has a reference
    exempt: Proportion  # texts that reveal the reference in the words of a runtime, of the same
    real: Proportion  # texts that are the environment's real message, of those where the data have it
    invented: Proportion  # texts in the words of a runtime, of those where the environment raised no error
    specific: Proportion  # texts that point at the error
    seconds: float  # mean wall-clock time per failure
    rejected: dict[str, int] = field(default_factory=dict)  # answers without a text, by "source: reason"


def ask_sources(chain: Sequence[FeedbackSource], examples: Sequence[FeedbackExample]) -> list[SourceAnswer]:
    """Ask a chain of sources about failures, without the leak guard; one answer per failure, in order."""
    texts: dict[int, tuple[str, bool]] = {}
    rejected: list[list[str]] = [[] for _ in examples]
    for source in chain:
        pending = [index for index in range(len(examples)) if index not in texts]
        futures = started(source, [examples[index].failure for index in pending])
        wait(futures)
        for index, future in zip(pending, futures, strict=True):
            answer = answer_of(source, future)
            text = encodable(answer.text or "").strip()[:MAX_LENGTH]
            if text or answer.text == "":
                texts[index] = text, answer.from_environment
            elif reason := answer.reason or (answer.text and "no diagnosis"):
                rejected[index].append(f"{name_of(source)}: {reason}")
    found = [texts.get(i, (None, False)) for i in range(len(examples))]
    return [
        SourceAnswer(example, text, tuple(reasons), said)
        for example, (text, said), reasons in zip(examples, found, rejected, strict=True)
    ]


def load_sides(folder: Path) -> tuple[list[FeedbackExample], list[FeedbackExample]]:
    """The training and the test examples of a folder, of which one may be empty (`--test_share` 0 or 1)."""
    filled = [name for name in (TRAIN, TEST) if (folder / name).is_file() and (folder / name).stat().st_size]
    read = {name: load_examples(folder / name) for name in filled or [TRAIN]}
    return read.get(TRAIN, []), read.get(TEST, [])


def compute_metrics(name: str, answers: Sequence[SourceAnswer], seconds: float = 0.0) -> SourceMetrics:
    """The metrics of a group's answers, which took `seconds` in total."""
    texts = [answer for answer in answers if answer.text]
    with_reference = [answer for answer in texts if answer.example.failure.reference]
    with_message = [answer for answer in texts if answer.example.teacher == ENVIRONMENT]
    without_error = [answer for answer in texts if answer.example.failure.kind is ErrorKind.WRONG_CALL]
    return SourceMetrics(
        name,
        answered=_proportion([bool(answer.text) for answer in answers]),
        leaked=_proportion([answer.is_leak for answer in with_reference]),
        exempt=_proportion([answer.is_exempt for answer in with_reference]),
        real=_proportion([answer.is_label for answer in with_message]),
        invented=_proportion([answer.from_environment for answer in without_error]),
        specific=_proportion([answer.is_specific for answer in texts]),
        seconds=round(seconds / len(answers), 4) if answers else 0.0,
        rejected=dict(Counter(reason for answer in answers for reason in answer.rejected).most_common()),
    )


def _proportion(hits: Sequence[bool]) -> Proportion:
    return Proportion(sum(hits), len(hits), wilson(sum(hits), len(hits)) if hits else None)


def check_source(
    chain: Sequence[FeedbackSource], groups: Mapping[str, Sequence[FeedbackExample]]
) -> tuple[list[SourceMetrics], list[SourceAnswer]]:
    """Ask a chain about named groups of failures; the metrics of each group that is not empty, and all answers."""
    metrics, answers = [], []
    for name, examples in groups.items():
        if examples:
            started = time.monotonic()
            answers += ask_sources(chain, examples)
            metrics.append(compute_metrics(name, answers[-len(examples) :], time.monotonic() - started))
    return metrics, answers


def draw_examples(examples: Sequence[FeedbackExample], count: int, seed: int = 0) -> list[FeedbackExample]:
    """At most `count` examples, drawn at random, in their order."""
    if len(examples) <= count:
        return list(examples)
    return [examples[index] for index in sorted(random.Random(seed).sample(range(len(examples)), count))]


def metrics_table(groups: Sequence[SourceMetrics]) -> str:
    """The metrics as plain text, a block for each group."""
    rows: list[tuple[str, ...]] = []
    for group in groups:
        rows += [(group.name,), proportion_row("answered", group.answered, "failures")]
        rows += [("  not answered", "", "", f"{count:,} {reason}") for reason, count in group.rejected.items()]
        rows += [
            proportion_row(name, value, "texts")
            for name, value in (
                ("leaked", group.leaked),
                ("exempt", group.exempt),
                ("specific", group.specific),
                ("the real message", group.real),
                ("invented errors", group.invented),
            )
            if value.of or name in ("leaked", "specific")
        ]
        rows.append(("latency", f"{group.seconds:.3f} s", "", "per failure"))
    return "\n".join(aligned(rows)).strip("\n")


def check_command(argv: list[str]) -> int:
    """Check a source, write check.json and the files of usefulness, print tables, and return 0.

    Raises ValueError or OSError; the message says how to correct the data, the source or the options.
    """
    arguments = _parser().parse_args(argv)
    train, test = load_sides(arguments.data)
    extra = load_examples(arguments.usefulness) if arguments.usefulness else []
    if extra and not arguments.policy:
        raise ValueError("--usefulness needs a policy that tries again; give --policy MODEL (or 'starter')")
    known_texts = {example.id: example.diagnosis for example in (*train, *test, *extra)}
    url, options = endpoint_options(arguments.options)
    drawn = [example for side in (train, test) for example in draw_examples(side, arguments.count, arguments.seed)]
    apis = {example.api for example in train}
    groups = {
        "seen APIs": [example for example in drawn if example.api in apis],
        "unseen APIs": [example for example in drawn if example.api not in apis],
    }
    with closing(make_chain(arguments.source, arguments.url or url, options, known_texts)) as chain:
        for source in chain:
            source.check()
        arguments.output.mkdir(parents=True, exist_ok=True)
        metrics, answers = check_source(chain, groups)
        record = {
            "source": arguments.source,
            "groups": [metrics_json(group) for group in metrics],
            "leaked": _shown([answer for answer in answers if answer.is_leak]),
            "unspecific": _shown([answer for answer in answers if answer.text and not answer.is_specific]),
        }
        _write_json(arguments.output / "check.json", record)
        show(f"source: {arguments.source}\n{metrics_table(metrics)}")
        if extra:
            show(f"\n{_measure_usefulness(arguments, chain, extra)}")
    show(f"written in {arguments.output}: check.json" + (", usefulness.json, usefulness.jsonl" if extra else ""))
    return 0


def _shown(answers: Sequence[SourceAnswer]) -> list[dict[str, str]]:
    return [{"failure": answer.example.id, "text": answer.text or ""} for answer in answers[:SHOWN]]


def _measure_usefulness(
    arguments: Namespace, chain: Sequence[FeedbackSource], examples: Sequence[FeedbackExample]
) -> str:
    """Measure usefulness and write its files; returns the table."""
    judged = [example for example in examples if example.failure.reference is not None]
    failures = [example.failure for example in draw_examples(judged, arguments.limit, arguments.seed)]
    if not failures:
        raise ValueError(f"{arguments.usefulness}: no failure has reference calls, so no attempt can be judged")
    with open_policy(arguments) as loaded:
        settings = {
            "source": arguments.source,
            "policy": dict(loaded.description),
            "temperature": arguments.temperature,
            "max_new_tokens": arguments.max_new_tokens,
            "seed": arguments.seed,
        }
        file = AttemptsFile(arguments.output / "usefulness.jsonl", settings)
        arms = make_arms(chain, arguments.source)
        run_attempts(file, failures, arms, loaded.policy, arguments.samples, arguments.batch_size)
    rows = compute_usefulness(file, [failure.task.id for failure in failures])
    record = {"settings": settings, "sources": [row.to_json() for row in rows]}
    _write_json(arguments.output / "usefulness.json", record)
    return usefulness_table(rows)


def _write_json(path: Path, values: Any) -> None:
    write_file(path, json.dumps(values, ensure_ascii=False, indent=1) + "\n")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of 1 or more, got {text!r}")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(
        "fission-grpo simulator check",
        description="Check a source of feedback on seen and unseen APIs: answered, leaked, specific, latency; with "
        "--usefulness also how much it helps an untrained policy, against controls. Writes check.json and "
        "usefulness.json.",
        epilog=f"sources:\n{SOURCE_FORMS}\nteacher: the feedback in the data",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="DIR", help=f"of `simulator data`: {TRAIN}, {TEST}")
    add("--source", required=True, metavar="SPEC", help="what is checked; see below")
    add("--url", help="base URL of an endpoint source, mostly ending in /v1")
    add("--options", metavar="JSON", help=OPTIONS_HELP)
    add("--output", type=Path, required=True, metavar="DIR", help="folder to write")
    add("--count", type=_count, default=500, help=f"most failures of {TRAIN} and of {TEST} (default 500)")
    add("--seed", type=int, default=0, help="of the draw and of the policy's sampling (default 0)")
    add = parser.add_argument_group("usefulness").add_argument
    add("--usefulness", type=Path, metavar="FILE", help="failures to try again, as `simulator data` writes them")
    add("--policy", metavar="MODEL", help="folder, hub id or 'starter'; with --policy_url its name there")
    add("--policy_url", metavar="URL", help="the policy is behind an OpenAI-compatible endpoint")
    add("--samples", type=_count, default=4, help="attempts per failure and source (default 4)")
    add("--limit", type=_count, default=300, help="most failures (default 300)")
    add("--temperature", type=float, default=1.0, help="of the policy (default 1)")
    add("--max_new_tokens", type=_count, default=128, help="of one attempt (default 128)")
    add("--batch_size", type=_count, default=64, help="attempts at a time (default 64)")
    return parser
