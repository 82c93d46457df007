"""`fission-grpo doctor RUN_DIR`: what is wrong with a run, from its log, and what to do."""

from __future__ import annotations

import argparse
from pathlib import Path

from fission_grpo.core.errors import RunFileError
from fission_grpo.core.terminal import ArgumentParser, show
from fission_grpo.fission.health import check_health, health_topics
from fission_grpo.report.run import Run, read_runs


def doctor_command(argv: list[str]) -> int:
    """Print the findings in each run's log. Returns 0 if there are none, 1 if there are, 2 for a mistake."""
    folder = _parser().parse_args(argv).run_dir
    try:
        runs = [run for run in read_runs(folder) if run.cycles]
        if not runs:
            raise RunFileError(f"{folder}: no training log in it (trainer_state.json); train, or give another folder")
    except (RunFileError, OSError) as error:
        show(f"error: {error}", error=True)
        return 2
    return int(sum(_show_findings(run) for run in runs) > 0)


def _show_findings(run: Run) -> bool:
    findings = check_health(run.cycles)
    cycles, explores, recovers = (
        sum(name in row for row in run.cycles)
        for name in ("fission/phase", "fission/frac_zero_std", "recovery/frac_zero_std")
    )
    show(f"{run.name}: {cycles} logged cycles, {explores} with explored, {recovers} with recovery groups")
    for finding in findings:
        show(f"  {finding.name}: {finding.message}\n    -> {finding.advice}")
    well, unknown = health_topics(run.cycles)
    show(f"  no finding: {', '.join(well) or '-'}")
    if unknown:
        show(f"  too few cycles to say: {', '.join(f'{topic} (needs {needed})' for topic, needed in unknown.items())}")
    return bool(findings)


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(
        "fission-grpo doctor",
        description="What is wrong with a run, from its training log, and what to do about it: rewards without "
        "variance, every or no rollout failing, first-try success that falls, a policy that no longer stops, recover "
        "cycles that never run, feedback or environments that fail. Training warns of the same. The exit status is 1 "
        "if there is a finding.",
    )
    parser.add_argument(
        "run_dir", type=Path, metavar="RUN_DIR", help="output_dir of a run, also while it trains; or a folder of them"
    )
    return parser
