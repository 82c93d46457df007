"""`fission-grpo compare RUN_A RUN_B`: a table on the terminal, `compare.json` and `compare.svg` in a folder."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from fission_grpo.core.files import write_file
from fission_grpo.core.install import install_line
from fission_grpo.core.terminal import ArgumentParser, show
from fission_grpo.evaluation.compare import compare, comparison_json, comparison_table, read_run


def compare_command(argv: list[str]) -> int:
    """Compare two runs. Returns 0, or 2 for a mistake or runs that differ, named on stderr."""
    arguments = _parser().parse_args(argv)
    output = arguments.output or arguments.run_b / "compare"
    notes: list[str] = []
    try:
        comparison = compare(read_run(arguments.run_a, notes), read_run(arguments.run_b, notes))
        text = json.dumps(comparison_json(comparison), ensure_ascii=False, indent=1)
        write_file(output / "compare.json", text + "\n")
    except (ValueError, OSError) as error:
        show(f"error: {error}", error=True)
        return 2
    for note in notes:
        show(f"note: {note}", error=True)
    show(comparison_table(comparison))
    show(f"written: {output / 'compare.json'}")
    try:
        from fission_grpo.report.charts import draw_comparison

        write_file(output / "compare.svg", draw_comparison(comparison))
    except ImportError as error:
        show(f"no picture: it needs matplotlib ({error}); {install_line('matplotlib')}")
    except OSError as error:
        show(f"error: {error}", error=True)
        return 2
    else:
        show(f"written: {output / 'compare.svg'}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(
        "fission-grpo compare",
        description="Compare two evaluations of the same cases, case by case. Refuses, with exit status 2, runs whose "
        "task sets, prompts or decoding differ.",
    )
    folder = "output directory of `fission-grpo eval`, with cases.jsonl and manifest.json"
    parser.add_argument("run_a", type=Path, metavar="RUN_A", help=folder)
    parser.add_argument("run_b", type=Path, metavar="RUN_B", help="another one; differences are B minus A")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where to write (default: RUN_B/compare)")
    return parser
