"""The options of `fission-grpo simulator data`."""

from __future__ import annotations

import argparse
from pathlib import Path

from fission_grpo.simulator.chosen import OPTIONS_HELP
from fission_grpo.simulator.teacher import DEFAULT

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
