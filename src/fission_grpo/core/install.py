"""Install commands for error messages, for the place from which this package was installed."""

from __future__ import annotations

import importlib.util
import json
import shlex
import shutil
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

NAME = "fission-grpo"
EXTRAS = {"openai": "endpoint", "matplotlib": "report", "jinja2": "report", "gguf": "smollm2"}  # others: train
BFCL = "--no-deps bfcl-eval==2026.3.23 mpmath==1.3.0 filelock"
AGENTDOJO = (  # what its suites import; alone it would bring the clients of all providers
    "--no-deps agentdojo==0.1.35",
    "'deepdiff>=8.6.1' docstring-parser 'pydantic[email]>=2.7' pyyaml rich google-genai",
)


def install_line(package: object) -> str:
    """The command that installs what the import of a package lacks: one of our extras, bfcl-eval or agentdojo.

    Example: `install_line("openai")`, where this package was installed by `pip install -e /src/fission`, is
    `pip install -e '/src/fission[endpoint]'`.
    """
    top = str(package).partition(".")[0]
    if top == "agentdojo":
        return " && ".join(f"{_pip()} install {packages}" for packages in AGENTDOJO)
    return f"{_pip()} install {BFCL if top == 'bfcl_eval' else requirement(EXTRAS.get(top, 'train'))}"


def requirement(extra: str) -> str:
    """pip's words for this package with an extra, from where pip recorded (PEP 610)."""
    from importlib.metadata import PackageNotFoundError, distribution  # needed for errors alone

    try:
        record = json.loads(distribution(NAME).read_text("direct_url.json") or "{}")
    except PackageNotFoundError:  # it runs from its source tree, on PYTHONPATH
        tree = Path(__file__).parents[3]
        return f"-e {shlex.quote(f'{tree}[{extra}]')}" if (tree / "pyproject.toml").is_file() else f"'{NAME}[{extra}]'"
    url = str(record.get("url", "")).replace(" ", "%20")
    if "dir_info" in record:
        folder = shlex.quote(f"{unquote(urlsplit(url).path)}[{extra}]")
        return f"-e {folder}" if record["dir_info"].get("editable") else folder
    if "vcs_info" in record:
        revision = record["vcs_info"].get("requested_revision")
        url = f"{record['vcs_info']['vcs']}+{url}" + (f"@{revision}" if revision else "")
    return shlex.quote(f"{NAME}[{extra}] @ {url}" if url else f"{NAME}[{extra}]")


def _pip() -> str:
    """The pip of this interpreter: the one on the path may be another's, and uv's environments have none."""
    found = shutil.which("pip")
    if found is not None and Path(found).parent == Path(sys.executable).parent:
        return "pip"
    python = shlex.quote(sys.executable)
    return f"{python} -m pip" if importlib.util.find_spec("pip") else "uv pip"
