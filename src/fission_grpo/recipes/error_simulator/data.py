"""`fission-grpo simulator data`: labelled failures to train and test a simulator on."""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fission_grpo.core.errors import RunFileError, TaskFileError
from fission_grpo.envs.bfcl import INSTALL
from fission_grpo.feedback.dataset import (
    TEST,
    TOOLS,
    TRAIN,
    write_examples,
)
from fission_grpo.feedback.spec import OPTIONS_HELP, closing, endpoint_options, usage_reports
from fission_grpo.inference.secrets import shown_command
from fission_grpo.recipes.error_simulator.card import numbers, page
from fission_grpo.recipes.error_simulator.failures import (
    FailureSources,
    LabelledFailure,
    corrupted_failures,
    generated,
    read_sources,
    sampled_failures,
)
from fission_grpo.recipes.error_simulator.filters import FilterLimits, Split, chosen_apis, filtered, split_by_api
from fission_grpo.recipes.error_simulator.labels import DEFAULT, label, teachers

EPILOG = """\
examples:
  fission-grpo simulator data --output data                        2,500 instances over BFCL's environments, offline
  fission-grpo simulator data --tasks cases.jsonl runs/mine --output data        of your cases, and of a run's failures
  fission-grpo simulator data --tasks cases.jsonl --policy runs/mine --count 0 --no_corruptions --test_share 1 \\
      --output own                                                 a policy's own failures only
  fission-grpo simulator data --teacher endpoint:MODEL,rules --url http://localhost:8000/v1 --output data
"""


