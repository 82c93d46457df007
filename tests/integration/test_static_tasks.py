"""The new user's way of docs/tasks.md: an environment of one's own, five static tasks, a run on its real errors."""

import json
import re
import runpy
import shlex
from pathlib import Path

import pytest

pytest.importorskip("trl")

from fission_grpo.cli.main import main
from fission_grpo.core.chat import parse

PAGE = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text(encoding="utf-8")
CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A fresh folder with the page's environment and tasks."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(CONFIGS)
    (code,) = re.findall(r"Save this as `archive.py`:\n\n```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    (tmp_path / "archive.py").write_text(code)
    runpy.run_path("archive.py", run_name="__main__")
    return tmp_path


def shown_command():
    (block,) = re.findall(r"```console\n(fission-grpo train [^`]*--tasks static.jsonl[^`]*)```", PAGE)
    return shlex.split(block.replace("\\\n", " "))[1:]


def test_the_recovery_prompt_holds_what_the_users_environment_said_word_for_word(folder, capsys):
    assert main(["tasks", "check", "static.jsonl"]) == 0
    assert capsys.readouterr().out in PAGE
    assert main(["check-environment", "archive.py:Archive", "--rows", "static.jsonl", "--seconds", "1"]) == 0
    options = ["--max_steps", "1", "--save_strategy", "no", "--seed", "1"]
    assert main([*shown_command(), *options]) == 0
    events = [json.loads(line) for line in (folder / "runs/static/fission.jsonl").read_text().splitlines()]
    pushed = [event for event in events if event["event"] == "pushed"]
    assert pushed
    for event in pushed:
        assert event["source"] == "environment"
        assert event["prompt"][-1]["content"] == str({"error": event["feedback"]})
        assert event["feedback"] == said_by_archive(event["prompt"])


def said_by_archive(prompt):
    """What a fresh Archive raises at the last call of a dialogue, after those before it."""
    archive = runpy.run_path("archive.py")["Archive"]()
    archive.reset(**json.loads(Path("static.jsonl").read_text().splitlines()[0]))
    *before, last = [parse(message["content"]).calls[0] for message in prompt if message["role"] == "assistant"]
    for call in before:
        getattr(archive, call.name)(**call.arguments)
    with pytest.raises((ValueError, TypeError)) as raised:
        getattr(archive, last.name)(**last.arguments)
    return str(raised.value)
