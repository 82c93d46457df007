"""`fission-grpo report RUN_DIR`: an HTML page about one or several training runs, with its charts as PNG files.

The page contains its styles and images, no script and no link to another page. Texts of rollouts are escaped.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fission_grpo.core.errors import RunFileError
from fission_grpo.core.files import write_file
from fission_grpo.core.install import install_line
from fission_grpo.core.terminal import ArgumentParser, printable, show
from fission_grpo.report.charts import FAMILIES, TOKENS, Chart, arm_colors, draw_curves, draw_error_kinds, family
from fission_grpo.report.run import Evaluation, RecoveryRecord, Run, read_runs

MAX_RECORDS = 30  # corrective instances on a page [ours]
MAX_CHARACTERS = 1600  # of one text on a page [ours]
SAME_COST = 0.05  # largest relative difference of generated tokens at equal cost [ours]


def report_command(argv: list[str] | None = None) -> int:
    """Run `fission-grpo report` and print the page's path. Returns 0, or 1 after an error message on stderr."""
    parser = ArgumentParser("fission-grpo report", description="Write an HTML report of a training run.")
    parser.add_argument("run_dir", metavar="RUN_DIR", help="a run's output_dir, or a directory of several")
    parser.add_argument("--output", metavar="DIR", help="where to write report.html and the PNGs (RUN_DIR/report)")
    args = parser.parse_args(argv)
    try:
        show(write_report(args.run_dir, args.output))
    except (RunFileError, OSError) as error:
        show(f"error: {error}", error=True)
        return 1
    except ImportError as error:
        show(f"error: the report needs {error.name}; {install_line(error.name)}", error=True)
        return 1
    return 0


def write_report(run_dir: str | Path, output: str | Path | None = None) -> Path:
    """Write `report.html` and its PNGs to a folder, `RUN_DIR/report` by default, and return the page's path.

    Args:
        run_dir: a run folder, or a folder of several.
        output: another folder to write to.

    Raises:
        RunFileError: there is no run, or a file is damaged; names file, line and field.
        ImportError: matplotlib or jinja2 is not installed.
    """
    run_dir = Path(run_dir)
    runs = read_runs(run_dir)
    folder = run_dir / "report" if output is None else Path(output)
    trained = sorted((run for run in runs if run.log_history), key=lambda run: FAMILIES.index(family(run.name)))
    curves = draw_curves(trained)
    error_kinds = draw_error_kinds(trained)
    page = render_page(run_dir.resolve().name, runs, curves, error_kinds)
    for chart in [*curves, *error_kinds]:
        write_file(folder / f"{chart.stem}.png", chart.png)
    path = folder / "report.html"
    write_file(path, page)
    return path


def render_page(name: str, runs: Sequence[Run], curves: Sequence[Chart] = (), kinds: Sequence[Chart] = ()) -> str:
    """Return the page as HTML, with charts of metrics (`curves`) and of error kinds."""
    from jinja2 import FileSystemLoader
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    loader = FileSystemLoader(Path(__file__).parent)  # our own template; texts of runs are values only
    environment = ImmutableSandboxedEnvironment(loader=loader, autoescape=True, finalize=_printable)
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode("ascii")
    headline = latest_evaluations(runs)
    log = [row for run in runs for row in run.log_history]
    return environment.get_template("page.html").render(
        name=name,
        steps=max((row.get("step", 0.0) for row in log), default=0.0),
        tokens=max((row.get(TOKENS, 0.0) for row in log), default=0.0),
        written=datetime.now(UTC),
        summary=summarize_difference(headline),
        headline=headline,
        colors=arm_colors(headline),
        curves=curves,
        error_kinds=kinds,
        runs=runs,
        max_records=MAX_RECORDS,
        max_characters=MAX_CHARACTERS,
        count_kinds=count_kinds,
        count_rejected=count_rejected,
        pick_evenly=pick_evenly,
        distinct_recoveries=distinct_recoveries,
    )


