"""Run the seam tests against versions of TRL and transformers, each in a fresh virtual environment.

    python scripts/seam.py                                  # every supported TRL with the newest transformers
    python scripts/seam.py --trl 1.14.2 --lowest            # the lowest bounds of pyproject.toml, all together
    python scripts/seam.py --trl 1.16.0 --transformers 5.15.0
    python scripts/seam.py --trl main                       # TRL's main branch; needs a network with GitHub

Results are added to --output (JSON, a row per combination) and printed as the table of docs/reliability.md. The
exit status is 1 if a test failed. Needs nothing but Python, pip and an index.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

from fission_grpo.training.trl_compat import SUPPORTED  # noqa: E402 - works without TRL

SEAM = (
    "training",
    "cli/test_interrupt.py",
    "cli/test_main.py",
    "core/test_special_tokens.py",
    "envs/test_faults.py",
    "envs/test_restore.py",
    "envs/test_wrapper.py",
    "inference/test_local.py",
    "inference/test_pretrained.py",
    "integration/test_hostile_training.py",
    "integration/test_processes.py",
    "integration/test_resume.py",
    "integration/test_sharded.py",
    "project/test_one_file.py",
    "recipes/test_error_simulator_train.py",
    "recipes/test_starter_policy.py",
)
"""The files and folders in `tests` that touch TRL or transformers where they may change."""
PACKAGES = (
    "accelerate",
    "datasets",
    "peft",
    "requests",
    "rich",
    "jsonschema",
    "scipy",
    "matplotlib",
    "openai",
    "pytest",
    "hypothesis",
)
"""What is installed beside torch, TRL and transformers."""
SHOWN = ("trl", "transformers", "torch", "accelerate", "datasets", "peft")
MAIN = "git+https://github.com/huggingface/trl"


def main() -> int:
    """Run every combination; see the module's text."""
    arguments = parse()
    rows = []
    for trl in arguments.trl or SUPPORTED["trl"].tested:
        for transformers in arguments.transformers:
            row = run(MAIN if trl == "main" else trl, transformers, arguments)
            rows.append(row)
            if arguments.output:
                add(arguments.output, row)
    print(table(rows))
    return int(any(row["failed"] or not row["passed"] for row in rows))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl", nargs="*", help="versions, git+https://... or main; default: all supported")
    parser.add_argument("--transformers", nargs="*", default=["newest"], help="versions, oldest, newest")
    parser.add_argument("--lowest", action="store_true", help="the lowest versions that pyproject.toml allows")
    parser.add_argument("--torch", default="torch==2.13.0", help="what pip is to install; with --lowest its bound")
    parser.add_argument("--torch-from", metavar="PYTHON", help="link that Python's torch instead of installing one")
    parser.add_argument("--folder", help="where environments are made; default: a temporary folder")
    parser.add_argument("--output", type=Path, help="JSON file to which results are added")
    parser.add_argument("--tests", nargs="*", default=SEAM, help="files and folders in tests; default: SEAM")
    parser.add_argument("--keep", action="store_true", help="do not remove the environments")
    return parser.parse_args()


def run(trl: str, transformers: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Make an environment for one combination, run the tests, remove it. Returns the row of the results."""
    folder = Path(tempfile.mkdtemp(prefix="seam_", dir=arguments.folder))
    try:
        began = time.monotonic()
        python = environment(folder / "venv", trl, transformers, arguments)
        installed = time.monotonic()
        found = tested(python, folder / "junit.xml", arguments.tests)
        return {
            **versions(python),
            "asked": trl,
            "lowest": arguments.lowest,
            "torch_linked": bool(arguments.torch_from),
            **found,
            "install_seconds": round(installed - began),
            "test_seconds": round(time.monotonic() - installed),
            "commit": shown("git", "-C", str(ROOT), "describe", "--always", "--dirty"),
        }
    finally:
        if not arguments.keep:
            shutil.rmtree(folder)


def environment(folder: Path, trl: str, transformers: str, arguments: argparse.Namespace) -> str:
    """A virtual environment with the versions asked for and this checkout; gives its Python."""
    subprocess.check_call([sys.executable, "-m", "venv", str(folder)])
    python = str(folder / "bin" / "python")
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    lowest = bounds() if arguments.lowest else {}
    torch = arguments.torch
    if arguments.torch_from:
        torch = link_torch(arguments.torch_from, python)
    elif arguments.lowest:
        torch = f"torch=={lowest['torch']}"
    version = lowest.get("transformers", transformers)
    oldest = ".".join(map(str, SUPPORTED["transformers"].first)) + ".0"
    named = {"oldest": f"transformers=={oldest}", "newest": f"transformers{SUPPORTED['transformers'].pip}"}
    wanted = [
        torch,
        f"trl @ {trl}" if "://" in trl else f"trl=={trl}",
        named.get(version, f"transformers=={version}"),
        *(f"{name}=={lowest[name]}" if name in lowest else name for name in PACKAGES),
    ]
    subprocess.check_call([*install, *wanted])
    subprocess.check_call([*install, "--no-deps", str(ROOT)])
    return python


def bounds() -> dict[str, str]:
    """The lower bounds of the package and of its `train` extra, by package."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    split = (spec.split(">=") for spec in project["dependencies"] + project["optional-dependencies"]["train"])
    return {name: rest.split(",")[0] + ".0" * (1 - rest.split(",")[0].count(".")) for name, rest in split}


def link_torch(other: str, python: str) -> str:
    """Link another Python's torch into an environment. Returns what pip is to find there."""
    code = "import site; print(site.getsitepackages()[0])"
    theirs, ours = (Path(shown(one, "-c", code)) for one in (other, python))
    for path in [*(theirs / name for name in ("torch", "torchgen", "functorch")), *theirs.glob("torch-*.dist-info")]:
        if path.exists():
            (ours / path.name).symlink_to(path)
    return "torch"


def tested(python: str, report: Path, names: list[str]) -> dict[str, Any]:
    """Run the tests; counts, and the names of those that failed."""
    files = [str(ROOT / "tests" / name) for name in names]
    surroundings = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    surroundings |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    pytest = [python, "-m", "pytest", "-p", "no:cacheprovider", "--tb=short", f"--junitxml={report}", *files]
    subprocess.run(pytest, cwd=ROOT, env=surroundings, check=False)
    cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = sum(case.find("skipped") is not None for case in cases)
    return {
        "passed": len(cases) - len(failed) - skipped,
        "failed": len(failed),
        "skipped": skipped,
        "failures": [f"{case.get('classname')}::{case.get('name')}" for case in failed],
    }


def versions(python: str) -> dict[str, str]:
    """Of Python and what was installed beside it."""
    code = f"from importlib.metadata import version; print(*(version(name) for name in {SHOWN!r}))"
    found = dict(zip(SHOWN, shown(python, "-c", code).split(), strict=True))
    return {**found, "python": shown(python, "-c", "import platform; print(platform.python_version())")}


def shown(*command: str) -> str:
    """What a command prints."""
    return subprocess.check_output(command, text=True).strip()


def add(path: Path, row: dict[str, Any]) -> None:
    """Add a row to the file of results, in place of an older one of the same versions."""
    rows = json.loads(path.read_text()) if path.exists() else []
    same = [row[name] for name in SHOWN]
    rows = [old for old in rows if [old[name] for name in SHOWN] != same] + [row]
    path.write_text(json.dumps(rows, indent=1) + "\n")


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    head = (*SHOWN, "passed", "failed", "skipped", "test_seconds")
    lines = [head, ["---"] * len(head), *([str(row[name]) for name in head] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
