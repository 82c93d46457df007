"""What `fission-grpo train` finds out before it loads torch and trl."""

import json
import subprocess
import sys

import pytest

from fission_grpo.cli.main import main
from fission_grpo.cli.train_options import USUAL, help_text
from fission_grpo.fission.options import FissionOptions

ENVIRONMENT = """
class Lamp:
    def reset(self, on, **_):
        self.on = on

    def switch(self) -> str:
        \"\"\"Switch it.\"\"\"
        return "ok"
"""
LIGHT = """
import sys
from fission_grpo.cli.main import main
status = main(sys.argv[1:])
assert not {"torch", "trl", "transformers"} & {*sys.modules}, "libraries were loaded"
sys.exit(status)
"""


def light(folder, *words):
    """Run a command in a process of its own, in which no library may be loaded."""
    command = [sys.executable, "-c", LIGHT, "train", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_bulb.py").write_text(ENVIRONMENT)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "Go.", "on": True}) + "\n")
    (tmp_path / "bad.jsonl").write_text(json.dumps({"prompt": "Go."}) + "\n")
    (tmp_path / "steps.jsonl").write_text(json.dumps({"messages": 3, "tools": [], "reference": []}) + "\n")
    (tmp_path / "c.yaml").write_text("tasks: nowhere.jsonl\nmodel_name_or_path: starter\n")
    return tmp_path


def test_a_mistake_is_found_without_the_libraries(folder):
    done = light(folder, "--tasks", "nowhere.jsonl", "--model_name_or_path", "starter", "--output_dir", "x")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "'nowhere.jsonl' is no file" in done.stderr


def test_the_help_is_printed_without_the_libraries(folder):
    done = light(folder, "--help")
    assert done.returncode == 0, done.stderr
    assert "--num_recovery_generations" in done.stdout
    assert len(done.stdout.splitlines()) < 150


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--config c.yaml", "'nowhere.jsonl' is no file"),
        ("--config c.yaml --tasks desk --model_name_or_path ./none", "./none does not exist"),
        ("--tasks desk:9 --model_name_or_path starter", "desk:9"),
        ("--tasks steps.jsonl", "steps.jsonl, row 1, field 'messages'"),
        ("--environment own_bulb.py:Lamp --rows rows.jsonl", "nothing judges Lamp"),
        ("--environment own_bulb.py:Lamp", "rows is missing"),
        ("--environment own_bulb.py:Lamp --rows bad.jsonl", "bad.jsonl, row 1: Lamp.reset needs on"),
        ("--environment own_bulb.py:Bulb --rows rows.jsonl", "it has Lamp"),
        ("--tasks desk --rows rows.jsonl", "two kinds of tasks"),
        ("--tasks desk --report_to swanlab", "report_to: swanlab is not installed"),
        ("--tasks desk --buffer_order oldest", "buffer_order is 'oldest'; set it to one of lifo, random"),
    ],
)
def test_each_mistake_is_one_line_that_names_it(folder, capsys, words, message):
    assert main(["train", *words.split(), "--output_dir", "x"]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (folder / "x").exists()


def test_the_help_has_all_options_of_ours_and_only_real_ones_of_trl():
    pytest.importorskip("trl")
    from fission_grpo.cli.train import make_parser

    known = {action.dest for action in make_parser()._actions}
    assert set(USUAL) <= known
    text = help_text()
    for name in (*FissionOptions.__annotations__, "tasks", "environment", "rows", "reward", "alpha"):
        assert f"--{name}  " in text or f"--{name}\n" in text, name
