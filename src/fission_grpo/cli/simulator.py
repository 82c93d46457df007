"""`fission-grpo simulator data|train|check`."""

from __future__ import annotations

import sys

USAGE = """\
usage: fission-grpo simulator COMMAND [options]

The Error Simulator: a model that tells a policy what is wrong with its call, without giving the answer away.

commands:
  data     failures with diagnoses, from BFCL's environments, task files, runs, evaluations or a policy's samples
  train    a simulator from such data, with TRL's SFTTrainer
  check    leaks, specificity, kinds of error, length; and what the diagnoses are worth to a policy

From nothing to a training run with a simulator of your own (docs/simulator.md):

  fission-grpo simulator data --output runs/simulator_data
  fission-grpo simulator train --data runs/simulator_data --model starter-size --output runs/simulator
  fission-grpo simulator check --data runs/simulator_data --source local:runs/simulator,rules --output runs/check
  fission-grpo train --config configs/bfcl_fission.yaml --diagnose local:runs/simulator,rules
"""


def simulator_command(argv: list[str]) -> int:
    """Run a command of the group. Returns its exit status."""
    command, *rest = argv or ["--help"]
    if command in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if command == "data":
        from fission_grpo.recipes.error_simulator.data import data_command

        return data_command(rest)
    if command == "train":
        from fission_grpo.recipes.error_simulator.train import train_command

        return train_command(rest)
    if command == "check":
        from fission_grpo.recipes.error_simulator.check import check_command

        return check_command(rest)
    print(f"error: unknown command {command!r}; commands: data, train, check", file=sys.stderr)
    return 2
