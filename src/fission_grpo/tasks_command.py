"""`fission-grpo tasks check|convert`."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from fission_grpo.tasks import TaskFileError, load_tasks, row_of_step_task


def tasks_command(argv: list[str]) -> int:
    """Check or convert task files. Returns 0, or 1 after saying on stderr what is wrong and how to mend it."""
    arguments = _parser().parse_args(argv)
    try:
        if arguments.action == "check":
            print(check(arguments.file))
        else:
            print(convert(arguments.input, arguments.output))
    except TaskFileError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        print(f"error: reading parquet needs {error.name}; pip install 'fission-grpo[train]'", file=sys.stderr)
        return 1
    return 0


def check(path: Path) -> str:
    """The verdict on a step-task file without mistakes. Raises TaskFileError for one with."""
    tasks = load_tasks(path)
    calls = Counter(len(task.reference or ()) for task in tasks)
    spread = ", ".join(f"{n} call{'s' * (n != 1)}: {count}" for n, count in sorted(calls.items()))
    tools = sum(len(task.tools) for task in tasks) / len(tasks)
    return f"{path}: ok, {len(tasks)} tasks ({spread}; {tools:.1f} tools each on average)"


def convert(source: Path, target: Path) -> str:
    """Write a ToolRL file as a step-task file and report what was dropped. Raises TaskFileError."""
    from fission_grpo.toolrl import read_toolrl

    converted = read_toolrl(source)
    lines = [row_of_step_task(task) + "\n" for task in converted.tasks]
    try:
        target.write_text("".join(lines), encoding="utf-8")
    except OSError as error:
        raise TaskFileError(f"{target}: cannot be written ({error.strerror}); give another output path") from error
    return f"{source}: {converted.summary()}\nwritten: {check(target)}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("fission-grpo tasks", description="Check and convert step-task files (JSONL).")
    actions = parser.add_subparsers(dest="action", required=True)
    checking = actions.add_parser(
        "check", help="verdict on a step-task file; names the first mistake by row and field"
    )
    checking.add_argument("file", metavar="FILE", type=Path)
    converting = actions.add_parser("convert", help="make a step-task file from other data")
    converting.add_argument("--from", dest="layout", choices=("toolrl",), required=True, help="layout of IN")
    converting.add_argument("input", metavar="IN", type=Path, help="rlla_*.json or *.parquet")
    converting.add_argument("output", metavar="OUT", type=Path, help="the .jsonl to write")
    return parser
