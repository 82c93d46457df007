"""Analyse a suite's raw results: analysis.json (all numbers), tables.md and pictures beside them.

    python benchmarks/evidence/analyse.py benchmarks/evidence/results/episode [--reference grpo] [--point 120000]
    python benchmarks/evidence/analyse.py --all   # every suite, and results/summary.md and docs/evidence.png

Needs matplotlib (`pip install -e '.[report]'`). Works with what is there, and says what is missing.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from analysis.measures import RECOVERY, SUCCESS  # noqa: E402 - the folder must be known first
from analysis.pictures_arms import all_suites_png, headline_png, transfer_png  # noqa: E402
from analysis.pictures_curves import curves_png, error_kinds_png, other_arms_png, training_png  # noqa: E402
from analysis.raw import EVALUATIONS, RunFileError  # noqa: E402
from analysis.tables import headline, markdown  # noqa: E402
from analysis.whole import Analysis, analyse, as_json  # noqa: E402

ORDER = ("static", "episode", "confirm", "chain", "static_bfcl", "smollm2")
"""Suites in the order of the summary: static data, then live episodes. Others follow by name."""
PICTURED = ("static", "episode")
"""Suites in the picture of docs/evidence.md."""
NO_EVIDENCE = "smoke"
"""The suite that only shows that the pipeline runs; it is left out of the summary."""


def write(folder: Path, reference: str, point: int | None) -> Analysis:
    """Analyse one suite and write everything into its folder."""
    analysis = analyse(folder, reference, point)
    (folder / "analysis.json").write_text(json.dumps(as_json(analysis)) + "\n")
    (folder / "tables.md").write_text(markdown(analysis))
    main = analysis.main_arms
    headline_png(analysis, folder / "headline.png", main)
    if len(main) < len(analysis.main.arms):
        headline_png(analysis, folder / "arms.png", list(analysis.main.arms))
    curves_png(analysis, folder / "curves.png", main)
    training_png(analysis, folder / "training.png", main)
    error_kinds_png(analysis, folder / "error_kinds.png", main)
    transfer_png(analysis, folder / "transfer.png", main)
    for measure in (SUCCESS, RECOVERY):
        other_arms_png(analysis, folder / f"curves_others_{measure.key}.png", measure)
    return analysis


def report(analysis: Analysis) -> None:
    print(f"{analysis.suite}: {len(analysis.main.arms)} arms at point {analysis.point:,}")
    for line in analysis.findings:
        print(f"  {line}")
    for line in analysis.notes:
        print(f"  note: {line}")


def suites(results: Path) -> list[Path]:
    """The folders of results, in the order of the summary."""
    found = {file.parent.name: file.parent for file in results.glob(f"*/{EVALUATIONS}*")}
    found.pop(NO_EVIDENCE, None)
    return [found[name] for name in [*(n for n in ORDER if n in found), *sorted(found.keys() - set(ORDER))]]


def summarise(analyses: Sequence[Analysis], summary: Path, picture: Path) -> None:
    """The headline tables and findings of all suites, and their picture."""
    parts = ["# Headline tables of all suites\n\nWritten by `python benchmarks/evidence/analyse.py --all`."]
    for one in analyses:
        found = "\n".join(f"- {line}" for line in one.findings)
        notes = "\n".join(f"- {line}" for line in one.notes)
        table = headline(one).removeprefix("## Headline\n\n")
        parts.append(
            f"## `{one.suite}`: {one.main.tasks} held-out tasks at {one.point:,} generated tokens\n\n{table}\n\n"
            f"By the protocol:\n\n{found}" + (f"\n\nMissing or left out:\n\n{notes}" if notes else "")
        )
    summary.write_text("\n\n".join(parts) + "\n")
    all_suites_png([one for one in analyses if one.suite in PICTURED] or analyses, picture)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="results of a suite")
    parser.add_argument("--all", action="store_true", help="every suite below --results, and their summary")
    parser.add_argument("--reference", default="grpo", help="arm that the others are compared to")
    parser.add_argument("--point", type=int, help="evaluation point (default: the reference arm's last)")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder of the suites, with --all")
    parser.add_argument(
        "--picture", type=Path, default=HERE.parent.parent / "docs" / "evidence.png", help="with --all"
    )
    options = parser.parse_args(arguments)
    if options.all == (options.folder is not None):
        parser.error("give either the results of one suite or --all")
    try:
        folders = suites(options.results) if options.all else [options.folder]
        if not folders:
            raise RunFileError(f"{options.results}: no suite has {EVALUATIONS} in it; run one first")
        analyses = [write(folder, options.reference, options.point) for folder in folders]
    except RunFileError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for one in analyses:
        report(one)
    if options.all:
        summarise(analyses, options.results / "summary.md", options.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
