"""benchmarks/speed: the three ways are measured on the same step, and numbers that were not measured are marked."""

import importlib.util
import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

SPEED = Path(__file__).parents[2] / "benchmarks" / "speed"
sys.path.insert(0, str(SPEED))
spec = importlib.util.spec_from_file_location("speed_run", SPEED / "run.py")
assert spec is not None
assert spec.loader is not None
speed = importlib.util.module_from_spec(spec)
spec.loader.exec_module(speed)

CELL = replace(speed.TINY, common=400, own=60, completion=100, group=8, groups=1)


def recorded(way, groups, part="step", **seconds):
    """A run as `steps` records it, with the same processor seconds in each of the given parts."""
    spent = {name: [value, value] for name, value in seconds.items()}
    more = {"greedy": False, "rows": 8, "peak_mib": 900.0, "loaded_mib": 500.0}
    return {"cell": asdict(replace(CELL, groups=groups)), "way": way, "part": part, "seconds": spent, **more}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    output = tmp_path_factory.mktemp("speed") / "tiny.json"
    command = [sys.executable, SPEED / "run.py", "steps", "--tiny", "--compare", "--output", output]
    subprocess.run(command, check=True, capture_output=True)
    return output


def test_a_run_of_the_tiny_setting_measures_every_way_and_compares_gradients_and_tokens(results):
    found = json.loads(results.read_text())
    (entry,) = found["summary"]
    assert set(entry["ratios"]) == set(speed.PAIRS)
    assert all(ratio > 0 for ratios in entry["ratios"].values() for ratio in ratios.values())
    assert [run["update_tokens"] for run in found["runs"]] == [speed.TINY.tokens(way) for way in speed.WAYS]
    for one in found["compared"]:
        assert one["parameters"] == 21
        assert one["gradient_difference"] < 1e-5
        assert one["equal_tokens"] == one["tokens"] == 2 * 4 * 6


def test_the_picture_and_the_tables_are_made_from_the_results(results, tmp_path):
    image = tmp_path / "speed.png"
    subprocess.run([sys.executable, SPEED / "run.py", "plot", results, image], check=True, capture_output=True)
    assert image.read_bytes().startswith(b"\x89PNG")
    shown = subprocess.run([sys.executable, SPEED / "run.py", "show", results], check=True, stdout=subprocess.PIPE)
    assert "| generation |" in shown.stdout.decode()


def test_bounds_are_those_of_the_token_counts():
    cell = replace(CELL, common=2000, groups=8)
    assert [cell.tokens(way) for way in speed.WAYS] == [138_240, 22_880, 8_880]


def test_seconds_of_trl_at_more_groups_are_computed_from_the_largest_measured_number_and_marked():
    seconds = {"log-probabilities": 3.0, "backward": 5.0, "update": 9.0}
    runs = [
        recorded("trl", 1, generation=4.0, whole=14.0, **seconds),
        recorded("trl", 4, "generation", generation=12.0),
        recorded("tree", 8, generation=2.0, whole=8.0, **seconds),
    ]
    entry = speed.summary(runs)[-1]
    trl = entry["ways"]["trl"]
    assert trl["update"] == {"median": 72.0, "least": 72.0, "most": 72.0, "runs": 1, "computed_from": 1}
    assert (trl["generation"]["median"], trl["generation"]["computed_from"]) == (24.0, 4)
    assert (trl["whole"]["median"], trl["whole"]["computed_from"]) == (96.0, 1)
    assert entry["ratios"]["tree"]["whole"] == 12.0
    assert "peak_mib" not in trl
    assert "~96.0 s" in speed.tables({"runs": runs, "compared": []})


def test_seconds_of_ours_are_never_computed_from_fewer_groups():
    seconds = dict.fromkeys(speed.PARTS, 1.0)
    (_, entry) = speed.summary([recorded("groups", 1, **seconds), recorded("tree", 2, **seconds)])
    assert list(entry["ways"]) == ["tree"]


def test_a_way_that_did_not_share_is_no_result():
    run = speed.Run("groups", rows=8)
    with pytest.raises(SystemExit, match="groups did not share: 4480 tokens in the update, not 1260"):
        speed.check_shared(CELL, run, {"update_tokens": 4480})
