"""The evaluations of a run as a table in the README.md of its model."""

from __future__ import annotations

from pathlib import Path

from fission_grpo.core.files import Line, read_lines, write_file
from fission_grpo.core.terminal import get_logger

README, EVALUATIONS = "README.md", "eval.jsonl"
BEGIN, END = "<!-- evaluations -->", "<!-- end of evaluations -->"
"""Lines of a README around the table, which is written again after each evaluation."""

_HEAD = """\
| evaluation | tasks | training step | cases | success | cases with an error | recovered |
|---|---|---:|---:|---:|---:|---:|"""

_log = get_logger(__name__)


def evaluations_section(folder: Path) -> str:
    """Return the table of the evaluations in a run folder's `eval.jsonl`, between `BEGIN` and `END`.

    Of several lines with one name the last one counts. A file that cannot be read is logged and named in place of the
    table.
    """
    try:
        rows = {line.take("name", str): _row(line) for line in read_lines(folder / EVALUATIONS, [])}
    except (OSError, ValueError) as error:
        _log.warning("no evaluations in %s: %s", folder / README, error)
        return f"{BEGIN}\nThe evaluations could not be read.\n{END}"
    table = "\n".join([_HEAD, *rows.values()]) + "\n\nIn brackets: 95% intervals."
    return f"{BEGIN}\n{table if rows else 'None yet.'}\n{END}"


def update_readme(folder: Path) -> None:
    """Write the evaluations in a run folder into its README.md, if that has a place for them."""
    path = folder / README
    if not path.is_file():
        return
    before, begin, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if begin and end:
        write_file(path, before + evaluations_section(folder) + after)


def _row(line: Line) -> str:
    texts = line.take("name", str), line.take("of", str, optional=True) or ""
    name, of = (text.replace("|", r"\|").replace("\n", " ") for text in texts)
    samples = line.take("samples", int, optional=True) or 1
    step, tasks, errors, recovered = (line.take(key, int) for key in ("step", "tasks", "error_cases", "recovered"))
    success = _rate(line, "success", "success_ci")
    recovery = _rate(line, "recovery_rate", "recovery_ci")
    cases = f"{tasks}" if samples == 1 else f"{tasks}, {samples} of each task"
    return f"| {name} | {of} | {step} | {cases} | {success} | {errors} | {recovered}{recovery and f', {recovery}'} |"


def _rate(line: Line, name: str, interval: str) -> str:
    rate = line.take(name, (int, float), optional=True)
    if rate is None:
        return ""
    if line.record.get(interval) is None:  # a single task with several samples has none
        return f"{rate:.1%}"
    low, high = line.take_all(interval, (int, float))
    return f"{rate:.1%} [{100 * low:.1f}, {100 * high:.1f}]"
