"""Whatever is wrong with an input: one clear line that names the place, no traceback, and nothing written."""

import re
import shlex

import pytest
from malformed import Malformed
from malformed_commands import ALL

from fission_grpo.cli.main import main


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
def test_a_malformed_input_is_one_error_that_names_the_place(case: Malformed, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, content in case.files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    try:
        status = main(shlex.split(case.command))
    except SystemExit as stopped:  # argparse's own way to refuse an option
        status = stopped.code
    out, err = capsys.readouterr()
    assert status in (1, 2), (status, out, err)
    errors = [line for line in err.splitlines() if re.match(r"(fission-grpo [\w -]*: )?error: ", line)]
    assert len(errors) == 1, err
    assert re.search(case.says, errors[0]), errors[0]
    assert len(errors[0]) < 600
    assert "Traceback" not in out + err
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before


def test_there_are_more_than_a_hundred_and_no_two_have_a_name():
    assert len({case.name for case in ALL}) == len(ALL) > 150
