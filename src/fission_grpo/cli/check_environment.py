"""`fission-grpo check-environment module:Class`: the verdict of `check_environment` on anyone's environment."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fission_grpo.envs.check import check_environment


class _Usage(ValueError):
    """The command line is wrong; the message says what to mend."""


def check_environment_command(argv: list[str]) -> int:
    """Run the checks. Returns 0 if nothing failed, 1 if something did, 2 for a mistake on the command line."""
    arguments = _parser().parse_args(argv)
    try:
        make = find(arguments.environment)
        rows = read_rows(arguments.row) if arguments.row else []
    except _Usage as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    report = check_environment(make, rows, seed=arguments.seed, seconds=arguments.seconds)
    if arguments.json:
        print(
            json.dumps(
                {"environment": report.environment, "ok": report.ok, "findings": list(map(asdict, report.findings))}
            )
        )
    else:
        print(report)
    return 0 if report.ok else 1


def find(name: str) -> Any:
    """The class or factory `module:Class` or `path/to/file.py:Class`, imported with the current folder in reach."""
    place, _, attribute = name.rpartition(":")
    if not place or not attribute:
        raise _Usage(f"{name!r}: write module:Class or path/to/file.py:Class")
    sys.path.insert(0, str(Path.cwd()))
    try:
        if place.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(place).stem, place)
            if spec is None or spec.loader is None or not Path(place).is_file():
                raise _Usage(f"{place}: there is no such file")
            module = importlib.util.module_from_spec(spec)
            sys.modules[Path(place).stem] = module
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(place)
    except _Usage:
        raise
    except (Exception, SystemExit) as error:
        raise _Usage(f"{place}: cannot be imported ({type(error).__name__}: {error})") from error
    found = getattr(module, attribute, None)
    if not callable(found):
        known = [name for name, value in vars(module).items() if isinstance(value, type) and not name.startswith("_")]
        raise _Usage(f"{place} has no class {attribute!r}; it has {', '.join(known) or 'no classes'}")
    return found


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON file (one object, or a list of them) or a JSONL file."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _Usage(f"{path}: cannot be read ({error})") from error
    try:
        rows = (
            [json.loads(line) for line in text.splitlines() if line.strip()]
            if path.suffix == ".jsonl"
            else json.loads(text)
        )
    except (ValueError, RecursionError) as error:
        raise _Usage(f"{path}: not JSON ({error})") from error
    rows = rows if isinstance(rows, list) else [rows]
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise _Usage(f"{path}: must hold one row (an object) or several")
    return rows


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "fission-grpo check-environment",
        description="Check that an environment in TRL's convention (public methods are tools, reset(**row)) can be "
        "trained and recovered in: determinism, isolation, errors as results, snapshots, replay, nothing left behind.",
    )
    parser.add_argument("environment", metavar="MODULE:CLASS", help="or path/to/file.py:Class; made without arguments")
    parser.add_argument(
        "--row", type=Path, metavar="FILE", help="data set rows for reset: .json (one or a list) or .jsonl"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the calls that are tried")
    parser.add_argument("--seconds", type=float, default=5.0, help="time limit of one call (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    return parser
