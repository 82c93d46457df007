"""`fission-grpo simulator data`: collect failures, label, filter and split them, and write training and test data."""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from fission_grpo.core.files import write_file
from fission_grpo.core.terminal import ArgumentParser, show
from fission_grpo.feedback.dataset import TEST, TOOLS, TRAIN, write_examples
from fission_grpo.feedback.spec import OPTIONS_HELP, closing, endpoint_options, usage_reports
from fission_grpo.inference.secrets import shown_command
from fission_grpo.recipes.error_simulator.failures import (
    FailureSources,
    LabelledFailure,
    case_contexts,
    corrupt_references,
    open_policy,
    read_sources,
    sample_failures,
)
from fission_grpo.recipes.error_simulator.filters import (
    FilterLimits,
    Split,
    draw_test_apis,
    filter_failures,
    split_by_api,
)
from fission_grpo.recipes.error_simulator.labels import DEFAULT_TEACHERS, label, make_teachers

README = "README.md"
CASES_PER_EXAMPLE = 0.3
"""Cases generated per example, where no files are given; with 3 corruptions a call, about 7 examples of a case are
kept. [ours]"""

README_TEXT = """\
# Labelled failures for an Error Simulator

{train:,} training and {test:,} test examples, made by `{command}`.
A row of `train.jsonl` or `test.jsonl` holds the dialogue, a failed turn, the reference calls (secret) and the feedback
to learn; `tools.json` holds the tools. Training and test data share no API, no case and no failed turn.

```json
{record}
```

Licences: dialogues, schemas and messages of BFCL's environments derive from bfcl-eval (Apache-2.0); corruptions and
rules are fission-grpo's (Apache-2.0). Files given on the command line and texts that a model wrote have their own.
Limits: corruptions are not distributed like a policy's own errors; rules write few templates; a step task accepts one
right call; the leak guard does not find paraphrases.
"""


def data_command(argv: list[str]) -> int:
    """Make the data, write it, print a summary, and return 0.

    Raises:
        ValueError: options contradict each other, a file has a mistake, or no example is left.
    """
    arguments = _parser().parse_args(argv)
    _check(arguments)
    url, options = endpoint_options(arguments.options)
    chain = make_teachers(arguments.teacher, arguments.url or url, options)
    alike = arguments.alike or (max(20, round(0.03 * arguments.count)) if arguments.count else sys.maxsize)
    limits = FilterLimits(arguments.shortest, arguments.longest, alike)
    started = time.monotonic()
    sources, test_apis = _read_or_generate(arguments)
    failures, sampled = _collect(arguments, sources)
    show(f"{len(failures):,} failures to label", error=True)
    with closing(chain):
        labels = label(failures, chain)
        for line in usage_reports(chain):
            show(line, error=True)
    mixed = random.Random(f"{arguments.seed} order").sample(labels.labelled, len(labels.labelled))
    kept, filtered = filter_failures(mixed, limits)
    share = arguments.test_share
    test_apis = () if share in (0, 1) else tuple(arguments.test_apis or test_apis)
    test_apis = test_apis or draw_test_apis(kept, share, arguments.seed)
    split = split_by_api(kept, test_apis, arguments.count, share, arguments.seed)
    if not split.train and not split.test:
        reasons = {**sources.unused, **labels.dropped, **filtered}
        why = ", ".join(f"{name}: {count}" for name, count in reasons.items()) or "no task or failure in the files"
        raise ValueError(
            f"no example is left of {len(failures)} failures ({why}); give more or other --tasks, or relax the filters"
        )
    record = {
        "seed": arguments.seed,
        "teacher": arguments.teacher,
        "test_apis": list(test_apis),
        "sources": sources.kinds,
        "notes": sources.notes,
        "sampled": sampled,
        "executed": dict(sources.environments.pop_counts()),
        "unused": dict(sources.unused),
        "rejected_texts": dict(labels.rejected),
        "unlabelled": dict(labels.dropped),
        "filtered": dict(filtered),
        "split": dict(split.dropped),
        "seconds": round(time.monotonic() - started, 1),
    }
    show(_write(arguments, split, record, shown_command(["fission-grpo", "simulator", "data", *argv])))
    return 0


def _check(arguments: argparse.Namespace) -> None:
    for name in ("count", "each", "samples", "cases"):
        least = 0 if name in ("count", "cases") else 1
        if getattr(arguments, name) < least:
            raise ValueError(f"--{name} must be at least {least}, got {getattr(arguments, name)}")
    if not 0 <= arguments.test_share <= 1:
        raise ValueError(f"--test_share must be from 0 to 1, got {arguments.test_share}")
    if arguments.no_corruptions and not (arguments.policy or arguments.tasks):
        raise ValueError("--no_corruptions leaves nothing to label; give --policy, or files of runs with --tasks")
    if arguments.skip_cases and not arguments.tasks:
        raise ValueError("--skip_cases needs --tasks: generated cases cannot be skipped")
    if arguments.output.is_file():
        raise ValueError(f"--output {arguments.output} is a file; give a folder")


