"""`fission-grpo report RUN_DIR`: one self-contained HTML page of a run, or of several arms, with its charts as PNGs.

The page has no scripts and asks no other machine for anything; texts of rollouts are escaped (see `gallery`).
"""

from __future__ import annotations

import argparse
import base64
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fission_grpo.curves import BUFFER, LEARNING, RECOVERY, REWARDS
from fission_grpo.gallery import escape, gallery
from fission_grpo.headline import headline, headline_rows
from fission_grpo.json_lines import RunFileError
from fission_grpo.plots import FAMILIES, TOKENS, Chart, arm_colors, draw_curves, draw_error_kinds, family
from fission_grpo.run_files import Instance, Run, read_runs

DEFINITIONS = (
    (
        "Success",
        "share of tasks (table) or of explore rollouts (charts) that end solved, as the task's judge decides.",
    ),
    ("Error case", "a rollout in which at least one tool call came back with an error."),
    ("Error recovery rate", "of the error cases, the share that still ends in success."),
    ("95% interval", "where the rate plausibly lies given the number of tasks; it says nothing about other seeds."),
    ("Generated tokens", "tokens the policy sampled in training so far, explore and recover cycles together."),
    ("Explore cycle", "rollouts of tasks from the data set; failures are diagnosed and pushed to the buffer."),
    ("Recover cycle", "rollouts of recovery tasks from the buffer: the failed turn, its feedback, try again."),
    ("Corrective instance", "one failure with its feedback, as a task of its own."),
    ("Improved", "retried, and at least one recovery was rewarded above the failed rollout."),
    ("Recovery rate", "share of a recover cycle's rollouts that succeed."),
    ("Zero variance", "a group whose rewards are all equal; its advantages are 0 and it teaches nothing."),
    (
        "Moving average",
        "centred, over a tenth of the run and at least 5 log rows; recovery rates weigh by error cases.",
    ),
    ("Rescued group", "an explore group without variance whose failure later gave a recovery group with variance."),
    ("Age", "optimizer steps from a failure to its retry."),
    ("Leak", "feedback that would have given the reference answer away; it was replaced before training."),
)


def write_report(run_dir: str | Path, output: str | Path | None = None) -> Path:
    """Write `report.html` and its PNGs to `output` (default: `RUN_DIR/report`) and return the page's path.

    `run_dir` is a run directory or a directory of several (arms). Raises RunFileError (a ValueError) naming file,
    line and field where there is nothing to read or it is broken, and ImportError without matplotlib.
    """
    run_dir = Path(run_dir)
    runs = read_runs(run_dir)
    folder = run_dir / "report" if output is None else Path(output)
    rows = headline_rows(runs)
    trained = sorted((run for run in runs if run.log_history), key=lambda run: FAMILIES.index(family(run.name)))
    colors = arm_colors([run.name for run in trained])
    # An arm and its evaluation may be named differently ("fission", "Fission-GRPO"): each gets its family's colour.
    row_colors = arm_colors([row.label for row in rows])
    sections = [
        ("Learning", draw_curves(trained, LEARNING, colors)),
        ("Recover cycles", draw_curves(trained, RECOVERY, colors)),
        ("Buffer", draw_curves(trained, BUFFER, colors)),
        ("Errors", draw_error_kinds(trained)),
        ("Reward", draw_curves(trained, REWARDS, colors)),
    ]
    sections = [(title, charts) for title, charts in sections if charts]
    page = _page(run_dir.resolve().name, runs, headline(rows, row_colors), sections)
    folder.mkdir(parents=True, exist_ok=True)
    for _, charts in sections:
        for chart in charts:
            (folder / f"{chart.stem}.png").write_bytes(chart.png)
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8", errors="replace")
    return path


def report_command(argv: list[str] | None = None) -> int:
    """The `report` command; prints the page's path. Returns 0, or 1 after saying on stderr what is wrong."""
    parser = argparse.ArgumentParser("fission-grpo report", description="Write an HTML report of a training run.")
    parser.add_argument("run_dir", metavar="RUN_DIR", help="a run's output_dir, or a directory of several (arms)")
    parser.add_argument("--output", metavar="DIR", help="where to write report.html and the PNGs (RUN_DIR/report)")
    args = parser.parse_args(argv)
    try:
        path = write_report(args.run_dir, args.output)
    except RunFileError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except ImportError as error:
        print(f"error: the report needs matplotlib ({error}); pip install 'fission-grpo[report]'", file=sys.stderr)
        return 1
    print(path)
    return 0


