"""`fission-grpo report RUN_DIR`: an HTML page about training runs and evaluations, with its charts as SVG files.

The page contains its styles and charts, no script and no link to another page. Texts of rollouts are escaped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fission_grpo.core.errors import RunFileError
from fission_grpo.core.files import write_file
from fission_grpo.core.install import install_line
from fission_grpo.core.terminal import ArgumentParser, printable, show
from fission_grpo.core.timing import format_duration
from fission_grpo.evaluation.tables import metrics_rows
from fission_grpo.fission.health import check_health
from fission_grpo.report.charts import (
    FAMILIES,
    TOKENS,
    Chart,
    arm_colors,
    draw_comparison,
    draw_curves,
    draw_error_kinds,
    family,
    themed,
)
from fission_grpo.report.dialogue import case_dialogue, tell_recovery
from fission_grpo.report.evaluations import case_limit, describe_evaluations, latest_evaluations, summarize_evaluations
from fission_grpo.report.run import Evaluation, RecoveryRecord, Run, read_runs

MAX_RECORDS = 30  # corrective instances on a page [ours]
OPEN_RECORDS = 6  # of these, not folded [ours]
MAX_CHARACTERS = 1600  # of one text on a page [ours]
MAX_MESSAGES = 40  # of one case on a page [ours]

SETTINGS = {  # of a run: label on the page and name in the configuration
    "Method": "fission",
    "Rollouts per task (G)": "num_generations",
    "Rollouts per recovery (G\u2032)": "num_recovery_generations",
    "Rollouts per update": "rows_per_update",
    "Data set": "train_dataset",
    "Rewards": "reward_funcs",
    "Feedback": "feedback",
    "Learning rate": "learning_rate",
    "KL weight (beta)": "beta",
    "Loss": "loss_type",
    "Most steps": "max_steps",
    "Most generated tokens": "max_generated_tokens",
    "Temperature": "temperature",
    "Seed": "seed",
}


def report_command(argv: list[str] | None = None) -> int:
    """Run `fission-grpo report` and print the page's path. Returns 0, or 1 after an error message on stderr."""
    parser = ArgumentParser(
        "fission-grpo report", description="Write an HTML report of training runs and evaluations."
    )
    parser.add_argument(
        "run_dir", metavar="RUN_DIR", help="a run's output_dir, a directory of several, or the eval-NAME of one"
    )
    parser.add_argument("--output", metavar="DIR", help="where to write report.html and the charts (RUN_DIR/report)")
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
    """Write `report.html` and its charts to a folder, `RUN_DIR/report` by default, and return the page's path.

    Args:
        run_dir: a run folder, a folder of several, or the folder of one evaluation.
        output: another folder to write to.

    Raises:
        RunFileError: there is no run, or a file is damaged; names file, line and field.
        ImportError: matplotlib or jinja2 is not installed.
    """
    run_dir = Path(run_dir)
    runs = read_runs(run_dir, by_policy=True)
    folder = run_dir / "report" if output is None else Path(output)
    trained = sorted((run for run in runs if run.log_history), key=lambda run: FAMILIES.index(family(run.name)))
    curves = draw_curves(trained, _colors(runs))
    error_kinds = draw_error_kinds(trained)
    page = render_page(run_dir.resolve().name, runs, curves, error_kinds)
    for chart in [*curves, *error_kinds]:
        write_file(folder / f"{chart.stem}.svg", chart.svg)
    path = folder / "report.html"
    write_file(path, page)
    return path


