"""`fission-grpo tasks check|convert|generate`."""

from __future__ import annotations

import argparse
from pathlib import Path

from fission_grpo.core.errors import TaskFileError, UsageError
from fission_grpo.core.files import write_file
from fission_grpo.core.install import install_line
from fission_grpo.core.result_errors import check_error_pattern, error_rule
from fission_grpo.core.terminal import ArgumentParser, show
from fission_grpo.data.convert.files import read_rows
from fission_grpo.data.load import check_tasks
from fission_grpo.data.step_tasks import row_of_step_task


def tasks_command(argv: list[str]) -> int:
    """Check, convert or generate task files. Returns 0, or 1 after printing on stderr what to correct."""
    if argv[:1] == ["generate"]:
        from fission_grpo.recipes.bfcl_tasks.generate import generate_command

        return generate_command(argv[1:])
    options = _parser().parse_args(argv)
    try:
        if options.action == "check":
            show(check_tasks(options.file, not options.no_environments))
        else:
            show(convert(options))
    except (TaskFileError, UsageError) as error:
        show(f"error: {error}", error=True)
        return 1
    except ModuleNotFoundError as error:
        show(f"error: this needs {error.name}; {install_line(error.name)}", error=True)
        return 1
    return 0


def convert(options: argparse.Namespace) -> str:
    """Convert a file to a step-task file. Returns a report of what was dropped. Raises TaskFileError."""
    from fission_grpo.data.convert.dialogues import ConvertOptions
    from fission_grpo.data.convert.formats import convert_file

    source, target = options.input, options.output
    tools = None if options.tools is None else list(read_rows(options.tools))
    error_if = error_rule(options.error_pattern)
    turns = ConvertOptions(options.abstentions, recoveries=options.recoveries, error_if=error_if, tools=tools)
    if source.exists() and target.exists() and source.samefile(target):
        raise TaskFileError(f"{target}: is the file to convert, which would be replaced; give another output path")
    layout, converted = convert_file(source, options.layout, turns)
    try:
        write_file(target, "".join(row_of_step_task(task) + "\n" for task in converted.tasks))
    except ValueError as error:
        raise TaskFileError(f"{source}: {error}") from error
    except OSError as error:
        reason = getattr(error.__cause__, "strerror", None) or error
        raise TaskFileError(f"{target}: cannot be written ({reason}); give another output path") from error
    return f"{source} as {layout}: {converted.summary()}\nwritten: {check_tasks(target, environments=False)}"


def error_pattern(text: str) -> str:
    """The value of `--error_pattern`, for argparse."""
    try:
        return check_error_pattern(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser("fission-grpo tasks", description="Check, convert, generate task files (JSONL).")
    actions = parser.add_subparsers(dest="action", required=True)
    action = actions.add_parser("check", help="check a task file; names the first mistake by row and field")
    action.add_argument("file", metavar="FILE", type=Path, help="a step-task file, or a case file of `generate`")
    skip = "do not try the tasks in the environments that they name"
    action.add_argument("--no_environments", action="store_true", help=skip)
    action = actions.add_parser("convert", help="make a step-task file from other data")
    layouts = ("auto", "openai", "xlam", "toolace", "hermes", "apigen-mt", "toolrl", "cases", "agentdojo")
    action.add_argument("--from", dest="layout", choices=layouts, default="auto", help="layout of IN (default auto)")
    action.add_argument("--abstentions", action="store_true", help="also make tasks of turns without calls")
    errors = "a tool's result with a match is an error, as is one that begins like one: its turn makes no task"
    repairs = "only the turns that follow a failed call and work: the dialogue ends with its error"
    action.add_argument("--recoveries", action="store_true", help=repairs)
    tools = "JSON list of the tools of rows that list none, as of τ-bench's results"
    action.add_argument("--tools", type=Path, metavar="FILE", help=tools)
    action.add_argument("--error_pattern", type=error_pattern, metavar="REGEX", help=errors)
    data = ".json, .jsonl or .parquet; or multi_turn_base, ...; with --from agentdojo: agentdojo, agentdojo:slack, ..."
    action.add_argument("input", metavar="IN", type=Path, help=data)
    action.add_argument("output", metavar="OUT", type=Path, help="the .jsonl to write")
    actions.add_parser("generate", help="make cases over BFCL's environments; see `tasks generate --help`")
    return parser
