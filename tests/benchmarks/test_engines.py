"""The committed comparison of TRL's two trainers at the desk, and what docs/engines.md says of it."""

import importlib.util
import json
from pathlib import Path

import pytest

pytest.importorskip("trl")

ROOT = Path(__file__).parents[2]


def test_the_page_has_the_numbers_of_the_committed_runs():
    path = ROOT / "benchmarks" / "engines" / "async_desk.py"
    spec = importlib.util.spec_from_file_location("async_desk", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    results = json.loads(module.RESULTS.read_text())
    page = (ROOT / "docs" / "engines.md").read_text()
    for row in module.summary(results):
        assert row in page
    assert {run["arm"] for run in results["runs"]} == {"sync", "async"}
    assert all(run["steps"] >= 20 for run in results["runs"])
