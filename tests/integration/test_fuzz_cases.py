"""What the fuzzers have found, and cases like it, through the functions that are fuzzed; no fuzzer is needed."""

import importlib.util
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent.parent / "benchmarks" / "fuzz"
CASES = sorted(path for path in (Path(__file__).parent.parent / "fixtures" / "fuzz").glob("*/*"))


@pytest.fixture(scope="module")
def targets():
    spec = importlib.util.spec_from_file_location("fuzz_targets", FOLDER / "targets.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("case", CASES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_finding_stays_fixed(targets, case):
    targets.run(case.parent.name, case.read_bytes())


def test_every_target_has_cases_and_every_seed_passes(targets):
    assert {path.parent.name for path in CASES} == set(targets.TARGETS)
    for target in targets.TARGETS:
        for seed in targets.seeds(target)[:50]:
            targets.run(target, seed)


def test_a_target_that_is_too_slow_fails(targets, monkeypatch):
    monkeypatch.setattr(targets, "SECONDS", 0.0)
    with pytest.raises(AssertionError, match="bytes"):
        targets.run("parser", b"x")
