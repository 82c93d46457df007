"""Habits of the project, held by tests: small files and functions, a light core."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
FILES = sorted(
    path for folder in ("src", "examples", "tests", "scripts", "benchmarks") for path in (ROOT / folder).rglob("*.py")
)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_have_at_most_300_lines_and_functions_60(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno + 1 <= 60, f"{node.name} is too long"


def test_import_is_light_and_fast():
    code = (
        "import sys, time; start = time.perf_counter(); import fission_grpo; spent = time.perf_counter() - start;"
        "print(spent, *sorted({'torch', 'trl', 'transformers', 'numpy', 'scipy'} & set(sys.modules)))"
    )
    runs = [subprocess.check_output([sys.executable, "-c", code], text=True).split() for _ in range(3)]
    assert [heavy for _, *heavy in runs] == [[], [], []]
    assert min(float(seconds) for seconds, *_ in runs) < 0.3  # the best of three, as machines are shared


def test_only_config_and_trainer_import_trl_at_the_top():
    package, importers = ROOT / "src" / "fission_grpo", set()
    for path in package.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] == "trl" for name in names):
                importers.add(str(path.relative_to(package)))
    allowed = {"config.py", "trainer.py", "train_command.py", "simulator/trainer.py", "simulator/train_command.py"}
    # The classes between TRL's trainer and ours, which only trainer.py imports.
    assert importers <= {*allowed, "shared_prefix/trainer.py", "tool_turns.py"}
