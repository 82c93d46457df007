"""`fission-grpo tasks check|convert|generate`."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from fission_grpo.core.errors import TaskFileError
from fission_grpo.data.step_tasks import load_tasks, row_of_step_task
from fission_grpo.envs.bfcl import INSTALL


def tasks_command(argv: list[str]) -> int:
    """Check, convert or generate task files. Returns 0, or 1 after saying on stderr what to mend."""
    if argv[:1] == ["generate"]:
        from fission_grpo.recipes.bfcl_tasks.generate import generate_command

        return generate_command(argv[1:])
    arguments = _parser().parse_args(argv)
    try:
        if arguments.action == "check":
            print(check(arguments.file))
        else:
            print(convert(arguments.input, arguments.output, arguments.layout, arguments.abstentions))
    except TaskFileError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        how = INSTALL if str(error.name).startswith("bfcl_eval") else "pip install 'fission-grpo[train]'"
        print(f"error: this needs {error.name}; {how}", file=sys.stderr)
        return 1
    return 0


def check(path: Path) -> str:
    """The verdict on a step-task or case file without mistakes. Raises TaskFileError for one with."""
    from fission_grpo.data.load import is_case_file

    if is_case_file(str(path)):
        from fission_grpo.envs.bfcl.tasks import check_cases

        return check_cases(path)
    tasks = load_tasks(path)
    calls = Counter(len(task.reference or ()) for task in tasks)
    spread = ", ".join(f"{n} call{'s' * (n != 1)}: {count}" for n, count in sorted(calls.items()))
    tools = sum(len(task.tools) for task in tasks) / len(tasks)
    return f"{path}: ok, {len(tasks)} tasks ({spread}; {tools:.1f} tools each on average)"


def convert(source: Path, target: Path, layout: str, abstentions: bool) -> str:
    """Write other data as a step-task file and report what was dropped. Raises TaskFileError."""
    from fission_grpo.data.convert.formats import convert_file

    layout, converted = convert_file(source, layout, abstentions)
    lines = [row_of_step_task(task) + "\n" for task in converted.tasks]
    try:
        target.write_text("".join(lines), encoding="utf-8")
    except OSError as error:
        raise TaskFileError(f"{target}: cannot be written ({error.strerror}); give another output path") from error
    return f"{source} as {layout}: {converted.summary()}\nwritten: {check(target)}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "fission-grpo tasks", description="Check, convert and generate task files (JSONL)."
    )
    actions = parser.add_subparsers(dest="action", required=True)
    checking = actions.add_parser("check", help="verdict on a task file; names the first mistake by row and field")
    checking.add_argument("file", metavar="FILE", type=Path, help="a step-task file, or a case file of `generate`")
    converting = actions.add_parser("convert", help="make a step-task file from other data")
    layouts = "auto, openai, xlam, toolace, hermes, apigen-mt, toolrl"
    choices = layouts.split(", ")
    converting.add_argument(
        "--from", dest="layout", choices=choices, default="auto", help="layout of IN (default auto)"
    )
    converting.add_argument(
        "--abstentions",
        action="store_true",
        help="assistant turns without calls become tasks, too: nothing is to be called",
    )
    converting.add_argument("input", metavar="IN", type=Path, help=".json, .jsonl or .parquet")
    converting.add_argument("output", metavar="OUT", type=Path, help="the .jsonl to write")
    actions.add_parser("generate", help="make cases over BFCL's environments; see `tasks generate --help`")
    return parser
