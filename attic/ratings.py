"""Diagnoses rated by people: a blind sheet for each rater, read back with the place of every bad cell.

The sheet is a CSV file that any spreadsheet opens. Which source said what stands in a key file beside it alone.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fission_grpo.chat import render_call
from fission_grpo.evaluation.rates import Share
from fission_grpo.simulator.kappa import kappa
from fission_grpo.simulator.prompt import failure_text
from fission_grpo.simulator.quality import Said, share
from fission_grpo.task_rows import TaskFileError

QUESTIONS = ("leaks", "plausible", "helpful")
"""Asked of every diagnosis: does it give the answer away; could a runtime have said it; would it help."""
COLUMNS = ("id", "dialogue", "failed call", "correct call", "diagnosis", *(f"{name} (y/n)" for name in QUESTIONS))
LONGEST_DIALOGUE = 4_000
"""Longest dialogue with its tools in a sheet, in characters; older messages and other tools are left out. [ours]"""
NAMED = 10
"""Most bad cells a message names. [ours]"""

_YES, _NO = frozenset({"y", "yes", "1", "true"}), frozenset({"n", "no", "0", "false"})
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class Agreement:
    """What raters said to one question.

    Args:
        question: one of `QUESTIONS`.
        items: rows that all raters answered; further numbers but `yes` are of these.
        kappa: Cohen's of two raters, Fleiss' of more, None of one or where chance alone would agree fully.
        interval: 95%, over rows.
        agreed: rows to which all said the same.
        yes: of each rater, rows answered with yes, in the order of the sheets.
        by_source: of each source in the key, answers of yes of all raters; empty without a key.
        disputed: ids of rows to which not all said the same.
    """

    question: str
    items: int
    kappa: float | None
    interval: tuple[float, float] | None
    agreed: Share
    yes: tuple[Share, ...]
    by_source: Mapping[str, Share]
    disputed: tuple[str, ...]


Sheet = Mapping[str, Mapping[str, bool]]
"""Per row's id, the answers given, by question."""


def key_path(sheet: Path) -> Path:
    """The file that tells which source said what in a sheet: `sheet.key.json` for `sheet.csv`."""
    return sheet.with_suffix(".key.json")


def export_sheet(path: Path, said: Sequence[Said], names: Sequence[str], seed: int = 0) -> int:
    """Write a sheet and its key.

    Args:
        path: of the CSV file.
        said: diagnoses; those without a text are left out.
        names: of the sources under test, one for each of `said`.
        seed: of the order of the rows.

    Returns:
        int: rows written.

    Raises:
        ValueError: there is nothing to rate.
    """
    rows = [(one, name) for one, name in zip(said, names, strict=True) if one.text]
    if not rows:
        raise ValueError("none of the sources said anything of these instances, so there is nothing to rate")
    random.Random(seed).shuffle(rows)
    key: dict[str, dict[str, str]] = {}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8-sig", newline="") as file:  # the mark tells spreadsheets that it is UTF-8
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for number, (one, name) in enumerate(rows, start=1):
            identity = f"r{number:04d}"
            key[identity] = {"instance": one.instance.id, "source": name}
            failure = one.instance.failure
            correct = "\n".join(map(render_call, failure.reference or ())) or "none: no call is needed"
            shown = failure_text(failure, LONGEST_DIALOGUE).partition("# Failed turn")[0].strip()
            cells = (identity, shown, failure.turns[-1].text, correct, one.text or "", *[""] * len(QUESTIONS))
            writer.writerow(map(_cell, cells))
    key_path(path).write_text(json.dumps(key, indent=1) + "\n", encoding="utf-8")
    return len(rows)


