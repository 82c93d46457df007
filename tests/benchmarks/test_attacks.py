"""The generator of attacks: its cases pass, and it finds what it looks for."""

import importlib
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent.parent / "benchmarks" / "attacks"


@pytest.fixture
def run(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module("run")
    for name in ("run", "values", "schemas", "patterns", "transcripts"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("edge", ["schemas", "patterns", "transcripts"])
def test_the_first_cases_of_an_edge_break_no_promise(run, edge, tmp_path):
    attack = importlib.import_module(edge).prepare(tmp_path)
    outcomes = {attack(run.case_random(edge, 0, case)) for case in range(40)}
    assert len(outcomes) > 2, outcomes


PLANTED = """
import os, time
def prepare(folder):
    return attack
def attack(rng):
    kind = int(rng.random() * 1e9) % 5
    if kind == 0: raise KeyError("planted")
    if kind == 1: os._exit(3)
    if kind == 2: time.sleep(60)
    if kind == 3: b"x" * (90 * 2**20)
    return "fine"
"""


def test_crashes_hangs_deaths_and_memory_are_found(run, tmp_path, monkeypatch):
    (tmp_path / "planted.py").write_text(PLANTED)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(run, "HANG_SECONDS", 5.0)
    monkeypatch.setattr(run, "MEMORY", 50 * 2**20)
    totals = run.attack_edge("planted", seed=0, seconds=60, most=12)
    assert {found["kind"] for found in totals.findings} == {"crash", "died", "hang", "memory"}
    assert totals.cases == 12
    assert "KeyError: 'planted'" in next(found["detail"] for found in totals.findings if found["kind"] == "crash")
