"""The demo as `make demo` runs it, interrupted: it shows how far its runs are, and none outlives it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"


def test_the_demo_shows_both_runs_and_ends_them_when_it_is_interrupted(tmp_path):
    command = [sys.executable, str(DEMO), "--output", str(tmp_path / "demo"), "--tokens", "10000000"]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    demo = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert demo.stdout is not None
    shown = next(line for line in demo.stdout if line.startswith("GRPO: "))
    runs = psutil.Process(demo.pid).children()
    demo.send_signal(signal.SIGINT)
    _, errors = demo.communicate(timeout=60)
    assert "   Fission-GRPO: " in shown
    assert len(runs) == 2
    assert [run for run in runs if run.is_running()] == []
    assert errors == "\nstopped; the runs were ended, too\n"
