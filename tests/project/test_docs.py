"""What the guides show is what the repository holds, and it works."""

import copy
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fission_grpo

ROOT = Path(__file__).parent.parent.parent
GUIDE = (ROOT / "docs" / "environments.md").read_text()
EXAMPLE = ROOT / "examples" / "two_lines_environment.py"


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)


def example():
    spec = importlib.util.spec_from_file_location("two_lines_environment", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_guides_environment_is_the_examples_and_about_40_lines():
    shown = blocks("python")[0]
    assert shown.strip() in EXAMPLE.read_text()
    assert len(shown.splitlines()) <= 45


def test_the_guides_verdict_is_what_the_command_says(tmp_path):
    (tmp_path / "rows.json").write_text(blocks("json")[0])
    command = [sys.executable, "-m", "fission_grpo.cli", "check-environment", f"{EXAMPLE}:Cabinet"]
    done = subprocess.run(
        [*command, "--row", str(tmp_path / "rows.json")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    shown = next(block for block in re.findall(r"```\n(\$.*?)```", GUIDE, re.DOTALL))
    assert done.stdout == shown.split("\n", 1)[1]


def test_the_guides_snapshots_keep_the_contract():
    names = {"Cabinet": example().Cabinet, "copy": copy}
    exec(next(block for block in blocks("python") if "_snapshot" in block), names)  # the guide's own text
    report = fission_grpo.check_environment(names["QuickCabinet"], json.loads(blocks("json")[0]))
    assert {one.check: one.status for one in report.findings}["snapshot"] == "ok"
    assert report.ok


@pytest.mark.parametrize("page", sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]), ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if "://" not in target and not target.startswith("<"):
            assert (page.parent / target).exists(), target


def test_every_option_of_ours_is_told_in_the_readme():
    text = (ROOT / "README.md").read_text()
    own = set(fission_grpo.FissionGRPOConfig.__annotations__)
    assert own - set(re.findall(r"`(\w+)`", text)) == set()
