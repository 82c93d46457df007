"""`fission-grpo simulator data|train|check`."""

from __future__ import annotations

import sys

USAGE = """\
usage: fission-grpo simulator COMMAND [options]

The Error Simulator: a model that writes feedback on a policy's failed call without revealing the answer.

commands:
  data     collect failures with feedback from BFCL's environments, task files, runs, evaluations or a policy
  train    train a simulator on such data, with TRL's SFTTrainer
  check    measure how often a source answers, leaks and is specific, its latency, and how much it helps a policy

Train a simulator and use it (docs/simulator.md):

  fission-grpo simulator data --output runs/simulator_data
  fission-grpo simulator train --data runs/simulator_data --model tiny --output runs/simulator
  fission-grpo simulator check --data runs/simulator_data --source local:runs/simulator,rules --output runs/check
  fission-grpo train --config configs/bfcl_fission.yaml --feedback local:runs/simulator,rules
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
