"""`fission-grpo` and its commands. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import argparse
import sys
import traceback
from importlib import import_module

from fission_grpo.core.errors import RunDirectoryError, UnsupportedVersionError
from fission_grpo.core.install import install_line
from fission_grpo.core.terminal import quiet_libraries, show, show_traceback, tolerant_output

USAGE = """\
usage: fission-grpo COMMAND [options]

commands:
  train    train a policy with Fission-GRPO (or plain GRPO, --fission false): a YAML file and overrides, as in trl
  eval     success and error recovery of a policy on held-out tasks, with intervals
  compare  two evaluations of the same cases, paired: table, intervals, picture
  doctor   what is wrong with a run, from its directory's log, and what to do about it
  report   an HTML page with charts and recoveries to read, from a run's directory
  simulator   data, training and judgement of an error simulator
  tasks    check a task file, convert other data into one, or generate tasks over BFCL's environments
  check-environment   verdict on an environment class of yours: determinism, isolation, snapshots, errors

`fission-grpo COMMAND --help` tells a command's options. Examples:

  fission-grpo train --config configs/desk_fission.yaml --output_dir runs/mine
  fission-grpo eval --model starter --tasks desk --output runs/mine
  fission-grpo eval --model runs/mine --tasks desk --output runs/mine
  fission-grpo compare runs/mine/eval-starter runs/mine/eval-mine
  fission-grpo report runs/mine
  fission-grpo tasks check my_tasks.jsonl
"""

COMMANDS = {  # module and function of each command
    "train": ("cli.train_start", "train_command"),
    "eval": ("cli.evaluate", "evaluate_command"),
    "compare": ("cli.compare", "compare_command"),
    "doctor": ("cli.doctor", "doctor_command"),
    "report": ("report.page", "report_command"),
    "simulator": ("cli.simulator", "simulator_command"),
    "tasks": ("cli.tasks", "tasks_command"),
    "check-environment": ("cli.check_environment", "check_environment_command"),
}


def main(argv: list[str] | None = None) -> int:
    """Run a command. Returns the exit status: 0, 1 or 2 for a mistake in the input, 128 + signal if interrupted."""
    if argv is None:
        sys.excepthook = show_traceback
    command, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    with tolerant_output() as output, quiet_libraries():
        status = _run(command, rest)
        output.flush()
        if output.problem is not None:
            show(f"error: standard output could not be written ({output.problem})", error=True)
            status = status if command == "train" else status or 1  # a trained model is there, whatever was shown
    return status


def _run(command: str, rest: list[str]) -> int:
    if command in ("-h", "--help", "help"):
        show(USAGE.rstrip())
        return 0
    if command == "--version":
        from fission_grpo import __version__

        show(__version__)
        return 0
    if command not in COMMANDS:
        show(f"error: unknown command {command!r}; commands: {', '.join(COMMANDS)}", error=True)
        return 2
    module, function = COMMANDS[command]
    try:
        return getattr(import_module(f"fission_grpo.{module}"), function)(rest)
    except SystemExit as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        if place.filename == argparse.__file__:
            raise
        where = f"{place.filename}, line {place.lineno}, in {place.name}"
        show(f"error: {command} was ended by SystemExit({error.code!r}) from {where}", error=True)
        return 1
    except (UnsupportedVersionError, RunDirectoryError) as error:
        show(f"error: {error}", error=True)
        return 1
    except ModuleNotFoundError as error:  # of ours: those of a user's environment are errors of the user's module
        show(f"error: {command} needs {error.name}; {install_line(error.name)}", error=True)
        return 1
    except ImportError as error:  # a package has another version than those tested, and lacks a name
        show(f"error: {command}: {error}; docs/reliability.md has the versions that were tested", error=True)
        return 1