def data_parser() -> argparse.ArgumentParser:
    """The parser."""
    parser = argparse.ArgumentParser(
        "fission-grpo simulator data",
        description="Collect failed tool calls, label them with diagnoses that give nothing away, filter, split by "
        "API, and write train.jsonl, test.jsonl, tools.json and a data card.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="DIR", help="folder to write")
    add(
        "--tasks",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="case files, step-task files, fission.jsonl of runs, cases.jsonl of evaluations (give their case file "
        "too), transcripts with 'messages'; without any, new cases over BFCL's environments are made",
    )
    add("--skip_cases", type=int, default=0, metavar="N", help="cases or tasks left out at the start of task files")
    add("--cases", type=int, default=0, metavar="N", help="cases taken of each task file, or made; 0: all, or enough")
    add("--count", type=int, default=2500, help="instances wanted in all; 0: all there are (default 2500)")
    add("--each", type=int, default=3, help="most corruptions of one reference call (default 3)")
    add("--no_corruptions", action="store_true", help="only failures of --policy and of the files")
    add("--seed", type=int, default=0, help="the same seed and files give the same data (default 0)")
    _teacher_options(parser)
    _policy_options(parser)
    filters = parser.add_argument_group("filters and split")
    filters.add_argument("--shortest", type=int, default=15, help="characters of a diagnosis, at least (default 15)")
    filters.add_argument("--longest", type=int, default=500, help="characters of a diagnosis, at most (default 500)")
    filters.add_argument(
        "--alike",
        type=int,
        default=0,
        help="most diagnoses of one template; 0: 3%% of --count, at least 20, and no limit with --count 0",
    )
    filters.add_argument(
        "--test_apis",
        nargs="+",
        metavar="API",
        help="APIs (BFCL classes, else tools) to test on; by default BFCL's held-out classes for cases made here, "
        "else drawn by --seed",
    )
    filters.add_argument(
        "--test_share", type=float, default=0.2, help="share of --count to test on; 0 or 1: all in one file (0.2)"
    )
    return parser


def _teacher_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("labels")
    group.add_argument(
        "--teacher",
        default=DEFAULT,
        metavar="NAMES",
        help="who writes the diagnoses, the next one where one has nothing usable: environment (its real message), "
        f"rules, endpoint:MODEL, local:PATH (default {DEFAULT})",
    )
    group.add_argument("--url", help="base URL of the teacher's endpoint; the key is read from OPENAI_API_KEY")
    group.add_argument("--options", metavar="JSON", help=OPTIONS_HELP)
    group.add_argument(
        "--seconds", type=float, default=float("inf"), help="longest wait for 256 failures' diagnoses (no limit)"
    )


def _policy_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("a policy's own failures")
    group.add_argument("--policy", metavar="MODEL", help="folder or hub id; or a model's name at --policy_url")
    group.add_argument("--policy_url", metavar="URL", help="base URL of an OpenAI-compatible endpoint")
    group.add_argument("--samples", type=int, default=1, help="replies per step task (default 1)")
    group.add_argument("--temperature", type=float, default=1.0, help="of the sampling (default 1)")
    group.add_argument("--max_new_tokens", type=int, default=256, help="of one reply (default 256)")
    group.add_argument("--batch_size", type=int, default=32, help="replies sampled at a time (default 32)")


CASES_PER_INSTANCE = 0.3
"""Cases made per instance wanted, where no files are given. [ours] With 3 corruptions a call about 7 are kept of each
case."""


@dataclass
class _Log:
    """How the data came about, for its card."""

    began: float = field(default_factory=time.monotonic)
    seconds: dict[str, float] = field(default_factory=dict)
    stages: dict[str, int] = field(default_factory=dict)

    def done(self, stage: str, what: str, count: int) -> None:
        """A stage has ended; says so on stderr."""
        self.seconds[stage] = time.monotonic() - self.began - sum(self.seconds.values())
        self.stages[what] = count
        print(f"{stage}: {count:,} {what} ({self.seconds[stage]:.1f} s)", file=sys.stderr)


def data_command(argv: list[str]) -> int:
    """Write train.jsonl, test.jsonl, tools.json, card.md and card.json. Returns 0; 1 or 2 if something is to mend."""
    arguments = data_parser().parse_args(argv)
    try:
        print(run(arguments, argv))
    except ModuleNotFoundError as error:
        how = {"openai": "pip install 'fission-grpo[endpoint]'"}.get(
            str(error.name), "pip install 'fission-grpo[train]'"
        )
        how = INSTALL if str(error.name).startswith("bfcl_eval") else how
        print(f"error: this needs {error.name}; {how}", file=sys.stderr)
        return 1
    except (TaskFileError, RunFileError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def run(arguments: argparse.Namespace, argv: list[str]) -> str:
    """Make the data and write it; returns what there is to say.

    Raises:
        ValueError: options that contradict each other, or no instance is left.
        TaskFileError, RunFileError: a file has a mistake.
    """
    _check(arguments)
    url, options = endpoint_options(arguments.options)
    chain = teachers(arguments.teacher, arguments.url or url, options)
    alike = arguments.alike or (max(20, round(0.03 * arguments.count)) if arguments.count else sys.maxsize)
    limits = FilterLimits(arguments.shortest, arguments.longest, alike)
    log = _Log()
    material, held_out = _material(arguments)
    log.done("sources", "step tasks", len(material.situations))
    found, sampled = list(material.found), {}
    if arguments.policy:
        sampled = _sample(arguments, material, found)
        log.done("policy", "failures of the policy", sampled["failures"])
    if not arguments.no_corruptions:
        before = len(found)
        found += corrupted_failures(material.situations, arguments.each, arguments.seed, material.unused)
        log.done("corruptions", "failures by corruption", len(found) - before)
    with closing(chain):
        labelled = label(found, chain, arguments.seconds)
        for line in usage_reports(chain):
            print(line, file=sys.stderr)
    log.done("teachers", "failures with a diagnosis", len(labelled.found))
    mixed = random.Random(f"{arguments.seed} order").sample(labelled.found, len(labelled.found))
    kept, dropped = filtered(mixed, limits)
    log.done("filters", "instances fit for use", len(kept))
    apis = tuple(arguments.test_apis or held_out or chosen_apis(kept, arguments.test_share, arguments.seed))
    if arguments.test_share in (0, 1):
        apis = chosen_apis(kept, arguments.test_share, arguments.seed)
    split = split_by_api(kept, apis, arguments.count, arguments.test_share, arguments.seed)
    if not split.train and not split.test:
        raise ValueError(_nothing(found, labelled.dropped, dropped, material))
    made = {
        "command": shown_command(["fission-grpo", "simulator", "data", *argv]),
        "seed": arguments.seed,
        "teacher": arguments.teacher,
        "test_apis": list(apis),
        "sources": material.kinds,
        "stages": {**log.stages, "failures found in files": len(material.found)},
        "sampled": sampled,
        "unused": dict(material.unused),
        "notes": material.notes,
        "refused": dict(labelled.refused),
        "unlabelled": dict(labelled.dropped),
        "filtered": dict(dropped),
        "split": dict(split.dropped),
        "versions": _versions(),
    }
    return _write(arguments, split, made, log)


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
        raise ValueError("--skip_cases needs --tasks: there is nothing to skip in cases that are made here")
    if arguments.output.is_file():
        raise ValueError(f"--output {arguments.output} is a file; give a folder")


def _material(arguments: argparse.Namespace) -> tuple[FailureSources, tuple[str, ...]]:
    """What is given, or new cases where nothing is; also the APIs to test on that go with them."""
    if arguments.tasks:
        return read_sources(arguments.tasks, arguments.skip_cases, arguments.cases), ()
    cases = arguments.cases or max(8, round(CASES_PER_INSTANCE * (arguments.count or 2500)))
    material = FailureSources(kinds={f"{cases} cases made here": "BFCL's environments, seed " + str(arguments.seed)})
    material.situations, held_out = generated(cases, arguments.seed, material.unused)
    return material, held_out


def _sample(arguments: argparse.Namespace, material: FailureSources, found: list[LabelledFailure]) -> dict[str, Any]:
    """Let the policy reply in every situation; adds its failures to `found` and returns how it fared."""
    from fission_grpo.evaluation.policies import Sampling, connect_endpoint, load_local_policy
    from fission_grpo.inference.endpoint import EndpointOptions

    if not material.situations:
        raise ValueError("--policy needs tasks to reply to; give a case or step-task file with --tasks")
    if arguments.policy_url:
        options = EndpointOptions(temperature=arguments.temperature, max_tokens=arguments.max_new_tokens)
        playing: Any = connect_endpoint(arguments.policy, arguments.policy_url, options)
    else:
        sampling = Sampling(arguments.temperature, arguments.max_new_tokens, arguments.seed)
        playing = nullcontext(load_local_policy(arguments.policy, sampling, arguments.batch_size))
    name = Path(arguments.policy).name
    with playing as player:
        came = sampled_failures(material.situations, player.policy, name, arguments.samples, 4 * arguments.batch_size)
    found += came.found
    return {"policy": name, "replies": came.attempts, "failures": len(came.found), "lost": came.lost}


def _write(arguments: argparse.Namespace, split: Split, made: dict[str, Any], log: _Log) -> str:
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / TOOLS).unlink(missing_ok=True)
    for name, side in ((TRAIN, split.train), (TEST, split.test)):
        write_examples(arguments.output / name, [one.instance for one in side])
    log.done("split", "instances written", len(split.train) + len(split.test))
    made |= {"seconds": {**log.seconds, "all": time.monotonic() - log.began}}
    card = numbers(split.train, split.test, made)
    text = json.dumps(card, indent=1, ensure_ascii=True) + "\n"
    (arguments.output / "card.json").write_text(text, encoding="utf-8")
    (arguments.output / "card.md").write_text(page(card), encoding="utf-8")
    short = arguments.count - len(split.train) - len(split.test)
    note = f"; {short:,} fewer than --count, see card.md for what was dropped" if arguments.count and short > 0 else ""
    return (
        f"{arguments.output}: {len(split.train):,} training and {len(split.test):,} test instances "
        f"(APIs {', '.join(made['test_apis']) or 'none'}) in {card['seconds']['all']:.0f} s{note}; see card.md"
    )


def _nothing(
    found: list[LabelledFailure], unlabelled: Counter[str], dropped: Counter[str], material: FailureSources
) -> str:
    reasons = {**material.unused, **unlabelled, **dropped}
    why = ", ".join(f"{name}: {count}" for name, count in reasons.items()) or "no task or failure in the files given"
    return f"no instance is left of {len(found)} failures ({why}); give more or other --tasks, or loosen the filters"


def _versions() -> dict[str, str]:
    from fission_grpo.evaluation.policies import versions

    return versions()
