"""`fission-grpo simulator rate export|import`: sheets for people to rate diagnoses, and their agreement."""

from __future__ import annotations

import argparse
import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fission_grpo.evaluation.rates_table import aligned, share_row
from fission_grpo.simulator.chosen import FORMS, closing, sources_from
from fission_grpo.simulator.instances import TEST, load_instances
from fission_grpo.simulator.quality import Said, ask_all, drawn
from fission_grpo.simulator.ratings import (
    QUESTIONS,
    Agreement,
    agreements,
    export_sheet,
    key_path,
    read_key,
    read_sheet,
)

DISPUTED = 20
"""Most rows the raters disagree on that are listed for a question. [ours]"""


def rate_command(argv: list[str]) -> int:
    """Write a sheet, or read sheets back. Returns 0, or 1 after saying on stderr what to mend."""
    arguments = _parser().parse_args(argv)
    try:
        print(_export(arguments) if arguments.action == "export" else _import(arguments))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        print(f"error: this needs {error.name}; pip install 'fission-grpo[train,endpoint]'", file=sys.stderr)
        return 1
    return 0


def _export(arguments: Namespace) -> str:
    file = arguments.data / TEST if arguments.data.is_dir() else arguments.data
    instances = load_instances(file)
    chosen = drawn(instances, -(-arguments.count // len(arguments.source)), arguments.seed)
    said: list[Said] = []
    names: list[str] = []
    for spec in arguments.source:
        diagnoses = {one.id: one.diagnosis for one in instances}
        with closing(sources_from(spec, arguments.url, diagnoses=diagnoses)) as chain:
            for source in chain:
                source.check()
            said += ask_all(chain, chosen)
        names += [spec] * len(chosen)
    rows = export_sheet(arguments.output, said, names, arguments.seed)
    return (
        f"written: {arguments.output}, {rows:,} diagnoses of {len(chosen):,} failures in random order; "
        f"{key_path(arguments.output)} tells the sources, keep it from the raters.\n"
        f"Give each rater a copy; fill in y or n under {', '.join(QUESTIONS)}; then `rate import COPY COPY ...`"
    )


def _import(arguments: Namespace) -> str:
    sheets = [read_sheet(path) for path in arguments.sheets]
    found = agreements(sheets, read_key(arguments.key) if arguments.key else None)
    if arguments.output:
        text = json.dumps([_json(one) for one in found], ensure_ascii=False, indent=1)
        arguments.output.write_text(text + "\n", encoding="utf-8")
    return agreement_text(found, [str(path) for path in arguments.sheets])


def agreement_text(found: Sequence[Agreement], sheets: Sequence[str]) -> str:
    """Rates, kappa and the rows the raters disagree on, as plain text."""
    rows: list[tuple[str, ...]] = []
    for one in found:
        rows.append((f"{one.question}: {one.items:,} rows answered by all",))
        rows += [share_row(f"yes, {name}", answers, "rows") for name, answers in zip(sheets, one.yes, strict=True)]
        rows += [share_row(f"yes, of {name}", answers, "answers") for name, answers in one.by_source.items()]
        if len(sheets) > 1:
            rows.append(share_row("all the same", one.agreed, "rows"))
            ends = f"{one.interval[0]:.3f} to {one.interval[1]:.3f}" if one.interval else "-"
            whose = "Cohen's" if len(sheets) == 2 else "Fleiss'"
            shown = "-" if one.kappa is None else f"{one.kappa:.3f}"
            rows.append((f"{whose} kappa", shown, ends, "bootstrap over rows"))
            more = f" and {len(one.disputed) - DISPUTED:,} more" if len(one.disputed) > DISPUTED else ""
            rows.append(("disagreed on", "", "", (" ".join(one.disputed[:DISPUTED]) or "none") + more))
    return "\n".join(aligned(rows)).strip("\n")


def _json(one: Agreement) -> dict[str, Any]:
    return asdict(one)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of 1 or more, got {text!r}")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "fission-grpo simulator rate", description="Have people rate diagnoses, blind to their source."
    )
    actions = parser.add_subparsers(dest="action", required=True)
    exporting = actions.add_parser(
        "export",
        help="write a sheet",
        description="Write a CSV sheet of diagnoses in random order, and the key to their sources beside it.",
        epilog=f"sources:\n{FORMS}\nteacher: the diagnoses that the data holds",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    exporting.add_argument("--data", type=Path, required=True, help="folder (its test.jsonl) or file of instances")
    exporting.add_argument(
        "--source", action="append", required=True, metavar="SPEC", help="see below; may be given several times"
    )
    exporting.add_argument("--url", help="endpoint source: its base URL")
    exporting.add_argument("--count", type=_count, default=100, help="rows, of all sources together (default 100)")
    exporting.add_argument("--seed", type=int, default=0, help="of the choice and the order (default 0)")
    exporting.add_argument("--output", type=Path, required=True, metavar="SHEET.csv", help="the sheet to write")
    importing = actions.add_parser(
        "import",
        help="read filled sheets",
        description="Rates, agreement (Cohen's kappa of two raters, Fleiss' of more) and disputed rows.",
    )
    importing.add_argument("sheets", type=Path, nargs="+", metavar="SHEET.csv", help="one of each rater")
    importing.add_argument("--key", type=Path, help="of the export, for rates by source")
    importing.add_argument("--output", type=Path, metavar="FILE.json", help="write the numbers, too")
    return parser