def render_page(name: str, runs: Sequence[Run], curves: Sequence[Chart] = (), kinds: Sequence[Chart] = ()) -> str:
    """Return the page as HTML, with charts of metrics (`curves`) and of error kinds."""
    from jinja2 import FileSystemLoader
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from markupsafe import Markup

    loader = FileSystemLoader(Path(__file__).parent)  # our own template; texts of runs are values only
    environment = ImmutableSandboxedEnvironment(
        loader=loader, autoescape=True, finalize=_printable, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["chart"] = lambda svg: Markup(themed(svg))  # matplotlib escapes the labels in it
    environment.filters["theme"] = lambda color: f"var(--c-{color[1:]}, {color})"
    headline = latest_evaluations(runs)
    summary, comparison = summarize_evaluations(headline)
    details = describe_evaluations(headline)
    return environment.get_template("page.html").render(
        name=name,
        written=datetime.now(UTC),
        is_training=any(run.log_history or run.instances or run.description for run in runs),
        warnings={run.name: check_health(run.cycles) for run in runs if run.cycles},
        summary=summary,
        comparison=None if comparison is None else draw_comparison(comparison),
        headline=headline,
        details=details,
        passes={detail.label: detail.metrics.passes[-1] for detail in details if detail.metrics.passes},
        max_cases=case_limit(details),
        metrics_rows=metrics_rows,
        colors=_colors(runs),
        facts=describe_runs(runs),
        evaluated=describe_policies(headline),
        curves=curves,
        error_kinds=kinds,
        runs=runs,
        max_records=MAX_RECORDS,
        open_records=OPEN_RECORDS,
        max_characters=MAX_CHARACTERS,
        max_messages=MAX_MESSAGES,
        count_kinds=count_kinds,
        count_rejected=count_rejected,
        pick_evenly=pick_evenly,
        tell_recovery=tell_recovery,
        case_dialogue=case_dialogue,
    )


def _colors(runs: Sequence[Run]) -> dict[str, str]:
    return arm_colors([*latest_evaluations(runs), *(run.name for run in runs)])


def describe_runs(runs: Sequence[Run]) -> dict[str, dict[str, list[str]]]:
    """What was run, as label -> value -> names of the runs with it. Runs of earlier releases say nothing."""
    facts: dict[str, dict[str, list[str]]] = {}
    for run in runs:
        for label, value in _run_facts(run).items() if "settings" in run.description else ():
            if value not in (None, "", "None", "[]"):
                facts.setdefault(label, {}).setdefault(str(value), []).append(run.name)
    return facts


def _run_facts(run: Run) -> dict[str, Any]:
    described = run.description
    settings, versions = described.get("settings"), described.get("versions")
    settings = settings if isinstance(settings, Mapping) else {}
    steps, tokens, seconds = (
        max((row[key] for row in (*run.log_history, *run.cycles) if key in row), default=0.0)
        for key in ("step", TOKENS, "train_runtime")
    )
    found = {label: settings.get(name) for label, name in SETTINGS.items()}
    found["Method"] = {True: "Fission-GRPO", False: "GRPO"}.get(settings.get("fission"))  # pyright: ignore
    found["Most steps"] = found["Most steps"] if (found["Most steps"] or 0) > 0 else None
    found["Most generated tokens"] = found["Most generated tokens"] or None
    for label, value in found.items():
        found[label] = ", ".join(map(str, value)) if isinstance(value, list) else value
    parameters, count = described.get("parameters"), described.get("processes")
    processes = f"{count} processes" if count not in (None, 1) else ""
    size = f" ({parameters:,} parameters)" if isinstance(parameters, int) else ""
    done = [f"{steps:,.0f} steps"] if steps else []  # without a log nobody knows
    done += [f"{tokens:,.0f} generated tokens"] if tokens else []
    return {
        "Command": described.get("command"),
        "Model": f"{described.get('model') or '(no name)'}{size}",
        "Tasks": described.get("tasks"),
        **found,
        "Done": ", ".join(done + ([f"{format_duration(seconds)} since the start or resume"] if seconds else [])),
        "Machine": ", ".join(str(part) for part in (described.get("device"), processes) if part),
        "Versions": ", ".join(f"{k} {v}" for k, v in versions.items()) if isinstance(versions, Mapping) else None,
    }


def describe_policies(headline: Mapping[str, Evaluation]) -> dict[str, dict[str, list[str]]]:
    """What was evaluated, in the form of `describe_runs`, from the manifests of the evaluations."""
    facts: dict[str, dict[str, list[str]]] = {}
    for label, evaluation in headline.items():
        if evaluation.cases is None:
            continue
        manifest = evaluation.cases.manifest
        kind, count = manifest.tasks.get("kind"), manifest.tasks.get("count")
        different = len({record.of_task for record in evaluation.cases.records})
        sampled = f"{count} samples of {different} tasks"
        values = {"Model": manifest.policy.get("model"), "Endpoint": manifest.policy.get("url")}
        values["Tasks"] = f"{kind}, {f'{count} tasks' if evaluation.samples == 1 else sampled}"
        for name, value in manifest.tasks.items():
            if name not in ("kind", "count", "samples", "sha256", "code"):  # the environment, its reward, `success_at`
                shown = ", ".join(map(str, value)) if isinstance(value, list) else value
                values[name.replace("_", " ").capitalize()] = shown
        parts = {"Prompt": manifest.prompt, "Sampling": manifest.decoding, "Versions": manifest.versions}
        for name, part in parts.items():
            shown = ((key.replace("_", " "), value) for key, value in part.items() if "sha256" not in key)
            values[name] = ", ".join(f"{key} {value}" for key, value in shown)
        for name, value in values.items():
            if value not in (None, ""):
                facts.setdefault(name, {}).setdefault(str(value), []).append(label)
    return facts


def pick_evenly(records: Sequence[RecoveryRecord], limit: int) -> list[RecoveryRecord]:
    """Pick records evenly over training, retried ones if there are any: of seven, three are numbers 0, 3 and 6."""
    retried = [record for record in records if record.retried_at is not None]
    pool = sorted(retried, key=lambda record: record.retried_at or 0) or records
    last = min(len(pool), max(limit, 1)) - 1
    return [pool[round(i * (len(pool) - 1) / max(last, 1))] for i in range(last + 1)]


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
