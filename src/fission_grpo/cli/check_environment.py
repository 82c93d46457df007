"""`fission-grpo check-environment module:Class`: runs `check_environment` on a user's environment."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fission_grpo.core.errors import UsageError
from fission_grpo.core.result_errors import ERROR_PATTERN_HELP, error_rule
from fission_grpo.core.terminal import ArgumentParser, show
from fission_grpo.data.step_tasks import FIELDS
from fission_grpo.envs.catalog import ENVIRONMENT, load_factory
from fission_grpo.envs.check import check_environment
from fission_grpo.envs.step_calls import NOT_FOR_RESET


def check_environment_command(argv: list[str]) -> int:
    """Run the checks. Returns 0 if no check failed, 1 if one did, 2 for a mistake on the command line."""
    arguments = _parser().parse_args(argv)
    try:
        make = load_factory(arguments.environment)
        error_if = error_rule(arguments.error_pattern)
        rows = reset_rows(read_rows(arguments.row), arguments.environment) if arguments.row else []
    except UsageError as error:
        show(f"error: {error}", error=True)
        return 2
    report = check_environment(make, rows, seed=arguments.seed, seconds=arguments.seconds, error_if=error_if)
    fields = {"environment": report.environment, "ok": report.ok, "findings": list(map(asdict, report.findings))}
    show(json.dumps(fields) if arguments.json else report)
    return 0 if report.ok else 1


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON file (one object, or a list of them) or a JSONL file."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        texts = [line for line in text.split("\n") if line.strip()] if path.suffix == ".jsonl" else [text]
        values = [json.loads(each) for each in texts]
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: cannot be read as JSON ({error})") from error
    rows = values[0] if len(values) == 1 and isinstance(values[0], list) else values
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise UsageError(f"{path}: must hold one row (an object) or several")
    return rows


def reset_rows(rows: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """The columns that `reset` gets: of a step-task file those of the rows with this environment, if it has any."""
    if not all({"messages", "tools", "reference"} <= row.keys() for row in rows):
        return rows
    own = [row for row in rows if row.get(ENVIRONMENT) == name] or rows
    hidden = (*FIELDS, *NOT_FOR_RESET)
    return [{key: value for key, value in row.items() if key not in hidden} for row in own]


def _parser() -> argparse.ArgumentParser:
    description = "Check that an environment in TRL's convention can be trained and recovered in."
    parser = ArgumentParser("fission-grpo check-environment", description=description)
    add = parser.add_argument
    add("environment", metavar="MODULE:CLASS", help="or path/to/file.py:Class; made without arguments")
    add("--row", type=Path, metavar="FILE", help="rows for reset: .json (one or a list), .jsonl, or a step-task file")
    add("--seed", type=int, default=0, help="of the calls that are tried")
    add("--seconds", type=float, default=5.0, help="time limit of one call (default %(default)s)")
    add("--error_pattern", metavar="REGEX", help=ERROR_PATTERN_HELP)
    add("--json", action="store_true", help="print the report as JSON")
    return parser
