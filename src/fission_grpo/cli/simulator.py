"""`fission-grpo simulator data|train|check`."""

from __future__ import annotations

from fission_grpo.core.install import install_line
from fission_grpo.core.terminal import show

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
    """Run a command of the group. Returns its exit status: 0; 1 or 2 after one line about a mistake in the input."""
    command, *rest = argv or ["--help"]
    if command in ("-h", "--help"):
        show(USAGE.rstrip())
        return 0
    if command == "train":
        from fission_grpo.recipes.error_simulator.train import train_command

        return train_command(rest)
    if command not in ("data", "check"):
        show(f"error: unknown command {command!r}; commands: data, train, check", error=True)
        return 2
    try:
        return _run(command, rest)
    except ModuleNotFoundError as error:
        show(f"error: this needs {error.name}; {install_line(error.name)}", error=True)
        return 1
    except (ValueError, OSError) as error:
        show(f"error: {error}", error=True)
        return 1


def _run(command: str, rest: list[str]) -> int:
    if command == "data":
        from fission_grpo.recipes.error_simulator.data import data_command

        return data_command(rest)
    from fission_grpo.recipes.error_simulator.check import check_command

    return check_command(rest)