def latest_evaluations(runs: Sequence[Run]) -> dict[str, Evaluation]:
    """Return the last evaluation of each name, in the order of FAMILIES.

    Different evaluations of the same name in several runs get the run's name in parentheses.
    """
    newest = {(run.name, evaluation.name): evaluation for run in runs for evaluation in run.evaluations}
    by_name: dict[str, dict[Evaluation, str]] = {}
    for (run_name, name), evaluation in newest.items():
        by_name.setdefault(name, {}).setdefault(evaluation, run_name)
    labelled = {
        name if len(same) == 1 else f"{name} ({run_name})": evaluation
        for name, same in by_name.items()
        for evaluation, run_name in same.items()
    }
    return dict(sorted(labelled.items(), key=lambda item: FAMILIES.index(family(item[0]))))


def summarize_difference(headline: Mapping[str, Evaluation]) -> str:
    """Compare Fission-GRPO with GRPO in words, if there is one evaluation of each."""
    fission = [evaluation for label, evaluation in headline.items() if family(label) == "fission"]
    grpo = [evaluation for label, evaluation in headline.items() if family(label) == "grpo"]
    if not headline:
        return "No held-out evaluation yet: eval.jsonl is missing or empty."
    if len(fission) != 1 or len(grpo) != 1:
        return "Held-out tasks, last evaluation of each policy, with 95% intervals."
    ours, theirs = fission[0], grpo[0]
    text = "On held-out tasks, Fission-GRPO against GRPO: success "
    text += _difference(ours.success, theirs.success, ours.success_ci, theirs.success_ci)
    if ours.recovery_rate is not None and theirs.recovery_rate is not None and ours.recovery_ci and theirs.recovery_ci:
        difference = _difference(ours.recovery_rate, theirs.recovery_rate, ours.recovery_ci, theirs.recovery_ci)
        text += f"; error recovery {difference}"
    tokens = ours.generated_tokens, theirs.generated_tokens
    apart = (max(tokens) - min(tokens)) / max(*tokens, 1)
    if apart > SAME_COST:
        text += f". Their generated tokens differ by {100 * apart:.0f}%, so this is not a comparison at equal cost"
    return text + "."


def _difference(ours: float, theirs: float, our_ci: tuple[float, float], their_ci: tuple[float, float]) -> str:
    points = 100 * (ours - theirs)
    sign = "+" if points > 0 else "\u2212" if points < 0 else "\u00b1"
    overlap = our_ci[0] <= their_ci[1] and their_ci[0] <= our_ci[1]
    return f"{sign}{abs(points):.1f} points (intervals {'overlap' if overlap else 'apart'})"


def pick_evenly(records: Sequence[RecoveryRecord], limit: int) -> list[RecoveryRecord]:
    """Pick records evenly over training, retried ones if there are any: of seven, three are numbers 0, 3 and 6."""
    retried = [record for record in records if record.retried_at is not None]
    pool = sorted(retried, key=lambda record: record.retried_at or 0) or records
    last = min(len(pool), max(limit, 1)) - 1
    return [pool[round(i * (len(pool) - 1) / max(last, 1))] for i in range(last + 1)]


def distinct_recoveries(record: RecoveryRecord) -> list[tuple[str, float | None, int]]:
    """Return the distinct recoveries as (text, reward, count), highest reward first."""
    counts = Counter(zip(record.completions, record.rewards, strict=True))
    found = [(text, reward, count) for (text, reward), count in counts.items()]
    return sorted(found, key=lambda item: (item[1] is None, -(item[1] or 0.0)))


def count_kinds(records: Sequence[RecoveryRecord]) -> list[tuple[str, int, int, int, int]]:
    """Count instances as (kind, pushed, retried, improved, dropped), for all kinds and for each."""
    rows = []
    for kind in ["", *(kind for kind, _ in Counter(record.kind for record in records).most_common())]:
        chosen = [record for record in records if kind in ("", record.kind)]
        retried = [record for record in chosen if record.retried_at is not None]
        dropped = sum(record.retried_at is None and record.dropped is not None for record in chosen)
        rows.append((kind, len(chosen), len(retried), sum(record.improved for record in retried), dropped))
    return rows


def count_rejected(records: Sequence[RecoveryRecord]) -> list[tuple[str, int]]:
    """Count how often each source of feedback was rejected, by reason."""
    reasons = [reason for record in records if record.fallback for reason in record.fallback.split("; ")]
    return Counter(reasons).most_common()


def _printable(value: Any) -> Any:
    return printable(value, keep="\n\t") if type(value) is str else value
