"""The loop of one's own runs without torch and trl, and learns."""

import re
import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_loop.py"
BLOCKED = """
import runpy, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "trl", "transformers"):
            raise ModuleNotFoundError(f"{name} is blocked", name=name)

sys.meta_path.insert(0, Blocked())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_it_runs_without_torch_and_trl_explores_recovers_and_learns():
    command = [sys.executable, "-c", BLOCKED, str(EXAMPLE), "12"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    cycles = re.findall(r"(explore|recover), success ([\d.]+), buffer (\d+)", done.stdout)
    assert len(cycles) == 12
    assert [phase for phase, _, _ in cycles].count("recover") >= 2
    assert float(cycles[-1][1]) > float(cycles[0][1]) + 0.3


def test_it_is_short():
    assert len(EXAMPLE.read_text().splitlines()) < 80