def _page(name: str, runs: Sequence[Run], table: str, sections: Sequence[tuple[str, list[Chart]]]) -> str:
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    with_instances = [run for run in runs if run.instances]
    outcomes = "".join(_outcomes(run, titled=len(with_instances) > 1) for run in with_instances)
    titles = [title for title, _ in sections] + (["Corrective instances"] if outcomes else []) + ["Gallery"]
    links = "".join(f'<a href="#{_anchor(title)}">{title}</a>' for title in [*titles, "What the numbers mean"])
    charts = "".join(_heading(t) + f'<div class="charts">{"".join(map(_figure, c))}</div>' for t, c in sections)
    notes = "".join(f"<p>{escape(note)}</p>" for run in runs for note in run.notes)
    notes = f'<div class="notes">{notes}</div>' if notes else ""
    if outcomes:
        outcomes = _heading("Corrective instances") + outcomes
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
        f"<title>{escape(name)}: Fission-GRPO report</title>\n<style>\n{style}</style></head>\n"
        f'<body><main class="page"><header><p class="eyebrow">Fission-GRPO report</p><h1>{escape(name)}</h1>'
        f'<p class="soft facts">{escape(_facts(runs))}</p><nav>{links}</nav></header>\n'
        f"{table}{notes}\n{charts}\n{outcomes}\n"
        f"{_heading('Gallery')}\n{gallery(runs)}\n"
        f"<footer>{_heading('What the numbers mean')}<dl>"
        + "".join(f"<div><dt>{word}</dt><dd>{meaning}</dd></div>" for word, meaning in DEFINITIONS)
        + "</dl></footer></main></body></html>\n"
    )


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def _heading(title: str) -> str:
    return f'<h2 id="{_anchor(title)}">{title}</h2>'


def _figure(chart: Chart) -> str:
    data = base64.b64encode(chart.png).decode("ascii")
    caption = escape(chart.caption)
    alt = escape(f"{chart.title}. {chart.caption}")
    return (
        f'<figure class="card"><img src="data:image/png;base64,{data}" alt="{alt}" width="928" height="592">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _facts(runs: Sequence[Run]) -> str:
    trained = [run for run in runs if run.log_history]
    parts = [f"{len(trained)} arms: {', '.join(run.name for run in trained)}"] if len(trained) > 1 else []
    last = max((row.get("step", 0.0) for run in trained for row in run.log_history), default=0.0)
    tokens = max((row.get(TOKENS, 0.0) for run in trained for row in run.log_history), default=0.0)
    parts += [f"{last:,.0f} steps"] if last else []
    parts += [f"{tokens:,.0f} generated tokens"] if tokens else []
    return " · ".join([*parts, f"written {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"])


def _outcomes(run: Run, titled: bool) -> str:
    """Tiles and a table by error kind: how many instances were pushed, and what became of them."""
    items = run.instances
    retried = [item for item in items if item.retried_at is not None]
    improved = [item for item in retried if item.improved]
    dropped = [item for item in items if item.retried_at is None and item.dropped is not None]
    tiles = [
        (len(items), "pushed to the buffer"),
        (len(retried), "retried in a recover cycle"),
        (_share(len(improved), len(retried)), "of the retried improved on the failure"),
        (len(items) - len(retried) - len(dropped), "still waiting at the end"),
        (len(dropped), "dropped, too old or no room"),
        (sum(item.leaked for item in items), "leaking diagnoses not used"),
    ]
    steps = [row["step"] for row in run.log_history if "fission/phase" in row and "step" in row]
    if any("fission/rescued_groups" in row for row in run.log_history) and len(set(steps)) == max(steps, default=0):
        rescued = sum(row.get("fission/rescued_groups", 0.0) for row in run.log_history)
        tiles.append((round(rescued), "groups rescued"))  # a sum only makes sense where every step was logged
    cells = "".join(f'<div class="card tile"><b>{value}</b><span>{what}</span></div>' for value, what in tiles)
    title = f"<h3>{escape(run.name)}</h3>" if titled else ""
    return f'{title}<div class="tiles">{cells}</div>{_by_kind(items)}{_in_vain(items)}'


def _by_kind(items: Sequence[Instance]) -> str:
    rows = []
    for kind, pushed in Counter(item.kind for item in items).most_common():
        retried = [item for item in items if item.kind == kind and item.retried_at is not None]
        improved = sum(item.improved for item in retried)
        rows.append((kind.replace("_", " "), pushed, len(retried), _share(improved, len(retried))))
    return _table(("Error kind", "Pushed", "Retried", "Improved"), rows)


def _in_vain(items: Sequence[Instance]) -> str:
    """How often which source of diagnoses was asked in vain, and why; nothing if none was."""
    reasons = Counter(one for item in items if item.fallback for one in item.fallback.split("; "))
    rows = [(reason, times, _share(times, len(items))) for reason, times in reasons.most_common()]
    return _table(("Diagnosis asked in vain", "Times", "Of all pushed"), rows) if rows else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table whose first column is text and whose others are numbers."""
    body = []
    for first, *numbers in rows:
        cells = zip(head[1:], numbers, strict=True)
        told = "".join(f'<td class="n" data-label="{label}">{value}</td>' for label, value in cells)
        body.append(f'<tr><td class="arm">{escape(str(first))}</td>{told}</tr>')
    titles = "".join(f'<th class="n">{label}</th>' for label in head[1:])
    return (
        f'<div class="card table"><table><thead><tr><th>{head[0]}</th>{titles}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _share(part: int, whole: int) -> str:
    """`_share(1, 8)` is 12.5%; of nothing, a dash."""
    return f"{100 * part / whole:.1f}%" if whole else "\u2013"
