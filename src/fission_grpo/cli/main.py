"""`fission-grpo` and its commands. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import sys

from fission_grpo.core.errors import UnsupportedVersionError

USAGE = """\
usage: fission-grpo COMMAND [options]

commands:
  train    train a policy with Fission-GRPO (or plain GRPO, --fission false): a YAML file and overrides, as in trl
  eval     success and error recovery of a policy on held-out tasks, with intervals
  compare  two evaluations of the same cases, paired: table, intervals, picture
  report   an HTML page with charts and recoveries to read, from a run's directory
  simulator   data, training and judgement of an error simulator
  tasks    check a task file, convert other data into one, or generate tasks over BFCL's environments
  check-environment   verdict on an environment class of yours: determinism, isolation, snapshots, errors

`fission-grpo COMMAND --help` tells a command's options. Examples:

  fission-grpo train --config configs/desk_fission.yaml --output_dir runs/mine
  fission-grpo eval --model runs/mine --tasks desk --output runs/mine
  fission-grpo compare runs/eval_base runs/eval_mine
  fission-grpo report runs/mine
  fission-grpo tasks check my_tasks.jsonl
"""


def main(argv: list[str] | None = None) -> int:
    """Run a command. Returns the exit status: 0, 1 or 2 for a mistake in the input, 128 + signal if interrupted."""
    command, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if command in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    if command == "--version":
        from fission_grpo import __version__

        print(__version__)
        return 0
    try:
        return _run(command, rest)
    except UnsupportedVersionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _run(command: str, rest: list[str]) -> int:
    if command == "train":
        return _train(rest)
    if command == "eval":
        from fission_grpo.cli.evaluate import evaluate_command

        return evaluate_command(rest)
    if command == "compare":
        from fission_grpo.cli.compare import compare_command

        return compare_command(rest)
    if command == "report":
        from fission_grpo.report.page import report_command

        return report_command(rest)
    if command == "tasks":
        from fission_grpo.cli.tasks import tasks_command

        return tasks_command(rest)
    if command == "simulator":
        from fission_grpo.cli.simulator import simulator_command

        return simulator_command(rest)
    if command == "check-environment":
        from fission_grpo.cli.check_environment import check_environment_command

        return check_environment_command(rest)
    names = "train, eval, compare, report, simulator, tasks, check-environment"
    print(f"error: unknown command {command!r}; commands: {names}", file=sys.stderr)
    return 2


def _train(rest: list[str]) -> int:
    try:
        from fission_grpo.cli.train import train_command
    except ModuleNotFoundError as error:
        print(f"error: training needs {error.name}; pip install 'fission-grpo[train]'", file=sys.stderr)
        return 1
    return train_command(rest)


if __name__ == "__main__":
    sys.exit(main())
