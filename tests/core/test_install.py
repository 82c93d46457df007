"""Installs the package as users do, and gives the printed command to pip."""

import os
import shlex
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest

pytest.importorskip("hatchling", reason="builds the package: pip install hatchling")

ROOT = Path(__file__).parents[2]
SOURCES = {  # what a user gives to `pip install`, and how the printed command begins
    "folder": ("{copy}", "pip install '{copy}[report]'"),
    "editable": ("-e {copy}", "pip install -e '{copy}[report]'"),
    "git": ("git+file://localhost{copy}@v9", "pip install 'fission-grpo[report] @ git+file://localhost{copy}@v9'"),
    "wheel": ("{wheel}", "pip install 'fission-grpo[report] @ file://{wheel}'"),
}


def run(*words, cwd=None):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(list(map(str, words)), cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The package in a git repository, in a folder with a space in its name."""
    folder = tmp_path_factory.mktemp("sources") / "fission grpo"
    for name in ("pyproject.toml", "README.md", "LICENSE", "src/fission_grpo/__init__.py", "src/fission_grpo/core"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        run("cp", "-r", ROOT / name, folder / name)
    (folder / "src/fission_grpo/py.typed").touch()
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    for words in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "all"], ["tag", "v9"]):
        run("git", *words, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """A new environment, with the packages of this one but fission-grpo, and with this one's pip."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=False)
    purelib = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    (purelib / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin" / "python"


@pytest.mark.parametrize("source", SOURCES)
def test_the_printed_command_installs_from_where_the_package_came(source, copy, python):
    wheel = copy.parent / "fission_grpo-0.1.0-py3-none-any.whl"
    offline = ["--no-deps", "--no-build-isolation", "--no-index"]
    if source == "wheel":
        run(python, "-m", "pip", "wheel", "-q", *offline, "-w", copy.parent, copy)
    given, expected = (
        text.format(copy=str(copy).replace(" ", "%20") if "file:" in text else copy, wheel=wheel)
        for text in SOURCES[source]
    )
    words = given.split(" ", 1) if given.startswith("-e") else [given]
    run(python, "-m", "pip", "install", "-q", "--force-reinstall", *offline, *words)
    code = "from fission_grpo.core.install import install_line; print(install_line('matplotlib.pyplot'))"
    printed = run(python, "-c", code, cwd=copy.parent)
    assert printed == expected.replace("pip", f"{python} -m pip", 1)
    report = run(*shlex.split(printed), "--dry-run", "--force-reinstall", *offline)
    assert "Would install fission-grpo-0.1.0" in report
