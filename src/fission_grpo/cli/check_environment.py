"""`fission-grpo check-environment --environment module:Class`: runs `check_environment` on a user's environment."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fission_grpo.core.errors import TaskFileError, UsageError
from fission_grpo.core.result_errors import ERROR_PATTERN_HELP, error_rule
from fission_grpo.core.terminal import ArgumentParser, show
from fission_grpo.data.convert.files import read_rows
from fission_grpo.data.rows import checked_rows, reset_columns
from fission_grpo.envs.catalog import load_factory, load_function
from fission_grpo.envs.check import Finding, check_environment


def check_environment_command(argv: list[str]) -> int:
    """Run the checks. Returns 0 if no check failed, 1 if one did, 2 for a mistake on the command line."""
    arguments = _parser().parse_args(argv)
    name = arguments.name or arguments.environment
    try:
        if not name or (arguments.name and arguments.environment):
            raise UsageError("give one environment: --environment module:Class or path/to/file.py:Class")
        make, error_if = load_factory(name), error_rule(arguments.error_pattern)
        rewards = [load_function(one) for one in arguments.reward]
        rows, problem = _rows_of(arguments.rows, name) if arguments.rows else ([], None)
    except (UsageError, TaskFileError) as error:
        show(f"error: {error}", error=True)
        return 2
    report = check_environment(make, rows, (), rewards, arguments.seed, arguments.seconds, error_if)
    if problem:
        report.findings = (*report.findings, Finding("rows", "warning", f"train and eval refuse them: {problem}"))
    fields = {"environment": report.environment, "ok": report.ok, "findings": list(map(asdict, report.findings))}
    show(json.dumps(fields) if arguments.json else report)
    return 0 if report.ok else 1


def _rows_of(path: Path, environment: str) -> tuple[list[dict[str, Any]], str | None]:
    """The columns that `reset` gets, and why the rows cannot be trained on. Raises TaskFileError without any."""
    rows = [dict(row) for row in read_rows(path)]
    if (columns := reset_columns(rows, environment)) != rows:
        return columns, None  # of step tasks
    try:
        return checked_rows(rows, str(path)), None
    except TaskFileError as error:
        if not rows:
            raise
        return rows, str(error)


def _parser() -> argparse.ArgumentParser:
    description = "Check that an environment in TRL's convention can be trained and recovered in."
    parser = ArgumentParser("fission-grpo check-environment", description=description)
    add = parser.add_argument
    add("name", nargs="?", metavar="MODULE:CLASS", help="the environment, as --environment")
    add("--environment", metavar="MODULE:CLASS", help="or path/to/file.py:Class; made without arguments")
    add("--rows", type=Path, metavar="FILE", help="rows for reset: .jsonl, .json, .parquet, or a step-task file")
    add("--reward", nargs="+", default=[], metavar="MODULE:FUNCTION", help="reward functions, as in train and eval")
    add("--seed", type=int, default=0, help="of the calls that are tried")
    add("--seconds", type=float, default=5.0, help="time limit of one call (default %(default)s)")
    add("--error_pattern", metavar="REGEX", help=ERROR_PATTERN_HELP)
    add("--json", action="store_true", help="print the report as JSON")
    return parser
