"""The leak guard on generated cases and on texts of committed runs (`benchmarks/leaks`)."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from fission_grpo.core.types import ToolCall
from fission_grpo.feedback.leak_guard import find_leak, find_reference_leak

FOLDER = Path(__file__).parents[2] / "benchmarks" / "leaks"


def made_suite(path):
    subprocess.run([sys.executable, "-X", "utf8", FOLDER / "make_suite.py", path], check=True)
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    text = made_suite(tmp_path_factory.mktemp("suite") / "suite.jsonl")
    return [json.loads(line) for line in text.splitlines()]


def load_module(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def recorded():
    return list(load_module("recorded").load_recorded())


def found(row):
    reference, failed = (ToolCall(**row[key]) for key in ("reference", "failed"))
    return find_reference_leak(row["text"], [reference], [failed], row["tools"]) is not None


def test_on_the_development_half_every_claimed_form_is_found_without_false_alarms(rows):
    rows = [row for row in rows if row["half"] == "development"]
    assert not [row["text"] for row in rows if found(row) != row["leak"]]


def test_the_suite_is_large_enough_and_its_halves_share_no_situation(rows):
    assert sum(row["leak"] for row in rows) >= 300
    assert sum(not row["leak"] for row in rows) >= 300
    halves = [{row["id"].split("/")[0] for row in rows if row["half"] == half} for half in ("development", "held out")]
    assert [len(half) for half in halves] == [16, 16]
    assert not halves[0] & halves[1]
    new = {row["rule"] for row in rows if row["new_rule"]}
    assert not new & {row["rule"] for row in rows if row["half"] == "development"}


def test_the_suite_is_the_same_each_time_it_is_made(tmp_path):
    assert made_suite(tmp_path / "a.jsonl") == made_suite(tmp_path / "b.jsonl")


def test_every_leak_that_the_old_guard_refused_in_committed_runs_is_refused(recorded):
    refused = [one for one in recorded if one.found is not None and not one.false_alarm]
    assert len(refused) >= 1_000
    assert not [one.text for one in refused if find_leak(one.text, one.failure) is None]


def test_the_recorded_texts_that_passed_still_pass(recorded):
    passed = [one for one in recorded if one.found is None or one.false_alarm]
    assert len(passed) >= 400
    assert not [one.text for one in passed if find_leak(one.text, one.failure) is not None]


def test_the_old_false_alarms_hold_a_short_value_in_another_sense_or_quote_the_failed_call(recorded):
    false_alarms = [one for one in recorded if one.false_alarm]
    assert len(false_alarms) == 1 + 75
    (one,) = [one for one in false_alarms if "another sense" not in one.false_alarm]
    assert "got 'April 4, 2027'" in one.text
    assert one.failure.calls[0].arguments["travel_date"] == "April 4, 2027"


def test_short_values_are_told_from_words_and_counts_in_free_sentences():
    cases = load_module("short_values")
    assert len(cases.INNOCENT) >= 175
    assert len(cases.LEAKING) >= 170
    assert cases.false_alarms() == [("format", "json", "Expecting value in json")]
    assert [text for *_, text in cases.missed()] == [
        "Anna should get it",
        "booking for 2 people",
        "message bob instead",
    ]