def _read_or_generate(arguments: argparse.Namespace) -> tuple[FailureSources, tuple[str, ...]]:
    """What the given files hold, or generated cases and their test APIs where no file is given."""
    if arguments.tasks:
        return read_sources(arguments.tasks, arguments.skip_cases, arguments.cases, arguments.seed), ()
    from fission_grpo.recipes.bfcl_tasks.generate import SPLITS, Mix, generate

    cases = arguments.cases or max(8, round(CASES_PER_EXAMPLE * (arguments.count or 2500)))
    sources = FailureSources(kinds={f"{cases} generated cases": f"BFCL's environments, seed {arguments.seed}"})
    half = max(1, cases // 2)  # over the classes to train on, and over BFCL's held-out ones
    new = [case for split in ("train", "heldout") for case in generate(split, half, arguments.seed, Mix())]
    sources.contexts = case_contexts(new, sources.unused)
    return sources, SPLITS["heldout"]


def _collect(arguments: argparse.Namespace, sources: FailureSources) -> tuple[list[LabelledFailure], dict[str, Any]]:
    """The failures of files, policy and corruptions, and the numbers of the policy's replies."""
    failures, record = list(sources.failures), {}
    if arguments.policy:
        if not sources.contexts:
            raise ValueError("--policy needs tasks to reply to; give a case or step-task file with --tasks")
        name, in_flight = Path(arguments.policy).name, 4 * arguments.batch_size
        with open_policy(arguments) as loaded:
            sampled, counts = sample_failures(sources.contexts, loaded.policy, name, arguments.samples, in_flight)
        failures += sampled
        record = {"policy": name, **counts}
    if not arguments.no_corruptions:
        failures += corrupt_references(sources.contexts, arguments.each, arguments.seed, sources.unused)
    return failures, record


def _write(arguments: argparse.Namespace, split: Split, record: dict[str, Any], command: str) -> str:
    folder, sides = arguments.output, {TRAIN: split.train, TEST: split.test}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / TOOLS).unlink(missing_ok=True)
    for name, side in sides.items():
        examples = [item.example for item in side]
        write_examples(folder / name, examples)
        columns = {
            "origin": [example.origin for example in examples],
            "kind": [str(example.failure.kind) for example in examples],
            "api": [example.api for example in examples],
            "teacher": [example.teacher for example in examples],
        }
        counts = {column: dict(sorted(Counter(values).items())) for column, values in columns.items()}
        record[name] = {"examples": len(examples), **counts}
    train, test = len(split.train), len(split.test)
    text = README_TEXT.format(train=train, test=test, command=command, record=json.dumps(record, indent=1))
    write_file(folder / README, text)
    missing = arguments.count - train - test
    note = f"; {missing:,} fewer than --count, see {README} for what was dropped" if missing > 0 else ""
    apis = ", ".join(record["test_apis"]) or "none"
    return (
        f"{folder}: {train:,} training and {test:,} test examples (test APIs {apis}) in {record['seconds']:.0f} s"
        f"{note}; see {README}"
    )


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(
        "fission-grpo simulator data",
        description="Collect failed tool calls, label them with feedback that does not reveal the answer, filter, "
        f"split by API, and write {TRAIN}, {TEST}, {TOOLS} and a {README}.",
        epilog="Examples: docs/simulator.md",
    )
    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="DIR", help="folder to write")
    add(
        "--tasks",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="case files, step-task files, 'desk:steps' (built in), fission.jsonl of runs, cases.jsonl of evaluations "
        "(with their case files), transcripts with 'messages'; without any, cases over BFCL's environments are "
        "generated",
    )
    add("--skip_cases", type=int, default=0, metavar="N", help="cases or tasks left out at the start of task files")
    add("--cases", type=int, default=0, metavar="N", help="cases taken of each task file, or generated; 0: all")
    add("--count", type=int, default=2500, help="examples in total; 0: all there are (default 2500)")
    add("--each", type=int, default=3, help="most corruptions of one reference call (default 3)")
    add("--no_corruptions", action="store_true", help="only failures of --policy and of the files")
    add("--seed", type=int, default=0, help="the same seed and files give the same data (default 0)")
    add = parser.add_argument_group("labels").add_argument
    add(
        "--teacher",
        default=DEFAULT_TEACHERS,
        metavar="NAMES",
        help="sources of the feedback, in order: environment (its real message), rules, endpoint:MODEL, local:PATH "
        f"(default {DEFAULT_TEACHERS})",
    )
    add("--url", help="base URL of the teacher's endpoint; the key is read from OPENAI_API_KEY")
    add("--options", metavar="JSON", help=OPTIONS_HELP)
    add = parser.add_argument_group("a policy's own failures").add_argument
    add("--policy", metavar="MODEL", help="folder or hub id; or a model's name at --policy_url")
    add("--policy_url", metavar="URL", help="base URL of an OpenAI-compatible endpoint")
    add("--samples", type=int, default=1, help="replies per step task (default 1)")
    add("--temperature", type=float, default=1.0, help="sampling temperature (default 1)")
    add("--max_new_tokens", type=int, default=256, help="of one reply (default 256)")
    add("--batch_size", type=int, default=32, help="replies sampled at a time (default 32)")
    add = parser.add_argument_group("filters and split").add_argument
    add("--shortest", type=int, default=15, help="least characters of a feedback text (default 15)")
    add("--longest", type=int, default=500, help="most characters of a feedback text (default 500)")
    add(
        "--alike",
        type=int,
        default=0,
        help="most texts of one template; 0: 3%% of --count, at least 20, and no limit with --count 0",
    )
    add(
        "--test_apis",
        nargs="+",
        metavar="API",
        help="APIs (BFCL classes, else tools) to test on; default: BFCL's held-out classes for generated cases, else "
        "drawn by --seed",
    )
    add("--test_share", type=float, default=0.2, help="share of --count to test on; 0 or 1: all in one file (0.2)")
    return parser
