"""The notebook, run as Jupyter runs it: cell by cell in the main thread, in which an event loop is running."""

import json
import os
import subprocess
import sys
from pathlib import Path

NOTEBOOK = Path(__file__).parents[2] / "examples" / "quickstart.ipynb"
RUNNER = """
import asyncio, json, sys

async def run(cells, names):
    for source in cells:
        exec(compile(source, "<cell>", "exec"), names)

asyncio.run(run(json.load(sys.stdin), {"__name__": "__main__"}))
"""
CABINET = NOTEBOOK.parent / "two_lines_environment.py"


def cells():
    return [
        "".join(cell["source"]) for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"
    ]


def test_the_notebook_runs_from_top_to_bottom(tmp_path):
    sources = "\n\n\n".join(cells()).replace("TOKENS = 12_000", "TOKENS = 4_000").split("\n\n\n")
    assert sources != cells()
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    words = [sys.executable, "-c", RUNNER]
    done = subprocess.run(
        words, input=json.dumps(sources), cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "Cabinet: it can be trained and recovered in" in done.stdout
    assert "B minus A, points" in done.stdout
    assert "-- a recovery with reward 1 --" in done.stdout
    lines = [line for line in done.stderr.splitlines() if line.startswith("step ")]
    assert any("recoveries right" in line for line in lines)
    assert (tmp_path / "runs" / "notebook" / "report" / "report.html").is_file()


def test_the_notebook_has_no_outputs_and_the_environment_of_the_guide():
    notebook = json.loads(NOTEBOOK.read_text())
    assert [cell for cell in notebook["cells"] if cell.get("outputs") or cell.get("execution_count")] == []
    environment = next(source for source in cells() if source.startswith("class Cabinet"))
    assert environment.strip() in CABINET.read_text()