def read_sheet(path: Path) -> Sheet:
    """Read a rater's answers: y, yes, n or no, in any case; an empty cell is no answer.

    Raises:
        TaskFileError: no such file, missing columns, equal ids, or cells that are no answer; these are named by file,
            row (line of the table, from 1 for the header, as spreadsheets count) and column.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise TaskFileError(f"{path}: cannot be read ({error}); give a CSV file in UTF-8 of `rate export`") from None
    delimiter = ";" if text.partition("\n")[0].count(";") > text.partition("\n")[0].count(",") else ","
    table = list(csv.reader(text.splitlines(keepends=True), delimiter=delimiter))
    head = [name.strip() for name in table[0]] if table else []
    wanted = ["id", *(f"{name} (y/n)" for name in QUESTIONS)]
    if missing := [name for name in wanted if name not in head]:
        raise TaskFileError(f"{path}, row 1: no column {', '.join(missing)}; keep the columns of `rate export`")
    found: dict[str, dict[str, bool]] = {}
    bad: list[str] = []
    for number, cells in enumerate(table[1:], start=2):
        if not any(cell.strip() for cell in cells):
            continue
        row = dict(zip(head, [*cells, *[""] * len(head)], strict=False))
        identity = row["id"].strip()
        if not identity or identity in found:
            bad.append(f"row {number}, column 'id': {identity!r} is {'there already' if identity else 'empty'}")
            continue
        found[identity] = {}
        for question in QUESTIONS:
            column, said = f"{question} (y/n)", row[f"{question} (y/n)"].strip().casefold()
            if said in _YES | _NO:
                found[identity][question] = said in _YES
            elif said:
                bad.append(f"row {number}, column '{column}': {said!r} is neither y nor n")
    if bad:
        more = f"\n  and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
        raise TaskFileError(f"{path}: mend these cells:\n  " + "\n  ".join(bad[:NAMED]) + more)
    return found


def read_key(path: Path) -> Mapping[str, str]:
    """The source of each row by its id, from a key file. Raises TaskFileError for one that is broken."""
    try:
        return {identity: str(row["source"]) for identity, row in json.loads(path.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise TaskFileError(f"{path}: is no key of `rate export` ({error}); give the one written beside it") from None


def agreements(sheets: Sequence[Sheet], sources: Mapping[str, str] | None = None) -> list[Agreement]:
    """What raters said, question by question.

    Args:
        sheets: one for each rater.
        sources: of the rows, by id (`read_key`).

    Raises:
        ValueError: the sheets hold different rows.
    """
    ids = list(sheets[0])
    for number, sheet in enumerate(sheets[1:], start=2):
        if other := sorted(sheet.keys() ^ sheets[0].keys()):
            few = ", ".join(other[:NAMED]) + (", ..." if len(other) > NAMED else "")
            raise ValueError(f"sheet {number} does not hold the rows of sheet 1 ({few} are in one alone)")
    return [_agreement(question, sheets, ids, sources or {}) for question in QUESTIONS]


def _agreement(question: str, sheets: Sequence[Sheet], ids: Sequence[str], sources: Mapping[str, str]) -> Agreement:
    whole = {
        one: [sheet[one][question] for sheet in sheets]
        for one in ids
        if all(question in sheet[one] for sheet in sheets)
    }
    disputed = tuple(one for one, answers in whole.items() if len(set(answers)) > 1)
    value, interval = kappa(list(whole.values())) if len(sheets) > 1 else (None, None)
    given = [[sheet[one][question] for one in ids if question in sheet[one]] for sheet in sheets]
    by_source: dict[str, list[bool]] = {}
    for sheet in sheets:
        for one in ids:
            if one in sources and question in sheet[one]:
                by_source.setdefault(sources[one], []).append(sheet[one][question])
    return Agreement(
        question,
        len(whole),
        value,
        interval,
        share(len(whole) - len(disputed), len(whole)),
        tuple(share(sum(answers), len(answers)) for answers in given),
        {name: share(sum(answers), len(answers)) for name, answers in sorted(by_source.items())},
        disputed,
    )


def _cell(text: str) -> str:
    """Text that no spreadsheet takes for a formula: a model wrote it, and formulas can fetch and send."""
    return "'" + text if text.startswith(_FORMULA) else text
