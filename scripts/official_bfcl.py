"""The official BFCL command line on result files of ours: does it come to the same verdicts?

    python scripts/official_bfcl.py FOLDER [--cases FOLDER/cases.jsonl] [--model Qwen/Qwen3-8B-FC]

FOLDER holds `result/MODEL/...`, as `fission_grpo.evaluation.bfcl.results.write_result_files` writes it. This

1. makes a separate environment, once (--venv, default ~/.cache/fission-grpo/bfcl-official; 550 MB, 2 to 12 minutes),
   with bfcl-eval and what `bfcl evaluate` imports. bfcl-eval's own requirements would also bring torch, faiss and
   sentence-transformers, which only other categories use, and lack soundfile, without which it does not start;
2. runs `BFCL_PROJECT_ROOT=FOLDER bfcl evaluate --model MODEL --test-category CATEGORIES --partial-eval`. No keys, no
   network, no model. Categories without a result file are left out;
3. prints the official accuracy by category, and every case whose verdict is not that of `cases.jsonl` (our records).

Exit status: 0 if all verdicts agree, 1 if some do not, 2 if the official command failed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import venv
from dataclasses import dataclass, field
from pathlib import Path

from fission_grpo.evaluation.records import read_records

DEFAULT_VENV = Path.home() / ".cache" / "fission-grpo" / "bfcl-official"
PINNED = ["bfcl-eval==2026.3.23"]
IMPORTED = [  # what `bfcl evaluate` imports, pinned where bfcl-eval pins it
    *("requests", "tqdm", "numpy==1.26.4", "pandas", "pydantic>=2.8.2", "python-dotenv", "typer>=0.12.5"),
    *("tabulate>=0.9.0", "tenacity>=8.5.0", "overrides", "filelock==3.20.0", "mpmath==1.3.0"),
    *("tree_sitter==0.21.3", "tree-sitter-java==0.21.0", "tree-sitter-javascript==0.21.4"),
    *("openai>=1.86.0", "mistralai==1.7.0", "anthropic>=0.75.0", "cohere==5.18.0", "google-genai>=1.52.0"),
    *("writer-sdk>=2.1.0", "boto3", "qwen-agent", "soundfile", "datamodel-code-generator==0.25.7"),
]


@dataclass(frozen=True)
class Score:
    """The official score of a category: `failed` gives the `error_type` of every case that is not valid."""

    accuracy: float
    correct: int
    total: int
    failed: dict[str, str] = field(default_factory=dict)


def environment(folder: Path) -> Path:
    """The Python of the separate environment, which is made if there is none."""
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    if not (python.parent / "bfcl").exists():
        print(f"making {folder} (about 550 MB, two to twelve minutes) ...", file=sys.stderr)
        venv.create(folder, with_pip=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        for number, packages in enumerate(
            (IMPORTED, ["--no-deps", *PINNED]), start=1
        ):  # the last marks it as complete
            print(f"  installing, {number} of 2 ...", file=sys.stderr)
            subprocess.run([*pip, *packages], check=True)
    return python


def evaluate(folder: Path, venv_folder: Path = DEFAULT_VENV, model: str = "Qwen/Qwen3-8B-FC") -> dict[str, Score]:
    """Run the official command on a folder; returns its scores by category.

    Raises:
        RuntimeError: the command failed, with the end of what it printed; or there is no result file.
    """
    folder = folder.resolve()
    files = sorted((folder / "result" / model.replace("/", "_")).rglob("BFCL_v4_*_result.json"))
    categories = [file.name.removeprefix("BFCL_v4_").removesuffix("_result.json") for file in files]
    if not categories:
        raise RuntimeError(f"no result files of {model} under {folder / 'result'}")
    command = [str(environment(venv_folder).parent / "bfcl"), "evaluate", "--model", model]
    command += ["--test-category", ",".join(categories), "--partial-eval"]
    print(f"running bfcl evaluate on {', '.join(categories)} (about a minute) ...", file=sys.stderr)
    done = subprocess.run(
        command, env={**os.environ, "BFCL_PROJECT_ROOT": str(folder)}, capture_output=True, text=True, check=False
    )
    scores = {category: read_score(folder, category, model) for category in categories} if not done.returncode else {}
    if done.returncode or None in scores.values():
        raise RuntimeError(f"{' '.join(command)} failed:\n{(done.stdout + done.stderr)[-3000:]}")
    return {category: score for category, score in scores.items() if score is not None}


def read_score(folder: Path, category: str, model: str) -> Score | None:
    """A score file of the official command; None if it wrote none."""
    for file in (folder / "score" / model.replace("/", "_")).rglob(f"BFCL_v4_{category}_score.json"):
        head, *failed = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
        return Score(head["accuracy"], head["correct_count"], head["total_count"], {r["id"]: _kind(r) for r in failed})
    return None


def differences(scores: dict[str, Score], verdicts: dict[str, str | None]) -> list[tuple[str, str | None, str | None]]:
    """Cases judged differently: (id, our verdict, the official one). None is a success.

    Args:
        scores: by category.
        verdicts: ours by id, of the cases in the result files.
    """
    official = {case_id: kind for score in scores.values() for case_id, kind in score.failed.items()}
    return [(i, ours, official.get(i)) for i, ours in verdicts.items() if official.get(i) != ours]


def _kind(row: dict) -> str:
    error = row["error"]
    return str(error["error_type"] if isinstance(error, dict) else row["error_type"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cases", type=Path, help="our records (default: FOLDER/cases.jsonl)")
    parser.add_argument("--model", default="Qwen/Qwen3-8B-FC")
    parser.add_argument("--venv", type=Path, default=DEFAULT_VENV)
    options = parser.parse_args()
    records = read_records(options.cases or options.folder / "cases.jsonl")
    try:
        scores = evaluate(options.folder, options.venv, options.model)
    except (RuntimeError, subprocess.CalledProcessError) as error:
        print(error, file=sys.stderr)
        return 2
    for category, score in scores.items():
        print(f"{category:28} official accuracy {score.accuracy:.4f}   {score.correct} of {score.total}")
    judged = {r.id: r.verdict for r in records if r.missing is None and r.category in scores}
    apart = differences(scores, judged)
    for case_id, ours, official in apart:
        print(f"DIFFERENT {case_id}: ours {ours or 'valid'}, official {official or 'valid'}")
    counted = sum(score.total for score in scores.values())
    if counted != len(judged):
        print(f"DIFFERENT number of cases: {len(judged)} records, {counted} judged officially")
    print(f"{len(judged) - len(apart)} of {len(judged)} verdicts agree")
    return 1 if apart or counted != len(judged) else 0


if __name__ == "__main__":
    sys.exit(main())
